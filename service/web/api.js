// The public API, and what it may answer instead: its own words, a key that is missing, silence.

const SERVICE = new URL("..", import.meta.url);
const OTHERWISE_SECONDS = 2; // until the next try, where nobody says
const LARGE_BYTES = 2 ** 20;

let key = "";

/** Send this key from now on; it is kept here and nowhere else. In the header it is UTF-8, as the server reads it. */
export function useKey(text) {
  key = String.fromCharCode(...new TextEncoder().encode(text));
}

/** Why there is no answer: `kind` is "refused" (for good), "busy" (try again in `seconds`), "key" or "offline". */
export class Problem extends Error {
  constructor(kind, { title = "", detail = "", seconds = OTHERWISE_SECONDS } = {}) {
    super(detail);
    Object.assign(this, { kind, title, detail, seconds });
  }
}

/** Ask the service, and take its JSON; a body is a Blob (any file) or what becomes JSON. */
export async function ask(path, { query = {}, body = null, signal = null } = {}) {
  const url = new URL(path, SERVICE);
  url.search = new URLSearchParams(query);
  const headers = {};
  if (key) headers["X-API-Key"] = key;
  let content = null;
  if (body instanceof Blob) {
    headers["Content-Type"] = "application/octet-stream"; // the service finds out for itself
    content = body;
  } else if (body) {
    headers["Content-Type"] = "application/json";
    content = JSON.stringify(body);
  }
  return fetched(url, { method: body ? "POST" : "GET", headers, body: content, signal }, (response) => response.json());
}

/** Take a file of the page. */
export async function load(url, signal) {
  return fetched(url, { signal }, (response) => response.blob());
}

async function fetched(url, request, read) {
  let response;
  try {
    response = await fetch(url, { ...request, credentials: "omit" });
    if (response.ok) return await read(response);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw await silence(request);
  }
  throw await refusal(response);
}

/** Why there was no answer at all: a service that is there hangs up on what is larger than it reads. */
async function silence({ body, signal }) {
  if (!(body instanceof Blob) || body.size < LARGE_BYTES) return new Problem("offline");
  const isThere = await fetch(new URL("livez", SERVICE), { signal }).then(() => true, () => false);
  if (!isThere) return new Problem("offline");
  const size = `${(body.size / 2 ** 20).toFixed(0)} MiB`;
  const detail = `the service hung up before all ${size} were sent: it may not take so much`;
  return new Problem("refused", { title: "Not sent", detail });
}

async function refusal(response) {
  const told = await response.json().catch(() => ({}));
  const title = told.title ?? `HTTP ${response.status}`;
  const detail = told.detail ?? response.statusText;
  if (response.status === 401) return new Problem("key", { title, detail });
  if (response.status === 429 || response.status === 503) {
    return new Problem("busy", { title, detail, seconds: retryAfter(response.headers.get("Retry-After")) });
  }
  return new Problem("refused", { title, detail });
}

/** Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3). */
function retryAfter(text) {
  if (!text) return OTHERWISE_SECONDS;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : OTHERWISE_SECONDS;
}
