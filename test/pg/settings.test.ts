import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

/** Settings that change what a text means, or a statement; of the role that Coregent runs as, in one region each. */
const SETTINGS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  tokyo: {
    DateStyle: 'German, DMY',
    IntervalStyle: 'sql_standard',
    TimeZone: 'Asia/Tokyo',
    extra_float_digits: '-15',
    bytea_output: 'escape',
    xmloption: 'document',
    array_nulls: 'off',
    standard_conforming_strings: 'off',
    default_transaction_isolation: 'serializable',
    client_encoding: 'LATIN1',
  },
  frankfurt: {
    DateStyle: 'SQL, MDY',
    IntervalStyle: 'iso_8601',
    TimeZone: 'America/New_York',
    quote_all_identifiers: 'on',
    transform_null_equals: 'on',
    default_transaction_read_only: 'on',
    default_transaction_deferrable: 'on',
    row_security: 'off',
    search_path: 'nowhere',
  },
};

const TABLES = `
  create type mood as enum ('calm', 'bu\\sy');
  create table moments (id int primary key, d date, at timestamptz, span interval, f float8, m money, b bytea, x xml, texts text[], mood mood, path text);
  create table keyed (at timestamptz, span interval, v text, primary key (at, span));
  create table items (id int primary key, v text)`;

const moment = (id: number): string =>
  `(${id}, '2024-05-06', '2024-05-06 07:08:09.123456+02', '1 mon -2 days 03:04:05.6', 0.1::float8 + 0.2, '12.34', '\\x5c00ff',
    'text <b>only</b>', '{a,NULL,"NULL"}', 'bu\\sy', 'C:\\new\\\\')`;

let cluster: Cluster;
beforeAll(async () => {
  cluster = await makeCluster({
    regions: 2,
    servers: 'own',
    settings: { max_prepared_transactions: 5 },
    tier: 'A',
    tables: TABLES,
  });
  for (const [region, settings] of Object.entries(SETTINGS)) {
    const set = Object.entries(settings).map(
      ([name, value]) =>
        `execute format('alter role ${cluster.role} in database %I set ${name} = %L', current_database(), '${value}');`,
    );
    await cluster.query(region, `do $$ begin ${set.join(' ')} end $$`);
  }
  await cluster.query('tokyo', `insert into moments values ${moment(1)}, ${moment(2)}`);
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

const ids = async (region: string): Promise<unknown> =>
  await cluster.value(region, `select string_agg(id || v, ' ' order by id) from items`);

test('C3: settings of the role, other ones in each region, change no value: joined, streamed, in conflicts and compared', async () => {
  await cluster.converged();
  await cluster.query('frankfurt', `insert into moments values ${moment(3)}`);
  await cluster.query('tokyo', `insert into keyed values ('2024-05-06 07:08:09.1234+02', '1 mon', 'x')`);
  await cluster.converged();
  await cluster.query('frankfurt', `update keyed set v = 'y'`);
  for (const region of cluster.regions) await cluster.stopAgent(region);
  await cluster.query('tokyo', `update moments set path = 'of tokyo\\' where id = 1; delete from moments where id = 2`);
  await cluster.query('frankfurt', `update moments set path = 'of frankfurt\\' where id in (1, 2)`);
  await cluster.startAgents();
  await cluster.converged();
  const same = 'count(distinct (d, at, span, f, m, b::text, x::text, texts, mood)::text)::int';
  for (const region of cluster.regions) {
    expect(await cluster.value(region, `select ${same} from moments`), region).toBe(1);
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked'), region).toBe(0);
  }
  expect(await cluster.value('tokyo', `select count(*)::int from moments where path = 'of frankfurt\\'`)).toBe(2);
  expect((await cluster.cli('verify')).code).toBe(0);
  expect((await cluster.cli('apply', '--dry-run')).code).toBe(0);
  const { conflicts } = JSON.parse((await cluster.cli('conflicts', 'list', '--json')).out);
  expect(conflicts.length).toBeGreaterThanOrEqual(2);
  const { findings } = JSON.parse((await cluster.cli('doctor', '--json')).out);
  expect([...new Set(findings.map(({ code }: { code: string }) => code))]).toEqual(['wal_unbounded']);
});

test('D7: a prepared transaction travels when it is committed, whoever commits it, and not when it is rolled back', async () => {
  await cluster.query('tokyo', `begin; insert into items values (1, 'prepared'); prepare transaction 'one'`);
  await cluster.query('tokyo', `begin; insert into items values (2, 'undone'); prepare transaction 'two'`);
  await cluster.query('tokyo', `insert into items values (3, 'meanwhile')`);
  await cluster.converged();
  expect(await ids('frankfurt')).toBe('3meanwhile');
  await cluster.query('tokyo', `commit prepared 'one'`);
  await cluster.query('tokyo', `rollback prepared 'two'`);
  await cluster.converged();
  expect(await ids('frankfurt')).toBe('1prepared 3meanwhile');
});

test('B10: a row that two regions rename is two rows; one that is renamed here and updated there is decided by who came later', async () => {
  await cluster.query('tokyo', `truncate items; insert into items values (1, 'a'), (2, 'b'), (3, 'c')`);
  await cluster.converged();
  for (const region of cluster.regions) await cluster.stopAgent(region);
  const before = await cluster.value('tokyo', 'select count(*)::int from coregent.conflict_record');
  await cluster.query('frankfurt', `update items set v = 'early' where id = 3`);
  await cluster.query('tokyo', 'update items set id = id + 10');
  await cluster.query('frankfurt', 'update items set id = 21 where id = 1');
  await cluster.query('frankfurt', `update items set v = 'late' where id = 2`);
  await cluster.startAgents();
  await cluster.converged();
  for (const region of cluster.regions) expect(await ids(region), region).toBe('2late 11a 12b 13c 21a');
  // The update that lost is on record.
  expect(Number(await cluster.value('tokyo', 'select count(*)::int from coregent.conflict_record'))).toBeGreaterThan(
    Number(before),
  );
});

test('E7: a peer whose url leads to another server is refused until a person says that it was moved', async () => {
  await cluster.stopAgent('frankfurt');
  // As after a dump was restored elsewhere: the catalog is the same, the server is not.
  await cluster.query('frankfurt', `update coregent.progress set system_identifier = '1'`);
  await cluster.query('tokyo', `insert into items values (30, 'moved')`);
  await cluster.startAgent('frankfurt');
  await until(() => cluster.peer('frankfurt', 'tokyo')?.last_error?.code === 'peer_identity', {
    what: 'the stranger to be refused',
  });
  expect(cluster.peer('frankfurt', 'tokyo').last_error!.message).toMatch(
    /tokyo is not the server that was followed: it is server \d+ .* and was 1 on/,
  );
  const refused = await cluster.cli('apply');
  expect(refused.code).toBe(5);
  expect(refused.err).toContain('coregent apply --restored tokyo');
  expect(await cluster.value('frankfurt', 'select count(*)::int from items where id = 30')).toBe(0);
  expect((await cluster.cli('apply', '--restored', 'tokyo')).code).toBe(0);
  await cluster.streaming('frankfurt');
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select v from items where id = 30')).toBe('moved');
});
