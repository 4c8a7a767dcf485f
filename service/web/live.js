// The newest question only: one is on its way at a time, and what is asked meanwhile waits, each in the place of the
// last. So answers come in the order of their questions, and a slow service is never asked more than it can answer.

import { Problem } from "./api.js";

export class Live {
  #wanted = null;
  #current = null;

  /**
   * @param {(question, signal) => Promise} answer
   * @param {{show, wait, refuse, key}} tell: `show(question, answer)`; `wait(problem)` before the next try;
   *   `refuse(problem, question)`, for good; `key(problem)`, a promise of whether there is a new key.
   */
  constructor(answer, tell) {
    this.answer = answer;
    this.tell = tell;
  }

  /** Ask this next, instead of what is waiting. */
  ask(question) {
    this.#wanted = question;
    if (!this.#current) this.#work();
  }

  /** Forget what is being asked, and what is waiting. */
  drop() {
    this.#wanted = null;
    this.#current?.abort();
    this.#current = null;
  }

  async #work() {
    while (this.#wanted) {
      const question = this.#wanted;
      const current = new AbortController();
      this.#current = current;
      this.#wanted = null;
      try {
        const answer = await this.answer(question, current.signal);
        if (this.#current !== current) return; // dropped: another is at work
        this.tell.show(question, answer);
      } catch (problem) {
        if (this.#current !== current) return;
        if (!(problem instanceof Problem)) {
          this.#current = null;
          throw problem;
        }
        const isToBeAskedAgain = await this.#face(problem, question);
        if (this.#current !== current) return;
        if (isToBeAskedAgain) this.#wanted ??= question;
      }
    }
    this.#current = null;
  }

  async #face(problem, question) {
    if (problem.kind === "key" && (await this.tell.key(problem))) return true;
    if (problem.kind === "key" || problem.kind === "refused") {
      this.tell.refuse(problem, question);
      return false;
    }
    this.tell.wait(problem);
    await new Promise((go) => setTimeout(go, 1000 * problem.seconds));
    return true;
  }
}
