import { setTimeout as sleep } from 'node:timers/promises';
import type { Options } from './options.ts';
import { ORDERS } from './orders.ts';
import { cpuByRole } from './proc.ts';
import type { Progress } from './report.ts';
import type { Side, SideName } from './side.ts';

/** What a side uses while nobody writes. */
export interface Idle {
  readonly side: SideName;
  readonly seconds: number;
  /** Per cent of one core by process. */
  readonly cpuPercent: Readonly<Record<string, number>>;
  /** WAL that both servers wrote meanwhile, in bytes. */
  readonly walBytes: number;
}

const SECONDS = 20;
const QUICK_SECONDS = 10;

/** Measures both sides at once: what they use is far from what the machine has. */
export async function measureIdle(sides: readonly Side[], options: Options, progress: Progress): Promise<Idle[]> {
  const seconds = options.quick ? QUICK_SECONDS : SECONDS;
  const results = await Promise.all(sides.map((side) => idleOf(side, seconds)));
  progress(`idle: ${seconds} s done`);
  return results;
}

async function idleOf(side: Side, seconds: number): Promise<Idle> {
  const { pair } = side;
  await side.prepare(ORDERS);
  await pair.checkpoint();
  await side.start();
  await pair.arrived(await pair.mark());
  await sleep(3_000);
  const processes = await side.processes();
  const [before, walBefore] = [await cpuByRole(processes), await walPosition(side)];
  await sleep(seconds * 1000);
  const [after, walAfter] = [await cpuByRole(processes), await walPosition(side)];
  await side.stop();
  const cpuPercent: Record<string, number> = {};
  for (const [role, used] of after) cpuPercent[role] = ((used - before.get(role)!) / seconds) * 100;
  return { side: side.name, seconds, cpuPercent, walBytes: walAfter - walBefore };
}

async function walPosition({ pair }: Side): Promise<number> {
  const each = await Promise.all(
    [pair.eastClient, pair.westClient].map(
      async (client) =>
        (await client.query(`select (pg_current_wal_insert_lsn() - '0/0')::float8 as bytes`)).rows[0].bytes,
    ),
  );
  return each.reduce((sum, bytes) => sum + bytes, 0);
}
