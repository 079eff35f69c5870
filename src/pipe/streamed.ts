import type { LSN } from '../model/lsn.ts';
import { MESSAGE, TUPLE } from '../wire/pgoutput.ts';
import type { Batch } from './batch.ts';
import type { Decoder } from './decode.ts';
import { Spool, type Spooled } from './spool.ts';

/** How a transaction ended at its origin. */
export interface Commit {
  readonly endLsn: LSN;
  readonly committedAtMs: number;
}

/**
 * One large transaction that the peer streams while it runs, ahead of its commit.
 * Its messages go into a file, and from there into a decoder of its own: all of them once it is committed,
 * and its new rows before, in parts, as long as nothing else is to be applied. What is applied ahead is
 * invisible until the commit, and is taken back when the transaction does not commit, or must let others go first.
 */
export class Streamed {
  readonly #spool = new Spool();
  readonly #transaction: number;
  readonly #makeDecoder: () => Decoder;
  /** Rows that are worth going ahead for. */
  readonly #partRows: number;
  #decoder: Decoder;
  #commit: Commit | undefined;
  #ended = false;
  #mayGoAhead: boolean;
  #wentAhead = false;
  #partAtMs = 0;

  constructor(transaction: number, makeDecoder: () => Decoder, options: { partRows: number; ahead: boolean }) {
    this.#transaction = transaction;
    this.#makeDecoder = makeDecoder;
    this.#decoder = makeDecoder();
    this.#partRows = options.partRows;
    this.#mayGoAhead = options.ahead;
  }

  /** Its own decoder, which also learned what relations look like. */
  get decoder(): Decoder {
    return this.#decoder;
  }

  /** Whether a part of it was handed out ahead of its commit. */
  get wentAhead(): boolean {
    return this.#wentAhead;
  }

  /** Rows that could go ahead now: as many as make a batch, or none. */
  get waiting(): number {
    return this.#mayGoAhead && this.#spool.waiting >= this.#partRows ? this.#spool.waiting : 0;
  }

  /** It is committed, and everything of it was handed out. */
  get done(): boolean {
    return this.#ended && !this.#decoder.ready;
  }

  append(subtransaction: number, type: number, bytes: Buffer, start: number, end: number): void {
    // A relation is described once in a whole transaction: it stays so when the part that needed it first is rolled back.
    const of = type === MESSAGE.relation ? this.#transaction : subtransaction;
    this.#spool.append(of, type, bytes, start, end);
  }

  /** A part of it was rolled back. Rows of such parts never go ahead. */
  abort(subtransaction: number): void {
    this.#spool.abort(subtransaction);
  }

  /** A part ahead of the commit; its batch is never complete. */
  part(): Batch {
    this.#wentAhead = true;
    this.#partAtMs = performance.now();
    for (let next = this.#spool.peek(); next && !this.#decoder.full; next = this.#spool.peek()) {
      if (!this.#mayPrecede(next)) {
        this.#mayGoAhead = false;
        break;
      }
      this.#decode(next);
    }
    return this.#decoder.takePart();
  }

  /** When a part was last handed out ahead, in ms of the process's monotonic clock. */
  get partAtMs(): number {
    return this.#partAtMs;
  }

  /** What went ahead was taken back: from the beginning, and at the commit only. */
  restart(): void {
    this.#mayGoAhead = false;
    this.#wentAhead = false;
    this.#decoder = this.#makeDecoder();
    this.#spool.rewind();
  }

  /** The peer committed it. From now on {@link resume} hands out everything. */
  commit(commit: Commit): void {
    this.#commit = commit;
    this.resume();
  }

  /** Decodes on until a batch is full or the transaction at its end. */
  resume(): void {
    if (this.#ended) return;
    while (!this.#decoder.full) {
      const next = this.#spool.peek();
      if (next === undefined) {
        this.#ended = true;
        this.#decoder.end(this.#commit!);
        return;
      }
      this.#decode(next);
    }
  }

  /** Gives back what it holds. */
  close(): void {
    this.#spool.close();
  }

  #decode({ bytes, start, end }: Spooled): void {
    this.#spool.take();
    this.#decoder.push(bytes, start, end);
  }

  /** New rows wait for nobody and nobody waits for them; an update would lock a row that the application has in use. */
  #mayPrecede({ subtransaction, bytes, start }: Spooled): boolean {
    if (subtransaction !== this.#transaction) return false;
    const type = bytes[start];
    return type === MESSAGE.insert
      ? bytes[start + 5] === TUPLE.new
      : type !== MESSAGE.update && type !== MESSAGE.delete;
  }
}
