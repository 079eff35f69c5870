import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Frames are gathered in memory up to this many bytes before they are written. */
const WRITE_BYTES = 1 << 20;
const READ_BYTES = 1 << 20;
/** Length and subtransaction, four bytes each, ahead of every message. */
const HEADER = 8;

/**
 * The messages of one large transaction that the peer streams while it runs, kept in a file until its commit:
 * memory stays bounded, the peer neither spills nor waits, and nothing is applied that may yet be rolled back.
 * The file has no name from the moment it is open, so nothing is left behind however the process ends.
 */
export class Spool {
  readonly #file: number;
  readonly #aborted = new Set<number>();
  #buffer = Buffer.allocUnsafe(WRITE_BYTES);
  #filled = 0;
  #written = 0;

  constructor() {
    const folder = mkdtempSync(join(tmpdir(), 'coregent-spool-'));
    try {
      this.#file = openSync(join(folder, 'messages'), 'w+', 0o600);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }

  /** Keeps a message of the subtransaction: its type, and what of `bytes` lies between `start` and `end`. */
  append(subtransaction: number, type: number, bytes: Buffer, start: number, end: number): void {
    const length = 1 + end - start;
    if (this.#filled + HEADER + length > this.#buffer.length) {
      this.#flush();
      if (HEADER + length > this.#buffer.length) this.#buffer = Buffer.allocUnsafe(HEADER + length);
    }
    const to = this.#buffer;
    let at = to.writeUInt32BE(length, this.#filled);
    at = to.writeUInt32BE(subtransaction, at);
    to[at++] = type;
    bytes.copy(to, at, start, end);
    this.#filled = at + end - start;
  }

  /** The subtransaction was rolled back: its messages are passed over. */
  abort(subtransaction: number): void {
    this.#aborted.add(subtransaction);
  }

  /** All messages that were not rolled back, in order: each lies in `bytes` from `start` to `end`. */
  *messages(): Generator<{ bytes: Buffer; start: number; end: number }> {
    this.#flush();
    let at = 0;
    let rest: Buffer = Buffer.alloc(0);
    while (at < this.#written || rest.length > 0) {
      const need = rest.length >= 4 ? HEADER + rest.readUInt32BE(0) : HEADER;
      const chunk = Buffer.allocUnsafe(Math.max(READ_BYTES, need));
      rest.copy(chunk);
      const got = readSync(
        this.#file,
        chunk,
        rest.length,
        Math.min(chunk.length - rest.length, this.#written - at),
        at,
      );
      if (got === 0) throw new RangeError('a spool file shorter than what was written to it');
      at += got;
      const bytes = chunk.subarray(0, rest.length + got);
      let pos = 0;
      while (pos + HEADER <= bytes.length) {
        const end = pos + HEADER + bytes.readUInt32BE(pos);
        if (end > bytes.length) break;
        if (!this.#aborted.has(bytes.readUInt32BE(pos + 4))) yield { bytes, start: pos + HEADER, end };
        pos = end;
      }
      rest = bytes.subarray(pos);
    }
  }

  /** Gives the disk space back. */
  close(): void {
    closeSync(this.#file);
  }

  #flush(): void {
    for (let from = 0; from < this.#filled; ) {
      from += writeSync(this.#file, this.#buffer, from, this.#filled - from, this.#written + from);
    }
    this.#written += this.#filled;
    this.#filled = 0;
  }
}
