// What the page says while there is no response, or if there will be none; and the dialog for the API key.

import { setApiKey } from "./api.js";
import { byId } from "./dom.js";

const sources = new Set(); // of requests that wait for a response

/** Show a status line until all sources have cleared theirs. */
export function showStatus(source, text) {
  sources.add(source);
  byId("status").textContent = text;
  byId("status").hidden = false;
}

export function clearStatus(source) {
  sources.delete(source);
  byId("status").hidden = sources.size === 0;
}

export function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
}

export function hideProblem() {
  byId("problem").hidden = true;
}

/** Why a request will be repeated, and when. */
export function retryText({ kind, detail, seconds }) {
  const retry = `Retrying in ${Math.ceil(seconds)} s.`;
  return kind === "busy" ? `The service is busy: ${detail}. ${retry}` : `The service cannot be reached. ${retry}`;
}

let pendingKey = null;

/** Ask the user for an API key, once for all requests that wait for it. Resolves to whether one was given. */
export function requestKey({ detail }) {
  byId("key-reason").textContent = `The service says: ${detail}.`;
  showStatus("key", "Waiting for an API key.");
  pendingKey ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const field = byId("api-key");
    dialog.addEventListener("close", () => {
      pendingKey = null;
      clearStatus("key");
      const key = field.value;
      field.value = "";
      if (key) setApiKey(key);
      resolve(Boolean(key));
    }, { once: true });
    dialog.showModal();
  });
  return pendingKey;
}
