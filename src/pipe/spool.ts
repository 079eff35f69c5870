import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Frames are gathered in memory up to this many bytes before they are written. */
const WRITE_BYTES = 1 << 20;
const READ_BYTES = 1 << 20;
/** Length and subtransaction, four bytes each, ahead of every message. */
const HEADER = 8;

/** A message of a spool: it lies in `bytes` from `start` to `end`. */
export interface Spooled {
  readonly subtransaction: number;
  readonly bytes: Buffer;
  readonly start: number;
  readonly end: number;
}

/**
 * The messages of one large transaction that the peer streams while it runs, kept in a file:
 * memory stays bounded, and the peer neither spills nor waits. They can be read while more come.
 * The file has no name from the moment it is open, so nothing is left behind however the process ends.
 */
export class Spool {
  readonly #file: number;
  readonly #aborted = new Set<number>();
  #buffer = Buffer.allocUnsafe(WRITE_BYTES);
  #filled = 0;
  #written = 0;
  /** What was read of the file and is not taken yet, from `#pos` on. */
  #chunk: Buffer = Buffer.alloc(0);
  #pos = 0;
  #readTo = 0;
  #appended = 0;
  #taken = 0;
  #next: Spooled | undefined;

  constructor() {
    const folder = mkdtempSync(join(tmpdir(), 'coregent-spool-'));
    try {
      this.#file = openSync(join(folder, 'messages'), 'w+', 0o600);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }

  /** Messages that were not taken yet, those of subtransactions rolled back included. */
  get waiting(): number {
    return this.#appended - this.#taken;
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
    this.#appended++;
  }

  /** The subtransaction was rolled back: its messages are passed over. */
  abort(subtransaction: number): void {
    this.#aborted.add(subtransaction);
    if (this.#next?.subtransaction === subtransaction) this.take();
  }

  /** The oldest message that was not taken, in order; undefined when there is none now. */
  peek(): Spooled | undefined {
    while (this.#next === undefined) {
      const end = this.#pos + HEADER;
      if (end > this.#chunk.length || end + this.#chunk.readUInt32BE(this.#pos) > this.#chunk.length) {
        if (!this.#read()) return undefined;
        continue;
      }
      const bytes = this.#chunk;
      const subtransaction = bytes.readUInt32BE(this.#pos + 4);
      this.#next = { subtransaction, bytes, start: end, end: end + bytes.readUInt32BE(this.#pos) };
      this.#pos = this.#next.end;
      if (this.#aborted.has(subtransaction)) this.take();
    }
    return this.#next;
  }

  /** Goes on to the next message. */
  take(): void {
    this.#next = undefined;
    this.#taken++;
  }

  /** The next message is the first one again. */
  rewind(): void {
    this.#chunk = Buffer.alloc(0);
    this.#pos = 0;
    this.#readTo = 0;
    this.#taken = 0;
    this.#next = undefined;
  }

  /** Gives the disk space back. */
  close(): void {
    closeSync(this.#file);
  }

  /** Reads on behind what is left of the chunk; false when nothing more was written. */
  #read(): boolean {
    if (this.#readTo === this.#written) this.#flush();
    if (this.#readTo === this.#written) return false;
    const rest = this.#chunk.subarray(this.#pos);
    const need = rest.length >= 4 ? HEADER + rest.readUInt32BE(0) : HEADER;
    // A chunk of its own each time: rows that were decoded lie in it until their batch is taken.
    const chunk = Buffer.allocUnsafe(Math.max(READ_BYTES, need));
    rest.copy(chunk);
    const most = Math.min(chunk.length - rest.length, this.#written - this.#readTo);
    const got = readSync(this.#file, chunk, rest.length, most, this.#readTo);
    if (got === 0) throw new RangeError('a spool file shorter than what was written to it');
    this.#readTo += got;
    this.#chunk = chunk.subarray(0, rest.length + got);
    this.#pos = 0;
    return true;
  }

  #flush(): void {
    for (let from = 0; from < this.#filled; ) {
      from += writeSync(this.#file, this.#buffer, from, this.#filled - from, this.#written + from);
    }
    this.#written += this.#filled;
    this.#filled = 0;
  }
}
