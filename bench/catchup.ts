import type { Options } from './options.ts';
import { COLUMNS, insertRows, ORDERS } from './orders.ts';
import { cpuByPid, peakBytes, pin } from './proc.ts';
import type { Progress } from './report.ts';
import type { Side, SideName } from './side.ts';

/** A backlog: rows that both regions have, and what the east writes while the west does not listen. */
interface Workload {
  readonly name: string;
  readonly title: string;
  /** Rows in the table before. */
  readonly before: number;
  /** Rows written. */
  readonly rows: number;
  readonly write: string;
}

/** One backlog caught up with once. */
export interface CatchUp {
  readonly workload: string;
  readonly title: string;
  readonly side: SideName;
  readonly round: number;
  readonly rowsPerSecond: number;
  /** CPU in µs a row by process. */
  readonly cpuMicros: Readonly<Record<string, number>>;
  /** CPU in µs a row of the process that needs the most: what bounds the rate where each has a core of its own. */
  readonly busiestMicros: number;
  /** Most memory of the agent, in bytes. */
  readonly agentPeakBytes: number | undefined;
}

/** The workloads; 7919 is prime, so that every row is deleted once. */
export function workloads(rows: number): Workload[] {
  const many = Math.round(rows / 40);
  const bulk = rows * 5;
  return [
    { name: 'insert1', title: '1-row inserts', before: 0, rows, write: `call insert_each(1, ${rows}, 1)` },
    {
      name: 'insert100',
      title: '100-row inserts',
      before: 0,
      rows: many * 100,
      write: `call insert_many(0, ${many - 1}, 100)`,
    },
    { name: 'bulk', title: `one insert of ${bulk}`, before: 0, rows: bulk, write: insertRows(1, bulk) },
    { name: 'update1', title: '1-row updates', before: rows, rows, write: `call update_each(1, ${rows}, ${rows})` },
    { name: 'delete1', title: '1-row deletes', before: rows, rows, write: `call delete_each(0, ${rows - 1}, ${rows})` },
  ];
}

/** Measures how fast each side works a backlog off. */
export async function measureCatchUp(sides: readonly Side[], options: Options, progress: Progress): Promise<CatchUp[]> {
  const chosen = workloads(options.rows).filter(({ name }) => options.workloads?.includes(name) ?? true);
  const results: CatchUp[] = [];
  for (let round = 1; round <= options.rounds; round++) {
    for (const workload of chosen) {
      // Backlogs are written side by side, because that is not measured.
      const marks = new Map(
        await Promise.all(sides.map(async (side) => [side.name, await writeBacklog(side, workload)] as const)),
      );
      for (const side of round % 2 === 1 ? sides : [...sides].reverse()) {
        const result = await catchUp(side, workload, marks.get(side.name)!, { round, pinned: options.pin });
        results.push(result);
        progress(
          `catch-up, round ${round}, ${workload.title}, ${side.name}: ${Math.round(result.rowsPerSecond)} rows/s`,
        );
      }
    }
  }
  return results;
}

async function writeBacklog(side: Side, { before, write }: Workload): Promise<number> {
  const { pair } = side;
  await side.prepare(ORDERS);
  if (before > 0) {
    await pair.eastClient.query(insertRows(1, before));
    const mark = await pair.mark();
    await side.start();
    await pair.arrived(mark);
    await side.stop();
  }
  await pair.eastClient.query('set synchronous_commit = off');
  await pair.eastClient.query(write);
  await pair.eastClient.query('reset synchronous_commit');
  const mark = await pair.mark();
  await pair.checkpoint();
  return mark;
}

async function catchUp(
  side: Side,
  workload: Workload,
  mark: number,
  { round, pinned }: { round: number; pinned: boolean },
): Promise<CatchUp> {
  const { pair } = side;
  await side.start();
  if (pinned) await pin(await side.processes());
  const began = performance.now();
  const before = await cpuByPid(await side.processes());
  await pair.arrived(mark);
  const seconds = (performance.now() - began) / 1000;
  const processes = await side.processes();
  const after = await cpuByPid(processes);
  const [agent] = processes.get('agent') ?? [];
  const agentPeakBytes = agent === undefined ? undefined : await peakBytes(agent);
  await side.stop();
  await pair.compare('orders', COLUMNS);
  const micros = (pid: number): number => ((after.get(pid)! - (before.get(pid) ?? 0)) / workload.rows) * 1e6;
  const cpuMicros: Record<string, number> = {};
  for (const [role, pids] of processes) cpuMicros[role] = pids.reduce((sum, pid) => sum + micros(pid), 0);
  return {
    workload: workload.name,
    title: workload.title,
    side: side.name,
    round,
    rowsPerSecond: workload.rows / seconds,
    cpuMicros,
    busiestMicros: Math.max(...[...after.keys()].map(micros)),
    agentPeakBytes,
  };
}
