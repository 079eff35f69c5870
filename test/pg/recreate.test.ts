import { afterAll, beforeAll, expect, test } from 'vitest';
import { readStandings } from '../../src/pg/standing.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const ITEMS = 'create table items (id int primary key, v text)';
let planted = 1_000;

let cluster: Cluster;
beforeAll(async () => {
  cluster = await makeCluster({ tables: `${ITEMS}; create table others (id int primary key, v text)` });
  await cluster.install();
  await cluster.startAgents();
  await cluster.query('tokyo', `insert into items select n, 'x' from generate_series(1, 20) n`);
  await cluster.query('tokyo', 'delete from items where id = 20');
  await cluster.converged();
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** Waits until no region owes anything, and demands equal rows and none that is parked. */
async function healed(): Promise<void> {
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked'), region).toBe(0);
  }
}

const some = async (region: string): Promise<unknown> =>
  await cluster.value(region, `select string_agg(v, ' ' order by id) from items where id in (1, 20, 21)`);

test('H5: a table that is dropped and created again pauses, and apply joins it both ways', async () => {
  await cluster.query('tokyo', 'drop table items');
  const gone = 'here it is gone: create it again, or drop it everywhere, and run `coregent apply`';
  await until(() => cluster.peer('tokyo', 'virginia').paused.some(({ reason }) => reason === gone), {
    what: 'the table to pause',
  });
  expect((await cluster.cli('verify')).code).toBe(3);
  await cluster.query('frankfurt', `update items set v = 'meanwhile' where id = 1`);
  await cluster.query('tokyo', ITEMS);
  // Its key was deleted in the table's earlier life.
  await cluster.query('tokyo', `insert into items values (20, 'again'), (21, 'new')`);
  await cluster.query('tokyo', `insert into others values (1, 'goes on')`);
  await cluster.install();
  await healed();
  expect(await some('virginia')).toBe('meanwhile again new');
  expect(await cluster.value('tokyo', 'select count(*)::int from items')).toBe(21);
});

test('H5: another table with the same name and the same columns is seen as another', async () => {
  const session = await cluster.session('tokyo');
  await session.query('begin');
  const { text } = await readStandings(session);
  expect((await readStandings(session)).text).toBe(text);
  await session.query('create table twin (like others including all)');
  await session.query('drop table others');
  await session.query('alter table twin rename to others');
  expect((await readStandings(session)).text).not.toBe(text);
  await session.query('rollback');
});

test('H5: it is joined too when nobody saw it go', async () => {
  await cluster.query('virginia', `begin; drop table items; ${ITEMS}; insert into items values (21, 'newer'); commit`);
  await cluster.install();
  await cluster.query('virginia', `update items set v = 'after' where id = 21`);
  await healed();
  expect(await some('tokyo')).toBe('meanwhile again after');
  expect(await cluster.value('virginia', 'select count(*)::int from items')).toBe(21);
  expect((await cluster.cli('apply', '--dry-run')).code).toBe(0);
});

test('H5: a copy of a table in its place, our columns included, is joined too', async () => {
  await cluster.query('frankfurt', 'create table twin (like items including all)');
  await cluster.query('frankfurt', 'insert into twin table items');
  await cluster.query('frankfurt', 'begin; drop table items; alter table twin rename to items; commit');
  await cluster.query('frankfurt', `insert into items values (30, 'unseen')`);
  await cluster.query('tokyo', `update items set v = 'meanwhile' where id = 21`);
  await cluster.install();
  await healed();
  expect(await cluster.value('virginia', 'select v from items where id = 30')).toBe('unseen');
  expect(await some('frankfurt')).toBe('meanwhile again meanwhile');
});

test('H2: a key that becomes wider in every region keeps the memory of its deletes', async () => {
  // PostgreSQL changes no type of a column that a trigger names.
  const widen = `begin;
    drop trigger "~coregent_rekey" on items;
    drop trigger "~coregent_late" on items;
    alter table items alter column id type bigint;
    commit`;
  await cluster.query('tokyo', widen);
  await cluster.query('tokyo', 'delete from items where id <= 5');
  await cluster.query('frankfurt', widen);
  await cluster.query('virginia', widen);
  await cluster.query('virginia', `insert into items values (5000000000, 'wide')`);
  await cluster.install();
  await healed();
  expect(await cluster.value('frankfurt', 'select min(id) from items')).toBe('6');
  await cluster.query('frankfurt', 'delete from items where id > 30');
  await healed();
  expect(await cluster.value('tokyo', 'select max(id) from items')).toBe('30');
  expect((await cluster.cli('apply', '--dry-run')).code).toBe(0);
});

test('H2: a table that has another key in every region is refused: nothing would know its deletes', async () => {
  await cluster.everywhere('alter table others drop constraint others_pkey, add primary key (id, v)');
  const { code, err } = await cluster.cli('apply');
  expect(code).toBe(5);
  expect(err).toContain('public.others has another primary key than its deletes are remembered by');
  expect(err).toContain('Make (id) its primary key again');
  await cluster.everywhere(
    'alter table others drop constraint others_pkey, alter column v drop not null, add primary key (id)',
  );
  await cluster.install();
});

test('H5: a table that is dropped everywhere is forgotten by apply, and its rows that are still on their way are owed by nobody', async () => {
  await cluster.stopAgent('frankfurt');
  await cluster.query('tokyo', `insert into items values (22, 'on its way')`);
  await cluster.everywhere('drop table items');
  await cluster.query(
    'virginia',
    `insert into coregent.parked (peer_id, table_name, operation, version, row_bytes, columns, sqlstate, reason)
      values (1, 'public.items', 'insert', 1, '', '[]', '23505', 'it waits for its place')`,
  );
  const { out } = await cluster.cli('apply');
  for (const region of cluster.regions) {
    expect(out).toContain(`${region}: forget public.items, which is gone everywhere`);
  }
  await cluster.startAgents('frankfurt');
  await cluster.query('tokyo', `insert into others values (2, 'goes on')`);
  await healed();
  expect(await cluster.value('frankfurt', 'select count(*)::int from others')).toBe(2);
  expect((await cluster.cli('verify')).code).toBe(0);
});

const UNSENT = 'the peer does not send all of it: run `coregent apply`';

test.each([
  ['a table that was taken out', ['alter publication coregent drop table others']],
  [
    'a filter of rows',
    ['alter publication coregent drop table others', 'alter publication coregent add table others where (id < 0)'],
  ],
  ['the kinds of changes', [`alter publication coregent set (publish = 'insert')`]],
])(
  'D21: what the publication leaves out pauses, is told of, and joined once apply has put it back: %s',
  async (_what, plant) => {
    const id = ++planted;
    for (const text of plant) await cluster.query('tokyo', text);
    await until(() => cluster.peer('virginia', 'tokyo').paused.some((each) => each.reason === UNSENT), {
      what: 'the table to pause',
    });
    await cluster.query('tokyo', `insert into others values ($1, 'unsent')`, [id]);
    await cluster.query('tokyo', `update others set v = v || '!' where id = 1`);
    await cluster.query('frankfurt', `insert into others values ($1, 'the other way')`, [id + 100]);
    await until(() => cluster.value('tokyo', 'select true from others where id = $1', [id + 100]), {
      what: 'a row that tokyo is sent',
    });
    const { findings } = JSON.parse((await cluster.cli('doctor', '--json')).out);
    const told = findings.filter(({ code }: { code: string }) => code === 'unpublished');
    const places = told.map(({ region, object }: { region: string; object: string }) => `${region} ${object}`);
    expect(places).toContain('tokyo public.others');
    expect(places.filter((place: string) => !place.startsWith('tokyo '))).toEqual([]);
    await cluster.install();
    await healed();
    expect(await cluster.value('virginia', 'select v from others where id = $1', [id])).toBe('unsent');
    expect((await cluster.cli('apply', '--dry-run')).code).toBe(0);
  },
);

test.each([
  ['while the agents run', false],
  ['while the receiver has no agent', true],
])('D21: what the publication left out is joined too when it is put back by hand: %s', async (_when, down) => {
  const id = ++planted;
  await cluster.query('tokyo', `insert into others values ($1, 'to be deleted')`, [id + 200]);
  await cluster.converged();
  const tombs = await cluster.value(
    'tokyo',
    `select 'coregent.tomb_' || table_id from coregent.tables where table_name = 'others'`,
  );
  const owed = async (region: string): Promise<{ passes: number; joining: boolean } | undefined> => {
    const text = 'select passes::int, joining from coregent.paused where reason = $1';
    return (await cluster.query(region, text, [UNSENT])).rows[0];
  };
  await cluster.query('tokyo', `alter publication coregent drop table others, ${tombs}`);
  for (const region of ['frankfurt', 'virginia']) await until(() => owed(region), { what: `${region} to pause` });
  await cluster.query('tokyo', `insert into others values ($1, 'unsent')`, [id]);
  await cluster.query('tokyo', 'delete from others where id = $1', [id + 200]);

  // A half of it is not enough: what comes is passed over, and nothing is joined yet.
  const before = (await owed('virginia'))!.passes;
  await cluster.query('tokyo', 'alter publication coregent add table others');
  await cluster.query('tokyo', `insert into others values ($1, 'passed over')`, [id + 300]);
  await until(async () => (await owed('virginia'))!.passes > before, { what: 'a row that is passed over' });
  expect(await owed('virginia')).toMatchObject({ joining: false });
  expect(await cluster.value('virginia', 'select count(*)::int from others where id = $1', [id])).toBe(0);

  if (down) await cluster.stopAgent('virginia');
  await cluster.query('tokyo', `alter publication coregent add table ${tombs}`);
  if (down) await cluster.startAgents('virginia');
  await healed();
  expect(await cluster.value('virginia', 'select v from others where id = $1', [id])).toBe('unsent');
  expect(await cluster.value('virginia', 'select count(*)::int from others where id = $1', [id + 200])).toBe(0);
  expect((await cluster.cli('apply', '--dry-run')).code).toBe(0);
});
