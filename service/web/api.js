// The public API, and what it may answer instead: its own words, a key that is missing, silence.

const SERVICE = new URL("..", import.meta.url);
const OTHERWISE_SECONDS = 2; // until the next try, where nobody says

let key = "";

/** Send this key from now on; it is kept here and nowhere else. Header values are bytes: UTF-8, as the server reads it. */
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
  let response;
  try {
    response = await fetch(url, { method: body ? "POST" : "GET", headers, body: content, signal, credentials: "omit" });
    if (response.ok) return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("offline");
  }
  throw await refusal(response);
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
