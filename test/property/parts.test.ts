import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { deletesName, tombstoneName } from '../../src/model/table.ts';
import { until } from '../world/until.ts';
import { isBlocked, openRegions, openSession, type TestRegion, type TestRegions } from './link.ts';

/** Rows that are joined part by part, by cases, on real regions whose streams flow when a test says so. */

const ODD = `"we""ird"`;
const SCHEMA = `
  create type mood as enum ('sad', 'happy');
  create table posts (id int primary key, title text, likes int, score numeric(12,2), tags text[], seen timestamptz, best numeric, big text);
  alter table posts alter column big set storage external;
  create table sheets (id int primary key, a text, lo int, hi int, seat int unique, big text, check (lo <= hi));
  alter table sheets alter column big set storage external;
  create table odds (base int, ${ODD} bigint not null default 0, "old" smallint, moods mood[], days timestamptz[], "new" text, x text,
    primary key (base))`;
const TABLES = ['posts', 'sheets', 'odds'] as const;

const tombs = (table: string): string => `coregent.${tombstoneName({ schema: 'public', name: table })}`;

let world: TestRegions;
let tokyo: TestRegion;
let frankfurt: TestRegion;
let virginia: TestRegion;

beforeAll(async () => {
  world = await openRegions(SCHEMA, 3, {
    posts: {
      conflict: 'lww',
      columns: { likes: 'counter', score: 'counter', tags: 'set', seen: 'max', best: 'min' },
    },
    sheets: { conflict: 'columns', columns: {} },
    odds: { conflict: 'columns', columns: { 'we"ird': 'counter', old: 'counter', moods: 'set', days: 'set' } },
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

/** What every region shows, which must be the same down to the state of each row; then these columns. */
async function shown(table: string, columns: string): Promise<string | null> {
  const everything = await Promise.all(
    world.regions.map(({ value }) => value(`select string_agg(t::text, ' ' order by t::text) from ${table} t`)),
  );
  expect(new Set(everything).size).toBe(1);
  return tokyo.value(`select string_agg(concat_ws(' ', ${columns}), ', ' order by 1) from ${table}`);
}

async function recorded(): Promise<string[]> {
  return (await Promise.all(world.regions.map((region) => region.conflicts()))).flat();
}

describe('plain SQL stays plain', () => {
  it('likes and tags of a post merge, whatever else is written, and nothing of them is a conflict', async () => {
    await tokyo.sql(`insert into posts values (1, 'first', 10, 1.5, '{b,a,b}', '2030-01-01', 5)`);
    await flow();
    await tokyo.sql(`update posts set likes = likes + 1, tags = array_append(tags, 'x')`);
    await frankfurt.sql(
      `update posts set likes = likes + 2, score = 0, tags = array_append(tags, 'y'), seen = '2040-01-01', best = 7`,
    );
    await virginia.sql(`update posts set likes = 3, tags = array_remove(tags, 'a'), seen = '2020-01-01', best = 3.50`);
    expect(await virginia.value(`select concat_ws(' ', likes, seen, best) from posts`)).toBe(
      '3 2030-01-01 00:00:00+00 3.50',
    );
    await flow();
    expect(await shown('posts', 'title, likes, score, tags, seen, best')).toBe(
      'first 6 0.00 {b,x,y} 2040-01-01 00:00:00+00 3.50',
    );
    expect(await recorded()).toEqual([]);
  });

  it('an upsert of a counter in two regions at once counts both', async () => {
    const count = `insert into posts (id, likes) values (1, 1) on conflict (id) do update set likes = posts.likes + 1`;
    for (const region of [tokyo, tokyo, frankfurt, virginia, virginia]) await region.sql(count);
    await flow();
    for (const region of world.regions) await region.sql(count);
    await flow();
    expect(await shown('posts', 'likes, tags')).toBe('8 {}');
    expect(await recorded()).toEqual([]);
  });

  it('A16: the row that loses its title keeps its likes', async () => {
    await tokyo.sql(`insert into posts values (1, 'first', 0)`);
    await flow();
    await frankfurt.sql(`update posts set title = 'frankfurt', likes = likes + 5`);
    await tokyo.sql(`update posts set title = 'tokyo'`);
    await flow();
    expect(await shown('posts', 'title, likes')).toBe('tokyo 5');
    expect(await recorded()).toEqual(expect.arrayContaining(['update_origin_differs keep']));
  });

  it('T9: an element that was added twice is gone only once both adds were seen', async () => {
    await tokyo.sql(`insert into posts (id) values (1)`);
    await flow();
    await tokyo.sql(`update posts set tags = '{x}'`);
    await frankfurt.sql(`update posts set tags = '{x}'`);
    await virginia.pull(tokyo);
    await virginia.sql(`update posts set tags = '{}'`);
    await flow();
    expect(await shown('posts', 'tags')).toBe('{x}');
    await virginia.sql(`update posts set tags = null`);
    await flow();
    expect(await shown('posts', 'tags')).toBe('{}');
  });

  it('T5: a counter that two regions carry over its bounds stays at the bound, and counts on behind it', async () => {
    await tokyo.sql(`insert into posts (id, likes) values (1, 2147483600)`);
    await flow();
    for (const region of [tokyo, frankfurt]) await region.sql(`update posts set likes = likes + 40`);
    await flow();
    expect(await shown('posts', 'likes')).toBe('2147483647');
    await virginia.sql(`update posts set likes = likes - 50`);
    await flow();
    expect(await shown('posts', 'likes')).toBe('2147483630');
    await expect(tokyo.sql(`update posts set score = 'NaN'`)).rejects.toMatchObject({ code: '22003' });
  });
});

describe('a region’s share', () => {
  it('is the later one, or of one version the greater, though one array may contain the other', async () => {
    const join = (a: string, b: string) =>
      tokyo.value(`select coregent.seen_join('{"1": ${a}}', '{"1": ${b}}') ->> '1'`);
    for (const [a, b, joined] of [
      ['[0, -1]', '[0, 0]', '[0, 0]'],
      ['[5, 7]', '[7, 5]', '[7, 5]'],
      ['[9, -1]', '[7, 5]', '[9, -1]'],
    ] as const) {
      expect(await join(a, b)).toBe(joined);
      expect(await join(b, a)).toBe(joined);
    }
  });
});

describe('columns', () => {
  it('T4: edits of different columns survive, of one column the later does and the other is told', async () => {
    await tokyo.sql(`insert into sheets (id, a, lo, hi, big) values (1, 'first', 1, 5, repeat('t', 4000))`);
    await flow();
    await frankfurt.sql(`update sheets set a = 'frankfurt'`);
    await virginia.sql(`update sheets set big = repeat('v', 4000)`);
    await tokyo.sql(`update sheets set seat = 7`);
    await flow();
    expect(await shown('sheets', 'a, lo, hi, seat, left(big, 1)')).toBe('frankfurt 1 5 7 v');
    expect(await recorded()).toEqual([]);
    await tokyo.sql(`update sheets set a = 'tokyo'`);
    await frankfurt.sql(`update sheets set a = 'again', seat = 8`);
    await flow();
    expect(await shown('sheets', 'a, seat')).toBe('again 8');
    // Told where it was lost. The others read the row from there, for its long value, and it had been joined by then.
    expect(await recorded()).toEqual(['update_origin_differs apply']);
  });

  it('columns that share a check are one: what is valid in each region stays valid', async () => {
    await tokyo.sql(`insert into sheets (id, a, lo, hi) values (1, 'first', 3, 5)`);
    await flow();
    await tokyo.sql(`update sheets set lo = 5`);
    await frankfurt.sql(`update sheets set hi = 4, a = 'frankfurt'`);
    await flow();
    expect(await shown('sheets', 'a, lo, hi')).toBe('frankfurt 3 4');
    for (const region of world.regions) expect(await region.value('select count(*) from coregent.parked')).toBe('0');
  });

  it('C1: a long value that an update did not send is the one that its writer had', async () => {
    await tokyo.sql(`insert into sheets (id, a, big) values (1, 'first', repeat('t', 4000))`);
    await flow();
    await frankfurt.sql(`update sheets set big = repeat('f', 4000)`);
    await tokyo.sql(`update sheets set a = 'tokyo'`);
    await tokyo.pull(frankfurt);
    await tokyo.sql(`update sheets set lo = 1`);
    await virginia.pull(tokyo);
    await flow();
    expect(await shown('sheets', 'a, lo, left(big, 1)')).toBe('tokyo 1 f');
  });

  it('B4: unique values change places', async () => {
    await tokyo.sql(`insert into sheets (id, a, seat) values (1, 'one', 1), (2, 'two', 2)`);
    await flow();
    await frankfurt.sql(`update sheets set a = a || ' frankfurt'`);
    await tokyo.sql(
      `begin; update sheets set seat = 0 where id = 1; update sheets set seat = 1 where id = 2; update sheets set seat = 2 where id = 1; commit`,
    );
    await flow();
    expect(await shown('sheets', 'a, seat')).toBe('one frankfurt 2, two frankfurt 1');
  });
});

describe('lives', () => {
  it('A9, T5: a delete ends what it had not seen, told in every region; an insert behind it begins anew', async () => {
    await tokyo.sql(`insert into posts values (1, 'first', 10)`);
    await flow();
    await frankfurt.sql(`update posts set likes = likes + 5`);
    await tokyo.sql(`delete from posts; insert into posts values (1, 'again', 1)`);
    await flow();
    expect(await shown('posts', 'title, likes')).toBe('again 1');
    expect((await recorded()).sort()).toEqual([
      'delete_origin_differs apply',
      'update_origin_differs keep',
      'update_origin_differs keep',
    ]);
    await virginia.sql(`update posts set likes = likes + 1`);
    await flow();
    expect(await shown('posts', 'title, likes')).toBe('again 2');
  });

  it('a delete of what was joined is no conflict, and neither is what it had seen that comes later', async () => {
    await tokyo.sql(`insert into posts values (1, 'first', 10)`);
    await flow();
    await frankfurt.sql(`update posts set likes = likes + 5`);
    await virginia.sql(`update posts set likes = likes + 7`);
    await tokyo.pull(frankfurt);
    await tokyo.pull(virginia);
    await tokyo.sql('delete from posts');
    await frankfurt.pull(tokyo);
    await flow();
    expect(await shown('posts', 'likes')).toBeNull();
    expect(await recorded()).toEqual([]);
  });

  it('what is truncated, and what changes its key, is deleted and begins anew', async () => {
    await tokyo.sql(`insert into posts values (1, 'first', 10, 0, '{a}'), (2, 'second', 20, 0, '{b}')`);
    await flow();
    await tokyo.sql('update posts set id = 3, likes = likes + 1 where id = 1');
    await frankfurt.sql('update posts set likes = likes + 100 where id = 1');
    await flow();
    expect(await shown('posts', 'id, likes, tags')).toBe('2 20 {b}, 3 11 {a}');
    await virginia.sql('truncate posts');
    await tokyo.sql(`update posts set likes = 0`);
    await flow();
    expect(await shown('posts', 'id')).toBeNull();
  });

  it('H5: an insert behind a delete that was forgotten here is not ended where it is still known', async () => {
    await tokyo.sql(`insert into posts values (1, 'first', 10)`);
    await flow();
    await tokyo.sql('delete from posts');
    await flow();
    // As tombstones are reaped; frankfurt and virginia come later.
    const sequence = `coregent.${deletesName({ schema: 'public', name: 'posts' })}`;
    await tokyo.applier.client.query(
      `select setval('${sequence}', (select max(_coregent_version) from ${tombs('posts')})); delete from ${tombs('posts')}`,
    );
    await tokyo.sql(`insert into posts values (1, 'again', 1)`);
    await tokyo.sql(`update posts set likes = likes + 1`);
    await flow();
    for (const { value } of world.regions) {
      expect(await value(`select concat_ws(' ', title, likes) from posts`)).toBe('again 2');
    }
    expect(await recorded()).toEqual([]);
  });

  it('an insert that waited for a delete of its key here is told to run again', async () => {
    await tokyo.sql(`insert into posts values (1, 'first', 10)`);
    const deleter = await openSession(tokyo);
    onTestFinished(() => deleter.end());
    const writer = await openSession(tokyo);
    onTestFinished(() => writer.end());
    await deleter.query('begin; delete from posts');
    const write = writer.query(`insert into posts values (1, 'again', 0)`).then(
      () => 'done',
      (error) => error.code,
    );
    await until(() => isBlocked(tokyo), { what: 'the insert waits for the delete' });
    await deleter.query('commit');
    expect(await write).toBe('40001');
    await tokyo.sql(`insert into posts values (1, 'again', 0)`);
    await flow();
    expect(await shown('posts', 'title')).toBe('again');
  });
});

describe('names and types', () => {
  it('J8: columns of any name, and sets of types whose text depends on what a session has set', async () => {
    await tokyo.sql(`set datestyle = 'SQL, DMY'; set timezone = 'Asia/Tokyo'`);
    await tokyo.sql(`insert into odds values (1, 5, 3, '{happy}', '{2030-05-06 00:00+00}', 'n', 'x')`);
    await flow();
    await tokyo.sql(
      `update odds set ${ODD} = ${ODD} + 1, days = array_append(days, '2031-05-06 00:00+00'), "new" = 'tokyo'`,
    );
    await tokyo.sql('reset datestyle; reset timezone');
    await frankfurt.sql(
      `update odds set ${ODD} = ${ODD} + 1, "old" = "old" - 1, moods = '{sad,happy}', days = array_append(days, '2032-05-06 00:00+00'), x = 'frankfurt'`,
    );
    await flow();
    expect(
      await shown(
        'odds',
        `${ODD}, "old", moods, array_to_string(array(select extract(year from d at time zone 'UTC') from unnest(days) d), '+'), "new", x`,
      ),
    ).toBe('7 2 {happy,sad} 2030+2031+2032 tokyo frankfurt');
  });

  it('INV-C: is a join: copied as well as streamed, in whatever order', async () => {
    for (const [index, region] of world.regions.entries()) {
      await region.sql(
        `insert into posts values (1, 'of ${index}', ${10 ** index}, 1, '{t${index}}', now(), ${index})`,
      );
      await region.sql(`update posts set likes = likes + 1`);
    }
    await tokyo.join(virginia, 'posts');
    await frankfurt.join(tokyo, 'posts');
    await virginia.join(frankfurt, 'posts');
    await tokyo.join(virginia, 'posts');
    const joined = await shown('posts', 'title, likes, tags');
    await flow();
    await tokyo.join(frankfurt, 'posts');
    expect(await shown('posts', 'title, likes, tags')).toBe(joined);
    expect(joined).toBe('of 2 114 {t0,t1,t2}');
  });
});
