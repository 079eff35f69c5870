import { expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const make = (): Promise<Cluster> =>
  makeCluster({
    tables: 'create table items (id int primary key, v text)',
    config: { tombstones: { interval: '1s' } },
  });

/** How many tombstones of the table items a region has. */
async function tombstones(cluster: Cluster, region: string): Promise<number> {
  const name = await cluster.value(region, `select 'coregent.tomb_' || table_id from coregent.tables`);
  return Number(await cluster.value(region, `select count(*) from ${name}`));
}

async function reaped(cluster: Cluster, region: string): Promise<void> {
  await until(async () => (await tombstones(cluster, region)) === 0, {
    what: `the tombstones of ${region} to go`,
  });
}

test('a tombstone stays until every region has confirmed it, however old it is, and then goes', async () => {
  await using cluster = await make();
  await cluster.install();
  await cluster.startAgents('tokyo', 'frankfurt');
  await cluster.query('tokyo', `insert into items select n, 'x' from generate_series(1, 10) n`);
  await cluster.query('tokyo', 'delete from items where id <= 5');
  // Rounds begin, and none may end while virginia has not heard of the deletes.
  await until(() => Number(cluster.peer('frankfurt', 'tokyo').rows) >= 15, { what: 'the deletes to be in frankfurt' });
  for (const region of ['tokyo', 'frankfurt']) {
    await until(
      () =>
        cluster.value(
          'virginia',
          `select count(*)::int from pg_stat_activity where datname = current_database() and application_name = $1`,
          [`coregent barrier ${region}`],
        ),
      { what: `a round of ${region} to wait for virginia` },
    );
    expect(await tombstones(cluster, region), region).toBe(5);
  }
  await cluster.startAgents('virginia');
  for (const region of cluster.regions) await reaped(cluster, region);
  await cluster.converged();
  expect(await cluster.value('virginia', 'select count(*)::int from items')).toBe(5);
});

test('a row may come back after its tombstone has gone, and an old write of it may not', async () => {
  await using cluster = await make();
  await cluster.install();
  await cluster.startAgents();
  await cluster.query('tokyo', `insert into items values (1, 'first')`);
  await cluster.converged();
  // In flight all the time: an update of virginia that the others get only after they know of the delete.
  await cluster.stopAgent('tokyo');
  await cluster.stopAgent('frankfurt');
  await cluster.query('virginia', `update items set v = 'old' where id = 1`);
  await cluster.query('tokyo', 'delete from items where id = 1');
  await until(async () => (await tombstones(cluster, 'virginia')) === 1, { what: 'the delete to be in virginia' });
  await cluster.startAgents('tokyo', 'frankfurt');
  for (const region of cluster.regions) await reaped(cluster, region);
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from items'), region).toBe(0);
  }
  const { rows } = await cluster.query('virginia', 'select kind, outcome, local_row from coregent.conflicts');
  expect(rows).toEqual([{ kind: 'delete_origin_differs', outcome: 'apply', local_row: { id: 1, v: 'old' } }]);

  await cluster.query('frankfurt', `insert into items values (1, 'again')`);
  await cluster.converged();
  expect(await cluster.value('tokyo', 'select v from items where id = 1')).toBe('again');
});

test('J14: a storm of conflicts leaves the newest records, and a row that comes again is parked once', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: 'create table items (id int primary key, v text, exclude using btree (v with =))',
    config: { tombstones: { interval: '1s' }, conflicts: { limit: 100 } },
  });
  await cluster.install();
  await cluster.query('tokyo', `insert into items values (1, 'same')`);
  await cluster.query('frankfurt', `insert into items values (2, 'same')`);
  await cluster.startAgents();
  await cluster.confirmed();
  await cluster.query(
    'tokyo',
    `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version)
      select 'public.items', '{"id": 1}', 'insert_exists', 'lww', 'keep', n, n + 1 from generate_series(1, 250) n`,
  );
  const kept = 'select count(*)::int from coregent.conflict_record';
  await until(async () => (await cluster.value('tokyo', kept)) === 100, {
    what: 'the oldest records to go',
  });
  expect(await cluster.value('tokyo', 'select min(local_version)::int from coregent.conflict_record')).toBe(151);
  for (let round = 0; round < 3; round++) expect((await cluster.cli('verify', '--repair')).code).toBe(3);
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked'), region).toBe(1);
  }

  // INV-C: what is parked is tried again, and must not meet a row whose delete nobody remembers.
  await cluster.query('tokyo', `insert into items values (3, 'gone')`);
  await cluster.query('tokyo', 'delete from items where id = 3');
  await cluster.confirmed();
  const rounds = (): number => cluster.log('tokyo').filter(({ event }) => event === 'tombstones.kept').length;
  const before = rounds();
  await until(() => rounds() >= before + 2, { what: 'two rounds that keep what they find' });
  expect(await tombstones(cluster, 'tokyo')).toBe(1);
  await cluster.query('frankfurt', `update items set v = 'another' where id = 2`);
  await cluster.query('tokyo', `insert into items values (4, 'behind which the parked row is tried')`);
  await reaped(cluster, 'tokyo');
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBe(0);
});
