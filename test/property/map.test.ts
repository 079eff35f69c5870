import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { tombstoneName } from '../../src/model/table.ts';
import { literal } from '../../src/quote.ts';
import { openRegions, openSession, type TestRegion, type TestRegions } from './link.ts';

/** JSON documents whose keys are joined one by one, by cases, on real regions whose streams flow when a test says so. */

const SCHEMA = `
  create table docs (id int primary key, title text, doc jsonb, likes int not null default 0);
  create table forms (id int primary key, name text, doc jsonb not null default '{}', big text);
  alter table forms alter column doc set storage external`;
const TABLES = ['docs', 'forms'] as const;

let world: TestRegions;
let tokyo: TestRegion;
let frankfurt: TestRegion;
let virginia: TestRegion;

beforeAll(async () => {
  world = await openRegions(SCHEMA, 3, {
    docs: { conflict: 'lww', columns: { doc: 'map', likes: 'counter' } },
    forms: { conflict: 'columns', columns: { doc: 'map' } },
  });
  [tokyo, frankfurt, virginia] = world.regions as [TestRegion, TestRegion, TestRegion];
});
afterAll(() => world[Symbol.asyncDispose]());

beforeEach(async () => {
  await flow();
  const all = [
    ...TABLES.flatMap((name) => [`public.${name}`, `coregent.${tombstoneName({ schema: 'public', name })}`]),
    'coregent.conflict_record',
    'coregent.parked',
  ];
  for (const { applier } of world.regions)
    await applier.client.query(all.map((each) => `delete from ${each};`).join(''));
});

/** Everything flows until all have heard all. */
async function flow(): Promise<void> {
  for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
}

/** The document of row 1 in every region, whose rows must be the same down to their state. */
async function shown(table = 'docs'): Promise<string | null> {
  for (const { value } of world.regions) {
    expect(await value(`select string_agg(reason, ' ') from coregent.parked`)).toBeNull();
  }
  const everything = await Promise.all(
    world.regions.map(({ value }) => value(`select string_agg(t::text, ' ' order by t::text) from ${table} t`)),
  );
  expect(new Set(everything).size).toBe(1);
  return tokyo.value(`select doc::text from ${table} where id = 1`);
}

async function recorded(): Promise<string[]> {
  const all = (await Promise.all(world.regions.map((region) => region.conflicts()))).flat();
  return [...new Set(all)].sort();
}

/** What is left of documents that all began with `from` when each of these regions did this, unseen by the others. */
async function together(from: string, ...sets: readonly string[]): Promise<string | null> {
  await tokyo.sql(`delete from docs where id = 1`);
  await tokyo.sql(`insert into docs (id, doc) values (1, ${from})`);
  await flow();
  for (const { applier } of world.regions) await applier.client.query('delete from coregent.conflict_record');
  for (const [index, set] of sets.entries()) await world.regions[index]!.sql(`update docs set doc = ${set}`);
  await flow();
  return shown();
}

const APPLIED = ['update_origin_differs apply', 'update_origin_differs keep'];

describe('keys are joined one by one', () => {
  it('edits of different keys survive, at any depth, however they are written', async () => {
    expect(
      await together(
        `'{"a": 1, "b": {"x": 1, "y": 1}, "old": 1}'`,
        `jsonb_set(doc, '{b,x}', '2')`,
        `doc || '{"c": {"n": 1}}'`,
        `doc - 'old'`,
      ),
    ).toBe('{"a": 1, "b": {"x": 2, "y": 1}, "c": {"n": 1}}');
    expect(await recorded()).toEqual([]);
  });

  it('an object that two regions make at once has the keys of both, in a row that both insert too', async () => {
    expect(await together(`'{}'`, `'{"n": {"x": 1}}'`, `'{"n": {"y": {}}}'`)).toBe('{"n": {"x": 1, "y": {}}}');
    expect(await recorded()).toEqual([]);
    for (const [index, { sql }] of world.regions.entries()) {
      await sql(`insert into docs (id, doc) values (2, '{"r${index}": ${index}, "n": {"r${index}": 1}}')`);
      await sql(`update docs set doc = jsonb_set(doc, '{n,all}', '1') where id = 2`);
    }
    await flow();
    await shown();
    expect(await virginia.value('select doc::text from docs where id = 2')).toBe(
      '{"n": {"r0": 1, "r1": 1, "r2": 1, "all": 1}, "r0": 0, "r1": 1, "r2": 2}',
    );
  });

  it('of one key the later value stays, and the other one is told', async () => {
    expect(await together(`'{"a": 1, "b": 1}'`, `'{"a": 2, "b": 1}'`, `'{"a": 3, "b": 4}'`)).toBe('{"a": 3, "b": 4}');
    expect(await recorded()).toEqual(APPLIED);
    // Each has the later one of another key.
    await tokyo.sql(`update docs set doc = '{"a": 5, "b": 4}'`);
    await frankfurt.sql(`update docs set doc = '{"a": 3, "b": 6}'`);
    await frankfurt.sql(`update docs set doc = '{"a": 7, "b": 6}'`);
    await tokyo.sql(`update docs set doc = '{"a": 5, "b": 8}'`);
    await flow();
    expect(await shown()).toBe('{"a": 7, "b": 8}');
    expect(await recorded()).toContain('update_origin_differs merge');
  });

  it('a key that was removed stays so against what was written before, and gives way to what was written later', async () => {
    expect(await together(`'{"a": 1, "b": 1}'`, `'{"a": 2, "b": 1}'`, `doc - 'a'`)).toBe('{"b": 1}');
    expect(await recorded()).toEqual(APPLIED);
    expect(await together(`'{"a": 1, "b": 1}'`, `doc - 'a'`, `'{"a": 2, "b": 1}'`)).toBe('{"a": 2, "b": 1}');
    expect(await recorded()).toEqual(APPLIED);
    expect(await together(`'{"a": 1, "b": 1}'`, `doc - 'a'`, `doc - 'a'`, `doc || '{"c": 1}'`)).toBe(
      '{"b": 1, "c": 1}',
    );
    expect(await recorded()).toEqual([]);
  });

  it('a removal is remembered: a write of before comes late, and again', async () => {
    await tokyo.sql(`insert into docs (id, doc) values (1, '{"a": 1, "b": 1}')`);
    await flow();
    await virginia.sql(`update docs set doc = jsonb_set(doc, '{a}', '2')`);
    await tokyo.sql(`update docs set doc = doc - 'a'`);
    await frankfurt.pull(tokyo);
    await frankfurt.sql(`update docs set doc = jsonb_set(doc, '{b}', '3')`);
    await tokyo.pull(frankfurt);
    await flow();
    expect(await shown()).toBe('{"b": 3}');
    await tokyo.join(virginia, 'docs');
    await virginia.join(frankfurt, 'docs');
    expect(await shown()).toBe('{"b": 3}');
  });
});

describe('what is not an object is one value', () => {
  it('a value over an object takes what was there before with it, and gives way to what is written inside later', async () => {
    const from = `'{"a": {"x": 1, "y": 1}}'`;
    expect(await together(from, `jsonb_set(doc, '{a,x}', '2')`, `'{"a": 5}'`)).toBe('{"a": 5}');
    expect(await recorded()).toEqual(APPLIED);
    expect(await together(from, `'{"a": 5}'`, `jsonb_set(doc, '{a,x}', '2')`)).toBe('{"a": {"x": 2}}');
    expect(await recorded()).toEqual(APPLIED);
    // A removal inside says that there is an object.
    expect(await together(from, `doc - 'a'`, `doc #- '{a,x}'`)).toBe('{"a": {}}');
    // An object in the place of a value takes no key with it, but those that the value had ended.
    expect(await together(from, `'{"a": 5}'`)).toBe('{"a": 5}');
    await tokyo.sql(`update docs set doc = '{"a": {"z": 1}}'`);
    await frankfurt.sql(`update docs set doc = '{"a": {"w": 1}}'`);
    await flow();
    expect(await shown()).toBe('{"a": {"w": 1, "z": 1}}');
  });

  it('an array is a value, whole', async () => {
    expect(await together(`'{"a": [1, 2], "b": 1}'`, `'{"a": [1, 2, 3], "b": 1}'`, `'{"a": [0, 1, 2], "b": 2}'`)).toBe(
      '{"a": [0, 1, 2], "b": 2}',
    );
    expect(await together(`'[{"a": 1}]'`, `'[{"a": 2}]'`, `doc || '{"b": 1}'`)).toBe('[{"a": 1}, {"b": 1}]');
  });

  it('the column itself is a path: null, a JSON null, and a document that comes back', async () => {
    expect(await together(`'{"a": 1}'`, `jsonb_set(doc, '{a}', '2')`, 'null')).toBeNull();
    expect(await recorded()).toEqual(APPLIED);
    expect(await together(`'{"a": 1, "b": 1}'`, 'null', `jsonb_set(doc, '{a}', '2')`)).toBe('{"a": 2}');
    expect(await together(`'{"a": 1}'`, `'null'`, `jsonb_set(doc, '{a}', '2')`)).toBe('{"a": 2}');
    expect(await together(`'{"a": 1}'`, `jsonb_set(doc, '{a}', '2')`, `'null'`)).toBe('null');
    expect(await together('null', `'{"a": 1}'`, `'{"b": {}}'`)).toBe('{"a": 1, "b": {}}');
    expect(await together(`'{"a": 1}'`, `'{}'`, `doc || '{"b": 1}'`)).toBe('{"b": 1}');
  });

  it('numbers are told apart by their digits: 1 and 1.0 are two', async () => {
    expect(await together(`'{"a": 1, "b": 1}'`, `'{"a": 1.0, "b": 1}'`, `'{"a": 1e0, "b": 2}'`)).toBe(
      '{"a": 1.0, "b": 2}',
    );
    expect(await recorded()).toEqual([]);
  });
});

describe('lives', () => {
  it('a delete ends the document with its removals, and an insert behind it begins anew', async () => {
    await tokyo.sql(`insert into docs (id, doc) values (1, '{"a": 1, "b": 1}')`);
    await tokyo.sql(`update docs set doc = doc - 'a'`);
    await flow();
    await frankfurt.sql(`update docs set doc = doc || '{"c": 1}'`);
    await tokyo.sql('delete from docs');
    await tokyo.sql(`insert into docs (id, doc) values (1, '{"a": 3}')`);
    await flow();
    expect(await shown()).toBe('{"a": 3}');
    expect(await tokyo.value('select _coregent_state from docs')).toBeNull();
    await virginia.sql(`update docs set doc = doc || '{"b": 3}'`);
    await flow();
    expect(await shown()).toBe('{"a": 3, "b": 3}');
  });

  it('setting the column to null forgets what was remembered', async () => {
    await tokyo.sql(`insert into docs (id, doc) select 1, jsonb_object_agg('k' || n, n) from generate_series(1, 50) n`);
    await tokyo.sql(`update docs set doc = '{"a": 1}'`);
    const bytes = async () => Number(await tokyo.value('select length(_coregent_state::text) from docs'));
    expect(await bytes()).toBeGreaterThan(1_000);
    await tokyo.sql('update docs set doc = null');
    await tokyo.sql(`update docs set doc = '{"a": 1}'`);
    expect(await bytes()).toBeLessThan(300);
    await flow();
    expect(await shown()).toBe('{"a": 1}');
  });
});

describe('other columns, and long documents', () => {
  it('other columns of the row follow their own rules', async () => {
    await tokyo.sql(`insert into docs values (1, 'first', '{"a": 1}', 5)`);
    await flow();
    await tokyo.sql(`update docs set title = 'tokyo', likes = likes + 1, doc = doc || '{"t": 1}'`);
    await frankfurt.sql(`update docs set title = 'frankfurt', likes = likes + 2, doc = doc || '{"f": 1}'`);
    await flow();
    expect(await shown()).toBe('{"a": 1, "f": 1, "t": 1}');
    expect(await virginia.value(`select concat_ws(' ', title, likes) from docs`)).toBe('frankfurt 8');
    expect(await recorded()).toEqual(APPLIED);
  });

  it('C1: a long document that an update did not send is the one that its writer had', async () => {
    const long = (of: string): string => `repeat('${of}', 4000)`;
    await tokyo.sql(`insert into forms values (1, 'first', jsonb_build_object('t', ${long('t')}, 'n', 1))`);
    await flow();
    await frankfurt.sql(`update forms set doc = doc || jsonb_build_object('f', ${long('f')})`);
    await tokyo.sql(`update forms set name = 'tokyo'`);
    await tokyo.pull(frankfurt);
    await tokyo.sql(`update forms set big = 'more'`);
    await virginia.sql(`update forms set doc = doc - 'n'`);
    await flow();
    expect(await shown('forms')).toMatch(/^\{"f": "f{4000}", "t": "t{4000}"\}$/);
    expect(await virginia.value(`select concat_ws(' ', name, big) from forms`)).toBe('tokyo more');
    expect(await recorded()).toEqual([]);
  });

  it('E8: hostile keys are keys like any other', async () => {
    const hostile = ['', 'v', 'c', 'f', 'd', 'n', '__proto__', `'"\\{a,b}`, 'ключ 鍵 \u{1F511}', '$1', 'null'];
    const text = (value: number): string =>
      `${literal(JSON.stringify(Object.fromEntries(hostile.map((key) => [key, { [key]: value }]))))}::jsonb`;
    await tokyo.sql(`insert into docs (id, doc) values (1, ${text(0)})`);
    await flow();
    await tokyo.sql(`update docs set doc = doc || '{"": {"": 2}}'`);
    await frankfurt.sql(`update docs set doc = doc || '{"v": {"v": 3}, "c": 4}'`);
    await virginia.sql(`update docs set doc = doc - '__proto__' - '$1'`);
    await flow();
    const expected = `(${text(0)} || '{"": {"": 2}, "v": {"v": 3}, "c": 4}') - '__proto__' - '$1'`;
    expect(await shown()).toBe(await tokyo.value(`select (${expected})::text`));
    await expect(tokyo.sql(`update docs set doc = '{"a\\u0000": 1}'`)).rejects.toMatchObject({ code: '22P05' });
  });

  it('a document of a thousand levels is joined as far as its keys are, below that it is one value', async () => {
    const deep = (end: string): string => `repeat('{"k":', 1000) || '${end}' || repeat('}', 1000)`;
    await tokyo.sql(`insert into docs (id, doc) values (1, (${deep('1')})::jsonb)`);
    await flow();
    const at = (levels: number): string => `array(select 'k' from generate_series(1, ${levels}))`;
    await tokyo.sql(`update docs set doc = jsonb_set(doc, ${at(999)}, '{"t": 1}')`);
    await frankfurt.sql(`update docs set doc = jsonb_set(doc, ${at(1)} || 'f'::text, '{"deep": 1}')`);
    await virginia.sql(`update docs set doc = jsonb_set(doc, ${at(31)} || 'v'::text, '2')`);
    await flow();
    await shown();
    const found = `select doc #>> (${at(999)} || 't'::text) as t, doc #>> '{k,f}' as f, doc #>> (${at(31)} || 'v'::text) as v from docs`;
    expect((await virginia.sql(found)).rows).toEqual([{ t: '1', f: '{"deep": 1}', v: '2' }]);
    expect(await recorded()).toEqual([]);
  });

  it('a role that may write the table and nothing else writes documents, on a path of its own', async () => {
    const session = await openSession(tokyo);
    onTestFinished(() => session.end());
    const role = `${tokyo.database.name}_writer`;
    await tokyo.database.query(`create role ${role}; grant select, insert, update, delete on docs to ${role}`);
    onTestFinished(async () => {
      await tokyo.database.query(`drop owned by ${role}; drop role ${role}`);
    });
    await session.query(`set role ${role}; set search_path = ''`);
    await session.query(`insert into public.docs (id, doc) values (1, '{"a": {"b": 1}}')`);
    await session.query(`update public.docs set doc = '{"a": {"b": 2, "c": {}}}'`);
    await session.query(`delete from public.docs`);
    await session.query(`insert into public.docs (id, doc) values (1, '{"z": 1}')`);
    await tokyo.sql('select');
    await flow();
    expect(await shown()).toBe('{"z": 1}');
  });
});
