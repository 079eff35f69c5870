import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';

/** Types whose equal values may differ in bytes: two spellings of one key, and a key for each number. */
const KINDS = [
  { name: 'numerics', type: 'numeric', one: '1.0', other: '1.00', nth: 'n + 2.0' },
  { name: 'floats', type: 'float8', one: `'-0'`, other: `'0'`, nth: 'n + 0.5' },
  { name: 'padded', type: 'char(8)', one: `'a'`, other: `'a    '`, nth: `'n' || n` },
  { name: 'documents', type: 'jsonb', one: `'{"a": 1.0}'`, other: `'{"a": 1.00}'`, nth: 'to_jsonb(n)' },
  { name: 'names', type: 'public.citext', one: `'Ada'`, other: `'aDA'`, nth: `'n' || n` },
  { name: 'letters', type: 'text collate public.any_case', one: `'Ada'`, other: `'aDA'`, nth: `'n' || n` },
  { name: 'addresses', type: 'public.email', one: `'A@b.c'`, other: `'a@B.C'`, nth: `'n' || n` },
] as const;

const SCHEMA = `
  create extension citext schema public;
  create collation public.any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  create domain public.email as public.citext check (value like '%');
  ${KINDS.map(({ name, type }) => `create table ${name} (k ${type} primary key, v text);`).join('\n')}
  create table pairs (a numeric, b public.citext, v text, primary key (b, a));
  create table heavy (k numeric primary key, v text, big text);
  alter table heavy alter column big set storage external;`;

let cluster: Cluster;
beforeAll(async () => {
  cluster = await makeCluster({ regions: 2, tables: SCHEMA });
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

const conflicts = async (table: string): Promise<number> => {
  const found = await Promise.all(
    cluster.regions.map((region) =>
      cluster.value(region, `select count(*)::int from coregent.conflicts where table_name = $1`, [`public.${table}`]),
    ),
  );
  return found.reduce((sum: number, count) => sum + Number(count), 0);
};
const rows = async (region: string, table: string): Promise<unknown> =>
  await cluster.value(region, `select string_agg(concat_ws('=', k, v), ', ' order by v) from ${table}`);

describe.each(KINDS)('B11: $type keys that are equal and not the same bytes', ({ name, one, other, nth }) => {
  it('are one key, in one batch and across batches, and the winner’s bytes are everyone’s', async () => {
    await cluster.query('tokyo', `insert into ${name} values (${one}, 'first')`);
    await cluster.converged();
    // Several writes of the key under several spellings in one transaction.
    const session = await cluster.session('tokyo');
    await session.query('begin');
    await session.query(`insert into ${name} select ${nth}, 'many' from generate_series(1, 60) n`);
    await session.query(`update ${name} set k = ${other}, v = 'second' where k = ${one}`);
    await session.query(`delete from ${name} where k = ${one}`);
    await session.query(`insert into ${name} values (${one}, 'third')`);
    await session.query(`update ${name} set k = ${other}, v = 'fourth' where k = ${one}`);
    await session.query(`update ${name} set v = 'more' where v = 'many'`);
    await session.query('commit');
    await cluster.converged();
    expect(await cluster.value('frankfurt', `select count(*)::int from ${name}`)).toBe(61);
    expect(await cluster.value('frankfurt', `select v from ${name} where k = ${one}`)).toBe('fourth');
    expect(await conflicts(name)).toBe(0);
    await cluster.query('frankfurt', `delete from ${name}`);
    await cluster.converged();
    expect(await rows('tokyo', name)).toBeNull();
  });

  it('meet as one key when two regions write them', async () => {
    await cluster.stopAgent('tokyo');
    await cluster.stopAgent('frankfurt');
    const before = await conflicts(name);
    await cluster.query('tokyo', `insert into ${name} values (${one}, 'tokyo')`);
    await cluster.query('frankfurt', `insert into ${name} values (${other}, 'frankfurt')`);
    await cluster.query('tokyo', `insert into ${name} select ${nth}, 'tokyo' from generate_series(1, 50) n`);
    await cluster.query('frankfurt', `insert into ${name} select ${nth}, 'frankfurt' from generate_series(1, 50) n`);
    await cluster.startAgents();
    await cluster.converged();
    expect(await cluster.value('tokyo', `select count(*)::int from ${name}`)).toBe(51);
    expect(await cluster.value('tokyo', `select v from ${name} where k = ${one}`)).toBe('frankfurt');
    expect((await conflicts(name)) - before).toBe(102);
    // A delete under one spelling, an update under the other, unseen by each other: the later one wins everywhere.
    await cluster.stopAgent('tokyo');
    await cluster.stopAgent('frankfurt');
    await cluster.query('tokyo', `delete from ${name}`);
    await cluster.query('frankfurt', `update ${name} set k = ${one}, v = 'revived' where k = ${other}`);
    await cluster.startAgents();
    await cluster.converged();
    expect(await cluster.value('tokyo', `select string_agg(v, ',') from ${name}`)).toBe('revived');
    await cluster.query('tokyo', `truncate ${name}`);
    await cluster.converged();
    expect(await rows('frankfurt', name)).toBeNull();
  });
});

it('B11: composite keys of such types', async () => {
  await cluster.query('tokyo', `insert into pairs values (1.0, 'Ada', 'x'), (2, 'Ada', 'y')`);
  await cluster.converged();
  await cluster.query('frankfurt', `update pairs set a = 1.00, b = 'ADA', v = 'z' where a = 1 and b = 'ada'`);
  await cluster.converged();
  await cluster.query('tokyo', `update pairs set a = 3 where b = 'ada' and a = 1`);
  await cluster.converged();
  expect(
    await cluster.value('frankfurt', `select string_agg(concat_ws(' ', a, b, v), ', ' order by a) from pairs`),
  ).toBe('2 Ada y, 3 ADA z');
  await cluster.query('frankfurt', `delete from pairs where b = 'ADA'`);
  await cluster.converged();
  expect(await cluster.value('tokyo', 'select count(*)::int from pairs')).toBe(0);
  expect(await conflicts('pairs')).toBe(0);
});

it('B11, C1: an update that leaves a long value out, in one transaction with its row under another spelling', async () => {
  const session = await cluster.session('tokyo');
  await session.query('begin');
  await session.query(`insert into heavy select n + 0.0, 'first', repeat('x', 9000) from generate_series(1, 3) n`);
  await session.query(`update heavy set k = k + 0.00, v = 'second'`);
  await session.query(`update heavy set big = repeat('y', 9000) where k = 2`);
  await session.query(`update heavy set k = k + 0.000, v = 'third'`);
  await session.query('commit');
  await cluster.converged();
  expect(
    await cluster.value(
      'frankfurt',
      `select string_agg(concat_ws(' ', k, v, left(big, 1)), ', ' order by k) from heavy`,
    ),
  ).toBe('1.000 third x, 2.000 third y, 3.000 third x');
  expect(await conflicts('heavy')).toBe(0);
});

it('verify compares by the key’s own equality', async () => {
  await cluster.query('tokyo', `insert into names values ('Grace', 'x'), ('Linus', 'y')`);
  await cluster.converged();
  expect((await cluster.cli('verify')).code).toBe(0);
});
