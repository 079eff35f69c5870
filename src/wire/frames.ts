/** PostgreSQL allocates no message larger than 1 GiB, so whoever announces one does not speak its protocol. */
const MOST = 2 ** 30;

/**
 * Cuts a connection's bytes into the backend's messages (PostgreSQL, "Message Formats") with as few copies as possible:
 * a message that lies whole in one chunk is handed on in place; one that spans chunks is joined once.
 */
export class Frames {
  /** What came of a message that is not whole yet. */
  #parts: Buffer[] = [];
  #have = 0;
  #need = 5;
  /** Bytes received and not handed on because the reader asked to stop. */
  #rest: Buffer | undefined;

  /**
   * Hands each whole message in `chunk` to `onMessage` as (type byte, bytes, start and end of its body).
   * When `onMessage` returns false the rest is kept; {@link resume} goes on with it.
   * Returns false when it stopped. Throws `RangeError` for an impossible length.
   */
  push(chunk: Buffer, onMessage: OnMessage): boolean {
    if (this.#rest !== undefined) {
      this.#rest = Buffer.concat([this.#rest, chunk]);
      return false;
    }
    if (this.#have === 0) return this.#cut(chunk, onMessage);
    this.#parts.push(chunk);
    this.#have += chunk.length;
    if (this.#have < this.#need) return true;
    const joined = Buffer.concat(this.#parts, this.#have);
    this.#parts = [];
    this.#have = 0;
    return this.#cut(joined, onMessage);
  }

  /** Goes on after a stop. Returns false when it stopped again. */
  resume(onMessage: OnMessage): boolean {
    const rest = this.#rest;
    if (rest === undefined) return true;
    this.#rest = undefined;
    return this.#cut(rest, onMessage);
  }

  #cut(bytes: Buffer, onMessage: OnMessage): boolean {
    let at = 0;
    while (at + 5 <= bytes.length) {
      const length = bytes.readInt32BE(at + 1);
      if (length < 4 || length > MOST) throw new RangeError(`a message of ${length} bytes`);
      const end = at + 1 + length;
      if (end > bytes.length) {
        this.#keep(bytes.subarray(at), 1 + length);
        return true;
      }
      const from = at;
      at = end;
      if (!onMessage(bytes[from]!, bytes, from + 5, end)) {
        this.#rest = bytes.subarray(at);
        return false;
      }
    }
    if (at < bytes.length) this.#keep(bytes.subarray(at), 5);
    return true;
  }

  #keep(part: Buffer, need: number): void {
    this.#parts = [part];
    this.#have = part.length;
    this.#need = need;
  }
}

/** Takes one message; false asks to stop behind it. */
export type OnMessage = (type: number, bytes: Buffer, start: number, end: number) => boolean;
