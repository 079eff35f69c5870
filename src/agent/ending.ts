import type { CoregentError } from '../model/error.ts';

/**
 * The end of a session, whatever brings it. One wait at a time can be cut short by it.
 * Not `Promise.race` with one long-lived promise: that would keep every wait of the session in memory until its end.
 */
export class Ending {
  #error: CoregentError | undefined;
  #reject: ((error: CoregentError) => void) | undefined;

  /** Ends the session; the first error counts. */
  end(error: CoregentError): void {
    this.#error ??= error;
    this.#reject?.(this.#error);
  }

  /** Waits for `work`, but no longer than the session lasts. */
  async wait<T>(work: Promise<T>): Promise<T> {
    if (this.#error) {
      work.catch(() => {});
      throw this.#error;
    }
    try {
      return await new Promise<T>((resolve, reject) => {
        this.#reject = reject;
        work.then(resolve, reject);
      });
    } finally {
      this.#reject = undefined;
    }
  }
}
