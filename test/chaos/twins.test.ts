import { expect, test } from 'vitest';
import { makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

test('E13: a paused agent is put out by its twin, and when it wakes it can commit nothing', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    servers: 'own',
    tables: 'create table items (id int primary key, v text)',
    // The stream of one that is paused stays open for longer than any test waits.
    settings: { wal_sender_timeout: '10min' },
    config: { batch: { rows: 200 } },
  });
  await cluster.install();
  await cluster.query('tokyo', `insert into items values (1, 'held')`);
  await cluster.startAgents('tokyo');
  const paused = cluster.spawnAgent('frankfurt');
  await paused.streaming();
  await cluster.converged();

  // It is stopped while it applies a large transaction: rows of it lie in its open local transaction.
  const holder = await cluster.session('frankfurt');
  await holder.query('begin; select from items where id = 1 for update');
  await cluster.query(
    'tokyo',
    `begin; insert into items select 10 + n, 'large' from generate_series(1, 1000) n; update items set v = 'changed' where id = 1; commit`,
  );
  await until(
    () =>
      cluster.value(
        'frankfurt',
        `select count(*)::int from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'coregent apply frankfurt from tokyo'`,
      ),
    { what: 'its apply to wait for the row' },
  );
  process.kill(paused.pid, 'SIGSTOP');
  await holder.query('commit');
  // What it had received goes on without it; then its sessions are silent.
  const twin = cluster.spawnAgent('frankfurt');
  await twin.logged('agent.standby');
  await cluster.query('tokyo', `insert into items values (2, 'while it sleeps')`);
  await twin.logged('agent.takeover', 60_000);
  await twin.logged('agent.leading');
  await twin.logged('slot.freed');
  await twin.logged('peer.streaming');
  await until(() => cluster.value('frankfurt', 'select count(*)::int from items where id = 2'), { what: 'the row' });

  process.kill(paused.pid, 'SIGCONT');
  await until(() => paused.log.some(({ event }) => event === 'database.lost'), { what: 'the sleeper to wake' });
  await until(async () => (await paused.status()).state === 'standby', { what: 'the sleeper to stand by' });
  await cluster.query('tokyo', `insert into items values (3, 'after')`);
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select transactions::int from coregent.progress')).toBe(4);
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.conflict_record')).toBe(0);
  expect((await twin.status()).peers).toMatchObject([{ state: 'streaming' }]);
});
