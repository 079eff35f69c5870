import { expect, test } from 'vitest';
import { makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

test('INV-L: a conflict with a row that had to be fetched is recorded once, whatever the number of writes it stands in for', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: `create table documents (id int primary key, title text not null, body text);
      alter table documents alter body set storage external;`,
    // Each write in a batch of its own.
    config: { batch: { rows: 1 } },
  });
  await cluster.install();
  await cluster.startAgents();
  await cluster.query(
    'tokyo',
    `insert into documents values (1, 'begin', repeat('x', 10000)), (2, 'begin', repeat('x', 10000))`,
  );
  await cluster.converged();
  await cluster.stopAgent('frankfurt');
  await cluster.stopAgent('tokyo');
  // Writes that leave the long value alone, and another region's that no writer of them had seen: newer, and older.
  await cluster.query('frankfurt', `update documents set title = 'frankfurt' where id = 2`);
  for (let edit = 1; edit <= 4; edit++) await cluster.query('tokyo', `update documents set title = 'tokyo ${edit}'`);
  await cluster.query('frankfurt', `update documents set title = 'frankfurt' where id = 1`);
  const mark = await cluster.value('tokyo', 'select pg_current_wal_flush_lsn()');
  // The one after the other: what tokyo has is its own until frankfurt has heard it all.
  await cluster.startAgents('frankfurt');
  await until(
    () =>
      cluster.value(
        'tokyo',
        'select confirmed_flush_lsn >= $1 from pg_replication_slots where database = current_database()',
        [mark],
      ),
    { what: 'frankfurt to confirm the writes of tokyo' },
  );
  await cluster.startAgents('tokyo');
  await cluster.converged();

  const recorded = async (region: string): Promise<unknown[]> =>
    (
      await cluster.query(
        region,
        `select key ->> 'id' as id, outcome, count(*)::int as times from coregent.conflicts group by 1, 2 order by 1`,
      )
    ).rows;
  expect(await recorded('frankfurt')).toEqual([
    { id: '1', outcome: 'keep', times: 1 },
    { id: '2', outcome: 'apply', times: 1 },
  ]);
  // The older row is gone in frankfurt by now: what tokyo is given for it is its own row.
  expect(await recorded('tokyo')).toEqual([{ id: '1', outcome: 'apply', times: 1 }]);
});

test('B1: a row at fault in a transaction of several batches keeps its link for no longer than a moment', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: 'create table people (id int primary key, email text not null unique)',
    config: { batch: { rows: 50 } },
  });
  await cluster.install();
  await cluster.query('frankfurt', `insert into people values (-1, '77@example.com')`);
  await cluster.query('tokyo', `insert into people select n, n || '@example.com' from generate_series(1, 200) n`);
  await cluster.startAgents();
  await cluster.confirmed();

  expect(await cluster.value('frankfurt', 'select count(*)::int from people')).toBe(200);
  for (const region of cluster.regions) {
    await until(async () => (await cluster.value(region, 'select count(*)::int from coregent.parked')) === 0, {
      what: `the row at fault to be settled in ${region}`,
    });
  }
  await cluster.converged();
  expect(await cluster.value('frankfurt', `select min(id) from people where email = '77@example.com'`)).toBe(-1);
  const waits = cluster.log('frankfurt').filter(({ code }) => code === 'apply_failed');
  expect(waits.map(({ event }) => event)).toEqual(['peer.retry']);
  expect(waits[0]!.retry_in_ms).toBeLessThanOrEqual(100);
});
