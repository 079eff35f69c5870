import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Options } from './options.ts';
import { ORDERS } from './orders.ts';
import type { Progress } from './report.ts';
import { DATABASE } from './server.ts';
import type { Side, SideName } from './side.ts';
import { percentile } from './statistics.ts';

/** How long rows took from their insert in the east until a reader in the west could see them. */
export interface Lag {
  readonly side: SideName;
  readonly round: number;
  /** Single-row transactions a second, asked for and reached. */
  readonly rate: number;
  readonly reached: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  /** Median time of a commit in the east as its writer saw it; part of every lag. */
  readonly commitMs: number;
}

const RATES = [200, 1000];
/** Of these seconds the first is left out. */
const SECONDS = 5;
const QUICK_SECONDS = 3;
/** Writers beside each other; one alone could not commit durably often enough. */
const CONNECTIONS = 8;
const PACER = fileURLToPath(new URL('pacer.js', import.meta.url));

/** Measures the lag of each side at each rate. */
export async function measureLag(sides: readonly Side[], options: Options, progress: Progress): Promise<Lag[]> {
  const results: Lag[] = [];
  const seconds = options.quick ? QUICK_SECONDS : SECONDS;
  await Promise.all(sides.map((side) => side.prepare(ORDERS)));
  let written = 0;
  for (let round = 1; round <= options.rounds; round++) {
    for (const rate of RATES) {
      for (const side of round % 2 === 1 ? sides : [...sides].reverse()) {
        const result = await lagOf(side, rate, { after: written, rows: rate * seconds }, round);
        results.push(result);
        const { p50Ms, p99Ms } = result;
        progress(
          `lag, round ${round}, ${rate}/s, ${side.name}: p50 ${p50Ms.toFixed(1)} ms, p99 ${p99Ms.toFixed(1)} ms`,
        );
      }
      written += rate * seconds;
    }
  }
  return results;
}

/** Rows to write, numbered from `after` + 1 on. */
interface Range {
  readonly after: number;
  readonly rows: number;
}

async function lagOf(side: Side, rate: number, range: Range, round: number): Promise<Lag> {
  const { pair } = side;
  await pair.checkpoint();
  await side.start();
  await pair.arrived(await pair.mark());
  const [{ seconds, commitMs }, lags] = await Promise.all([
    pace(pair.east.url(DATABASE), rate, range),
    watch(side, range),
  ]);
  await side.stop();
  const counted = lags.slice(rate);
  return {
    side: side.name,
    round,
    rate,
    reached: range.rows / seconds,
    p50Ms: percentile(counted, 0.5),
    p99Ms: percentile(counted, 0.99),
    maxMs: percentile(counted, 1),
    commitMs,
  };
}

/** Writes in a process of its own, so that reading does not slow writing. Rejects when it is stopped by the signal. */
export async function pace(
  url: string,
  rate: number,
  { after, rows }: Range,
  signal?: AbortSignal,
): Promise<{ seconds: number; commitMs: number }> {
  const args = [PACER, ...[rate, after, rows, CONNECTIONS].map(String)];
  const { stdout } = await promisify(execFile)(process.execPath, args, {
    env: { ...process.env, DATABASE_URL: url },
    ...(signal && { signal }),
  });
  return JSON.parse(stdout);
}

/**
 * Looks about every ms which rows are visible that were not before, and takes their lag by the servers' one clock.
 * Gives it by row, in the order of their numbers.
 */
async function watch(side: Side, { after, rows }: Range): Promise<number[]> {
  const text = `select id::int as id, (extract(epoch from clock_timestamp() - written_at) * 1000)::float8 as lag
    from orders where id > $1`;
  const lags: number[] = new Array(rows);
  let whole = 0; // Rows up to this number have all been seen; writers beside each other commit in any order.
  const deadline = performance.now() + 120_000;
  while (whole < rows) {
    const { rows: found } = await side.pair.westClient.query({ name: 'watch', text, values: [after + whole] });
    for (const { id, lag } of found) lags[id - after - 1] ??= lag;
    while (whole < rows && lags[whole] !== undefined) whole++;
    if (performance.now() > deadline) throw new Error(`${side.name} brought ${whole} rows of ${rows}`);
    await sleep(1);
  }
  return lags;
}
