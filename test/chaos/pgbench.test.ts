import { type ExecFileException, execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { commandLine } from '../world/agent.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import type { Printed } from '../world/command.ts';
import { until } from '../world/until.ts';

/** How long each region's pgbench runs. */
const SECONDS = Number(process.env.COREGENT_PGBENCH_SECONDS ?? 20);
const timeout = 280_000 + SECONDS * 1_000;
const SCALE = 2;
/** Transactions a second in each region: PostgreSQL, agents and pgbench of three regions share this machine. */
const RATE = 60;

const run = promisify(execFile);

test('what a new user does: pgbench’s tables in three regions, load everywhere, a kill and a cut; verify says equal', {
  timeout,
}, async () => {
  await expectPgbench();
  await using cluster = await makeCluster({ tables: '', servers: 'own', viaProxy: true });
  const [tokyo, frankfurt, virginia] = cluster.regions as [string, string, string];
  // Filled in one region; the others have the same tables, empty. Only a table with a primary key can be replicated.
  await pgbench(cluster, tokyo, ['-i', '-q', '-s', String(SCALE)]);
  for (const region of [frankfurt, virginia]) await pgbench(cluster, region, ['-i', '-q', '-I', 'dtp']);
  expect(await coregent(cluster, 'apply')).toMatchObject({ code: 5, err: expect.stringContaining('pgbench_history') });
  await cluster.everywhere('alter table pgbench_history add column id uuid primary key default gen_random_uuid()');

  expect(await coregent(cluster, 'apply')).toMatchObject({ code: 0 });
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from pgbench_accounts'), region).toBe(SCALE * 100_000);
  }
  const agents = new Map(cluster.regions.map((region) => [region, cluster.spawnAgent(region)]));
  await Promise.all([...agents.values()].map((agent) => agent.streaming()));
  expect(await coregent(cluster, 'verify')).toMatchObject({ code: 0 });

  const load = ['-n', '-T', String(SECONDS), '-R', String(RATE), '-c', '2'];
  const running = Promise.all(cluster.regions.map((region) => pgbench(cluster, region, load)));
  running.catch(() => {});
  const half = (SECONDS * RATE) / 2;
  await writtenIn(cluster, tokyo, half / 2);
  await agents.get(frankfurt)!.end('SIGKILL');
  await cluster.cut(tokyo, virginia);
  await writtenIn(cluster, frankfurt, half);
  agents.set(frankfurt, cluster.spawnAgent(frankfurt));
  await cluster.heal();
  const reports = await running;

  const verdict = await coregent(cluster, 'verify', '--json');
  expect({ ...verdict, out: JSON.parse(verdict.out) }).toMatchObject({
    code: 0,
    out: {
      differing: 0,
      tables: ['accounts', 'branches', 'history', 'tellers'].map((name) => ({
        table: `public.pgbench_${name}`,
        moving: 0,
      })),
    },
  });
  // Every transaction that pgbench was told is done left one row, in every region.
  const done = reports.map((text) => Number(/transactions actually processed: (\d+)/.exec(text)?.[1]));
  const failed = reports.map((text) => Number(/failed transactions: (\d+)/.exec(text)?.[1] ?? 0));
  console.info('pgbench:', { done, failed });
  expect(failed).toEqual([0, 0, 0]);
  const sum = done.reduce((total, each) => total + each, 0);
  expect(sum).toBeGreaterThan(half);
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from pgbench_history'), region).toBe(sum);
  }
  const listed = await coregent(cluster, 'conflicts', 'list', '--table', 'public.pgbench_branches', '--json');
  const { conflicts } = JSON.parse(listed.out);
  expect(conflicts.length).toBeGreaterThan(0);
  expect(conflicts[0]).toMatchObject({ kind: 'update_origin_differs', key: { bid: expect.any(Number) } });
  expect(await coregent(cluster, 'status')).toMatchObject({ code: 0 });
});

/** Waits until a region has written so many history rows of its own and others'. */
async function writtenIn(cluster: Cluster, region: string, rows: number): Promise<void> {
  await until(async () => Number(await cluster.value(region, 'select count(*) from pgbench_history')) > rows, {
    what: `${rows} transactions to be in ${region}`,
    deadlineMs: 120_000,
  });
}

async function pgbench(cluster: Cluster, region: string, args: readonly string[]): Promise<string> {
  const { stdout, stderr } = await run('pgbench', [...args, cluster.url(region)]);
  return stdout + stderr;
}

async function expectPgbench(): Promise<void> {
  await run('pgbench', ['--version']).catch((cause) => {
    throw new Error('pgbench is not on the PATH. Cure: apt-get install postgresql-contrib (.ci/run does it).', {
      cause,
    });
  });
}

/** The built command, as users run it. */
async function coregent(cluster: Cluster, ...args: string[]): Promise<Printed> {
  const [program, all] = commandLine(['--config', cluster.configFile, ...args]);
  try {
    const { stdout, stderr } = await run(program, all, { maxBuffer: 2 ** 26 });
    return { code: 0, out: stdout, err: stderr };
  } catch (error) {
    const { code, stdout = '', stderr = '' } = error as ExecFileException;
    if (typeof code !== 'number') throw error;
    return { code, out: stdout, err: stderr };
  }
}
