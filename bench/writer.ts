import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type pg from 'pg';
import type { Server } from '#coregent/demo/postgres.js';
import { childrenOf } from '#coregent/demo/process.js';
import type { Options } from './options.ts';
import { insertRows, ORDERS } from './orders.ts';
import { cpuSeconds, reapedCpuSeconds } from './proc.ts';
import type { Progress } from './report.ts';
import { DATABASE, open, recreateDatabase, startServer, waitFor } from './server.ts';
import type { Side } from './side.ts';

/** What replicates the writer's database. */
export type Setup = 'plain' | 'coregent, agent stopped' | 'coregent' | 'native';

/** One run of pgbench's simple-update script. */
export interface Throughput {
  readonly setup: Setup;
  readonly round: number;
  readonly transactionsPerSecond: number;
  /** CPU of the writing backends, in µs a transaction. */
  readonly cpuMicros: number | undefined;
}

/** What one kind of statement costs in the writer's database. */
export interface Statement {
  readonly setup: 'plain' | 'coregent';
  readonly kind: 'insert' | 'update' | 'delete';
  readonly walBytesPerRow: number;
  /** CPU of the backend; undefined where there is no /proc. */
  readonly cpuMicrosPerRow: number | undefined;
}

export interface WriterPrice {
  /** Empty, with a reason, where there is no pgbench. */
  readonly throughput: readonly Throughput[];
  readonly skipped: string | undefined;
  readonly statements: readonly Statement[];
}

const SECONDS = 6;
const QUICK_SECONDS = 3;
const STATEMENT_ROWS = 50_000;
const CLIENTS = 4;
const ACCOUNTS = 100_000;

/** pgbench's tables at scale 1. Its history has no primary key of its own, which replicated tables need. */
export const PGBENCH = [
  'create table pgbench_branches (bid int primary key, bbalance int, filler char(88))',
  'create table pgbench_tellers (tid int primary key, bid int, tbalance int, filler char(84))',
  'create table pgbench_accounts (aid int primary key, bid int, abalance int, filler char(84))',
  `create table pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22),
    hid int8 generated always as identity primary key)`,
  `insert into pgbench_branches select i, 0, '' from generate_series(1, 1) i`,
  `insert into pgbench_tellers select i, 1, 0, '' from generate_series(1, 10) i`,
  `insert into pgbench_accounts select i, 1, 0, '' from generate_series(1, ${ACCOUNTS}) i`,
];

/** Measures what replication costs whoever writes: throughput, CPU, WAL. */
export async function measureWriter(
  sides: readonly Side[],
  options: Options,
  progress: Progress,
): Promise<WriterPrice> {
  const plain = await startServer('plain');
  try {
    const statements = await measureStatements(plain, sides, options, progress);
    const pgbench = await promisify(execFile)('pgbench', ['--version']).catch(() => undefined);
    if (!pgbench) {
      const skipped = 'pgbench is not installed (Debian and Ubuntu: postgresql-contrib), so throughput is left out';
      progress(`writer: ${skipped}`);
      return { throughput: [], skipped, statements };
    }
    const throughput = await measureThroughput(plain, sides, options, progress);
    return { throughput, skipped: undefined, statements };
  } finally {
    await plain.remove();
  }
}

async function measureThroughput(
  plain: Server,
  sides: readonly Side[],
  options: Options,
  progress: Progress,
): Promise<Throughput[]> {
  await Promise.all([preparePlain(plain, PGBENCH), ...sides.map((side) => side.prepare(PGBENCH))]);
  const seconds = options.quick ? QUICK_SECONDS : SECONDS;
  const runs: { setup: Setup; server: Server; side?: Side }[] = [{ setup: 'plain', server: plain }];
  for (const side of sides) {
    if (side.name === 'coregent') runs.push({ setup: 'coregent, agent stopped', server: side.pair.east });
    runs.push({ setup: side.name, server: side.pair.east, side });
  }
  const results: Throughput[] = [];
  for (let round = 1; round <= options.rounds; round++) {
    for (const { setup, server, side } of round % 2 === 1 ? runs : [...runs].reverse()) {
      if (side) {
        await side.start();
        await side.pair.arrived(await side.pair.mark());
      }
      const result = await runPgbench(server, seconds);
      await side?.stop();
      results.push({ setup, round, ...result });
      progress(`writer, round ${round}, ${setup}: ${Math.round(result.transactionsPerSecond)} transactions/s`);
    }
  }
  return results;
}

async function preparePlain(server: Server, schema: readonly string[]): Promise<void> {
  await recreateDatabase(server);
  const client = await open(server);
  for (const statement of schema) await client.query(statement);
  await client.end();
}

/** Runs pgbench's simple-update script against a server. */
export async function runPgbench(server: Server, seconds: number): Promise<Omit<Throughput, 'setup' | 'round'>> {
  const url = new URL(server.url(DATABASE));
  const client = await open(server);
  await client.query('checkpoint');
  await client.end();
  const args = ['-n', '-N', '-M', 'prepared', '-c', String(CLIENTS), '-j', '1', '-T', String(seconds)];
  const where = ['-h', url.hostname, '-p', url.port, '-U', url.username, DATABASE];
  const [before, children] = [await reapedCpuSeconds(server.pid!), await childrenOf(server.pid!)];
  const { stdout } = await promisify(execFile)('pgbench', [...args, ...where], {
    env: { ...process.env, PGPASSWORD: url.password },
  });
  await waitFor('the end of pgbench’s backends', async () => (await childrenOf(server.pid!)).length <= children.length);
  const after = await reapedCpuSeconds(server.pid!);
  const tps = Number(/^tps = ([\d.]+)/m.exec(stdout)![1]);
  const count = Number(/transactions actually processed: (\d+)/.exec(stdout)![1]);
  const cpuMicros = after === undefined || before === undefined ? undefined : ((after - before) / count) * 1e6;
  return { transactionsPerSecond: tps, cpuMicros };
}

/** WAL and CPU of statements over many rows: no checkpoint falls between them, so no whole pages are logged. */
async function measureStatements(
  plain: Server,
  sides: readonly Side[],
  options: Options,
  progress: Progress,
): Promise<Statement[]> {
  const coregent = sides.find(({ name }) => name === 'coregent')!;
  await Promise.all([preparePlain(plain, ORDERS), coregent.prepare(ORDERS)]);
  const client = await open(plain);
  const results: Statement[] = [];
  for (let round = 1; round <= options.rounds; round++) {
    results.push(...(await runStatements(client, 'plain', round)));
    results.push(...(await runStatements(coregent.pair.eastClient, 'coregent', round)));
    progress(`writer, round ${round}: statements of ${STATEMENT_ROWS} rows done`);
  }
  await client.end();
  return results;
}

async function runStatements(client: pg.Client, setup: Statement['setup'], round: number): Promise<Statement[]> {
  const { rows } = await client.query('select pg_backend_pid() as pid');
  const cpu = (): Promise<number | undefined> => cpuSeconds(rows[0].pid);
  const position = async (): Promise<number> =>
    (await client.query(`select (pg_current_wal_insert_lsn() - '0/0')::float8 as bytes`)).rows[0].bytes;
  const results: Statement[] = [];
  const statements = {
    insert: insertRows(round * STATEMENT_ROWS, (round + 1) * STATEMENT_ROWS - 1),
    update: `update orders set status = 'sent', amount = amount + 1, quantity = quantity + 1`,
    delete: 'delete from orders',
  };
  for (const [kind, text] of Object.entries(statements)) {
    const [walBefore, cpuBefore] = [await position(), await cpu()];
    await client.query(text);
    const [walAfter, cpuAfter] = [await position(), await cpu()];
    const used = cpuAfter === undefined || cpuBefore === undefined ? undefined : cpuAfter - cpuBefore;
    results.push({
      setup,
      kind: kind as Statement['kind'],
      walBytesPerRow: (walAfter - walBefore) / STATEMENT_ROWS,
      cpuMicrosPerRow: used === undefined ? undefined : (used / STATEMENT_ROWS) * 1e6,
    });
  }
  return results;
}
