import type { Acknowledger } from './acknowledge.ts';
import type { Batch } from './batch.ts';
import type { Decoder } from './decode.ts';

/** What applying a batch must tell the pipe. */
export interface Applied {
  /** Local WAL position behind the commit; undefined while the local transaction is still open. */
  readonly localLsn: Parameters<Acknowledger['applied']>[1] | undefined;
}

/** The parts of one peer's pipe. */
export interface PipeParts<R extends Applied> {
  /** decode and batch: filled by the socket, also while a batch is being applied. */
  readonly decoder: Decoder;
  /** Lets the peer send on, where a full batch had stopped it. */
  readonly resume: () => void;
  /** Whether a batch that is ready grows at this very moment and is better taken a little later. */
  readonly more: () => boolean;
  /** Resolves when this region's clock has passed every version of the batch. */
  readonly reachClock: (batch: Batch) => Promise<void>;
  /** stage, resolve and commit. */
  readonly apply: (batch: Batch) => Promise<R>;
  /** Whether applying left parked rows to be tried again; a batch is acknowledged behind the first such try. */
  readonly owes: () => boolean;
  readonly settle: () => Promise<void>;
  /** acknowledge: what is durable here, and no more. */
  readonly acks: Acknowledger;
  /** Told of each batch, with the time that applying took, in ms. */
  readonly applied: (batch: Batch, receipt: R, tookMs: number) => void;
  /** Cuts a wait short when the session ends. */
  readonly wait: <T>(work: Promise<T>) => Promise<T>;
}

/** A batch that still grows is taken so many ms after the last one at the latest. */
const GROW_MS = 20;
/** Of the time no more than one part in so many goes to parked rows, and they rest for so many ms at least. */
const SETTLE_SHARE = 10;
const SETTLE_REST_MS = 100;

/** One peer's changes on their way from its WAL into this region: `decode → batch → stage → resolve → commit → acknowledge`. */
export class Pipe<R extends Applied> {
  readonly #parts: PipeParts<R>;
  #wake: (() => void) | undefined;
  #applying = false;

  constructor(parts: PipeParts<R>) {
    this.#parts = parts;
  }

  /** Whether a batch is being applied, or its acknowledgement waits for {@link PipeParts.settle}. */
  get applying(): boolean {
    return this.#applying;
  }

  /** The decoder may have something ready. */
  decoded(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** Runs until a part throws. While a batch commits, the next one fills: the slower the commit, the larger the batch. */
  async run(): Promise<never> {
    const { decoder, resume, more, reachClock, apply, owes, settle, acks, applied, wait } = this.#parts;
    /** Applied, and not yet acknowledged. */
    let unsaid: Parameters<Acknowledger['applied']> | undefined;
    let settleAtMs = 0;
    const say = (): void => {
      if (unsaid) acks.applied(...unsaid);
      unsaid = undefined;
      this.#applying = false;
    };
    const settleNow = async (): Promise<void> => {
      const began = performance.now();
      await wait(settle());
      const ended = performance.now();
      settleAtMs = ended + Math.max(SETTLE_REST_MS, (ended - began) * SETTLE_SHARE);
      say();
    };
    this.#applying = owes();
    for (;;) {
      const freeAtMs = performance.now();
      while (!decoder.ready || (more() && !decoder.full && performance.now() - freeAtMs < GROW_MS)) {
        const restMs = decoder.ready || !owes() ? undefined : settleAtMs - performance.now();
        if (restMs !== undefined && restMs <= 0) await settleNow();
        else await wait(this.#woken(restMs));
      }
      const batch = decoder.take();
      this.#applying = true;
      decoder.resume();
      if (!decoder.full) resume();
      await wait(reachClock(batch));
      const began = performance.now();
      const receipt = await wait(apply(batch));
      if (receipt.localLsn !== undefined && batch.endLsn !== undefined) unsaid = [batch.endLsn, receipt.localLsn];
      // Inside of a transaction nothing is tried again: what waits for that waits on.
      if (receipt.localLsn !== undefined && !owes()) say();
      this.#applying = unsaid !== undefined || owes();
      applied(batch, receipt, performance.now() - began);
      if (owes() && performance.now() >= settleAtMs) await settleNow();
    }
  }

  /** Resolves when {@link decoded} is called, or after so many ms. */
  #woken(withinMs: number | undefined): Promise<void> {
    return new Promise((resolve) => {
      const timer = withinMs === undefined ? undefined : setTimeout(() => this.decoded(), withinMs).unref();
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
