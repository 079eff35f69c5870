import { expect, test } from 'vitest';
import type { Tier } from '../../src/model/api.ts';
import { makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const FAMILY = `
  create table parents (id int primary key, email text unique, name text);
  create table children (id int primary key, parent int not null references parents on delete cascade, name text);
  create table strict (id int primary key, parent int not null references parents, name text);`;

test('tier C: a child that overtakes its parent waits, and finds its place when the parent comes', async () => {
  await using cluster = await makeCluster({ tables: FAMILY, tier: 'C', viaProxy: true });
  await cluster.install();
  await cluster.startAgents();
  await cluster.cut('tokyo', 'virginia');
  await cluster.query('tokyo', `insert into parents values (1, 'one', 'one')`);
  await until(() => cluster.value('frankfurt', 'select count(*)::int from parents'), {
    what: 'the parent in frankfurt',
  });
  await cluster.query(
    'frankfurt',
    `insert into children values (1, 1, repeat('x', 10000)); insert into strict values (1, 1, 'x')`,
  );
  await cluster.query('frankfurt', `update children set name = name || 'y' where id = 1`);
  await until(() => cluster.agent('virginia').status().parked >= 2, { what: 'children to wait in virginia' });
  expect(await cluster.value('virginia', 'select count(*)::int from children')).toBe(0);
  await cluster.heal();
  await cluster.converged();
  await until(async () => (await cluster.value('virginia', 'select count(*)::int from coregent.parked')) === 0, {
    what: 'nobody to wait any more',
  });
  await cluster.converged();
  expect(await cluster.value('virginia', 'select count(*)::int from children join strict using (id)')).toBe(1);
  expect(cluster.agent('virginia').status().parked).toBe(0);
});

test('tier C: a parent’s delete takes another region’s new child along, everywhere; its own deletes are not doubled', async () => {
  await using cluster = await makeCluster({ tables: FAMILY, tier: 'C', viaProxy: true, regions: 2 });
  await cluster.install();
  await cluster.query('tokyo', `insert into parents select i, i, 'x' from generate_series(1, 5) i`);
  await cluster.query('tokyo', `insert into children select i, i, 'x' from generate_series(1, 5) i`);
  await cluster.startAgents();
  await cluster.converged();
  await cluster.query('tokyo', 'delete from parents where id = 1');
  await cluster.converged();
  const tombstones = `select string_agg(relname, ',') from pg_class where relname like 'tomb_%' and relkind = 'r'`;
  for (const name of String(await cluster.value('tokyo', tombstones)).split(',')) {
    const all = `select json_agg(t order by t) from coregent.${name} t`;
    expect(await cluster.value('frankfurt', all)).toEqual(await cluster.value('tokyo', all));
  }
  await cluster.cut('tokyo', 'frankfurt');
  await cluster.query('tokyo', 'delete from parents where id = 2');
  await cluster.query('frankfurt', `insert into children values (20, 2, 'new')`);
  await cluster.heal();
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select array_agg(id order by id) from children')).toEqual([3, 4, 5]);
    await until(async () => (await cluster.value(region, 'select count(*)::int from coregent.parked')) === 0, {
      what: 'the child that nobody has to be forgotten',
    });
  }
  // The key is free again, everywhere.
  await cluster.query(
    'tokyo',
    `insert into parents values (2, '2', 'again'); insert into children values (20, 2, 'again')`,
  );
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select name from children where id = 20')).toBe('again');
});

test.each<Tier>(['A', 'C'])(
  'tier %s: a parent that another region’s new child holds is written again, and its unique value is settled like any',
  async (tier) => {
    await using cluster = await makeCluster({ tables: FAMILY, tier, viaProxy: true, regions: 2 });
    await cluster.install();
    await cluster.query('tokyo', `insert into parents select i, i, 'x' from generate_series(1, 3) i`);
    await cluster.startAgents();
    await cluster.converged();
    await cluster.cut('tokyo', 'frankfurt');
    await cluster.query('tokyo', `delete from parents where id = 2; insert into parents values (10, 'same', 'y')`);
    await cluster.query(
      'frankfurt',
      `insert into strict values (1, 2, 'z'); insert into parents values (9, 'same', 'z')`,
    );
    await cluster.heal();
    for (const region of cluster.regions) {
      await until(
        async () =>
          (await cluster.value(region, `select string_agg(id || email, ' ' order by id) from parents`)) ===
            '11 22 33 9same' &&
          (await cluster.value(region, "select string_agg(concat(id, parent), ' ') from strict")) === '12' &&
          (await cluster.value(region, 'select count(*)::int from coregent.parked')) === 0,
        { what: `the parent to be back in ${region}, and one row to have the value` },
      );
    }
    await cluster.converged();
    // Whoever hears of the row that gave way and of its delete at once has met neither.
    const recorded = await Promise.all(
      cluster.regions.map((region) =>
        cluster.value(region, `select array_agg(concat_ws(' ', kind, rule, key ->> 'id')) from coregent.conflicts`),
      ),
    );
    expect([...new Set(recorded.flat())].sort()).toEqual([
      'delete_referenced no action 2',
      'insert_exists unique 10',
      // Where foreign keys fire, the parent is written over a delete that could not be carried out.
      ...(tier === 'C' ? ['update_missing lww 2'] : []),
    ]);
  },
);

test('tier C: in one transaction children change parents, parents go, and unique values change hands', async () => {
  await using cluster = await makeCluster({ tables: FAMILY, tier: 'C', regions: 2 });
  await cluster.install();
  await cluster.startAgents();
  await cluster.query('tokyo', `insert into parents select i, i, 'x' from generate_series(1, 5) i`);
  await cluster.query('tokyo', `insert into strict values (1, 1, 'x')`);
  await cluster.converged();
  await cluster.query('tokyo', `begin; update strict set parent = 2; delete from parents where id = 1; commit`);
  await cluster.query(
    'tokyo',
    `begin; delete from parents where id = 3; insert into parents values (30, '3', 'y'); insert into strict values (3, 30, 'y'); commit`,
  );
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBe(0);
  expect(await cluster.value('frankfurt', 'select array_agg(parent order by id) from strict')).toEqual([2, 30]);
});

test('tier C: an application can not forge a version; triggers that do not know the role stop its agent', async () => {
  await using cluster = await makeCluster({ tables: FAMILY, tier: 'C', regions: 2 });
  await cluster.install();
  const session = await cluster.session('tokyo');
  await session.query(`set coregent.apply = 'on'`);
  await session.query(`insert into parents (id, _coregent_version, _coregent_parent) values (1, 12800001, 7)`);
  await session.query(`update parents set _coregent_version = 12800001, name = 'x'`);
  const { rows } = await session.query(
    `select _coregent_version & 127 as region, _coregent_version > 12800001 as now from parents`,
  );
  expect(rows).toEqual([{ region: '1', now: true }]);
  await session.query('delete from parents');
  expect(
    await cluster.value('tokyo', `select count(*)::int from pg_class where relname like 'tomb_%' and relkind = 'r'`),
  ).toBe(3);

  // As another role, which needs no guard, would have installed it: rows would be stamped as this region's own.
  const unguarded = `select replace(pg_get_triggerdef(oid), 'CREATE TRIGGER', 'create or replace trigger') as sql from pg_trigger
    where tgrelid = 'parents'::regclass and tgname = '~coregent_insert'`;
  await cluster.query('tokyo', String(await cluster.value('tokyo', unguarded)).replace(/WHEN .* EXECUTE/, 'EXECUTE'));
  await cluster.query('tokyo', `update coregent.tables set stamp = 'another'`);
  await cluster.startAgent('tokyo');
  await until(
    () =>
      cluster
        .agent('tokyo')
        .status()
        .peers.some(({ last_error }) => last_error?.code === 'privilege_missing'),
    {
      what: 'the agent to refuse',
    },
  );
  expect((await cluster.cli('apply')).code).toBe(0);
  await until(
    () =>
      cluster
        .agent('tokyo')
        .status()
        .peers.every(({ state }) => state === 'streaming'),
    { what: 'the agent to go on' },
  );
});

test('a role that an administrator set to the replica role works as well, and its other sessions with it', async () => {
  await using cluster = await makeCluster({ tables: FAMILY, tier: 'C', regions: 2 });
  for (const region of cluster.regions) {
    await cluster.query(
      region,
      `do $$ begin execute format('alter role ${cluster.role} in database %I set session_replication_role = replica', current_database()); end $$`,
    );
  }
  await cluster.query('tokyo', `insert into parents values (1, 'one', 'one')`);
  await cluster.install();
  await cluster.startAgents();
  await cluster.query('frankfurt', `update parents set name = 'two'`);
  await cluster.converged();
  expect(cluster.agent('tokyo').status().tier).toBe('B');
  expect(await cluster.value('tokyo', 'select name from parents')).toBe('two');
  expect((await cluster.cli('verify')).code).toBe(0);
});
