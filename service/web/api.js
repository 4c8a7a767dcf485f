// Requests to the public API. A failure becomes a RequestError that says what the page can do about it.

const SERVICE = new URL("..", import.meta.url);
const DEFAULT_RETRY_SECONDS = 2; // if the response has no Retry-After
const LARGE_BYTES = 2 ** 20;

let apiKey = "";

/** Send this key with each request. It is kept in memory only; the header carries it in UTF-8. */
export function setApiKey(text) {
  apiKey = String.fromCharCode(...new TextEncoder().encode(text));
}

/** `kind` is "refused" (final), "busy" (retry after `seconds`), "unauthorized" (a key is needed) or "offline". */
export class RequestError extends Error {
  constructor(kind, { title = "", detail = "", seconds = DEFAULT_RETRY_SECONDS } = {}) {
    super(detail);
    Object.assign(this, { kind, title, detail, seconds });
  }
}

/** Call the service and return its JSON. The body is a Blob (an image file) or bytes of an .npy file. */
export async function requestJson(path, { query = {}, body = null, signal = null } = {}) {
  const url = new URL(path, SERVICE);
  url.search = new URLSearchParams(query);
  const headers = {};
  if (apiKey) headers["X-API-Key"] = apiKey;
  // The service detects the format of an image file.
  if (body) headers["Content-Type"] = body instanceof Blob ? "application/octet-stream" : "application/x-npy";
  const request = { method: body ? "POST" : "GET", headers, body, signal };
  return fetchAndRead(url, request, (response) => response.json());
}

/** Load one of the page's own files. */
export async function loadFile(url, signal) {
  return fetchAndRead(url, { signal }, (response) => response.blob());
}

async function fetchAndRead(url, request, read) {
  let response;
  try {
    response = await fetch(url, { ...request, credentials: "omit" });
    if (response.ok) return await read(response);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw await connectionError(request);
  }
  throw await responseError(response);
}

/** Without a response: a service that is still reachable has closed the connection on a body that is too large. */
async function connectionError({ body, signal }) {
  const bytes = body?.size ?? body?.byteLength ?? 0;
  if (bytes < LARGE_BYTES) return new RequestError("offline");
  const isReachable = await fetch(new URL("livez", SERVICE), { signal }).then(() => true, () => false);
  if (!isReachable) return new RequestError("offline");
  const size = `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const detail = `the service closed the connection before all ${size} were sent: the file may be too large`;
  return new RequestError("refused", { title: "Upload failed", detail });
}

async function responseError(response) {
  const problem = await response.json().catch(() => ({}));
  const title = problem.title ?? `HTTP ${response.status}`;
  const detail = problem.detail ?? response.statusText;
  if (response.status === 401) return new RequestError("unauthorized", { title, detail });
  if (response.status === 429 || response.status === 503) {
    return new RequestError("busy", { title, detail, seconds: retryAfter(response.headers.get("Retry-After")) });
  }
  return new RequestError("refused", { title, detail });
}

/** Seconds to wait by a Retry-After header: a number or a date (RFC 9110, 10.2.3). */
function retryAfter(text) {
  if (!text) return DEFAULT_RETRY_SECONDS;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : DEFAULT_RETRY_SECONDS;
}
