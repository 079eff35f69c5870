import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { deletesName, tableId, tombstoneName } from '../../src/model/table.ts';
import { ident } from '../../src/quote.ts';
import { installRegion } from '../property/region.ts';
import { type Database, makeDatabase } from '../world/database.ts';
import { namesakes } from '../world/namesakes.ts';
import { dropTierRole } from '../world/tier.ts';
import { until } from '../world/until.ts';

/** Keys of PostgreSQL's own types, and enums: the functions of these tables leave the `search_path` alone. */
const OWN = ['numbers', 'texts', 'moods', 'pairs', 'parts'];
/** Others: behind these may be somebody's functions. */
const FOREIGN = ['numerics', 'domains', 'composites'];

let database: Database;
beforeAll(async () => {
  database = await makeDatabase(0);
  await database.query(`
    create type mood as enum ('calm', 'cross');
    create domain code as int check (value > 0);
    create type pair as (a int, b int);
    create table numbers (id int primary key, v text);
    create table texts (id text primary key, v text);
    create table moods (id mood primary key, v text);
    create table pairs (id uuid, at timestamptz, v text, primary key (id, at));
    create table parts (id int primary key, v text) partition by hash (id);
    create table parts_0 partition of parts for values with (modulus 2, remainder 0);
    create table parts_1 partition of parts for values with (modulus 2, remainder 1);
    create table numerics (id numeric primary key, v text);
    create table domains (id code primary key, v text);
    create table composites (id pair primary key, v text);
    create table joined (id int primary key, v text, n int, tags text[], doc jsonb);
    -- The index of "first" is asked before that of the key.
    create table waits (id int not null, first int unique, v text);
    alter table waits add primary key (id)`);
  await installRegion(database.url, 1, {
    joined: { conflict: 'columns', columns: { n: 'counter', tags: 'set', doc: 'map' } },
  });
});
afterAll(async () => {
  await database.drop();
  await dropTierRole(database.url, { name: database.name, password: '' });
});

const named = (name: string): { schema: string; name: string } => ({ schema: 'public', name });
const tombs = (name: string): string => `coregent.${tombstoneName(named(name))}`;

async function session(sql = ''): Promise<pg.Client & AsyncDisposable> {
  const client = new pg.Client({ connectionString: database.url });
  client.on('error', () => {});
  await client.connect();
  await client.query(sql);
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() });
}

/** Runs a statement that has to wait for a lock, and returns its outcome once `free` was called. */
async function held(client: pg.Client, sql: string, free: () => Promise<unknown>): Promise<unknown> {
  const { rows } = await client.query('select pg_backend_pid() as pid');
  const outcome = client.query(sql).then(
    () => 'done',
    (error: unknown) => error,
  );
  const waiting = `select 1 from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'`;
  await until(async () => (await database.query(waiting, [rows[0].pid])).rowCount === 1, { what: `${sql} to wait` });
  await free();
  return await outcome;
}

test.each(['insert into waits values (1, 1)', 'update waits set id = 1, first = 1 where id = 9'])(
  'a write that was stamped before the first delete of its key began, and waited, is told to run again: %s',
  async (write) => {
    // As in a table from which nothing was ever deleted.
    await database.query(`set session_replication_role = replica; truncate waits; truncate ${tombs('waits')};
      reset session_replication_role; alter sequence coregent.${deletesName(named('waits'))} restart`);
    await database.query('insert into waits values (1, 10), (9, 90)');
    await using blocker = await session('begin; insert into waits values (2, 1)');
    await using writer = await session();
    const outcome = await held(writer, write, async () => {
      await database.query('delete from waits where id = 1');
      await blocker.query('rollback');
    });
    expect(outcome).toMatchObject({ code: '40001' });
    await writer.query(write);
    const { rows } = await database.query(
      `select x._coregent_version as buried, w._coregent_parent as parent, w._coregent_version > x._coregent_version as newer
        from waits w join ${tombs('waits')} x using (id) where id = 1`,
    );
    expect(rows).toEqual([{ buried: rows[0].parent, parent: rows[0].buried, newer: true }]);
  },
);

test('a write that waited for the delete of a row that is ahead of the clock is told to run again', async () => {
  await database.query(`set session_replication_role = replica;
    insert into waits (id, _coregent_version, _coregent_parent) values (50, (9 * 10 ^ 17)::int8, 0); reset session_replication_role`);
  await using deleter = await session('begin; delete from waits where id = 50');
  await using writer = await session();
  const outcome = await held(writer, 'insert into waits values (50)', () => deleter.query('commit'));
  expect(outcome).toMatchObject({ code: '40001', message: 'the key was deleted while this write waited for it' });
});

test('J1: only over keys of PostgreSQL’s own types do the functions of owners leave the search_path as it is', async () => {
  const { rows } = await database.query(
    `select proname as name, prosecdef as definer, proconfig as config from pg_proc
      where pronamespace = 'coregent'::regnamespace and prorettype = 'trigger'::regtype`,
  );
  const found = new Map(rows.map(({ name, ...rest }) => [name, rest]));
  const pinned = ['search_path=pg_catalog, pg_temp'];
  for (const table of [...OWN, ...FOREIGN]) {
    const of = (kind: string): unknown => found.get(`${kind}_${tableId(named(table))}`);
    expect(of('update'), table).toEqual({ definer: false, config: null });
    expect(of('truncate'), table).toEqual({ definer: true, config: pinned });
    for (const kind of ['insert', 'late', 'rekey', 'delete']) {
      expect(of(kind), `${kind} ${table}`).toEqual({ definer: true, config: OWN.includes(table) ? null : pinned });
    }
  }
});

test('J1: a role without rights on our schema, and with a path of namesakes, temporary ones too, bends nothing', async () => {
  const role = database.name;
  const evil = ident(`${role}_evil`);
  await database.query(
    `create role ${role}; grant select, insert, update, delete on all tables in schema public to ${role}`,
  );
  await database.query(namesakes(`${role}_evil`));
  await using app = await session(
    `create type pg_temp.code as (a int); grant ${role} to current_user; set role ${role}`,
  );
  for (const name of ['int8', 'regclass', 'float8', 'text', 'jsonb', 'numeric']) {
    await app.query(`create domain pg_temp.${name} as pg_catalog.bool check (false)`);
  }
  for (const name of OWN) await app.query(`create temporary table ${tombstoneName(named(name))} ()`);
  await expect(app.query('select from coregent.parked')).rejects.toMatchObject({ code: '42501' });
  await app.query(`set search_path = pg_temp, ${evil}, public, pg_catalog`);
  await expect(app.query('select now()')).rejects.toThrow('shadow of now');

  const keys: Record<string, readonly [string, string]> = {
    numbers: ['1', '2'],
    texts: [`'one'`, `'two'`],
    moods: [`'calm'`, `'cross'`],
    parts: ['1', '2'],
    numerics: ['1.0', '2'],
    domains: ['1', '2'],
    composites: [`'(1,1)'`, `'(2,2)'`],
  };
  for (const [table, [one, two]] of Object.entries(keys)) {
    for (const isolation of ['read committed', 'repeatable read']) {
      await app.query(`begin isolation level ${isolation}`);
      await app.query(`insert into ${table} values (${one}, 'first')`);
      await app.query(`insert into ${table} values (${one}) on conflict (id) do update set v = 'second'`);
      await app.query(`update ${table} set id = ${two}`);
      await app.query(`delete from ${table}`);
      await app.query(`insert into ${table} values (${two}, 'again'), (${one}, 'again')`);
      await app.query(`delete from ${table}`);
      await app.query(`insert into ${table} values (${one}, 'last')`);
      await app.query('commit');
      const { rows } = await database.query(
        `select t.v, t._coregent_parent = x._coregent_version as follows, t._coregent_version > x._coregent_version as newer,
          (select count(*)::int from ${tombs(table)}) as buried from ${table} t join ${tombs(table)} x using (id)`,
      );
      expect(rows, `${table}, ${isolation}`).toEqual([{ v: 'last', follows: true, newer: true, buried: 2 }]);
      await app.query(`delete from ${table}`);
    }
  }

  // Rows joined part by part.
  const row = `'first', 1, '{a}', '{"a": 1}'`;
  const plus = 'operator(pg_catalog.+)';
  await app.query(`insert into joined values (1, ${row})`);
  await app.query(`update joined set v = 'second', n = n ${plus} 1, tags = '{a,b}', doc = '{"a": {"b": 1}, "c": 1}'`);
  await app.query(`update joined set n = n ${plus} 1, tags = '{b}', doc = '{"a": {"b": 2}}'`);
  await app.query('update joined set id = 2');
  await app.query('delete from joined');
  await app.query(`insert into joined values (2, ${row})`);
  await app.query(`update joined set n = n ${plus} 1, tags = '{b}', doc = '{"a": {}}'`);
  const { rows: state } = await database.query(
    `select _coregent_state - 'l' - 'b' - 'seen' = jsonb_build_object('r', '{}'::jsonb, 'n', jsonb_build_object('n', jsonb_build_object('1', jsonb_build_array(_coregent_version, 2))),
      's', jsonb_build_object('tags', jsonb_build_object('b', jsonb_build_array(_coregent_version))),
      'm', jsonb_build_object('doc', jsonb_build_object('c', jsonb_build_object('a', jsonb_build_object('v', _coregent_version, 'f', _coregent_state -> 'b'))))) as stamped from joined`,
  );
  expect(state).toEqual([{ stamped: true }]);
  await app.query('delete from joined');
});
