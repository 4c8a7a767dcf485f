// One request at a time, and only the latest one waits: a newer request replaces the waiting one. So responses come in
// the order of their requests, and a slow service never gets more requests than it can answer.

import { RequestError } from "./api.js";

export class LatestRequest {
  #waiting = null;
  #controller = null; // of the running request

  /**
   * @param {(request, signal) => Promise} send
   * @param {{onResponse, onRetry, onRefusal, onUnauthorized}} handlers: `onResponse(request, response)`;
   *   `onRetry(error)` before the wait; `onRefusal(error, request)` for a final failure; `onUnauthorized(error)`
   *   returns a promise of whether there is a new key.
   */
  constructor(send, handlers) {
    this.send = send;
    this.handlers = handlers;
  }

  /** Send this request next, instead of the one that waits. */
  submit(request) {
    this.#waiting = request;
    if (!this.#controller) this.#run();
  }

  /** Abort the running request, and drop the one that waits. */
  cancel() {
    this.#waiting = null;
    this.#controller?.abort();
    this.#controller = null;
  }

  async #run() {
    while (this.#waiting) {
      const request = this.#waiting;
      const controller = new AbortController();
      this.#controller = controller;
      this.#waiting = null;
      try {
        const response = await this.send(request, controller.signal);
        if (this.#controller !== controller) return; // cancelled
        this.handlers.onResponse(request, response);
      } catch (error) {
        if (this.#controller !== controller) return;
        if (!(error instanceof RequestError)) {
          this.#controller = null;
          throw error;
        }
        const mustRetry = await this.#handle(error, request);
        if (this.#controller !== controller) return;
        if (mustRetry) this.#waiting ??= request;
      }
    }
    this.#controller = null;
  }

  async #handle(error, request) {
    if (error.kind === "unauthorized" && (await this.handlers.onUnauthorized(error))) return true;
    if (error.kind === "unauthorized" || error.kind === "refused") {
      this.handlers.onRefusal(error, request);
      return false;
    }
    this.handlers.onRetry(error);
    await new Promise((resolve) => setTimeout(resolve, 1000 * error.seconds));
    return true;
  }
}
