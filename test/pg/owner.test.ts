import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

/** A write that is refused: what a driver is told. */
async function refused(cluster: Cluster, region: string, text: string) {
  return await cluster.query(region, text).then(
    () => undefined,
    ({ code, message, detail, table, column }) => ({ code, message, detail, table, column }),
  );
}

const TABLES = `
  create table users (id int primary key, home text, name text);
  create table shops (id int primary key, country char(2) not null, name text);
  create table parts (id int primary key, n int, name text, parent int references parts on delete cascade);
  create table names (id int primary key, name varchar(20));
  create table carts (id uuid primary key, v text);
  create table geo (id int, home text, v text, primary key (id, home)) partition by list (home);
  create table geo_tokyo partition of geo for values in ('tokyo');
  create table geo_frankfurt partition of geo for values in ('frankfurt');
  create table plain (id int primary key, v text)`;

const OWNED = {
  'public.*': {},
  'public.users': { owner: { column: 'home' } },
  'public.shops': { owner: { column: 'country', list: { tokyo: ['JP', 'KR'] }, default: 'frankfurt' } },
  'public.parts': { owner: { column: 'n', range: { tokyo: [0, 100], frankfurt: [100, null] } } },
  'public.names': { owner: { column: 'name', range: { tokyo: [null, 'm'], frankfurt: ['m', null] } } },
  'public.carts': { owner: { column: 'id', hash: ['tokyo', 'frankfurt'] } },
  'public.geo': { owner: { column: 'home' } },
};

describe.each(['A', 'C'] as const)('in tier %s', (tier) => {
  let cluster: Cluster;

  beforeAll(async () => {
    cluster = await makeCluster({ regions: 2, tables: TABLES, tier, config: { tables: OWNED } });
    await cluster.query('tokyo', `insert into users values (100, 'elsewhere', 'of before')`);
    await cluster.install();
    await cluster.startAgents();
    await cluster.query('tokyo', `insert into users values (1, 'tokyo', 'ann'), (2, 'tokyo', 'bob')`);
    await cluster.query('frankfurt', `insert into users values (3, 'frankfurt', 'eve')`);
    await cluster.converged();
  });
  afterAll(() => cluster[Symbol.asyncDispose]());

  test('a row that another region owns is not written: the error names owner, table and key', async () => {
    const answer = {
      code: 'CG001',
      message: 'region frankfurt owns public.users {"id": 3}, and this is tokyo',
      detail: 'frankfurt',
      table: 'users',
      column: 'home',
    };
    for (const text of [
      `update users set name = 'x' where id = 3`,
      `update users set home = 'tokyo' where id = 3`,
      'delete from users where id = 3',
      `insert into users values (3, 'tokyo', 'x') on conflict (id) do update set name = excluded.name`,
    ]) {
      expect(await refused(cluster, 'tokyo', text), text).toEqual(answer);
    }
    expect(await refused(cluster, 'tokyo', `insert into users values (4, 'frankfurt', 'x')`)).toMatchObject({
      code: 'CG001',
      message: 'region frankfurt owns public.users {"id": 4}, and this is tokyo',
    });
    expect(await refused(cluster, 'tokyo', `update users set id = 5 where id = 3`)).toEqual(answer);
    await cluster.query(
      'tokyo',
      `insert into users values (1, 'tokyo', 'x') on conflict (id) do update set name = 'anna'`,
    );
    await cluster.query('frankfurt', `update users set name = 'eva' where id = 3`);
    await cluster.query('tokyo', 'update users set id = 20 where id = 2');
    await cluster.query('tokyo', 'delete from users where id = 20');
    await cluster.converged();
    const all = 'select array_agg(id || name order by id) from users';
    for (const region of cluster.regions) {
      expect(await cluster.value(region, all)).toEqual(['1anna', '3eva', '100of before']);
    }
  });

  test('what no region owns cannot be made, and what was there before may be given away by anybody', async () => {
    expect(await refused(cluster, 'tokyo', `insert into users values (6, 'Tokyo', 'x')`)).toMatchObject({
      code: 'CG001',
      message: `no region owns public.users {"id": 6}: its home is 'Tokyo'`,
    });
    expect((await refused(cluster, 'tokyo', `insert into users values (6, null, 'x')`))?.message).toContain('is null');
    expect((await refused(cluster, 'tokyo', `update users set home = null where id = 1`))?.code).toBe('CG001');
    await cluster.query('frankfurt', `update users set home = 'frankfurt' where id = 100`);
    await cluster.converged();
    expect((await refused(cluster, 'tokyo', `update users set name = 'x' where id = 100`))?.code).toBe('CG001');
  });

  test('moving a row is one update where it is owned, and the new owner writes it from then on', async () => {
    await cluster.query('tokyo', `insert into users values (7, 'tokyo', 'moves')`);
    await cluster.query('tokyo', `update users set home = 'frankfurt' where id = 7`);
    expect((await refused(cluster, 'tokyo', `update users set name = 'x' where id = 7`))?.detail).toBe('frankfurt');
    await cluster.converged();
    await cluster.query('frankfurt', `update users set name = 'moved' where id = 7`);
    await cluster.converged();
    expect(await cluster.value('tokyo', 'select name from users where id = 7')).toBe('moved');
    expect(await cluster.value('tokyo', 'select count(*)::int from coregent.conflicts')).toBe(0);
  });

  test('lists, ranges and hashes say who owns, alike in every region', async () => {
    await cluster.query('tokyo', `insert into shops values (1, 'JP', 'x'), (2, 'KR', 'x')`);
    await cluster.query('frankfurt', `insert into shops values (3, 'DE', 'x'), (4, 'jp', 'x')`);
    expect((await refused(cluster, 'frankfurt', `insert into shops values (5, 'KR', 'x')`))?.detail).toBe('tokyo');
    expect((await refused(cluster, 'tokyo', `insert into shops values (5, 'DE', 'x')`))?.detail).toBe('frankfurt');

    await cluster.query('tokyo', `insert into parts values (1, 0), (2, 99)`);
    await cluster.query('frankfurt', `insert into parts values (3, 100), (4, 2000000000)`);
    expect((await refused(cluster, 'tokyo', `insert into parts values (5, 100)`))?.detail).toBe('frankfurt');
    expect((await refused(cluster, 'tokyo', `insert into parts values (5, -1)`))?.message).toContain('no region owns');

    await cluster.query('tokyo', `insert into names values (1, 'a'), (2, 'Zoë')`);
    await cluster.query('frankfurt', `insert into names values (3, 'm'), (4, 'éa')`);
    expect((await refused(cluster, 'frankfurt', `insert into names values (5, 'lz')`))?.detail).toBe('tokyo');

    let [mine, theirs] = [0, 0];
    for (let n = 0; n < 30; n++) {
      const id = `00000000-0000-4000-8000-${String(n).padStart(12, '0')}`;
      const said = await refused(cluster, 'tokyo', `insert into carts values ('${id}', 'x')`);
      if (!said) mine++;
      else await cluster.query('frankfurt', `insert into carts values ('${id}', 'x')`).then(() => theirs++);
    }
    expect(Math.min(mine, theirs)).toBeGreaterThan(3);
    await cluster.converged();
    expect(await cluster.value('tokyo', 'select count(*)::int from carts')).toBe(30);
  });

  test('TRUNCATE is refused while another region owns a row', async () => {
    const said = await refused(cluster, 'tokyo', 'truncate users');
    expect(said).toMatchObject({
      code: 'CG001',
      message: 'region frankfurt owns rows of public.users, and this is tokyo',
    });
    await cluster.query('frankfurt', 'delete from shops where id in (3, 4)');
    await cluster.converged();
    await cluster.query('tokyo', 'truncate shops');
    await cluster.converged();
    expect(await cluster.value('frankfurt', 'select count(*)::int from shops')).toBe(0);
  });

  test('rows of a partitioned table move between regions, whose partitions they lie in', async () => {
    await cluster.query('tokyo', `insert into geo values (1, 'tokyo', 'x'), (2, 'tokyo', 'x')`);
    await cluster.query('frankfurt', `insert into geo values (3, 'frankfurt', 'x')`);
    await cluster.converged();
    await cluster.query('tokyo', `update geo set home = 'frankfurt' where id = 1`);
    expect((await refused(cluster, 'tokyo', `insert into geo values (4, 'frankfurt', 'x')`))?.code).toBe('CG001');
    expect((await refused(cluster, 'tokyo', `update geo_frankfurt set v = 'y'`))?.code).toBe('CG001');
    expect((await refused(cluster, 'tokyo', 'truncate geo_frankfurt'))?.code).toBe('CG001');
    await cluster.query('tokyo', 'truncate geo_tokyo');
    await cluster.converged();
    expect(await cluster.value('frankfurt', 'select array_agg(id order by id) from geo')).toEqual([1, 3]);
  });

  test('a cascade to rows of another region is refused where it begins; a repair is not', async () => {
    await cluster.query('tokyo', `insert into parts values (50, 50)`);
    await cluster.converged();
    await cluster.query('frankfurt', `insert into parts values (51, 500, 'child', 50)`);
    await cluster.converged();
    // A cascade of one's own is a write like any other.
    expect((await refused(cluster, 'tokyo', 'delete from parts where id = 50'))?.detail).toBe('frankfurt');
    await cluster.query('frankfurt', 'delete from parts where id = 51');
    await cluster.converged();
    await cluster.query('tokyo', 'delete from parts where id = 50');
    const session = await cluster.session('tokyo');
    await session.query(`begin; set local session_replication_role = replica; delete from users where id = 3; commit`);
    expect((await cluster.cli('verify', '--repair', '--table', 'public.users')).code).toBe(0);
    await cluster.converged();
    expect(await cluster.value('tokyo', 'select count(*)::int from users where id = 3')).toBe(1);
    expect(await cluster.value('tokyo', 'select count(*)::int from coregent.parked')).toBe(0);
  });

  test('a person who says so may write rows of a region that is gone', async () => {
    const session = await cluster.session('tokyo');
    await session.query(`begin; set local coregent.any_owner = on`);
    await session.query(`update users set home = 'tokyo' where id = 3; commit`);
    await cluster.converged();
    expect((await refused(cluster, 'frankfurt', `update users set name = 'x' where id = 3`))?.detail).toBe('tokyo');
    // Over for the session too.
    await expect(session.query(`update users set name = 'x' where id = 7`)).rejects.toMatchObject({ code: 'CG001' });
  });
});

test('tier C: a cascade behind a delete that is applied takes rows of any region along', async () => {
  await using cluster = await makeCluster({
    tables: TABLES,
    tier: 'C',
    viaProxy: true,
    config: {
      tables: {
        'public.parts': {
          owner: { column: 'n', range: { tokyo: [0, 10], frankfurt: [10, 20], virginia: [20, 30] } },
        },
      },
    },
  });
  await cluster.install();
  await cluster.query('tokyo', 'insert into parts values (1, 1)');
  await cluster.startAgents();
  await cluster.converged();
  await cluster.cut('tokyo', 'virginia');
  await cluster.query('virginia', `insert into parts values (2, 20, 'child', 1)`);
  await until(() => cluster.value('frankfurt', 'select name from parts where id = 2'), { what: 'the child to come' });
  await cluster.query('tokyo', 'delete from parts where id = 1');
  await until(async () => (await cluster.value('frankfurt', 'select count(*)::int from parts')) === 0, {
    what: 'the parent and its child to go',
  });
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBe(0);
});

test('apply takes ownership away again, and says what cannot be one', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables:
      'create table users (id int primary key, home text, at float8, mood text generated always as (home) stored)',
    config: { tables: { 'public.users': { owner: { column: 'home', list: { tokyo: ['JP'] } } } } },
  });
  await cluster.install();
  expect((await cluster.cli('apply')).out).toBe('Every region is as the file says.\n');
  expect((await refused(cluster, 'tokyo', `insert into users values (1, 'DE')`))?.code).toBe('CG001');
  for (const [owner, what] of [
    [{ column: 'house' }, 'has no column house'],
    [{ column: 'mood' }, 'has no column mood'],
    [{ column: 'at' }, 'double precision'],
    [{ column: 'id', list: { tokyo: ['x'] } }, 'invalid input syntax for type bigint: "x"'],
  ] as const) {
    const { code, err } = await cluster.cliWith({ tables: { 'public.users': { owner } } }, 'apply');
    expect(code).toBe(5);
    expect(err).toContain(what);
  }
  const other = { 'public.users': { owner: { column: 'home', list: { tokyo: ['JP', 'DE'] } } } };
  expect((await cluster.cliWith({ tables: other }, 'apply')).code).toBe(0);
  await cluster.query('tokyo', `insert into users values (1, 'DE')`);
  expect((await cluster.cliWith({ tables: { 'public.users': {} } }, 'apply')).code).toBe(0);
  await cluster.query('frankfurt', `insert into users values (2, 'JP')`);
  expect(await cluster.value('tokyo', `select count(*)::int from pg_proc where proname like 'owner\\_%'`)).toBe(0);
});

test('of two rows with one unique value the one that gives way goes, whoever owns it and wherever that is decided', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    viaProxy: true,
    tables: 'create table users (id int primary key, home text, email text unique)',
    config: { tables: { 'public.users': { owner: { column: 'home' } } } },
  });
  await cluster.install();
  await cluster.startAgents();
  await cluster.cut('tokyo', 'frankfurt');
  await cluster.query('tokyo', `insert into users values (1, 'tokyo', 'a@x')`);
  // Written by frankfurt, and tokyo's since.
  await cluster.query('frankfurt', `insert into users values (2, 'frankfurt', 'a@x')`);
  await cluster.query('frankfurt', `update users set home = 'tokyo' where id = 2`);
  await cluster.heal();
  for (const region of cluster.regions) {
    await until(async () => String(await cluster.value(region, 'select array_agg(id) from users')) === '1', {
      what: `the first alone to be in ${region}`,
    });
  }
  await cluster.converged();
});
