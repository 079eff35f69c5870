import type { Socket } from 'node:net';

/** How a link behaves now; shared by all its lanes and changed in place. */
export interface Weather {
  latencyMs: number;
  jitterMs: number;
  /** `Infinity` for no limit. */
  bytesPerSecond: number;
  readonly random: () => number;
}

/** What a lane carries: bytes, an orderly end of stream, or the breaking of the sender's connection. */
interface Parcel {
  readonly bytes: Buffer;
  readonly then: 'more' | 'end' | 'break';
  readonly arrivedMs: number;
  /** When it may leave, on the clock of `performance.now()`. Never before an earlier parcel's. */
  dueMs: number;
}

const NOTHING = Buffer.alloc(0);
/** The sender is paused above this and resumed below half of it. At 100 ms of latency it allows 80 MB/s. */
const HELD_BYTES = 8 * 1024 * 1024;
/** `setTimeout` takes no more. */
const LONGEST_MS = 2 ** 31 - 1;
/** Under a bandwidth limit, what arrives at once is sliced so that it leaves evenly. */
const SLICES_PER_SECOND = 50;

/**
 * One direction of one connection: a queue of parcels, each with the time when it may leave. Latency therefore doesn't limit
 * throughput; a slow receiver does, because a full queue pauses the sender.
 */
export class Lane {
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #weather: Weather;
  readonly #held: () => boolean;
  readonly #queue: Parcel[] = [];
  #queued = 0;
  #lastDueMs = 0;
  /** When the last parcel has passed the narrowest point, if bandwidth is limited. */
  #sentMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #blocked = false;
  #stopped = false;
  #quota: { bytes: number; used: () => void } | undefined;

  constructor({ from, to, weather, held }: { from: Socket; to: Socket; weather: Weather; held: () => boolean }) {
    this.#from = from;
    this.#to = to;
    this.#weather = weather;
    this.#held = held;
    from.on('data', (bytes) => this.#receive(bytes));
    from.once('end', () => this.#put(NOTHING, 'end'));
    from.once('close', () => {
      if (!from.readableEnded || from.errored) this.#put(NOTHING, 'break');
    });
    to.on('drain', () => {
      this.#blocked = false;
      this.#deliver();
    });
    to.once('close', () => this.stop());
    from.resume();
  }

  /** Lets `bytes` more pass, then stops and calls `used`, once. */
  allow(bytes: number, used: () => void): void {
    this.#quota = { bytes, used };
  }

  /** Weather or holds have changed: sets the times of what is queued anew, and delivers what may leave. */
  refresh(): void {
    this.#lastDueMs = 0;
    // Without a limit the time of arrival counts; under one, what waits has yet to pass the narrow point.
    this.#sentMs = this.#weather.bytesPerSecond === Number.POSITIVE_INFINITY ? 0 : performance.now();
    for (const parcel of this.#queue) parcel.dueMs = this.#due(parcel.arrivedMs, parcel.bytes.length);
    this.#deliver();
  }

  /** Drops what is queued and carries nothing more. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#queue.length = 0;
    this.#from.resume(); // Lets the end of the stream be seen, so that the socket can close.
  }

  #receive(bytes: Buffer): void {
    const { bytesPerSecond } = this.#weather;
    const slice = Math.max(1, Math.floor(bytesPerSecond / SLICES_PER_SECOND));
    for (let at = 0; at < bytes.length; at += slice) this.#put(bytes.subarray(at, at + slice), 'more');
  }

  #put(bytes: Buffer, then: Parcel['then']): void {
    if (this.#stopped) return;
    const arrivedMs = performance.now();
    this.#queue.push({ bytes, then, arrivedMs, dueMs: this.#due(arrivedMs, bytes.length) });
    this.#queued += bytes.length;
    if (this.#queued > this.#limit()) this.#from.pause();
    if (this.#queue.length === 1) this.#deliver();
  }

  #due(arrivedMs: number, bytes: number): number {
    const { latencyMs, jitterMs, bytesPerSecond, random } = this.#weather;
    this.#sentMs = Math.max(arrivedMs, this.#sentMs) + (bytes / bytesPerSecond) * 1000;
    this.#lastDueMs = Math.max(this.#lastDueMs, this.#sentMs + latencyMs + jitterMs * random());
    return this.#lastDueMs;
  }

  /** Bytes that may be under way: on a narrow link, what it carries in a second besides its latency. */
  #limit(): number {
    const { latencyMs, bytesPerSecond } = this.#weather;
    return Math.min(HELD_BYTES, Math.max(1, bytesPerSecond * (1 + latencyMs / 1000)));
  }

  #deliver(): void {
    clearTimeout(this.#timer);
    while (!this.#blocked && !this.#stopped && !this.#held()) {
      const next = this.#queue[0];
      if (!next) return;
      const waitMs = next.dueMs - performance.now();
      if (waitMs > 0) {
        this.#timer = setTimeout(() => this.#deliver(), Math.min(Math.ceil(waitMs), LONGEST_MS));
        return;
      }
      this.#queue.shift();
      this.#queued -= next.bytes.length;
      if (this.#queued < this.#limit() / 2) this.#from.resume();
      this.#send(next);
    }
  }

  #send({ bytes, then }: Parcel): void {
    if (then === 'end') this.#to.end();
    else if (then === 'break') this.#to.resetAndDestroy();
    else if (this.#quota && bytes.length >= this.#quota.bytes) {
      const { bytes: rest, used } = this.#quota;
      this.stop();
      this.#to.write(bytes.subarray(0, rest), used);
    } else {
      if (this.#quota) this.#quota.bytes -= bytes.length;
      this.#blocked = !this.#to.write(bytes);
    }
  }
}
