import { setTimeout as sleep } from 'node:timers/promises';
import { startProxy } from '#coregent/demo/proxy.js';
import { pace } from './lag.ts';
import type { Options } from './options.ts';
import { ORDERS } from './orders.ts';
import type { Progress } from './report.ts';
import { DATABASE, waitFor } from './server.ts';
import type { Side, SideName } from './side.ts';

/** How a link comes back that nothing passed for a while, under load all along. */
export interface Heal {
  readonly side: SideName;
  /** How long nothing passed. */
  readonly seconds: number;
  /** From then on until the first further row was visible. */
  readonly firstRowMs: number;
  /** Until rows were visible within a second of their commit again. */
  readonly caughtUpMs: number;
  /** Rows that were behind when the link came back. */
  readonly backlog: number;
  /** Rows that became visible a second until then, new ones included. */
  readonly rowsPerSecond: number;
}

/** Single-row transactions a second. */
const RATE = 500;
/** Before the cut and, at least, behind it. */
const AROUND_SECONDS = 3;

/** Cuts each side's link as a broken network does: what is sent arrives nowhere, and nobody is told. */
export async function measureHeal(sides: readonly Side[], options: Options, progress: Progress): Promise<Heal[]> {
  const results: Heal[] = [];
  for (const side of sides) {
    await side.prepare(ORDERS);
    const result = await healOf(side, options.partitionSeconds);
    results.push(result);
    const { firstRowMs, caughtUpMs, backlog } = result;
    progress(
      `heal, ${side.name}: first row after ${firstRowMs.toFixed(0)} ms, ${backlog} rows after ${caughtUpMs.toFixed(0)} ms`,
    );
  }
  return results;
}

async function healOf(side: Side, seconds: number): Promise<Heal> {
  const { pair } = side;
  const link = await startProxy({ target: { host: '127.0.0.1', port: pair.east.port } });
  await pair.checkpoint();
  await side.start(link.port);
  await pair.arrived(await pair.mark());
  const newest = async (): Promise<{ id: number; age: number }> => {
    const { rows } = await pair.westClient.query({
      name: 'newest',
      text: `select id::int as id, extract(epoch from clock_timestamp() - written_at)::float8 as age from orders order by orders.id desc limit 1`,
    });
    return rows[0] ?? { id: 0, age: Number.POSITIVE_INFINITY };
  };
  // Longer than is needed: the load must not end before the backlog does.
  const stopping = new AbortController();
  const load = pace(pair.east.url(DATABASE), RATE, { after: 0, rows: RATE * (seconds * 3 + 120) }, stopping.signal);
  const ended = load.catch((error) => {
    if (!stopping.signal.aborted) throw error;
  });
  await waitFor('rows to arrive', async () => (await newest()).id > RATE * AROUND_SECONDS);
  link.hole('both');
  await sleep(seconds * 1000);
  const before = (await newest()).id;
  const { rows } = await pair.eastClient.query('select max(id)::int as id from orders');
  const healedAt = performance.now();
  await link.heal();
  const first = await waitFor('a first row', async () => (await newest()).id > before && performance.now());
  let last = 0;
  const caughtUp = await waitFor(
    'the backlog to be gone',
    async () => {
      const { id, age } = await newest();
      last = id;
      return id >= rows[0].id && age < 1 && performance.now();
    },
    { timeoutMs: 900_000 },
  );
  stopping.abort();
  await ended;
  await side.stop();
  await link.close();
  return {
    side: side.name,
    seconds,
    firstRowMs: first - healedAt,
    caughtUpMs: caughtUp - healedAt,
    backlog: rows[0].id - before,
    rowsPerSecond: ((last - before) / (caughtUp - healedAt)) * 1000,
  };
}
