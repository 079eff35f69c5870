import { afterAll, beforeAll, expect, test } from 'vitest';
import { tombstoneName } from '../../src/model/table.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

/** Rules that keep versions side by side, under agents. */

const MOST = `create or replace function most(versions stocks[]) returns stocks language sql immutable set search_path = public as
  'select versions[i] from generate_subscripts(versions, 1) i order by (versions[i]).n desc, i limit 1'`;
const TABLES = {
  'public.firsts': { conflict: 'fww' },
  'public.carts': { conflict: 'siblings' },
  'public.stocks': { custom: 'public.most' },
};

let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    viaProxy: true,
    tables: `create table firsts (id int primary key, n int, at text);
      create table carts (id int primary key, n int, at text);
      create table stocks (id int primary key, n int, at text)`,
    config: { tables: TABLES, tombstones: { interval: '1s' } },
  });
});
afterAll(() => cluster[Symbol.asyncDispose]());

test('apply refuses a rule that cannot be carried out, and says why and what to do', async () => {
  const refusal = async (tables: unknown): Promise<string> => {
    const { code, err } = await cluster.cliWith({ tables }, 'apply');
    expect(code).toBe(5);
    return err;
  };
  expect(await refusal({ 'public.stocks': { conflict: 'custom' } })).toContain('names no function');
  expect(await refusal(TABLES)).toContain(
    'there is no function public.most(public.stocks[]) that returns public.stocks',
  );
  await cluster.everywhere(MOST);
  await cluster.query('frankfurt', 'alter function most stable');
  expect(await refusal(TABLES)).toContain('alter function "public"."most" immutable');
  await cluster.query('frankfurt', MOST.replace('n desc', 'n'));
  expect(await refusal(TABLES)).toContain('is another one than in the first region');
  await cluster.query('frankfurt', MOST);
  await cluster.install();
  expect((await cluster.cli('apply', '--dry-run')).code).toBe(0);
});

test('INV-C: writers everywhere, links that are cut, deletes and new rows: all regions end alike, and keep what nobody replaced', async () => {
  await cluster.startAgents();
  const tables = ['firsts', 'carts', 'stocks'];
  const ids = Array.from({ length: 30 }, (_, index) => index + 1);
  const write = async (region: string, round: number): Promise<void> => {
    for (const table of tables) {
      await cluster.query(
        region,
        `insert into ${table} select id, ${round}, $1 from unnest($2::int[]) id on conflict (id) do update set n = ${table}.n + excluded.n, at = excluded.at`,
        [region, ids.filter((id) => (id + round) % 3 > 0)],
      );
      await cluster.query(region, `delete from ${table} where id % 7 = ${round % 7}`);
    }
  };
  for (let round = 1; round <= 3; round++) {
    if (round > 1) await cluster.cut('tokyo', 'frankfurt');
    if (round > 2) await cluster.cut('tokyo', 'virginia');
    await Promise.all(cluster.regions.map((region) => write(region, round)));
  }
  await cluster.heal();
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked'), region).toBe(0);
    expect(await cluster.value(region, 'select count(*)::int from coregent.conflicts'), region).toBeGreaterThan(0);
  }
  const several = (await cluster.query('tokyo', 'select count(*)::int as n from coregent.siblings')).rows[0].n;
  expect(several).toBeGreaterThan(3);
  expect(await cluster.cli('verify')).toMatchObject({ code: 0 });
  // The application settles by ordinary writes.
  for (const table of tables) await cluster.query('virginia', `update ${table} set at = 'settled'`);
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from coregent.siblings'), region).toBe(0);
  }
});

test('a region that was away joins what it missed, versions side by side included', async () => {
  await cluster.stopAgent('virginia');
  await cluster.cut('tokyo', 'frankfurt');
  await cluster.query('tokyo', `insert into carts values (101, 1, 'tokyo'), (102, 1, 'tokyo')`);
  await cluster.query('frankfurt', `insert into carts values (101, 2, 'frankfurt')`);
  await cluster.heal();
  await until(async () => (await cluster.value('tokyo', 'select count(*)::int from coregent.siblings')) === 2, {
    what: 'both versions to be in tokyo',
  });
  await cluster.query('virginia', `insert into carts values (101, 3, 'virginia')`);
  for (const peer of ['tokyo', 'frankfurt']) {
    await cluster.query(
      peer,
      `select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database() and not active and slot_name like '%\\_3'`,
    );
  }
  await cluster.startAgent('virginia');
  await cluster.streaming('virginia');
  await cluster.converged();
  expect(await cluster.value('virginia', `select count(*)::int from coregent.siblings`)).toBe(3);
  expect(await cluster.cli('verify')).toMatchObject({ code: 0 });
});

test('verify finds a version that one region lacks, and joins it', async () => {
  const session = await cluster.session('frankfurt');
  await session.query(`begin; set local session_replication_role = replica;
    update carts set _coregent_state = jsonb_set(_coregent_state, '{set}', (_coregent_state -> 'set') - 0) where id = 101; commit`);
  expect(await cluster.cli('verify')).toMatchObject({ code: 3 });
  expect((await cluster.cli('verify', '--repair')).out).toContain('Joined 1 rows');
  expect(await cluster.cli('verify')).toMatchObject({ code: 0 });
  expect(await cluster.value('frankfurt', `select count(*)::int from coregent.siblings`)).toBe(3);
});

test('tombstones go once all have confirmed them, and take nothing with them that they had not seen', async () => {
  const tombs = `coregent.${tombstoneName({ schema: 'public', name: 'carts' })}`;
  await cluster.query('tokyo', `insert into carts values (201, 1, 'seen')`);
  await cluster.converged();
  await cluster.cut('tokyo', 'frankfurt');
  await cluster.query('tokyo', 'delete from carts where id = 201');
  await cluster.query('frankfurt', `update carts set at = 'unseen' where id = 201`);
  await cluster.heal();
  await cluster.converged();
  for (const region of cluster.regions) {
    await until(async () => (await cluster.value(region, `select count(*)::int from ${tombs}`)) === 0, {
      what: `the tombstones of ${region} to go`,
    });
    expect(await cluster.value(region, 'select at from carts where id = 201')).toBe('unseen');
  }
  expect(await cluster.cli('verify')).toMatchObject({ code: 0 });
});
