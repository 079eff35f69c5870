import { expect, onTestFinished, test } from 'vitest';
import { SET_CLOCK, SETTABLE_CLOCK } from '../world/clock.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

/** Regions whose databases have clocks that can be set: everything that asks for the time there is told another one. */
async function clocked(regions: number): Promise<Cluster> {
  const cluster = await makeCluster({
    regions,
    servers: 'own',
    tables: 'create table items (id int primary key, v text not null)',
    config: { clock: { settle: '2s' } },
  });
  onTestFinished(() => cluster[Symbol.asyncDispose]());
  await cluster.everywhere(SETTABLE_CLOCK);
  await cluster.install();
  await cluster.startAgents();
  return cluster;
}

const set = (cluster: Cluster, region: string, ahead: string) => cluster.query(region, SET_CLOCK, [ahead]);
const read = (cluster: Cluster, region: string, id: number) =>
  cluster.value(region, 'select v from items where id = $1', [id]);
const arrives = (cluster: Cluster, region: string, id: number, v: string) =>
  until(async () => (await read(cluster, region, id)) === v, {
    what: `${v} in row ${id} of ${region}`,
  });

test('F3: rows of a clock that is 60 s ahead wait, said and measured, until clocks agree; nobody else’s do', async () => {
  const cluster = await clocked(3);
  await set(cluster, 'tokyo', '60 s');
  await cluster.query('tokyo', `insert into items values (1, 'of tokyo')`);
  await until(() => cluster.peer('frankfurt', 'tokyo').last_error?.code === 'clock_ahead', {
    what: 'the clock to be told',
  });
  await cluster.query('virginia', `insert into items values (2, 'of virginia')`);
  await arrives(cluster, 'frankfurt', 2, 'of virginia');
  await arrives(cluster, 'tokyo', 2, 'of virginia');
  await until(() => Math.abs(cluster.peer('frankfurt', 'tokyo').clock_offset_ms! - 60_000) < 2_000, {
    what: 'the offset to be measured',
  });
  expect(await read(cluster, 'frankfurt', 1)).toBeUndefined();
  for (const region of ['frankfurt', 'virginia']) await set(cluster, region, '61 s');
  await arrives(cluster, 'frankfurt', 1, 'of tokyo');
  await cluster.query('frankfurt', `update items set v = 'seen' where id = 1`);
  await cluster.converged();
  expect(await read(cluster, 'tokyo', 1)).toBe('seen');
});

test('F2: rows of a clock that was 80 years ahead are taken when it is right again, and can be replaced', async () => {
  const cluster = await clocked(2);
  await set(cluster, 'tokyo', '80 years');
  await cluster.query('tokyo', `insert into items values (1, 'of the future')`);
  await until(() => cluster.peer('frankfurt', 'tokyo').last_error?.code === 'clock_ahead', {
    what: 'the clock to be told',
  });
  // Measured again and again, it stays wrong, and they stay out.
  await until(() => cluster.peer('frankfurt', 'tokyo').clock_offset_ms! > 1e12, { what: 'the offset to be measured' });
  await cluster.query('frankfurt', `insert into items values (2, 'of now')`);
  await arrives(cluster, 'tokyo', 2, 'of now');
  expect(await read(cluster, 'frankfurt', 1)).toBeUndefined();

  await set(cluster, 'tokyo', '0 s');
  await arrives(cluster, 'frankfurt', 1, 'of the future');
  expect(cluster.log('frankfurt')).toContainEqual(expect.objectContaining({ event: 'clock.accepted', peer: 'tokyo' }));
  await cluster.query('frankfurt', `update items set v = 'replaced' where id = 1`);
  await arrives(cluster, 'tokyo', 1, 'replaced');
  await cluster.query('tokyo', `update items set v = 'again' where id = 1`);
  await cluster.query('tokyo', `insert into items values (3, 'of now')`);
  await cluster.converged();
  expect(await read(cluster, 'frankfurt', 1)).toBe('again');
  expect(cluster.peer('frankfurt', 'tokyo')).toMatchObject({ state: 'streaming', last_error: null });
});

test('F2: a region whose clock says the year 3111 or later is refused, and healed when it is right', async () => {
  const cluster = await clocked(2);
  await cluster.query('tokyo', `insert into items values (1, 'before'), (2, 'before')`);
  await cluster.converged();
  await set(cluster, 'tokyo', '1200 years');
  await cluster.query('tokyo', `update items set v = 'of the future' where id = 1; delete from items where id = 2`);
  await until(() => cluster.log('tokyo').some(({ event }) => event === 'clock.unusable'), {
    what: 'its agent to say so',
  });
  await until(() => cluster.peer('frankfurt', 'tokyo').last_error?.code === 'clock_unusable', {
    what: 'the peer to say so',
  });
  expect(cluster.agent('tokyo').status().state).not.toBe('active');
  const { code, out } = await cluster.cli('doctor', '--json');
  expect(code).toBe(3);
  expect(JSON.parse(out).findings).toContainEqual(
    expect.objectContaining({ code: 'clock_unusable', region: 'tokyo', severity: 'blocker' }),
  );

  await set(cluster, 'tokyo', '0 s');
  await cluster.query('frankfurt', `insert into items values (3, 'of now')`);
  await arrives(cluster, 'tokyo', 3, 'of now');
  await cluster.stopAgent('frankfurt');
  const deletes = await cluster.value('tokyo', `select 'coregent.tomb_' || table_id from coregent.tables`);
  for (const table of ['items', deletes]) {
    await cluster.query(
      'tokyo',
      `begin;
       set local session_replication_role = replica;
       update ${table} set _coregent_version = ((date_part('epoch', clock_timestamp()) * 1000000)::int8 << 7) | (select id from coregent.this_region),
         _coregent_parent = -1 where _coregent_version >= 1::int8 << 62;
       commit`,
    );
  }
  const drop = `select pg_drop_replication_slot(slot_name) from pg_replication_slots where starts_with(slot_name, 'coregent_')`;
  await until(() => cluster.query('tokyo', drop), { what: 'its slot to be free' });
  await cluster.startAgents('frankfurt');
  await cluster.converged();
  expect((await cluster.query('frankfurt', 'select id, v from items order by id')).rows).toEqual([
    { id: 1, v: 'of the future' },
    { id: 3, v: 'of now' },
  ]);
});

test('F1: a clock that steps back an hour loses no write of a row that is known', async () => {
  const cluster = await clocked(2);
  await cluster.query('tokyo', `insert into items select n, 'first' from generate_series(1, 4) n`);
  await cluster.converged();
  await cluster.query('frankfurt', `update items set v = 'second'; delete from items where id = 4`);
  await cluster.converged();
  await set(cluster, 'tokyo', '-1 hour');
  await cluster.query(
    'tokyo',
    `update items set v = 'third' where id = 1;
     delete from items where id = 2;
     begin; delete from items where id = 3; insert into items values (3, 'again'); commit;
     insert into items values (4, 'revived'), (5, 'new')`,
  );
  await cluster.converged();
  const rows = [
    { id: 1, v: 'third' },
    { id: 3, v: 'again' },
    { id: 4, v: 'revived' },
    { id: 5, v: 'new' },
  ];
  expect((await cluster.query('frankfurt', 'select id, v from items order by id')).rows).toEqual(rows);
  // As long as it is wrong, what others write meanwhile is ahead of it, and waits.
  await set(cluster, 'tokyo', '0 s');
  await cluster.query('frankfurt', `update items set v = 'last'`);
  await cluster.converged();
  expect(await cluster.value('tokyo', `select count(*)::int from items where v = 'last'`)).toBe(rows.length);
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.conflict_record')).toBe(0);
});
