import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { tombstoneName } from '../../src/model/table.ts';
import { openRegions, type TestRegion, type TestRegions } from './link.ts';
import { moduleRule } from './region.ts';

/** Rules that keep versions side by side, by cases, on real regions whose streams flow when a test says so. */

const TABLES = ['firsts', 'carts', 'stocks', 'shelves'] as const;
const SCHEMA = `
  ${TABLES.map((name) => `create table ${name} (id int primary key, v text, n numeric(9,2), doc json, tags text[], big text)`).join(';')};
  ${TABLES.map((name) => `alter table ${name} alter column big set storage external`).join(';')};
  create function most(versions stocks[]) returns stocks immutable language plpgsql set search_path = public as $$
  declare
    one stocks;
  begin
    if exists (select from unnest(versions) v where v.n < 0) then
      raise exception 'less than nothing';
    end if;
    while exists (select from unnest(versions) v where v.v = 'endless') loop
    end loop;
    select * into one from unnest(versions) v order by v.n desc, v._coregent_version limit 1;
    one.v := (select string_agg(v.v, '+' order by v.v) from unnest(versions) v);
    one.id := 77;
    return one;
  end $$`;

const tombs = (table: string): string => `coregent.${tombstoneName({ schema: 'public', name: table })}`;

let world: TestRegions;
let tokyo: TestRegion;
let frankfurt: TestRegion;
let virginia: TestRegion;

beforeAll(async () => {
  world = await openRegions(SCHEMA, 3, {
    firsts: { conflict: 'fww', columns: {} },
    carts: { conflict: 'siblings', columns: {} },
    stocks: { conflict: 'custom', columns: {}, custom: 'public.most' },
    shelves: moduleRule('most'),
  });
  [tokyo, frankfurt, virginia] = world.regions as [TestRegion, TestRegion, TestRegion];
});
afterAll(() => world[Symbol.asyncDispose]());

beforeEach(async () => {
  for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
  const all = [
    ...TABLES.flatMap((name) => [`public.${name}`, tombs(name)]),
    'coregent.conflict_record',
    'coregent.parked',
  ];
  // As if nothing had ever been: a session that applies stamps nothing and leaves no tombstones.
  for (const { applier } of world.regions)
    await applier.client.query(all.map((each) => `delete from ${each};`).join(''));
});

/** Everything flows until all have heard all. */
async function flow(): Promise<void> {
  for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
}

/** What every region shows, which must be the same down to the state of each row. */
async function shown(table: string): Promise<string | null> {
  const everything = await Promise.all(
    world.regions.map(({ value }) => value(`select string_agg(t::text, ' ' order by id) from ${table} t`)),
  );
  expect(new Set(everything).size).toBe(1);
  return tokyo.value(`select string_agg(concat_ws(' ', id, v, n, left(big, 1)), ', ' order by id) from ${table}`);
}

/** How many versions each row has. */
const counts = (region: TestRegion, table: string): Promise<string | null> =>
  region.value(
    `select string_agg(coalesce(jsonb_array_length(_coregent_state -> 'set'), 1)::text, ' ' order by id) from ${table}`,
  );

describe.each([
  ['firsts', '1 tokyo 1.50'],
  ['carts', '1 virginia 3.50'],
  ['stocks', '1 frankfurt+tokyo+virginia 3.50'],
  ['shelves', '1 frankfurt+tokyo+virginia 3.50'],
])('%s, written in three regions at once', (table, expected) => {
  const writeEverywhere = async (): Promise<void> => {
    for (const [index, [name, region]] of Object.entries({ tokyo, frankfurt, virginia }).entries()) {
      await region.sql(`insert into ${table} values (1, '${name}', ${index + 1}.50, '{"a":  ${index}}', '{x,"y z"}')`);
    }
  };

  it('shows the same row everywhere, and keeps all three', async () => {
    await writeEverywhere();
    await flow();
    expect(await shown(table)).toBe(expected);
    for (const region of world.regions) {
      expect(await counts(region, table)).toBe('3');
      expect((await region.conflicts()).map((each) => each.split(' ')[0])).toEqual(Array(3).fill('insert_exists'));
      expect(await region.value('select count(*) from coregent.parked')).toBe('0');
    }
  });

  it('is settled by an ordinary update, which replaces all that it saw and is no conflict', async () => {
    await writeEverywhere();
    await flow();
    await virginia.sql(`update ${table} set v = 'settled' where id = 1`);
    await flow();
    expect(await shown(table)).toMatch(/^1 settled/);
    expect(await counts(tokyo, table)).toBe('1');
    for (const region of world.regions) expect(await region.conflicts()).toHaveLength(3);
  });

  it('is deleted as far as the deleter had seen it', async () => {
    await writeEverywhere();
    await tokyo.pull(frankfurt);
    await tokyo.sql(`delete from ${table}`);
    await flow();
    expect(await shown(table)).toBe('1 virginia 3.50');
    expect(await counts(frankfurt, table)).toBe('1');
    await frankfurt.sql(`delete from ${table}`);
    await flow();
    expect(await shown(table)).toBe(null);
    await frankfurt.sql(`insert into ${table} values (1, 'again')`);
    await flow();
    expect(await shown(table)).toBe('1 again');
    for (const region of world.regions) expect((await region.conflicts()).join()).not.toMatch(/again/);
  });

  it('takes long values that a settling update did not send from the version that its writer saw', async () => {
    await tokyo.sql(`insert into ${table} values (1, 'tokyo', 5, '{}', '{}', repeat('t', 4000))`);
    await frankfurt.sql(`insert into ${table} values (1, 'frankfurt', 4, '{}', '{}', repeat('f', 4000))`);
    await tokyo.pull(frankfurt);
    await tokyo.sql(`update ${table} set v = 'settled'`);
    const there = await tokyo.value(`select left(big, 1) from ${table}`);
    // Virginia has one of the two, either one, and then hears of the settlement.
    await virginia.pull(frankfurt);
    await flow();
    expect(await shown(table)).toBe(`1 settled ${await tokyo.value(`select n from ${table}`)} ${there}`);
  });

  it('is a join: copied as well as streamed, in whatever order', async () => {
    await writeEverywhere();
    await tokyo.join(virginia, table);
    await frankfurt.join(tokyo, table);
    await virginia.join(frankfurt, table);
    await tokyo.join(virginia, table);
    const joined = await shown(table);
    await flow();
    await tokyo.join(frankfurt, table);
    expect(await shown(table)).toBe(joined);
    expect(joined).toBe(expected);
  });
});

describe('what follows', () => {
  it('is no conflict, though a third region hears it first', async () => {
    for (const table of TABLES) {
      await tokyo.sql(`insert into ${table} values (1, 'tokyo')`);
      await frankfurt.pull(tokyo);
      await frankfurt.sql(`update ${table} set v = 'frankfurt'`);
      await frankfurt.sql(`update ${table} set v = 'frankfurt again'`);
      await virginia.pull(frankfurt);
      await virginia.sql(`update ${table} set v = 'virginia'`);
      await virginia.pull(tokyo);
      await tokyo.pull(virginia);
      await flow();
      expect(await shown(table)).toBe('1 virginia');
      expect(await counts(tokyo, table)).toBe('1');
    }
    for (const region of world.regions) expect(await region.conflicts()).toEqual([]);
  });

  it('three replicas: x1 at A, its successor x3 made by B, and y2 at C, however they meet', async () => {
    for (const [table, expected] of [
      ['firsts', '1 y2'],
      ['carts', '1 x3'],
    ] as const) {
      await tokyo.sql(`insert into ${table} values (1, 'x1')`);
      await virginia.sql(`insert into ${table} values (1, 'y2')`);
      await frankfurt.pull(tokyo);
      await frankfurt.sql(`update ${table} set v = 'x3'`);
      // Tokyo: x1, y2, x3. Frankfurt: x1, x3, y2. Virginia: y2, x3, x1.
      await tokyo.pull(virginia);
      await virginia.pull(frankfurt);
      await flow();
      expect(await shown(table)).toBe(expected);
      expect(await counts(virginia, table)).toBe('2');
    }
  });
});

describe('coregent.siblings', () => {
  it('shows every version of rows that have several, which of them the table shows, and nothing else', async () => {
    await tokyo.sql(`insert into carts values (1, 'tokyo', 5.25, '{"a":  1}', '{x,"y z"}')`);
    await frankfurt.sql(`insert into carts (id, v) values (1, 'frankfurt'), (2, 'alone')`);
    await frankfurt.sql(`insert into firsts (id, v) values (1, 'frankfurt')`);
    await tokyo.sql(`insert into firsts (id, v) values (1, 'tokyo')`);
    await flow();
    const { rows } = await virginia.sql(
      `select table_name, key, origin, "row"->>'v' as v, shown, coregent.version_time(version) = written_at as timed from coregent.siblings order by table_name, version`,
    );
    expect(rows).toEqual([
      { table_name: 'public.carts', key: { id: 1 }, origin: null, v: 'tokyo', shown: false, timed: true },
      { table_name: 'public.carts', key: { id: 1 }, origin: null, v: 'frankfurt', shown: true, timed: true },
      { table_name: 'public.firsts', key: { id: 1 }, origin: null, v: 'frankfurt', shown: true, timed: true },
      { table_name: 'public.firsts', key: { id: 1 }, origin: null, v: 'tokyo', shown: false, timed: true },
    ]);
    const { rows: one } = await virginia.sql(
      `select "row" from coregent.list_siblings('carts') order by version limit 1`,
    );
    expect(one[0].row).toEqual({ id: 1, v: 'tokyo', n: 5.25, doc: '{"a":  1}', tags: ['x', 'y z'], big: null });
    await virginia.sql(`update carts set v = 'settled' where id = 1`);
    expect(await virginia.value(`select count(*) from coregent.siblings where table_name = 'public.carts'`)).toBe('0');
  });
});

describe.each([
  ['stocks', 'less than nothing'],
  ['shelves', './resolvers/most.ts (public.shelves {"id": 1}): less than nothing'],
])('custom: %s', (table, reason) => {
  it('parks the row whose function fails, and goes on', async () => {
    await tokyo.sql(`insert into ${table} values (1, 'tokyo', 1), (2, 'fine', 1)`);
    await frankfurt.sql(`insert into ${table} values (1, 'frankfurt', -1), (3, 'fine', 1)`);
    await tokyo.pull(frankfurt);
    expect(await tokyo.value(`select string_agg(id::text, ' ' order by id) from ${table}`)).toBe('1 2 3');
    expect(await tokyo.value('select reason from coregent.parked')).toBe(reason);
    await tokyo.sql(`delete from ${table}`);
    await frankfurt.sql(`delete from ${table}`);
  });

  it('ends a function that never comes back, parks its row, and goes on', async () => {
    await tokyo.sql(`insert into ${table} select n, 'tokyo', 1 from generate_series(1, 5) n`);
    await frankfurt.sql(
      `insert into ${table} select n, case n when 3 then 'endless' else 'fine' end, 1 from generate_series(1, 5) n`,
    );
    await tokyo.pull(frankfurt);
    const found = await tokyo.value(`select string_agg(id || v, ' ' order by id) from ${table}`);
    expect(found).toBe('1fine+tokyo 2fine+tokyo 3tokyo 4fine+tokyo 5fine+tokyo');
    expect(await tokyo.value('select reason from coregent.parked')).toMatch(/took longer than/);
    // Nothing of the limit is left in the session.
    const { rows } = await tokyo.applier.client.query(
      `select current_setting('statement_timeout') as statement, current_setting('lock_timeout') as lock`,
    );
    expect(rows).toEqual([{ statement: '0', lock: '0' }]);
    await tokyo.sql(`delete from ${table}`);
    await frankfurt.sql(`delete from ${table}`);
  });
});
