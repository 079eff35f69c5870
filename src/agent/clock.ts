import type pg from 'pg';
import { microsOf, type Version } from '../model/version.ts';

/**
 * The clock of a database, read now and then and carried on by the process's monotonic clock,
 * so that a jump of the agent's own clock means nothing.
 */
export class DatabaseClock {
  /** Database microseconds since 1970 minus monotonic microseconds. */
  #offsetMicros: number | undefined;
  #roundTripMs = Number.POSITIVE_INFINITY;
  #readAtMs = 0;

  /** Reads the database's clock once. Keeps the better of two close readings: the one with the shorter round trip. */
  async read(client: pg.Client): Promise<void> {
    const before = performance.now();
    const micros = await readMicros(client);
    const after = performance.now();
    const roundTripMs = after - before;
    const offset = micros - ((before + after) / 2) * 1000;
    const jumped = Math.abs(offset - (this.#offsetMicros ?? offset)) > (roundTripMs + this.#roundTripMs) * 1000;
    if (roundTripMs <= this.#roundTripMs || jumped || after - this.#readAtMs > 30_000) {
      this.#offsetMicros = offset;
      this.#roundTripMs = roundTripMs;
      this.#readAtMs = after;
    }
  }

  /** The database's time in microseconds since 1970; undefined before the first reading. */
  nowMicros(): number | undefined {
    return this.#offsetMicros === undefined ? undefined : performance.now() * 1000 + this.#offsetMicros;
  }

  /** Whether this clock has passed the version for certain, whatever the error of the last reading. */
  surelyPassed(version: Version): boolean {
    const now = this.nowMicros();
    return now !== undefined && Number(microsOf(version)) < now - (this.#roundTripMs * 1000) / 2;
  }
}

/** A database's time now, in microseconds since 1970: already past when the answer is here. */
export async function readMicros(client: pg.Client): Promise<number> {
  const { rows } = await client.query(`select (date_part('epoch', clock_timestamp()) * 1000000)::int8::text as micros`);
  return Number(rows[0].micros);
}

/** By how many ms `theirs` is ahead of `ours`; undefined before both were read. */
export function offsetMs(theirs: DatabaseClock, ours: DatabaseClock): number | undefined {
  const a = theirs.nowMicros();
  const b = ours.nowMicros();
  return a === undefined || b === undefined ? undefined : (a - b) / 1000;
}
