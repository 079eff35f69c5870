import { afterAll, beforeAll, expect, it } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

/** The same tables, cut in another way in each region: by range, by list within hash, and not at all. */
const WHOLE = `
  create table public.events (region text, id int, v text, big text, primary key (region, id));
  create table public.days (day date, id int, v text, primary key (day, id));`;
const CUT: Readonly<Record<string, string>> = {
  tokyo: `
    create table public.events (region text, id int, v text, big text, primary key (region, id)) partition by list (region);
    create table public.events_eu partition of public.events for values in ('eu') partition by hash (id);
    create table public.events_eu_0 partition of public.events_eu for values with (modulus 2, remainder 0);
    create table public.events_eu_1 partition of public.events_eu for values with (modulus 2, remainder 1);
    create schema parts;
    create table parts."us; ""x""" partition of public.events for values in ('us');
    create table public.events_rest partition of public.events default;
    create table public.days (day date, id int, v text, primary key (day, id)) partition by range (day);
    create table public.days_23 partition of public.days for values from ('2023-01-01') to ('2024-01-01');
    create table public.days_24 partition of public.days for values from ('2024-01-01') to ('2025-01-01');`,
  frankfurt: `
    create table public.events (big text, v text, id int, region text, primary key (region, id)) partition by hash (id);
    create table public.events_0 partition of public.events for values with (modulus 3, remainder 0);
    create table public.events_1 partition of public.events for values with (modulus 3, remainder 1);
    create table public.events_2 partition of public.events for values with (modulus 3, remainder 2);
    create table public.days (day date, id int, v text, primary key (day, id)) partition by range (day);
    create table public.days_all partition of public.days for values from (minvalue) to (maxvalue);`,
  virginia: WHOLE,
};

let cluster: Cluster;
beforeAll(async () => {
  cluster = await makeCluster({ tables: '' });
  for (const region of cluster.regions) {
    await cluster.query(region, CUT[region]!);
    await cluster.query(region, 'alter table public.events alter column big set storage external');
  }
  await cluster.query(
    'tokyo',
    `insert into events select 'eu', n, 'before', repeat('b', 5000) from generate_series(1, 60) n`,
  );
  await cluster.query('virginia', `insert into events select 'us', n, 'before', null from generate_series(1, 60) n`);
  await cluster.install();
  await cluster.startAgents();
  await cluster.converged();
});
afterAll(() => cluster[Symbol.asyncDispose]());

const events = async (region: string): Promise<unknown> =>
  await cluster.value(
    region,
    `select string_agg(concat_ws(' ', region, id, v, left(big, 1)), ', ' order by region, id) from events where id < 10`,
  );
const conflicts = async (): Promise<number> => {
  const counts = await Promise.all(
    cluster.regions.map((region) => cluster.value(region, 'select count(*)::int from coregent.conflict_record')),
  );
  return counts.reduce((sum: number, each) => sum + Number(each), 0);
};

it('partitioned tables travel as wholes, each region cut in its own way', async () => {
  expect(await cluster.value('frankfurt', 'select count(*)::int from events')).toBe(120);
  await cluster.query('frankfurt', `update events set v = 'changed' where id <= 3`);
  await cluster.query('tokyo', `insert into events values ('asia', 1, 'new')`);
  await cluster.query('virginia', `delete from events where id > 3`);
  await cluster.converged();
  expect(await events('tokyo')).toBe(
    'asia 1 new, eu 1 changed b, eu 2 changed b, eu 3 changed b, us 1 changed, us 2 changed, us 3 changed',
  );
  expect(await conflicts()).toBe(0);
  expect((await cluster.cli('verify')).code).toBe(0);
});

it('D18: a row that moves between partitions arrives as one row, whichever region moves it', async () => {
  await cluster.query('tokyo', `update events set region = 'us', id = id + 100, v = 'moved' where region = 'eu'`);
  await cluster.converged();
  await cluster.query('frankfurt', `update events set id = id + 1, region = 'africa' where id > 100`);
  await cluster.converged();
  await cluster.query('virginia', `update events set id = id - 101, region = 'eu', v = 'back' where id > 100`);
  await cluster.converged();
  expect(await events('tokyo')).toBe(
    'asia 1 new, eu 1 back b, eu 2 back b, eu 3 back b, us 1 changed, us 2 changed, us 3 changed',
  );
  expect(await conflicts()).toBe(0);
});

it('D18: a row that moves here while another region changes it there is decided by versions, alike everywhere', async () => {
  await cluster.stopAgent('tokyo');
  await cluster.stopAgent('virginia');
  await cluster.query('tokyo', `update events set region = 'mars' where region = 'asia'`);
  await cluster.query('virginia', `update events set v = 'stays' where region = 'asia'`);
  await cluster.startAgents('tokyo', 'virginia');
  await cluster.converged();
  expect(
    await cluster.value(
      'frankfurt',
      `select string_agg(region || ' ' || v, ', ' order by region) from events where id = 1`,
    ),
  ).toBe('asia stays, eu back, mars new, us changed');
  expect(await conflicts()).toBeGreaterThan(0);
});

it('D9: TRUNCATE of a partition, of a part with partitions, and of the table', async () => {
  await cluster.query('tokyo', 'truncate parts."us; ""x"""');
  await cluster.converged();
  expect(await cluster.value('virginia', `select count(*)::int from events where region = 'us'`)).toBe(0);
  await cluster.query('tokyo', 'truncate events_eu');
  await cluster.converged();
  expect(await cluster.value('virginia', `select string_agg(region, ' ' order by region) from events`)).toBe(
    'asia mars',
  );
  await cluster.query('frankfurt', 'truncate events');
  await cluster.converged();
  expect(await cluster.value('tokyo', 'select count(*)::int from events')).toBe(0);
});

it('H9: a partition that is made, attached with rows, and detached', async () => {
  // A new partition needs nothing; only TRUNCATE of it alone is known after another `apply`.
  await cluster.query(
    'tokyo',
    `create table days_25 partition of days for values from ('2025-01-01') to ('2026-01-01')`,
  );
  await cluster.query('tokyo', `insert into days values ('2025-06-01', 1, 'x'), ('2024-06-01', 2, 'y')`);
  await cluster.converged();
  expect((await cluster.cli('apply', '--dry-run')).out).toContain('tokyo: stamp public.days');
  const { findings } = JSON.parse((await cluster.cli('doctor', '--json')).out);
  expect(findings).toContainEqual(
    expect.objectContaining({ code: 'apply_needed', region: 'tokyo', object: 'public.days' }),
  );
  await cluster.install();
  await cluster.query('tokyo', 'truncate days_25');
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from days')).toBe(1);

  // Rows that come with an attached table are not in the WAL: an update of them is.
  await cluster.query('tokyo', `create table days_26 (like days including all)`);
  await cluster.query('tokyo', `insert into days_26 values ('2026-06-01', 3, 'z')`);
  await cluster.query(
    'tokyo',
    `alter table days attach partition days_26 for values from ('2026-01-01') to ('2027-01-01')`,
  );
  await cluster.install();
  await cluster.query('tokyo', `update days_26 set v = v`);
  await cluster.converged();
  expect(await cluster.value('virginia', `select v from days where id = 3`)).toBe('z');

  // A detached partition leaves with its rows, here and nowhere else.
  await cluster.query('tokyo', 'alter table days detach partition days_24');
  await cluster.query('tokyo', `update days_24 set v = 'apart'`);
  await cluster.query('tokyo', `insert into days values ('2025-07-01', 4, 'w')`);
  for (const sql of ['create table gone as table days_24', 'truncate days_24', 'insert into days_24 table gone'])
    await cluster.query('tokyo', sql);
  await cluster.confirmed();
  expect(await cluster.value('virginia', `select string_agg(v, ' ' order by id) from days`)).toBe('y z w');
  await cluster.query(
    'tokyo',
    `alter table days attach partition days_24 for values from ('2024-01-01') to ('2025-01-01')`,
  );
  // A walsender of PostgreSQL 14 takes it for what it was; a new one does not.
  if (Number(await cluster.value('tokyo', `select current_setting('server_version_num')`)) < 150_000) {
    for (const region of ['frankfurt', 'virginia']) await cluster.stopAgent(region);
    await cluster.startAgents('frankfurt', 'virginia');
  }
  await cluster.query('tokyo', `update days_24 set v = v`);
  await cluster.converged();
  expect(await cluster.value('virginia', `select string_agg(v, ' ' order by id) from days`)).toBe('apart z w');
});

it('H1: a column that a partitioned table lacks in one region pauses it there, and it heals', async () => {
  await cluster.query('tokyo', 'alter table events add column more int');
  await cluster.query('tokyo', `insert into events (region, id, more) values ('eu', 500, 1), ('us', 501, 2)`);
  await until(() => cluster.peer('frankfurt', 'tokyo').paused.some(({ table }) => table === 'public.events'), {
    what: 'frankfurt to pause the table',
  });
  for (const region of ['frankfurt', 'virginia']) await cluster.query(region, 'alter table events add column more int');
  await cluster.converged();
  expect(await cluster.value('virginia', 'select sum(more)::int from events')).toBe(3);
});

it('a row without a partition here is parked, and the rest goes on', async () => {
  await cluster.query('frankfurt', `insert into days values ('1999-01-01', 9, 'old'), ('2023-01-01', 10, 'new')`);
  await cluster.confirmed();
  expect(await cluster.value('tokyo', 'select max(id) from days')).toBe(10);
  expect(await cluster.value('virginia', 'select count(*)::int from days where id >= 9')).toBe(2);
  expect((await cluster.query('tokyo', 'select table_name, sqlstate from coregent.parked')).rows).toEqual([
    { table_name: 'public.days', sqlstate: '23514' },
  ]);
});

it('remove takes everything of ours out of partitioned tables too', async () => {
  await using other = await makeCluster({
    regions: 2,
    tables: CUT.tokyo!.replaceAll('create schema parts', 'create schema if not exists parts'),
  });
  await other.install();
  expect((await other.cli('remove', '--yes')).code).toBe(0);
  for (const region of other.regions) {
    expect(await other.value(region, `select count(*)::int from pg_trigger where tgname like '%coregent%'`)).toBe(0);
    expect(
      await other.value(
        region,
        `select count(*)::int from pg_attribute where attname like '%coregent%' and not attisdropped`,
      ),
    ).toBe(0);
  }
});
