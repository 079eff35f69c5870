import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Tier } from '../../src/model/api.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const TABLES = `
  create table items (id int primary key, v text, n int not null default 0);
  create table codes (code text, part numeric, note text, primary key (code, part));
  create table docs (id uuid primary key, title text not null, body text);
  create table people (id int primary key, email text not null unique);
  create table parents (id int primary key, name text);
  create table children (id int primary key, parent int references parents on delete cascade, name text);
  create table notes (id int primary key, child int references children on delete set null, text text);
  create table tree (id int primary key, up int references tree deferrable initially deferred);
`;

/** What replication is, shown once for each set of privileges: no superuser in any. */
describe.each<Tier>(['A', 'B', 'C'])('tier %s', (tier) => {
  let cluster: Cluster;

  beforeAll(async () => {
    cluster = await makeCluster({ tables: TABLES, tier, config: { batch: { rows: 500 } } });
    await cluster.query('tokyo', `insert into items values (-1, 'before', 1)`);
    await cluster.query('frankfurt', `insert into items values (-2, 'before', 2)`);
    await cluster.install();
    await cluster.startAgents();
  });
  afterAll(() => cluster[Symbol.asyncDispose]());

  /** Runs the statements in every region at once; $1 is the region's number. */
  async function everyRegion(...statements: string[]): Promise<void> {
    const all = cluster.regions.map(async (region, index) => {
      for (const text of statements) await cluster.query(region, text, text.includes('$1') ? [index + 1] : undefined);
    });
    await Promise.all(all);
  }

  async function counts(text: string): Promise<unknown[]> {
    return await Promise.all(cluster.regions.map((region) => cluster.value(region, text)));
  }

  /** Transactions that each region applied so far. */
  async function applied(): Promise<unknown[]> {
    return await counts('select sum(transactions)::int from coregent.progress');
  }

  test('the tier is found, and shown in the log, the agent’s status and `status`', async () => {
    const { regions } = JSON.parse((await cluster.cli('status', '--json')).out);
    for (const [index, region] of cluster.regions.entries()) {
      expect(cluster.agent(region).status().tier).toBe(tier);
      expect(regions[index]).toMatchObject({ region, tier, state: 'ok' });
      expect(cluster.log(region)).toContainEqual(expect.objectContaining({ event: 'tier.found', tier }));
    }
    const { out } = await cluster.cli('status');
    expect(out.includes(`tier ${tier}: `)).toBe(tier !== 'A');
  });

  test('INV-C: rows of before, inserts, updates and deletes of every region are in all', async () => {
    await everyRegion(
      `insert into items select $1::int * 1000 + i, 'new' from generate_series(1, 100) i`,
      `update items set v = 'changed', n = n + 1 where id > $1::int * 1000 and id <= $1::int * 1000 + 50`,
      `delete from items where id > $1::int * 1000 + 90 and id < $1::int * 1000 + 100`,
    );
    await cluster.converged();
    expect(await counts('select count(*)::int from items')).toEqual([275, 275, 275]);
    expect(await counts('select count(*)::int from items where n = 1')).toEqual([151, 151, 151]);
  });

  test('INV-C: writes of one row in every region at once leave one winner, and every loser is recorded', async () => {
    await cluster.query('tokyo', `insert into items values (5, 'start')`);
    await cluster.converged();
    for (let round = 0; round < 5; round++) await everyRegion(`update items set v = 'of region ' || $1 where id = 5`);
    await cluster.converged();
    expect(new Set(await counts('select v from items where id = 5')).size).toBe(1);
    const { out } = await cluster.cli('verify', '--json');
    expect(JSON.parse(out)).toMatchObject({ differing: 0 });
  });

  test('A9: a key that is deleted and inserted again is there, in one transaction or many', async () => {
    await everyRegion(`insert into items values ($1::int + 10, 'first')`);
    await cluster.converged();
    await cluster.query(
      'tokyo',
      `begin; delete from items where id in (11, 12); insert into items values (11, 'again'); commit; insert into items values (12, 'again')`,
    );
    await cluster.query('frankfurt', 'delete from items where id = 13');
    await cluster.converged();
    expect(await counts(`select count(*)::int from items where v = 'again'`)).toEqual([2, 2, 2]);
    expect(await counts('select count(*)::int from items where id = 13')).toEqual([0, 0, 0]);
  });

  test('A9: many keys are deleted at once, some of which were deleted before', async () => {
    const keys = 'id between 20001 and 20300';
    await cluster.query('tokyo', `insert into items select i, 'first' from generate_series(20001, 20300) i`);
    await cluster.query('tokyo', `delete from items where ${keys} and id <= 20100`);
    await cluster.query('tokyo', `insert into items select i, 'again' from generate_series(20001, 20100) i`);
    await cluster.converged();
    await cluster.query('frankfurt', `delete from items where ${keys}`);
    await cluster.converged();
    expect(await counts(`select count(*)::int from items where ${keys}`)).toEqual([0, 0, 0]);
    await cluster.query('virginia', `insert into items select i, 'new' from generate_series(20001, 20010) i`);
    await cluster.converged();
    expect(await counts(`select count(*)::int from items where ${keys}`)).toEqual([10, 10, 10]);
  });

  test('B9, B11: a change of key is a delete and an insert, and keys are equal as the database says', async () => {
    await cluster.query('tokyo', `insert into codes values ('a', 1.0, 'x'), ('b', 2, 'y'), ('c', 3, 'z')`);
    await cluster.converged();
    await cluster.query('frankfurt', `update codes set code = 'd' where code = 'a'`);
    await cluster.query('virginia', `update codes set part = 2.00, note = 'longer' where code = 'b'`);
    await cluster.query(
      'tokyo',
      `begin; update codes set code = 't' where code = 'c'; update codes set code = 'c' where code = 't'; commit`,
    );
    await cluster.converged();
    expect(await counts(`select string_agg(code || part || note, ' ' order by code) from codes`)).toEqual(
      Array(3).fill('b2.00longer c3z d1.0x'),
    );
  });

  test('B4: unique values change places within a transaction', async () => {
    await cluster.query('tokyo', `insert into people values (1, 'one'), (2, 'two'), (3, 'three')`);
    await cluster.converged();
    await cluster.query(
      'frankfurt',
      `begin; update people set email = 'x' where id = 1; update people set email = 'one' where id = 2; update people set email = 'two' where id = 1; commit`,
    );
    await cluster.query(
      'frankfurt',
      `begin; delete from people where id = 3; insert into people values (4, 'three'); commit`,
    );
    await cluster.converged();
    expect(await counts(`select string_agg(id || email, ' ' order by id) from people`)).toEqual(
      Array(3).fill('1two 2one 4three'),
    );
  });

  test('C1, C2: long values that an update did not touch stay as they are', async () => {
    await cluster.query(
      'tokyo',
      `insert into docs select md5(i::text)::uuid, 'title', (select string_agg(md5((i * 1000 + j)::text), '') from generate_series(1, 500) j) from generate_series(1, 20) i`,
    );
    await cluster.converged();
    await everyRegion(`update docs set title = 'title of ' || $1`);
    await cluster.converged();
    expect(await counts('select min(length(body)) = 16000 and count(distinct body) = 20 from docs')).toEqual(
      Array(3).fill(true),
    );
  });

  test('D9: TRUNCATE empties a table everywhere', async () => {
    await cluster.query('tokyo', `insert into notes select i, null, 'x' from generate_series(1, 50) i`);
    await cluster.converged();
    await cluster.query('virginia', 'truncate notes');
    await cluster.converged();
    expect(await counts('select count(*)::int from notes')).toEqual([0, 0, 0]);
  });

  test('D4: a transaction much larger than a batch comes whole, and what was rolled back does not', async () => {
    await cluster.query(
      'tokyo',
      `begin; insert into items select i, repeat('x', 100) from generate_series(100001, 103000) i; savepoint s; delete from items where id > 102000; rollback to s; commit`,
    );
    await cluster.query('tokyo', 'update items set n = 7 where id > 100000');
    await cluster.query('tokyo', 'delete from items where id > 101000');
    await cluster.converged();
    expect(await counts('select count(*)::int from items where id > 100000 and n = 7')).toEqual([1000, 1000, 1000]);
  });

  test('B13, B14: families of rows arrive whole, whichever way they refer to each other, and go together', async () => {
    await everyRegion(
      `with p as (insert into parents select $1::int * 100 + i from generate_series(1, 60) i returning id),
        c as (insert into children select id * 10 + i, id from p, generate_series(1, 2) i returning id)
        insert into notes select id, id from c`,
    );
    await cluster.query('tokyo', 'insert into tree values (1, 2), (2, 1)');
    await cluster.converged();
    expect(await counts('select count(*)::int from notes')).toEqual([360, 360, 360]);
    expect(await counts('select count(*)::int from tree')).toEqual([2, 2, 2]);
    await everyRegion(`delete from parents where id > $1::int * 100 + 30 and id < $1::int * 100 + 100`);
    await cluster.query('tokyo', 'delete from children where parent = 101');
    await cluster.converged();
    expect(await counts('select count(*)::int from children')).toEqual([178, 178, 178]);
    expect(await counts('select count(*)::int from notes where child is null')).toEqual([182, 182, 182]);
    expect(await counts('select count(*)::int from coregent.parked')).toEqual([0, 0, 0]);
    expect(
      await counts(
        `select count(*)::int from coregent.conflict_record where table_name <> 'public.items' and table_name <> 'public.docs'`,
      ),
    ).toEqual([0, 0, 0]);
  });

  test('G1: what was applied goes round no ring, and a quiet cluster applies nothing', async () => {
    await cluster.converged();
    const before = (await applied()) as number[];
    await everyRegion(`insert into items values ($1::int + 200, 'once')`);
    await cluster.converged();
    await cluster.converged();
    expect(await applied()).toEqual(before.map((count) => count + 2));
  });

  test('E12, E14: of two agents one works; it is relieved by the other, and one that comes back goes on where it was', async () => {
    const first = cluster.agent('virginia');
    const second = await cluster.startAgent('virginia');
    await until(() => second.status().state === 'standby', { what: 'the second agent to stand by' });
    await cluster.query('tokyo', `insert into items values (301, 'while two agents ran')`);
    await first.stop();
    await until(() => second.status().state === 'active', { what: 'the second agent to lead' });
    await cluster.stopAgent('frankfurt');
    await cluster.query('tokyo', `update items set n = n + 1 where id = 301`);
    await cluster.query('frankfurt', `insert into items values (300, 'while no agent ran')`);
    await cluster.startAgents('frankfurt');
    await cluster.converged();
    expect(await counts('select n from items where id = 301')).toEqual([1, 1, 1]);
  });

  test('verify finds the regions equal, and mends what is not; remove leaves nothing', async () => {
    await cluster.query('virginia', `alter table items disable trigger user`);
    await cluster.query('virginia', `delete from items where id = -1`);
    await cluster.query('virginia', `alter table items enable trigger user`);
    expect((await cluster.cli('verify')).code).toBe(3);
    expect((await cluster.cli('verify', '--repair')).code).toBe(0);
    await cluster.converged();
    expect((await cluster.cli('apply', '--dry-run')).code).toBe(0);
    for (const region of cluster.regions) await cluster.stopAgent(region);
    await until(() => cluster.cli('remove', '--yes').then(({ code }) => code === 0), { what: 'remove to succeed' });
    expect(await counts(`select count(*)::int from pg_namespace where nspname = 'coregent'`)).toEqual([0, 0, 0]);
    expect(await counts('select count(*)::int > 1000 from items')).toEqual([true, true, true]);
  });
});
