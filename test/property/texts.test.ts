import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { tombstoneName } from '../../src/model/table.ts';
import { documentOf, editText, textOf } from '../../src/text.ts';
import { openRegions, type TestRegion, type TestRegions } from './link.ts';
import { tryAll } from './region.ts';

/** The column rule `text` by cases, on real regions whose streams flow when a test says so. */

const TABLES = ['notes', 'pages'] as const;
const SCHEMA = `
  create table notes (id int primary key, title text, body bytea, check (octet_length(body) < 10000));
  create table pages (id numeric, "odd ""key" text, body bytea, "other ""body" bytea, primary key (id, "odd ""key"));
  alter table notes alter column body set storage external`;

let world: TestRegions;
let tokyo: TestRegion;
let frankfurt: TestRegion;
let virginia: TestRegion;

beforeAll(async () => {
  world = await openRegions(SCHEMA, 3, {
    notes: { conflict: 'lww', columns: { body: 'text' } },
    pages: { conflict: 'columns', columns: { body: 'text', 'other "body': 'text' } },
  });
  [tokyo, frankfurt, virginia] = world.regions as [TestRegion, TestRegion, TestRegion];
});
afterAll(() => world[Symbol.asyncDispose]());

beforeEach(async () => {
  await flow();
  const all = TABLES.flatMap((name) => [
    `public.${name}`,
    `coregent.${tombstoneName({ schema: 'public', name })}`,
  ]).concat('coregent.conflict_record', 'coregent.parked');
  for (const { applier } of world.regions)
    await applier.client.query(all.map((each) => `delete from ${each};`).join(''));
});

async function flow(): Promise<void> {
  for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
}

/** Puts a word at the beginning of a note, as an application does: reads, edits, writes. */
async function edit(region: TestRegion, word: string, id = 1): Promise<void> {
  const { rows } = await region.database.query('select body from notes where id = $1', [id]);
  const body = editText(rows[0].body, [{ at: 0, insert: word }]);
  await write(region, 'update notes set body = $2 where id = $1', [id, Buffer.from(body)]);
}

async function write(region: TestRegion, text: string, values: unknown[]): Promise<void> {
  await region.database.query(text, values);
  await region.sql('select');
}

const begin = (region: TestRegion, text: string, id = 1): Promise<void> =>
  write(region, 'insert into notes values ($1, $2, $3)', [id, 'title', Buffer.from(documentOf(text))]);

/** The note's text, which must be the same everywhere, as the whole row must be, state and version included. */
async function shown(id = 1): Promise<string | undefined> {
  const rows = await Promise.all(
    world.regions.map(async ({ database }) => {
      const { rows } = await database.query('select body, n::text as row from notes n where id = $1', [id]);
      return rows[0];
    }),
  );
  expect(new Set(rows.map((row) => row?.row)).size).toBe(1);
  return rows[0] && textOf(rows[0].body);
}

const several = (region: TestRegion): Promise<string | null> =>
  region.value(`select (select count(*) from jsonb_object_keys(_coregent_state -> 't' -> 'body')) from notes`);
const parked = (region: TestRegion): Promise<string | null> =>
  region.value(`select string_agg(sqlstate || ' ' || reason, '; ') from coregent.parked`);

describe('a text', () => {
  it('has what three regions wrote at once, is no conflict, and is one document again when somebody writes', async () => {
    await begin(tokyo, '.');
    await flow();
    for (const [index, region] of world.regions.entries()) {
      await edit(region, `${index + 1}`);
      await edit(region, `${index + 1}`);
    }
    await flow();
    expect([...(await shown())!].sort().join('')).toBe('.112233');
    expect(await several(frankfurt)).toBe('3');
    await virginia.sql(`update notes set title = 'another column'`);
    await flow();
    expect(await several(tokyo)).toBe('3');
    await edit(virginia, '4');
    await flow();
    expect(await shown()).toMatch(/^4/);
    expect(await several(tokyo)).toBe('0');
    for (const region of world.regions) {
      expect(await region.conflicts()).toEqual([]);
      expect(await parked(region)).toBe(null);
    }
  });

  it('keeps what was not seen beside a document that replaces what was, or is none', async () => {
    await begin(tokyo, 'old');
    await flow();
    await edit(tokyo, 'mine ');
    await write(frankfurt, 'update notes set body = $1', [Buffer.from(documentOf('new'))]);
    await virginia.sql('update notes set body = null');
    await flow();
    const text = (await shown())!;
    expect(text).toContain('mine old');
    expect(text).toContain('new');
    await tokyo.sql('update notes set body = null');
    await flow();
    expect(await shown()).toBe('');
    expect(await several(virginia)).toBe('0');
  });

  it('begins anew behind a delete, which ends edits that it had not seen', async () => {
    await begin(tokyo, 'old');
    await flow();
    await edit(frankfurt, 'lost ');
    await tokyo.sql('delete from notes');
    await begin(tokyo, 'new');
    await flow();
    expect(await shown()).toBe('new');
    await edit(virginia, 'and ');
    await edit(frankfurt, 'more ');
    await flow();
    expect((await shown())!.split(' ').sort()).toEqual(['and', 'more', 'new']);
  });

  it('is joined when it is copied, too, and all again changes nothing', async () => {
    await begin(tokyo, '.');
    await flow();
    for (const region of world.regions) await edit(region, `${region.id}`);
    for (const [to, from] of [
      [tokyo, virginia],
      [frankfurt, tokyo],
      [virginia, frankfurt],
      [tokyo, virginia],
    ] as const) {
      await to.join(from, 'notes');
    }
    const joined = await shown();
    await flow();
    await frankfurt.join(virginia, 'notes');
    expect(await shown()).toBe(joined);
    expect([...joined!].sort().join('')).toBe('.123');
  });

  it('of many rows is merged in one batch, under keys and columns of any name', async () => {
    const rows = 700;
    const fill = `insert into pages select n + 0.50, 'k"' || n, $1, $1 from generate_series(1, ${rows}) n`;
    await write(tokyo, fill, [Buffer.from(documentOf('t'))]);
    await write(frankfurt, fill.replace('0.50', '0.5'), [Buffer.from(documentOf('f'))]);
    await flow();
    const found = await Promise.all(
      world.regions.map(({ value }) => value(`select md5(string_agg(p::text, ' ' order by id)) from pages p`)),
    );
    expect(new Set(found).size).toBe(1);
    const { rows: all } = await virginia.sql('select * from pages');
    expect(all).toHaveLength(rows);
    for (const row of all) {
      for (const body of [row.body, row['other "body']]) expect([...textOf(body)].sort().join('')).toBe('ft');
    }
  });

  it('that cannot be merged is parked, says so, and finds its place when it is mended; all others go on', async () => {
    await begin(tokyo, 'one');
    await begin(tokyo, 'two', 2);
    await flow();
    for (const id of [1, 2]) await edit(tokyo, 'tokyo ', id);
    await write(frankfurt, 'update notes set body = $1 where id = 1', [Buffer.from('no document')]);
    await edit(frankfurt, 'frankfurt ', 2);
    await tokyo.pull(frankfurt);
    expect(await parked(tokyo)).toMatch(
      /^22P03 what regions wrote into body at once cannot be merged: no Yjs document .* \(public\.notes \{"id": 1\}\), and retry$/,
    );
    expect(textOf((await tokyo.sql('select body from notes where id = 1')).rows[0].body)).toBe('tokyo one');
    await write(frankfurt, 'update notes set body = $1 where id = 1', [Buffer.from(documentOf('mended'))]);
    await flow();
    for (const id of [1, 2]) expect(await shown(id)).toContain('tokyo ');
    expect(await shown(1)).toContain('mended');
    expect(await shown(2)).toContain('frankfurt ');
  });

  it('whose merge a check refuses is parked', async () => {
    await begin(tokyo, '.');
    await flow();
    await edit(tokyo, 'a'.repeat(6_000));
    await edit(frankfurt, 'b'.repeat(6_000));
    await tokyo.pull(frankfurt);
    expect(await parked(tokyo)).toMatch(/^23514 /);
    const stores = tokyo.applier.store();
    expect((await tryAll(stores)).every(({ parked }) => parked === 0)).toBe(true);
    expect((await shownIn(tokyo)).startsWith('aaa')).toBe(true);
    await frankfurt.sql('delete from notes');
    await flow();
  });
});

const shownIn = async (region: TestRegion): Promise<string> =>
  textOf((await region.sql('select body from notes')).rows[0].body);
