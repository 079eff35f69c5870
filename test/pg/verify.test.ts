import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const ROWS = 50_000;
let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    tables: `
      create table items (id int primary key, v text, n numeric(10, 2));
      create table accounts (id int, branch int, balance bigint not null, primary key (branch, id));
      create table deeds (id text primary key, v jsonb);
      create table parts (id int primary key, a text, b text);`,
    config: { tables: { 'public.*': {}, 'public.parts': { conflict: 'columns' } } },
  });
  await cluster.query('tokyo', `insert into items select n, md5(n::text), n / 7.0 from generate_series(1, ${ROWS}) n`);
  await cluster.query('tokyo', `insert into accounts select n, n % 10, 0 from generate_series(1, 1000) n`);
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** A statement that no trigger sees, as a restored backup, a disabled trigger or a broken disk leaves its trace. */
async function plant(region: string, text: string): Promise<void> {
  const session = await cluster.session(region);
  await session.query(`begin; set local session_replication_role = replica; ${text}; commit`);
}

async function verify(...args: string[]) {
  const { code, out, err } = await cluster.cli('verify', '--json', ...args);
  if (out === '') throw new Error(err);
  return { code, ...JSON.parse(out) };
}

test('equal regions are said to be, with their rows counted', async () => {
  await cluster.converged();
  const text = await cluster.cli('verify');
  expect(text.code).toBe(0);
  expect(text.out).toMatch(new RegExp(`^public\\.items +${ROWS} +${ROWS} +${ROWS} +equal$`, 'm'));
  expect(await verify()).toMatchObject({
    code: 0,
    regions: ['tokyo', 'frankfurt', 'virginia'],
    differing: 0,
    tables: [
      { table: 'public.accounts', rows: [1000, 1000, 1000], differences: [], moving: 0 },
      { table: 'public.deeds', rows: [0, 0, 0], differences: [], moving: 0 },
      { table: 'public.items', rows: [ROWS, ROWS, ROWS], differences: [], moving: 0 },
      { table: 'public.parts', rows: [0, 0, 0], differences: [], moving: 0 },
    ],
  });
  expect(await verify('--table', 'public.deeds')).toMatchObject({ tables: [{ table: 'public.deeds' }] });
  expect(await cluster.cli('verify', '--table', 'public.nothing')).toMatchObject({ code: 2 });
});

test('writes under way, contested ones included, are never taken for differences', async () => {
  const stopping = new AbortController();
  const counts = cluster.regions.map(() => 0);
  const writing = cluster.regions.map(async (region, index) => {
    while (!stopping.signal.aborted) {
      const id = 1 + Math.floor(Math.random() * 1000);
      await cluster.query(region, 'update accounts set balance = balance + 1 where id = $1 and branch = $2', [
        id,
        id % 10,
      ]);
      await cluster.query(region, `insert into deeds values ($1, '{"by": 1}')`, [`${region}/${counts[index]}`]);
      if (counts[index]! % 3 === 0) {
        await cluster.query(region, 'delete from deeds where id = $1', [`${region}/${counts[index]! - 3}`]);
      }
      counts[index]!++;
    }
  });
  try {
    await until(() => counts.every((count) => count > 10), { what: 'every region to write' });
    const before = [...counts];
    for (let round = 0; round < 2; round++) expect(await verify()).toMatchObject({ code: 0, differing: 0 });
    expect(counts.every((count, index) => count > before[index]!)).toBe(true);
  } finally {
    stopping.abort();
    await Promise.all(writing);
  }
  await cluster.converged();
});

test('rows that differ are found, listed, and repaired from the other regions', async () => {
  await cluster.query('tokyo', `insert into deeds values ('a "quoted" key', '{"is": [1.0, "東京"]}')`);
  await cluster.query('tokyo', 'update accounts set balance = 70 where id = 7');
  await cluster.converged();
  // The same version with other bytes; a row that is missing; one that is nowhere else; one that missed an update.
  await plant('frankfurt', `update items set v = 'broken' where id = 123`);
  await plant('virginia', 'delete from items where id = 456');
  await plant('virginia', `delete from deeds where id = 'a "quoted" key'`);
  await plant('tokyo', `insert into items (id, v) values (1000000, 'extra')`);
  await plant('frankfurt', 'update accounts set balance = -1, _coregent_version = 128 + 2 where id = 7');

  const text = await cluster.cli('verify');
  expect(text).toMatchObject({ code: 3, err: '' });
  expect(text.out).toMatch(/^public\.items .* 3 differ$/m);
  expect(text.out).toContain('public.items {"id":"456"}');
  expect(text.out).toMatch(/frankfurt: .*"broken"/);
  expect(text.out).toContain('virginia: missing');

  const found = await verify();
  expect(found).toMatchObject({ code: 3, differing: 5 });
  const keys = found.tables.flatMap(({ differences }: { differences: { key: unknown }[] }) =>
    differences.map(({ key }) => key),
  );
  expect(keys).toHaveLength(5);
  for (const key of [
    { id: '123' },
    { id: '456' },
    { id: '1000000' },
    { branch: '7', id: '7' },
    { id: 'a "quoted" key' },
  ]) {
    expect(keys).toContainEqual(key);
  }

  expect(await verify('--repair')).toMatchObject({ code: 0, differing: 0, repaired: 5 });
  expect(await verify()).toMatchObject({ code: 0, differing: 0 });
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from items where id in (456, 1000000)'), region).toBe(2);
    expect(await cluster.value(region, 'select count(*)::int from accounts where id = 7 and balance = 70')).toBe(1);
    expect(await cluster.value(region, `select v ->> 'is' from deeds where id = 'a "quoted" key'`)).toBe(
      '[1.0, "東京"]',
    );
  }
  // Of two rows with one version somebody's bytes are gone; they are in the record.
  const { rows } = await cluster.query(
    'frankfurt',
    `select local_row, incoming_row from coregent.conflicts where key ->> 'id' = '123'`,
  );
  expect(rows.flatMap((row) => [row.local_row?.v, row.incoming_row?.v])).toContain('broken');
});

test('a row that was deleted, and is still there in one region, is found and leaves it', async () => {
  await cluster.query('tokyo', `insert into deeds values ('gone', '{}')`);
  await cluster.converged();
  const { rows } = await cluster.query('virginia', `select _coregent_version as v from deeds where id = 'gone'`);
  await cluster.query('tokyo', `delete from deeds where id = 'gone'`);
  await cluster.converged();
  await plant('virginia', `insert into deeds values ('gone', '{}', ${rows[0].v}, -1)`);
  expect(await verify()).toMatchObject({ code: 3, differing: 1 });
  expect(await verify('--repair')).toMatchObject({ code: 0, repaired: 1 });
  expect(await cluster.value('virginia', `select count(*)::int from deeds where id = 'gone'`)).toBe(0);
});

test('what differs is said, although it does not show in the columns', async () => {
  await cluster.query('tokyo', `insert into parts values (1, 'a', 'b'), (2, 'a', 'b')`);
  await cluster.converged();
  await cluster.query('tokyo', `update parts set a = 'c'`);
  await cluster.query('tokyo', `insert into deeds values ('old', '{}')`);
  await cluster.converged();
  await plant('frankfurt', `update parts set _coregent_state = null where id = 1`);
  await plant('virginia', `update parts set a = 'd' where id = 2`);
  await plant('virginia', `update deeds set _coregent_version = _coregent_version - 128 where id = 'old'`);
  const { code, out } = await cluster.cli('verify');
  expect(code).toBe(3);
  expect(out).toContain(
    'public.parts {"id":"1"} has the same values; what differs is what its rule keeps beside the columns\n',
  );
  expect(out).toMatch(/^ {2}tokyo: \{"a":"c","b":"b","id":1\}, version \d+, state \{.*\}$/m);
  expect(out).toMatch(/^ {2}frankfurt: \{"a":"c","b":"b","id":1\}, version \d+$/m);
  expect(out).toContain('public.parts {"id":"2"} differs in a\n');
  expect(out).toContain('public.deeds {"id":"old"} has the same values; what differs is the version\n');
  const [parts] = (await verify('--table', 'public.parts')).tables;
  expect(parts.differences[0].regions.map(({ state }: { state: unknown }) => state === null)).toEqual([
    false,
    true,
    false,
  ]);
  expect(await verify('--repair')).toMatchObject({ code: 0, differing: 0 });
});
