import { expect, test } from 'vitest';
import { dumpCatalog } from '../world/catalog.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const ITEMS = 'create table items (id int primary key, v text not null)';

async function catalogs(cluster: Cluster): Promise<string[][]> {
  return await Promise.all(
    cluster.regions.map((region) => dumpCatalog(cluster.query.bind(cluster, region), cluster.name)),
  );
}

test('a dry run says what would change and changes nothing; applied again nothing is left to change', async () => {
  await using cluster = await makeCluster({ tables: `${ITEMS}; insert into items values (1, 'x')` });
  const before = await catalogs(cluster);
  const dry = await cluster.cli('apply', '--dry-run');
  expect(dry).toMatchObject({ code: 3, err: '' });
  for (const region of cluster.regions) expect(dry.out).toContain(`${region}: stamp public.items`);
  expect(await catalogs(cluster)).toEqual(before);

  expect((await cluster.cli('apply')).code).toBe(0);
  const after = await catalogs(cluster);
  expect(after).not.toEqual(before);
  for (const args of [['apply', '--dry-run'], ['apply'], ['apply', '--dry-run']]) {
    expect(await cluster.cli(...args)).toEqual({ code: 0, out: 'Every region is as the file says.\n', err: '' });
  }
  expect(await catalogs(cluster)).toEqual(after);
});

test('rows that regions had before are joined: all rows everywhere, one winner for each key, losers recorded', async () => {
  await using cluster = await makeCluster({
    tables: `create table nobody (id int primary key, v text);
      create table one (id int primary key, v text);
      create table every (id int primary key, v text, n numeric)`,
  });
  await cluster.query('frankfurt', `insert into one select n, repeat('x', n) from generate_series(1, 300) n`);
  for (const [index, region] of cluster.regions.entries()) {
    // Ids 1 to 100 with other bytes in each region, 101 to 200 with the same, 301 and more only here.
    await cluster.query(region, `insert into every select n, $1 || n, 1.0 from generate_series(1, 100) n`, [region]);
    await cluster.query(region, `insert into every select n, 'same', 2.50 from generate_series(101, 200) n`);
    await cluster.query(region, `insert into every values ($1, 'alone', null)`, [301 + index]);
  }
  await cluster.install();
  await cluster.startAgents();
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from one')).toBe(300);
    expect(await cluster.value(region, 'select count(*)::int from every')).toBe(203);
    // A key whose row lost here, or whose other regions' rows lost against it, is in the record: once for each that came.
    const { rows } = await cluster.query(
      region,
      `select key ->> 'id' as id, count(*)::int as times, count(distinct outcome) as outcomes
        from coregent.conflicts where table_name = 'public.every' group by 1`,
    );
    expect(rows.length, region).toBe(100);
    expect(rows.every(({ id, times }) => Number(id) <= 100 && times <= 2)).toBe(true);
  }
  // No region's bytes are forgotten: what no row shows is in some record.
  const lost = new Set<string>();
  for (const region of cluster.regions) {
    const { rows } = await cluster.query(
      region,
      `select v from coregent.conflicts, lateral (values (local_row ->> 'v'), (incoming_row ->> 'v')) as each (v)`,
    );
    for (const { v } of rows) lost.add(v);
  }
  expect(lost.size).toBe(300);
});

test('it is safe while the application writes: nothing written in the meantime is missing anywhere', async () => {
  await using cluster = await makeCluster({ tables: ITEMS });
  for (const [index, region] of cluster.regions.entries()) {
    await cluster.query(region, `insert into items select $1 + n, 'before' from generate_series(1, 2000) n`, [
      index * 1_000_000,
    ]);
  }
  const written = cluster.regions.map(() => 0);
  const stopping = new AbortController();
  const writing = cluster.regions.map(async (region, index) => {
    while (!stopping.signal.aborted) {
      const id = index * 1_000_000 + 500_000 + written[index]!;
      await cluster.query(region, `insert into items values ($1, 'during')`, [id]);
      await cluster.query(region, `update items set v = v || '+' where id = $1`, [index * 1_000_000 + 1]);
      written[index]!++;
    }
  });
  await until(() => written.every((count) => count > 5), { what: 'every region to write' });
  await cluster.install();
  await cluster.startAgents();
  const sofar = Math.max(...written);
  await until(() => written.every((count) => count > sofar), { what: 'every region to write on' });
  stopping.abort();
  await Promise.all(writing);
  await cluster.converged();
  for (const [index, region] of cluster.regions.entries()) {
    const value = (text: string) => cluster.value('tokyo', text, [index * 1_000_000]);
    expect(await value(`select count(*)::int from items where id between $1 + 500000 and $1 + 999999`)).toBe(
      written[index],
    );
    expect(await value('select length(v) from items where id = $1 + 1'), region).toBe(6 + written[index]!);
  }
  expect(await cluster.value('tokyo', 'select count(*)::int from items')).toBe(
    6000 + written.reduce((sum, count) => sum + count, 0),
  );
});

test('a table that is named later is joined while agents run and the application writes to it', async () => {
  await using cluster = await makeCluster({ tables: ITEMS });
  await cluster.install();
  await cluster.startAgents();
  await cluster.everywhere('create table later (id int primary key, v text)');
  for (const [index, region] of cluster.regions.entries()) {
    await cluster.query(region, `insert into later select $1 + n, 'before' from generate_series(1, 500) n`, [
      index * 10_000,
    ]);
  }
  let written = 0;
  const stopping = new AbortController();
  const writing = (async () => {
    while (!stopping.signal.aborted) {
      await cluster.query('tokyo', `insert into later values ($1, 'during')`, [5_000 + written++]);
      await cluster.query('tokyo', `insert into items values ($1, 'during')`, [written]);
    }
  })();
  await cluster.install();
  const sofar = written;
  await until(() => written > sofar + 10, { what: 'the writer to go on' });
  stopping.abort();
  await writing;
  await cluster.converged();
  expect(await cluster.value('virginia', 'select count(*)::int from later')).toBe(1500 + written);
  expect(await cluster.value('virginia', 'select count(*)::int from items')).toBe(written);
});

test('tables that cannot be replicated are refused, each named with its fault, and nothing changes', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: `${ITEMS};
      create table keyless (a int);
      create unlogged table fleeting (a int primary key);
      create table lazy (a int, primary key (a) deferrable);`,
  });
  await cluster.query('tokyo', 'create table lonely (a int primary key)');
  for (const [region, type, key] of [
    ['tokyo', 'int', '(a, b)'],
    ['frankfurt', 'bigint', '(b, a)'],
  ] as const) {
    await cluster.query(region, `create table typed (a int primary key, v ${type})`);
    await cluster.query(region, `create table keyed (a int, b int, primary key ${key})`);
  }
  await cluster.query('frankfurt', 'create table wide (a int primary key, more int)');
  await cluster.query('tokyo', 'create table wide (a int primary key)');
  const before = await catalogs(cluster);
  for (const args of [['apply'], ['apply', '--dry-run']]) {
    const { code, out, err } = await cluster.cli(...args);
    expect({ code, out }).toEqual({ code: 5, out: '' });
    for (const fault of [
      /public\.keyless in tokyo: has no usable primary key/,
      /public\.keyless in frankfurt: has no usable primary key/,
      /public\.fleeting in tokyo: is unlogged/,
      /public\.lazy in tokyo: has a DEFERRABLE primary key/,
      /public\.lonely in frankfurt: is missing/,
      /public\.typed in frankfurt: has the column v as bigint, not integer/,
      /public\.keyed in frankfurt: has the primary key \(b, a\), not \(a, b\)/,
      /public\.wide in frankfurt: has a further column more/,
      /^Cure: /m,
    ]) {
      expect(err).toMatch(fault);
    }
    expect(err).not.toMatch(/public\.items/);
  }
  const { err } = await cluster.cli('apply', '--json');
  expect(JSON.parse(err).error).toMatchObject({ code: 'refused', exit: 5 });
  expect(await catalogs(cluster)).toEqual(before);
});

test('a table that the application holds is waited for, and readers of it wait no longer than a moment', async () => {
  await using cluster = await makeCluster({ regions: 2, tables: ITEMS });
  const holder = await cluster.session('frankfurt');
  await holder.query('begin; lock table items in access share mode');
  let done = false;
  const applying = cluster.cli('apply').finally(() => {
    done = true;
  });
  await until(
    () =>
      cluster.value(
        'frankfurt',
        `select count(*)::int from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and application_name = 'coregent apply'`,
      ),
    { what: 'apply to wait for the table' },
  );
  // Queued behind apply's request, which gives up now and then for others' sake.
  expect(await cluster.value('frankfurt', 'select count(*)::int from items')).toBe(0);
  expect(done).toBe(false);
  await holder.query('commit');
  expect((await applying).code).toBe(0);
});

test('INV-C: a join ends with an error while a row that crossed a delete cannot be removed, and is complete once it can', async () => {
  await using cluster = await makeCluster({ regions: 2, tables: `${ITEMS}; create table others (id int primary key)` });
  await cluster.install();
  await cluster.query('tokyo', `insert into items values (2, 'to be joined')`);
  await cluster.query('tokyo', 'insert into others values (3)');
  const frankfurt = await cluster.session('frankfurt');
  const tombs = await cluster.value(
    'frankfurt',
    `select 'tomb_' || table_id from coregent.tables where table_name = 'items'`,
  );
  await frankfurt.query('set session_replication_role = replica');
  await frankfurt.query(`insert into items values (1, 'crossed', 257, -1)`);
  await frankfurt.query(`insert into coregent.${tombs} values (1, 513, 257)`);
  await cluster.query(
    'frankfurt',
    `create function keep() returns trigger language plpgsql as $$ begin raise exception 'kept'; end $$;
     create trigger keep before delete on items for each row execute function keep();
     alter table items enable always trigger keep;
     delete from coregent.joined`,
  );
  const refused = await cluster.cli('apply');
  expect(refused.code).toBe(1);
  expect(refused.err).toContain('rows that crossed a delete cannot be removed: kept');
  await cluster.query(
    'frankfurt',
    `insert into coregent.joined select slot, t.table_id from coregent.progress, coregent.tables t where table_name = 'items'`,
  );
  expect((await cluster.cli('apply')).code, 'another table').toBe(0);
  expect(await cluster.value('frankfurt', 'select id from others')).toBe(3);
  await cluster.query('frankfurt', `drop trigger keep on items; delete from coregent.joined`);
  await cluster.install();
  for (const region of cluster.regions) {
    expect((await cluster.query(region, 'select id, v from items')).rows).toEqual([{ id: 2, v: 'to be joined' }]);
  }
});

test('a database that is another region, or of another cluster, is refused and left alone', async () => {
  await using cluster = await makeCluster({ regions: 2, tables: ITEMS });
  await cluster.install();
  const before = await catalogs(cluster);
  const [tokyo, frankfurt] = cluster.regions.map((region) => cluster.url(region));
  for (const [change, message] of [
    [{ regions: { tokyo: { id: 1, url: frankfurt }, frankfurt: { id: 2, url: tokyo } } }, /is region frankfurt \(2\)/],
    [{ regions: { tokyo: { id: 3, url: tokyo }, frankfurt: { id: 2, url: frankfurt } } }, /is region tokyo \(1\)/],
    [{ regions: { osaka: { id: 1, url: tokyo }, frankfurt: { id: 2, url: frankfurt } } }, /is region tokyo \(1\)/],
    [{ cluster: 'other' }, new RegExp(`of cluster ${cluster.name}`)],
  ] as const) {
    const { code, err } = await cluster.cliWith(change, 'apply');
    expect({ code, err }).toEqual({ code: 5, err: expect.stringMatching(message) });
  }
  expect(await catalogs(cluster)).toEqual(before);
});
