import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    regions: 2,
    tables: 'create table items (id int primary key, v text)',
    config: { tombstones: { interval: '24h' } },
  });
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

const APPLIES = `from pg_stat_activity where datname = current_database() and application_name = 'coregent apply frankfurt from tokyo'`;

/** Breaks the stream from tokyo to frankfurt, and waits until frankfurt's session is gone with all of its connections. */
async function lose(): Promise<void> {
  const pid = await cluster.value('frankfurt', `select pid ${APPLIES}`);
  await cluster.query(
    'tokyo',
    'select pg_terminate_backend(active_pid) from pg_replication_slots where database = current_database() and slot_name like $1',
    ['%_1_2'],
  );
  await until(
    async () => (await cluster.value('frankfurt', `select count(*)::int ${APPLIES} and pid = $1`, [pid])) === 0,
    {
      what: 'the session to end',
    },
  );
}

/** Waits until frankfurt has confirmed a new write of tokyo: nothing is confirmed before a session has done what it owed at first. */
async function confirmed(): Promise<void> {
  await cluster.query('tokyo', `update items set v = v || '.' where id = 1`);
  await cluster.confirmed();
}

/** How often frankfurt's sessions that have ended read the tombstones. */
const looks = async (): Promise<number> =>
  Number(
    await cluster.value(
      'frankfurt',
      `select sum(seq_scan + idx_scan) from pg_stat_user_tables where schemaname = 'coregent' and relname like 'tomb\\_%'`,
    ),
  );

test('D17: a session that begins again does not look at tables that the last one left settled; the first of a process does', async () => {
  await cluster.query('tokyo', `insert into items select n, 'x' from generate_series(1, 100) n`);
  await cluster.query('tokyo', 'delete from items where id > 50');
  // Beside tombstones, so that each session has something to settle.
  await cluster.query('tokyo', `insert into items values (101, 'x')`);
  await confirmed();
  await lose();
  const before = await looks();
  expect(before).toBeGreaterThan(0);
  for (let session = 0; session < 2; session++) {
    await confirmed();
    await lose();
  }
  expect(await looks()).toBe(before);

  await cluster.stopAgent('frankfurt');
  await cluster.startAgents('frankfurt');
  await confirmed();
  await lose();
  expect(await looks()).toBeGreaterThan(before);
});

test('E1: a session that is lost while it waits for the application is ended by the next, which goes on', async () => {
  const session = await cluster.session('frankfurt');
  await session.query('begin');
  await session.query(`update items set v = 'ours' where id = 2`);
  await cluster.query('tokyo', `update items set v = 'theirs' where id = 2`);
  await until(() => cluster.value('frankfurt', `select count(*)::int ${APPLIES} and wait_event_type = 'Lock'`), {
    what: 'the apply to wait for the application',
  });
  await lose();
  await until(() => cluster.value('frankfurt', `select count(*)::int ${APPLIES} and wait_event_type = 'Lock'`), {
    what: 'the next session to wait in its place',
  });
  await session.query('commit');
  await cluster.converged();
  expect(await cluster.value('tokyo', 'select v from items where id = 2')).toBe('theirs');
});
