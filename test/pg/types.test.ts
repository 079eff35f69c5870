import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';

/** Values of each type of PostgreSQL's own that are easily lost on the way; the first row takes the first of each, and so on. */
const BUILT_IN: readonly (readonly [type: string, ...values: string[]])[] = [
  ['boolean', 'true', 'false'],
  ['"char"', `'x'`, `''`],
  ['smallint', '-32768', '32767'],
  ['integer', '-2147483648', '2147483647'],
  ['bigint', '-9223372036854775808', '9223372036854775807', '9007199254740993'],
  ['numeric', `'NaN'`, `'Infinity'`, `'-Infinity'`, '1.10', '-0.000', `repeat('9', 3000)::numeric`, '1e-1000'],
  ['numeric(12,3)', '1234567.5', '0'],
  ['real', `'NaN'`, `'-Infinity'`, `'-0'`, `'1e-45'`, `'3.4028235e38'`, '0.1'],
  ['double precision', `'NaN'`, `'Infinity'`, `'-0'`, `'5e-324'`, `'1.7976931348623157e308'`, '0.1'],
  ['money', `'-92233720368547758.08'`, `'12.34'`],
  ['text', `''`, `'日本 😀 é'`, `E'a\\tb\\nc\\\\d'`, `repeat('x', 100000)`],
  ['varchar(5)', `'abc  '`, `'日本語'`],
  ['char(6)', `'ab'`, `'日本'`, `''`],
  ['name', `repeat('n', 63)::name`, `''`],
  ['bytea', `'\\x00ff0041'`, `''`, `decode(repeat('00', 9000), 'hex')`],
  ['bit(5)', `B'10101'`, `B'00000'`],
  ['bit varying', `B''`, `B'1'`, `repeat('10', 500)::varbit`],
  ['date', `'infinity'`, `'-infinity'`, `'4713-01-01 BC'`, `'5874897-12-31'`, `'2024-02-29'`],
  ['time', `'24:00:00'`, `'00:00:00.000001'`],
  ['time(0) with time zone', `'24:00:00-15:59:59'`, `'00:00:00+15:59:59'`],
  ['timestamp', `'infinity'`, `'4713-01-01 00:00:00 BC'`, `'294276-12-31 23:59:59.999999'`],
  ['timestamptz', `'-infinity'`, `'4714-11-24 00:00:00+00 BC'`, `'2024-10-27 01:30:00+01'`],
  ['interval', `'-178000000 years'`, `'1 mon -1 day 00:00:00.000001'`, `'0'`, `'2147483647 days'`],
  ['interval day to second(2)', `'1 day 2:03:04.567'`],
  ['uuid', `'00000000-0000-0000-0000-000000000000'`, `'ffffffff-ffff-ffff-ffff-ffffffffffff'`],
  ['inet', `'::ffff:1.2.3.4/96'`, `'10.1.2.3/8'`, `'10.1.2.3'`],
  ['cidr', `'10.0.0.0/8'`, `'2001:db8::/32'`],
  ['macaddr', `'08:00:2b:01:02:03'`],
  ['macaddr8', `'08:00:2b:01:02:03:04:05'`],
  ['json', `'{"b": 1, "a": 2, "a": 3.0}'`, `'"\\u0000 and \\ud800"'`, `'1e400000'`, `' [1 , null]'`],
  ['jsonb', `'{"b": 1.0, "a": [null, {"c": "😀"}]}'`, `'null'`, `'""'`],
  ['jsonpath', `'$.a[*] ? (@ > 1)'`],
  ['xml', `'<a b="1">é&amp;</a>'`, `'text only'`],
  ['tsvector', `'a:1A fat:2B,4C cat:5'`, `''`],
  ['tsquery', `'fat & (rat | !cat:AB*) <2> x'`],
  ['point', `'(1.5,-0)'`, `'(NaN,Infinity)'`],
  ['line', `'{1,2,3}'`],
  ['lseg', `'[(0,0),(1,1)]'`],
  ['box', `'(1,1),(0,0)'`],
  ['path', `'[(0,0),(1,1)]'`, `'((0,0),(1,1),(2,0))'`],
  ['polygon', `'((0,0),(1,1),(2,0))'`],
  ['circle', `'<(0,0),1e-300>'`],
  ['int4range', `'empty'`, `'[1,10)'`, `'(,5]'`, `'(,)'`],
  ['numrange', `'[1.0,1.00]'`, `'(-Infinity,NaN]'`],
  ['tstzrange', `'["2024-01-01 00:00:00+00",infinity)'`, `'empty'`],
  ['daterange', `'[-infinity,2024-01-01)'`],
  ['int8multirange', `'{}'`, `'{[1,2),[5,)}'`],
  ['datemultirange', `'{[2024-01-01,2024-01-02),[2024-06-01,)}'`],
  ['pg_lsn', `'FFFFFFFF/FFFFFFFF'`, `'0/0'`],
  ['oid', '4294967295', '0'],
  ['xid', `'4294967295'`],
  ['xid8', `'18446744073709551615'`],
  ['cid', `'7'`],
  ['tid', `'(4294967294,65535)'`],
  ['pg_snapshot', `'10:20:10,14,15'`],
  ['txid_snapshot', `'10:20:10,14,15'`],
  ['refcursor', `'a cursor'`],
  ['oidvector', `'1 2 3'`],
  ['int2vector', `'-1 0 1'`],
  ['integer[]', `'{}'`, `'{1,NULL,3}'`, `'[-2:0]={1,2,3}'`, `'{{1,2},{3,NULL}}'`, `'[2:2][3:4]={{5,6}}'`],
  ['text[]', `'{"",NULL,"NULL","a\\"b","😀"}'`],
  ['numeric[]', `'{NaN,1.0,1.00,-Infinity}'`],
  ['timestamptz[]', `'{infinity,NULL}'`],
  ['bytea[]', `array['\\x00'::bytea, null, '']`],
  ['int4range[]', `'{empty,"[1,2)"}'`],
  ['aclitem', `'postgres=r/postgres'`],
];

/** Types that databases make for themselves. Their OIDs are made to differ between the regions. */
const OWN_TYPES = `
  create schema shapes;
  create type shapes.mood as enum ('sad', 'ok', 'happy; "very"');
  create type "Odd Name" as enum ('a', 'b');
  create domain shapes.positive as int check (value > 0);
  create domain shapes.moods as shapes.mood[] check (cardinality(value) < 9);
  create type shapes.address as (street text, mood shapes.mood, tags text[], nr shapes.positive);
  create domain shapes.home as shapes.address check ((value).street is distinct from '');
  create type shapes.person as (name text, home shapes.home, past shapes.address[], odd "Odd Name");
  create type shapes.floats as range (subtype = float8);
  create type shapes.mood_range as range (subtype = shapes.mood);
  create type shapes.address_range as range (subtype = shapes.address);
  create table shapes.source (a int, m shapes.mood);
  alter table shapes.source add gone int, add b shapes.person;
  alter table shapes.source drop gone;`;

const ADDRESS = `row('Main; "St"', 'ok', '{a,NULL}', 3)::shapes.address`;
const PERSON = `row('Ada', ${ADDRESS}, array[${ADDRESS}, null], 'b')::shapes.person`;

const OWN: readonly (readonly [type: string, ...values: string[]])[] = [
  ['shapes.mood', `'happy; "very"'`, `'sad'`],
  ['"Odd Name"', `'a'`],
  ['"Odd Name"[]', `'{a,NULL,b}'`, `'{}'`],
  ['shapes.mood[]', `'[0:1][5:5]={{sad},{ok}}'`],
  ['shapes.positive', '7'],
  ['shapes.positive[]', `'{1,2,NULL}'`],
  ['shapes.moods', `'{sad,NULL}'`, `'{}'`],
  ['shapes.moods[]', `array['{sad}'::shapes.moods, null]`],
  ['shapes.address', ADDRESS, 'row(null, null, null, null)'],
  ['shapes.address[]', `array[${ADDRESS}, null]`],
  ['shapes.home', ADDRESS],
  ['shapes.person', PERSON],
  ['shapes.person[]', `array[[${PERSON}], [null]]`],
  ['shapes.source', `row(1, 'sad', ${PERSON})::shapes.source`],
  ['shapes.floats', `'[-0,NaN)'`, `'empty'`],
  ['shapes.floats[]', `array['[1,2)'::shapes.floats]`],
  ['shapes.mood_range', `'[sad,ok]'`, `'(,)'`, `'empty'`],
  ['shapes.mood_multirange', `'{[sad,ok)}'`],
  [
    'shapes.address_range',
    `shapes.address_range(${ADDRESS}, null)`,
    `shapes.address_range(${ADDRESS}, ${ADDRESS}, '[]')`,
  ],
  ['shapes.address_range[]', `array[shapes.address_range(null, ${ADDRESS})]`],
  [
    'shapes.address_multirange',
    `shapes.address_multirange(shapes.address_range(${ADDRESS}, row('z', 'sad', null, 1)::shapes.address))`,
  ],
];

const EXTENSIONS = ['citext', 'hstore', 'ltree', 'cube', 'seg', 'isn', 'intarray'];
const FROM_EXTENSIONS: readonly (readonly [type: string, ...values: string[]])[] = [
  ['citext', `'MiXed'`],
  ['citext[]', `'{A,a,NULL}'`],
  ['hstore', `'a=>1, b=>NULL, "c d"=>"\\""'`, `''`],
  ['hstore[]', `array['a=>1'::hstore]`],
  ['ltree', `'Top.Science.Astronomy'`, `''`],
  ['ltree[]', `'{a.b,c}'`],
  ['lquery', `'*.astronomy@|x.*{1,2}'`],
  ['ltxtquery', `'europe & russia*@'`],
  ['cube', `'(1,2),(3,4)'`, `'(0)'`],
  ['cube[]', `array['(1)'::cube]`],
  ['seg', `'~6.5'`, `'1.10 .. 2.20'`, `'<3'`],
  ['isbn13', `'978-0-393-04002-9'`],
  ['ean13', `'9771436450806'`, `'9780393040020!'`],
  ['query_int', `'1&(2|!3)'`],
];

/** A table with one column for each type, and as many rows as a type has values; `note` is for updates. */
function tableOf(name: string, types: readonly (readonly [string, ...string[]])[], key = 'id int primary key'): string {
  return `create table ${name} (${key}, ${types.map(([type], index) => `c${index} ${type}`).join(', ')}, note text)`;
}

function rowsOf(name: string, types: readonly (readonly [string, ...string[]])[], from: number): string[] {
  const most = Math.max(...types.map((each) => each.length - 1));
  return Array.from({ length: most + 1 }, (_, row) => {
    const values = types.map(([type, ...values]) => (values[row] === undefined ? 'null' : `(${values[row]})::${type}`));
    return `insert into ${name} values (${from + row}, ${values.join(', ')})`;
  });
}

let cluster: Cluster;
beforeAll(async () => {
  cluster = await makeCluster({ tables: '' });
  for (const [index, region] of cluster.regions.entries()) {
    // As many types more as shift every OID, and other orders of creation.
    for (let n = 0; n < 7 * index; n++) await cluster.query(region, `create domain filler${n} as int`);
    for (const name of index === 1 ? [...EXTENSIONS].reverse() : EXTENSIONS)
      await cluster.query(region, `create extension ${name}`);
    await cluster.query(region, OWN_TYPES);
    for (const [name, types] of TABLES) await cluster.query(region, tableOf(name, types));
    await cluster.query(
      region,
      'create table keyed (k shapes.mood, p shapes.address, i isbn13, h "Odd Name"[], v text, primary key (k, p, i, h))',
    );
    await cluster.query(region, 'create table large (id int primary key, v text, big shapes.person, s seg, note text)');
    await cluster.query(region, 'alter table large alter column big set storage external');
  }
  // Rows that are there before the regions are joined: they go by COPY.
  for (const [name, types] of TABLES) for (const sql of rowsOf(name, types, 1)) await cluster.query('tokyo', sql);
  expect(
    new Set(
      await Promise.all(
        cluster.regions.map((region) => cluster.value(region, `select 'shapes.address'::regtype::oid`)),
      ),
    ).size,
  ).toBe(3);
  await cluster.install();
  await cluster.startAgents();
}, 120_000);
afterAll(() => cluster[Symbol.asyncDispose]());

const TABLES = [
  ['built_in', BUILT_IN],
  ['own', OWN],
  ['from_extensions', FROM_EXTENSIONS],
] as const;

const total = async (sql: string): Promise<number> => {
  const found = await Promise.all(cluster.regions.map((region) => cluster.value(region, sql)));
  return found.reduce((sum: number, each) => sum + Number(each), 0);
};
const parked = async (): Promise<unknown[]> =>
  (
    await Promise.all(
      cluster.regions.map(
        async (region) => (await cluster.query(region, 'select table_name, reason from coregent.parked')).rows,
      ),
    )
  ).flat();

describe.each(TABLES)('INV-T, C4, C5, C6, C7, C8: %s types', (name, types) => {
  it('arrive as they were written: joined, inserted, copied, updated, deleted', async () => {
    await cluster.converged();
    for (const sql of rowsOf(name, types, 101)) await cluster.query('frankfurt', sql);
    await cluster.converged();
    const columns = types.map((_, index) => `c${index}`).join(', ');
    await cluster.query(
      'virginia',
      `insert into ${name} (id, ${columns}) select id + 1000 * n, ${columns} from ${name}, generate_series(1, 15) n where id < 100`,
    );
    await cluster.converged();
    await cluster.query('tokyo', `update ${name} set note = 'x' where id > 1000`);
    await cluster.query(
      'tokyo',
      `update ${name} a set (${columns}) = (select ${columns} from ${name} b where b.id = a.id + 1) where id = 1`,
    );
    await cluster.converged();
    await cluster.query('tokyo', `delete from ${name} where id > 5000`);
    await cluster.converged();
    expect(await parked()).toEqual([]);
    // What a text says is what was written: the last row holds every column's null, the first the next row's values.
    expect(await cluster.value('virginia', `select count(*)::int from ${name} where id < 5000`)).toBeGreaterThan(10);
  });

  it('meet in conflicts, in every order, and end as one region wrote them', async () => {
    for (const region of cluster.regions) await cluster.stopAgent(region);
    const before = await total('select count(*) from coregent.conflict_record');
    for (const [index, region] of cluster.regions.entries()) {
      await cluster.query(region, `update ${name} set note = '${region}' where id < 1000`);
      for (const sql of rowsOf(name, types, 201)) await cluster.query(region, sql);
      await cluster.query(region, `update ${name} set note = '${region}' where id > 200`);
      await cluster.query(region, `delete from ${name} where id between $1 and $1 + 1`, [1 + index * 2]);
    }
    await cluster.startAgents();
    await cluster.converged();
    expect(await parked()).toEqual([]);
    expect(await total('select count(*) from coregent.conflict_record')).toBeGreaterThan(before + 10);
  });
});

it('C6: user types as keys', async () => {
  const row = (mood: string) => `('${mood}', ${ADDRESS}, '978-0-393-04002-9', '{a,b}', '${mood}')`;
  await cluster.query('tokyo', `insert into keyed values ${row('sad')}, ${row('ok')}`);
  await cluster.converged();
  await cluster.query('frankfurt', `update keyed set v = 'new', h = '{b}' where k = 'sad'`);
  await cluster.query('virginia', `delete from keyed where k = 'ok'`);
  await cluster.converged();
  expect(await cluster.value('tokyo', `select string_agg(concat_ws(' ', k, h, v), ', ') from keyed`)).toBe(
    'sad {b} new',
  );
  expect((await cluster.cli('verify')).code).toBe(0);
});

it('C1, C6: a large value that must be fetched keeps its types', async () => {
  const big = (letter: string) => `row(repeat('${letter}', 9000), ${ADDRESS}, null, 'a')::shapes.person`;
  await cluster.query('tokyo', `insert into large values (1, 'x', ${big('a')}, '1 .. 2')`);
  await cluster.converged();
  for (const region of cluster.regions) await cluster.stopAgent(region);
  await cluster.query('frankfurt', `update large set big = ${big('b')}, s = '2 .. 3'`);
  await cluster.query('virginia', `update large set note = 'later'`);
  await cluster.startAgents();
  await cluster.converged();
  expect(await cluster.value('tokyo', `select concat_ws(' ', v, left((big).name, 1), s, note) from large`)).toBe(
    'x a 1 .. 2 later',
  );
  expect(await parked()).toEqual([]);
});

it('H6: types that are made of other parts in one region are refused', async () => {
  await using other = await makeCluster({ regions: 2, tables: '' });
  await other.query(
    'tokyo',
    `create type mood as enum ('a', 'b'); create type pair as (a int, b mood); create table t (id int primary key, v pair[])`,
  );
  await other.query(
    'frankfurt',
    `create type mood as enum ('b', 'a'); create type pair as (a int, b mood); create table t (id int primary key, v pair[])`,
  );
  const { code, err } = await other.cli('apply');
  expect(code).toBe(5);
  expect(err).toContain('public.t in frankfurt: has the column v of another type by that name');
  expect(err).toContain('public.mood is enum (b, a)');
});

it('C17: numbers that mean something else elsewhere, and parts without a binary form, are refused with the cure', async () => {
  await using other = await makeCluster({
    regions: 2,
    tables: `create extension seg; create type holder as (s seg); create extension lo;
      create table of_objects (id int primary key, l lo);
      create table of_tables (id int primary key, t regclass, f regproc[]);
      create table of_segs (id int primary key, s seg[]);
      create table of_holders (id int primary key, h holder);
      create table fine (id int primary key, s seg, o oid)`,
  });
  const { code, err } = await other.cli('apply');
  expect(code).toBe(5);
  expect(err).toMatch(
    /public\.of_tables in tokyo: the column t holds regclass.*store the name, alter table … alter column … type text; the column f/,
  );
  expect(err).toMatch(
    /public\.of_segs in tokyo: the column s holds public\.seg inside of another type.*a column of its own/,
  );
  expect(err).toMatch(/public\.of_holders in tokyo: the column h holds public\.seg/);
  expect(err).toMatch(
    /public\.of_objects in tokyo: the column l holds public\.lo, a reference to a large object.*bytea/,
  );
  expect(err).not.toContain('public.fine');
});

it('D20: a value that PostgreSQL cannot read back itself is parked with its row, and the rest goes on', async () => {
  await using other = await makeCluster({
    regions: 2,
    tables: 'create table searches (id int primary key, q tsquery)',
  });
  await other.install();
  await other.startAgents();
  await other.query('tokyo', `insert into searches values (1, 'cat'), (2, ''), (3, 'dog')`);
  await other.confirmed();
  expect(await other.value('frankfurt', 'select array_agg(id order by id) from searches')).toEqual([1, 3]);
  expect((await other.query('frankfurt', 'select table_name, sqlstate from coregent.parked')).rows).toEqual([
    { table_name: 'public.searches', sqlstate: 'XX000' },
  ]);
});
