import { CoregentError } from '../model/error.ts';
import { LAST_MICROS, microsOf, type Version } from '../model/version.ts';
import type { Queryable } from '../pg/connect.ts';

/** Versions that are further ahead than this, in ms, need not be waited for: see {@link FarAhead}. */
const FAR_MS = 600_000;

/**
 * The clock of a database, read now and then and carried on by the process's monotonic clock,
 * so that a jump of the agent's own clock means nothing.
 */
export class DatabaseClock {
  /** Database microseconds since 1970 minus monotonic microseconds. */
  #offsetMicros: number | undefined;
  #roundTripMs = Number.POSITIVE_INFINITY;
  #readAtMs = 0;
  #readings = 0;
  /** The greatest time among versions that were taken although this clock had not passed them, in microseconds since 1970. */
  acceptedMicros = 0n;

  /** Reads the database's clock once. Keeps the better of two close readings: the one with the shorter round trip. */
  async read(client: Queryable): Promise<void> {
    const before = performance.now();
    const micros = await readMicros(client);
    const after = performance.now();
    this.#readings++;
    const roundTripMs = after - before;
    const offset = micros - ((before + after) / 2) * 1000;
    const jumped = Math.abs(offset - (this.#offsetMicros ?? offset)) > (roundTripMs + this.#roundTripMs) * 1000;
    if (roundTripMs <= this.#roundTripMs || jumped || after - this.#readAtMs > 30_000) {
      this.#offsetMicros = offset;
      this.#roundTripMs = roundTripMs;
      this.#readAtMs = after;
    }
  }

  /** How many times it was read. */
  get readings(): number {
    return this.#readings;
  }

  /** The database's time in microseconds since 1970; undefined before the first reading. */
  nowMicros(): number | undefined {
    return this.#offsetMicros === undefined ? undefined : performance.now() * 1000 + this.#offsetMicros;
  }

  /** Throws `clock_unusable` when no region would ever take what is stamped by this clock. */
  demandUsable(where: string): void {
    if ((this.nowMicros() ?? 0) < Number(LAST_MICROS)) return;
    throw new CoregentError('clock_unusable', 'this region’s clock says the year 3111 or later', { where });
  }

  /** Whether this clock has passed the version for certain, whatever the error of the last reading. */
  surelyPassed(version: Version): boolean {
    const now = this.nowMicros();
    return now !== undefined && Number(microsOf(version)) < now - (this.#roundTripMs * 1000) / 2;
  }
}

/**
 * A version that this region's clock cannot reach in time, because the clock that it was stamped by was far wrong. It is taken as it
 * is once its region's clock has been right for a while: nobody can wait for the year 2106. What replaces its row is as far ahead,
 * wherever it is written, so what is near to a version that was taken is taken at once.
 */
export class FarAhead {
  readonly #micros: bigint;
  readonly #theirs: DatabaseClock;
  readonly #ours: DatabaseClock;
  readonly #maxOffsetMs: number;
  readonly #settleMs: number;
  readonly #readings: number;
  #rightSinceMs: number | undefined;

  constructor(
    version: Version,
    options: {
      readonly theirs: DatabaseClock;
      readonly ours: DatabaseClock;
      readonly maxOffsetMs: number;
      /** For how long the clock must have been right. */
      readonly settleMs: number;
    },
  ) {
    this.#micros = microsOf(version);
    this.#theirs = options.theirs;
    this.#ours = options.ours;
    this.#maxOffsetMs = options.maxOffsetMs;
    this.#settleMs = options.settleMs;
    this.#readings = this.#theirs.readings;
  }

  /** Until when the version wins over all that has not seen it, in ISO 8601. */
  get until(): string {
    return new Date(Number(this.#micros / 1000n)).toISOString();
  }

  /** Whether it is never taken. */
  get never(): boolean {
    return this.#micros >= LAST_MICROS;
  }

  /** Whether it is to be taken now, being ahead by so much. Ask again and again. */
  taken(aheadMs: number): boolean {
    if (aheadMs <= FAR_MS || this.never || !this.#right()) return false;
    const known = this.#micros - this.#ours.acceptedMicros < BigInt(FAR_MS) * 1000n;
    if (!known && (this.#rightSinceMs === undefined || performance.now() - this.#rightSinceMs < this.#settleMs))
      return false;
    if (this.#micros > this.#ours.acceptedMicros) this.#ours.acceptedMicros = this.#micros;
    return true;
  }

  /** Whether their clock is right as it was read last. Only what was read since the version came says for how long. */
  #right(): boolean {
    const offset = offsetMs(this.#theirs, this.#ours);
    const right = offset !== undefined && Math.abs(offset) <= this.#maxOffsetMs;
    if (!right) this.#rightSinceMs = undefined;
    else if (this.#theirs.readings !== this.#readings) this.#rightSinceMs ??= performance.now();
    return right;
  }
}

/** A database's time now, in microseconds since 1970: already past when the answer is here. */
export async function readMicros(client: Queryable): Promise<number> {
  const { rows } = await client.query(`select (date_part('epoch', clock_timestamp()) * 1000000)::int8::text as micros`);
  return Number(rows[0].micros);
}

/** By how many ms `theirs` is ahead of `ours`; undefined before both were read. */
export function offsetMs(theirs: DatabaseClock, ours: DatabaseClock): number | undefined {
  const a = theirs.nowMicros();
  const b = ours.nowMicros();
  return a === undefined || b === undefined ? undefined : (a - b) / 1000;
}
