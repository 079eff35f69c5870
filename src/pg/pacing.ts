/**
 * A walsender writes every message by itself, and wakes a waiting reader each time: that costs both more than the message.
 * So many bytes within so many ms are a burst; then the socket is left alone for a while after it was emptied, and fills.
 */
const BURST_BYTES = 32 * 1024;
const BURST_MS = 5;
/** A read counts as so many bytes besides: many small ones are a burst too. */
const READ_BYTES = 512;
/** Less than this for each ms of a pause, and the burst is over: of what is written just now, none must wait for more. */
const LEAST_BYTES = 2 * 1024;
/** A pause that gathers less is too short, one that gathers more is too long. */
const FEW_BYTES = 192 * 1024;
const MANY_BYTES = 768 * 1024;
const PAUSE_LEAST_MS = 4;
const PAUSE_MOST_MS = 16;

/** Decides how long a socket is left alone between reads. Times are ms of any monotonic clock. */
export class Pacing {
  #bursting = false;
  #pauseMs = PAUSE_LEAST_MS;
  #sinceMs = 0;
  #bytes = 0;
  #reads = 0;

  /** Whether the peer sends without a pause. */
  get bursting(): boolean {
    return this.#bursting;
  }

  /** A chunk came. */
  read(bytes: number, nowMs: number): void {
    if (!this.#bursting && nowMs - this.#sinceMs > BURST_MS) this.#begin(nowMs);
    this.#bytes += bytes;
    this.#reads++;
  }

  /** The socket is empty. How long to leave it alone, in ms; 0: it is read on at once. */
  emptied(): number {
    if (!this.#bursting) {
      if (this.#bytes + this.#reads * READ_BYTES < BURST_BYTES) return 0;
      this.#bursting = true;
      this.#pauseMs = PAUSE_LEAST_MS;
    } else if (this.#bytes < LEAST_BYTES * this.#pauseMs) {
      return 0;
    } else if (this.#bytes < FEW_BYTES) {
      this.#pauseMs = Math.min(PAUSE_MOST_MS, this.#pauseMs * 2);
    } else if (this.#bytes > MANY_BYTES) {
      this.#pauseMs = Math.max(PAUSE_LEAST_MS, this.#pauseMs / 2);
    }
    return this.#pauseMs;
  }

  /** The socket was left alone, and is read again. */
  paused(nowMs: number): void {
    this.#begin(nowMs);
  }

  /** The burst is over. */
  calm(): void {
    this.#bursting = false;
  }

  #begin(nowMs: number): void {
    this.#sinceMs = nowMs;
    this.#bytes = 0;
    this.#reads = 0;
  }
}
