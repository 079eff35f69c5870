import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { GATES, lockGate, seen } from '../world/gate.ts';
import { until } from '../world/until.ts';

let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    viaProxy: true,
    tables: `
      create table items (id int primary key, v text);
      ${GATES}
      create table people (id int primary key, email text not null unique);`,
    config: { batch: { rows: 200 } },
  });
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** Waits until the session that applies a peer's rows in a region waits for a lock. */
async function blocked(region: string, peer: string): Promise<void> {
  await until(
    () =>
      cluster.value(
        region,
        `select count(*)::int from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock' and application_name = $1`,
        [`coregent apply ${region} from ${peer}`],
      ),
    { what: `rows of ${peer} to wait for a lock in ${region}` },
  );
}

/** Looks at a region over a connection of its own, every few milliseconds, until it is stopped; gives the different answers. */
function watch(region: string, text: string): { stop(): Promise<unknown[]> } {
  let stopping = false;
  const answers: unknown[] = [];
  const watching = (async () => {
    const session = await cluster.session(region);
    while (!stopping) {
      const answer = Object.values((await session.query(text)).rows[0])[0];
      if (answer !== answers.at(-1)) answers.push(answer);
      await sleep(5);
    }
  })();
  return {
    stop: async () => {
      stopping = true;
      await watching;
      return answers;
    },
  };
}

test('INV-C: a delete that overtakes the insert that it deletes, while that is being applied, still deletes', async () => {
  const open = await lockGate(cluster, 'virginia', 1);
  // Applied in the order of its tables: the row is in, not committed, and the transaction waits at the gate.
  await cluster.query(
    'tokyo',
    `begin; insert into items values (1, 'x'); update gates set v = 'x' where id = 1; commit`,
  );
  await blocked('virginia', 'tokyo');
  await seen(cluster, 'frankfurt', 'select count(*)::int from items where id = 1', 'the row');
  await cluster.query('frankfurt', 'delete from items where id = 1');
  await cluster.query('frankfurt', `insert into gates values (2, 'behind the delete')`);
  await seen(cluster, 'virginia', 'select count(*)::int from gates where id = 2', 'the delete');
  await open();
  await cluster.converged();
});

test('a row that the application holds delays only the peer whose change meets it', async () => {
  const open = await lockGate(cluster, 'virginia', 10);
  await cluster.query('tokyo', `update gates set v = 'tokyo' where id = 10`);
  await blocked('virginia', 'tokyo');
  await cluster.query('tokyo', `insert into items values (10, 'behind')`);
  await cluster.query('frankfurt', `insert into items values (11, 'free')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 11', 'the row of the other peer');
  await seen(cluster, 'frankfurt', 'select count(*)::int from items where id = 10', 'the row behind the held one');
  expect(await cluster.value('virginia', 'select count(*)::int from items where id = 10')).toBe(0);
  await open();
  await cluster.converged();
});

test('INV-A: a transaction larger than many batches is visible whole or not at all', async () => {
  const rows = 3_000;
  const watching = watch('virginia', 'select count(*)::int from items where id > 10000 and id <= 20000');
  await cluster.query('tokyo', `insert into items select 10000 + n, 'large' from generate_series(1, $1::int) n`, [
    rows,
  ]);
  await cluster.converged();
  await cluster.query('tokyo', `update items set v = 'larger' where id > 10000 and id <= 20000`);
  await cluster.query('tokyo', `delete from items where id > 10000 and id <= 20000`);
  await cluster.converged();
  expect(await watching.stop()).toEqual([0, rows, 0]);
});

test('INV-A: a transaction that its peer streams while it runs brings nothing before its commit, and nothing rolled back', async () => {
  const tokyo = await cluster.session('tokyo');
  const watching = watch('virginia', 'select count(*)::int from items where id > 20000 and id <= 90000');
  // Far more than the peer decodes in memory: it is sent while it runs.
  await cluster.query(
    'tokyo',
    `do $$ begin execute format('alter database %I set logical_decoding_work_mem = 64', current_database()); end $$`,
  );
  cluster.link('tokyo', 'virginia').reset();
  cluster.link('tokyo', 'frankfurt').reset();
  await until(() => cluster.log('virginia').filter(({ event }) => event === 'peer.retry').length > 0, {
    what: 'the link to break',
  });
  await cluster.streaming('virginia');
  await cluster.streaming('frankfurt');
  const fill = (first: number, rows: number) =>
    tokyo.query(`insert into items select $1::int + n, repeat('x', 100) from generate_series(1, $2::int) n`, [
      first,
      rows,
    ]);
  await tokyo.query('begin');
  await fill(20_000, 4_000);
  await tokyo.query('savepoint s');
  await fill(30_000, 4_000);
  await tokyo.query('rollback to s');
  await fill(40_000, 100);
  await tokyo.query('update items set v = v where id > 20000 and id <= 30000');
  await tokyo.query('commit; begin');
  await fill(50_000, 4_000);
  await tokyo.query('rollback');
  await cluster.converged();
  expect(await watching.stop()).toEqual([0, 4_100]);
});

test('INV-A: rows that go ahead of their commit are taken back for whoever commits first, and when they are rolled back', async () => {
  const busy = (): Promise<unknown> =>
    cluster.value(
      'virginia',
      `select backend_xid is not null from pg_stat_activity where datname = current_database() and application_name = $1`,
      ['coregent apply virginia from tokyo'],
    );
  const ahead = (what: string) => until(busy, { what: `${what} to be applied ahead` });
  const over = () => until(async () => !(await busy()), { what: 'it to be taken back' });
  const watching = watch('virginia', 'select count(*)::int from items where id > 60000 and id <= 90000');
  const tokyo = await cluster.session('tokyo');
  const fill = (first: number) =>
    tokyo.query(`begin; insert into items select ${first} + n, repeat('x', 100) from generate_series(1, 4000) n`);
  await fill(60_000);
  await ahead('the first one');
  await cluster.query('tokyo', `insert into items values (90001, 'meanwhile')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 90001', 'what committed first');
  expect(await cluster.value('virginia', 'select count(*)::int from items where id > 60000 and id <= 90000')).toBe(0);
  await tokyo.query('commit');
  await seen(
    cluster,
    'virginia',
    'select count(*) >= 4000 from items where id > 60000 and id <= 90000',
    'the first one',
  );
  await fill(65_000);
  await ahead('the second one');
  // A row of the application with a key that went ahead waits for no more than the patience of who went ahead.
  await cluster.query('virginia', `insert into items values (65001, 'of the application')`);
  await over();
  await tokyo.query('rollback');
  await fill(70_000);
  await ahead('the third one');
  await tokyo.query('rollback');
  await over();
  await fill(75_000);
  await ahead('the fourth one');
  await tokyo.query('commit');
  await cluster.converged();
  expect(await watching.stop()).toEqual([0, 4_000, 4_001, 8_001]);
});

test('B1: of two rows of different regions that claim one unique value one stays everywhere, the other is recorded, the stream goes on', async () => {
  await cluster.cut('tokyo', 'frankfurt');
  await cluster.query('tokyo', `insert into people values (1, 'same@example.org')`);
  await cluster.query('frankfurt', `insert into people values (2, 'same@example.org')`);
  await cluster.query('frankfurt', `insert into people values (3, 'other@example.org')`);
  await cluster.query('frankfurt', `insert into items values (100, 'behind')`);
  await cluster.heal();
  await seen(cluster, 'tokyo', 'select count(*)::int from items where id = 100', 'what came behind the parked row');
  for (const region of cluster.regions) {
    await until(
      async () =>
        (await cluster.value(region, `select string_agg(id::text, ' ' order by id) from people`)) === '1 3' &&
        (await cluster.value(region, 'select count(*)::int from coregent.parked')) === 0,
      { what: `the smaller key alone to be in ${region}, and nothing parked` },
    );
  }
  await cluster.converged();
  const recorded = `select kind, rule, outcome, key, coalesce(local_row, incoming_row) ->> 'email' as email from coregent.conflicts where table_name = 'public.people'`;
  expect((await cluster.query('frankfurt', recorded)).rows).toEqual([
    { kind: 'insert_exists', rule: 'unique', outcome: 'apply', key: { id: 2 }, email: 'same@example.org' },
  ]);
  await until(() => cluster.agent('frankfurt').status().parked === 0, { what: 'the agent to count nothing parked' });
});

test('a slot that is gone is made anew, and all rows are joined again, while the others go on', async () => {
  const slot = `coregent_${cluster.name}_2_3`;
  await cluster.link('frankfurt', 'virginia').cut();
  await until(() => cluster.query('frankfurt', 'select pg_drop_replication_slot($1)', [slot]).then(() => true), {
    what: 'the slot to be dropped',
  });
  await cluster.query('frankfurt', `insert into items values (300, 'while there is no slot')`);
  await cluster.query('tokyo', `insert into items values (301, 'of another peer')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 301', 'a row of the other peer');
  await cluster.heal();
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 300', 'the row');
  expect(cluster.log('virginia')).toContainEqual(
    expect.objectContaining({ event: 'peer.rejoining', peer: 'frankfurt', reason: 'its slot was gone' }),
  );
  await cluster.query('frankfurt', `insert into items values (302, 'by the new slot')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 302', 'the row by the new slot');
  await until(async () => (await cluster.value('virginia', 'select count(*)::int from coregent.paused')) === 0, {
    what: 'all to be joined',
  });
});

test('INV-A: an agent killed in the middle of a large transaction leaves nothing of it, and the next one applies it whole', async () => {
  await cluster.stopAgent('virginia');
  const first = cluster.spawnAgent('virginia');
  await first.streaming();
  const open = await lockGate(cluster, 'virginia', 600);
  const watching = watch('virginia', 'select count(*)::int from items where id > 100000');
  await cluster.query(
    'tokyo',
    `begin;
     insert into items select 100000 + n, 'x' from generate_series(1, 1000) n;
     update gates set v = 'x' where id = 600;
     insert into items select 101000 + n, 'x' from generate_series(1, 1000) n;
     commit`,
  );
  await blocked('virginia', 'tokyo');
  expect(await first.end('SIGKILL')).toBe('SIGKILL');
  const second = cluster.spawnAgent('virginia');
  await second.logged('agent.leading');
  await open();
  await second.streaming();
  await cluster.converged();
  expect(await watching.stop()).toEqual([0, 2000]);
  expect(await second.end('SIGTERM')).toBe(0);
  await cluster.startAgents('virginia');
});

test('INV-Q: when nobody writes, nothing is written', async () => {
  await using quiet = await makeCluster({
    regions: 2,
    servers: 'own',
    // Nobody else writes these servers' WAL: what grows it is ours.
    settings: { autovacuum: false, checkpoint_timeout: '1h' },
    tables: 'create table items (id int primary key, v text)',
    config: { tombstones: { interval: '1s' } },
  });
  await quiet.install();
  await quiet.startAgents();
  await quiet.query('tokyo', `insert into items select n, 'x' from generate_series(1, 100) n`);
  await quiet.query(
    'frankfurt',
    `insert into items select n, 'y' from generate_series(51, 150) n on conflict (id) do update set v = excluded.v`,
  );
  await quiet.query('frankfurt', 'delete from items where id = 150');
  await quiet.converged();
  await until(() => quiet.log('tokyo').some(({ event }) => event === 'tombstones.reaped'), {
    what: 'the tombstone to go',
  });
  await until(() => quiet.log('frankfurt').some(({ event }) => event === 'tombstones.reaped'), {
    what: 'the tombstone to go',
  });

  // Longer than the longest round of what agents do by the clock. PostgreSQL itself notes the running transactions once,
  // some 15 s after the last write; every write of ours, however small, moves the position too.
  const quietMs = 7_000;
  let since = performance.now();
  let last: unknown;
  await until(
    async () => {
      const now = await Promise.all(
        quiet.regions.map((region) => quiet.value(region, 'select pg_current_wal_insert_lsn()')),
      );
      if (String(now) !== String(last)) since = performance.now();
      last = now;
      return performance.now() - since > quietMs;
    },
    { what: `no WAL in any region for ${quietMs} ms` },
  );
});
