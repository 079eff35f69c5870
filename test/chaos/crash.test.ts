import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { makeCluster } from '../world/cluster.ts';
import { checkHistory } from '../world/laws.ts';
import { seeded, seedOfRun, within } from '../world/random.ts';
import { until } from '../world/until.ts';
import { startWriters, WRITERS_TABLES } from '../world/writers.ts';

/** What is committed survives a crash, as on a user's server; the rest of what PostgreSQL holds in memory does not. */
const DURABLE = { fsync: true, full_page_writes: true };

test('E2: nothing that was confirmed to a peer is missing after a crash of the receiving server', async () => {
  const random = seeded(seedOfRun('crash of the receiver'));
  await using cluster = await makeCluster({
    regions: 2,
    servers: 'own',
    // Applied rows stay in memory until somebody asks for a flush: what is confirmed too early is lost for certain.
    settings: { ...DURABLE, wal_writer_delay: '10s' },
    tables: 'create table items (id int primary key, v text)',
  });
  await cluster.install();
  const tokyo = await cluster.session('tokyo');
  const acknowledged: { id: number; lsn: string }[] = [];
  const stopping = new AbortController();
  const writing = (async () => {
    for (let id = 1; !stopping.signal.aborted; id++) {
      await tokyo.query(`insert into items values ($1, 'x')`, [id]);
      const { rows } = await tokyo.query('select pg_current_wal_insert_lsn() as lsn');
      acknowledged.push({ id, lsn: rows[0].lsn });
      await sleep(5);
    }
  })();
  writing.catch(() => {}); // A failed test ends its connection.
  /** The newest row that frankfurt has confirmed. */
  const confirmed = async (): Promise<number> =>
    Number(
      await cluster.value(
        'tokyo',
        `select coalesce(max(id), 0) from unnest($1::int[], $2::pg_lsn[]) as w (id, lsn)
          where lsn <= (select confirmed_flush_lsn from pg_replication_slots where slot_name like '%\\_1\\_2')`,
        [acknowledged.map(({ id }) => id), acknowledged.map(({ lsn }) => lsn)],
      ),
    );
  const newest = async (): Promise<number> =>
    Number(await cluster.value('frankfurt', 'select coalesce(max(id), 0) from items'));

  let undone = 0;
  for (const how of ['kill', 'immediate', 'kill'] as const) {
    const before = await confirmed();
    const agent = cluster.spawnAgent('frankfurt');
    await until(async () => (await confirmed()) > before, { what: 'rows to be confirmed' });
    await sleep(within(random, 0, 1_500));
    const visible = await newest();
    if (how === 'kill') await cluster.server('frankfurt').kill();
    else await cluster.server('frankfurt').stop('immediate');
    // The agent is gone before the server is back, so that it cannot heal what was lost.
    await agent.end('SIGKILL');
    await until(() => cluster.value('tokyo', 'select bool_and(not active) from pg_replication_slots'), {
      what: 'the walsender to end',
    });
    const due = await confirmed();
    await cluster.server('frankfurt').start();
    const survived = await newest();
    expect(survived, 'the newest row that survived').toBeGreaterThanOrEqual(due);
    expect(await cluster.value('frankfurt', 'select count(*)::int from items'), 'no gap').toBe(survived);
    undone += visible - survived;
  }
  // The crashes did undo rows that were applied and not confirmed: else this would have proved nothing.
  expect(undone).toBeGreaterThan(0);
  stopping.abort();
  await writing;
  await cluster.startAgents();
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from items')).toBe(acknowledged.length);
});

test('servers that crash under load, receiving and sending, come back, and replication resumes by itself', async () => {
  const seed = seedOfRun('crashes under load');
  const random = seeded(seed);
  await using cluster = await makeCluster({
    servers: 'own',
    settings: DURABLE,
    tables: WRITERS_TABLES,
    config: { tombstones: { interval: '2s' } },
  });
  await cluster.install();
  const agents = cluster.regions.map((region) => cluster.spawnAgent(region));
  await Promise.all(agents.map((agent) => agent.streaming()));
  const writers = await startWriters(cluster, { seed, pauseMs: 60, crashes: true });
  const plan = [
    { region: 'tokyo', how: 'kill' },
    { region: 'frankfurt', how: 'immediate' },
    { region: 'virginia', how: 'kill' },
    { region: 'tokyo', how: 'immediate' },
  ] as const;
  for (const { region, how } of plan) {
    await sleep(within(random, 200, 1_500));
    const server = cluster.server(region);
    if (how === 'kill') await server.kill();
    else await server.stop('immediate');
    await sleep(within(random, 0, 1_000));
    await server.start();
    await Promise.all(agents.map((agent) => agent.streaming()));
  }
  await sleep(within(random, 200, 1_000));
  await writers.stop();
  await cluster.converged();

  const evidence = await checkHistory(writers.history, cluster.named);
  console.info('crash:', { ...evidence, unanswered: writers.history.unanswered.size });
  expect(evidence.violations).toEqual([]);
  expect(evidence.groups).toBeGreaterThan(0);
  expect(evidence.increments).toBeGreaterThan(0);
  expect(evidence.conflicts).toBeGreaterThan(0);
  for (const agent of agents) expect(await agent.end('SIGTERM')).toBe(0);
});
