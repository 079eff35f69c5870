import { expect, test } from 'vitest';
import { dumpCatalog } from '../world/catalog.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';

const TABLES = `
  create table items (id int primary key, v text);
  create schema "Odd ""name""";
  create table "Odd ""name"""."Таблица; drop" ("Key" text, n numeric, v text default 'x', primary key ("Key", n));
  create function public.touched() returns trigger language plpgsql as 'begin return new; end';
  create trigger touched before update on items for each row execute function public.touched();
  create publication theirs for table items;`;

async function catalogs(cluster: Cluster): Promise<string[][]> {
  return await Promise.all(
    cluster.regions.map((region) => dumpCatalog(cluster.query.bind(cluster, region), cluster.name)),
  );
}

test('it takes everything of ours out of every region and nothing else; rows stay; apply may follow', async () => {
  await using cluster = await makeCluster({
    tables: TABLES,
    config: { tables: { 'public.*': {}, 'Odd "name".*': {} } },
  });
  const before = await catalogs(cluster);
  for (let round = 0; round < 2; round++) {
    await cluster.install();
    expect(await catalogs(cluster)).not.toEqual(before);
    await cluster.startAgents();
    await cluster.query('tokyo', `insert into items values ($1, 'x'), ($2, 'y')`, [round * 10, round * 10 + 1]);
    await cluster.query('frankfurt', `insert into "Odd ""name"""."Таблица; drop" values ($1, 1.50)`, [`k${round}`]);
    await cluster.converged();
    await cluster.query('virginia', 'delete from items where id = $1', [round * 10 + 1]);
    await cluster.converged();

    const installed = await catalogs(cluster);
    const refused = await cluster.cli('remove', '--yes');
    expect(refused).toMatchObject({ code: 5, err: expect.stringContaining('agents still read from it') });
    expect(await catalogs(cluster)).toEqual(installed);

    for (const region of cluster.regions) await cluster.stopAgent(region);
    const removed = await cluster.cli('remove', '--yes');
    expect(removed).toEqual({ code: 0, out: 'tokyo: removed\nfrankfurt: removed\nvirginia: removed\n', err: '' });
    expect(await catalogs(cluster)).toEqual(before);
  }
  for (const region of cluster.regions) {
    const { rows } = await cluster.query(region, 'select * from items order by id');
    expect(rows).toEqual([
      { id: 0, v: 'x' },
      { id: 10, v: 'x' },
    ]);
    const odd = await cluster.query(region, 'select * from "Odd ""name"""."Таблица; drop" order by 1');
    expect(odd.rows).toEqual([
      { Key: 'k0', n: '1.50', v: 'x' },
      { Key: 'k1', n: '1.50', v: 'x' },
    ]);
  }
  // What is not there is no failure.
  expect(await cluster.cli('remove', '--yes')).toMatchObject({ code: 0 });
});

test('it asks first, and goes on without a region only when told to', async () => {
  await using cluster = await makeCluster({ regions: 2, tables: 'create table items (id int primary key)' });
  const before = await catalogs(cluster);
  await cluster.install();
  const installed = await catalogs(cluster);
  expect(await cluster.cli('remove')).toMatchObject({ code: 5, err: expect.stringContaining('--yes') });
  expect(await catalogs(cluster)).toEqual(installed);

  const nowhere = Object.assign(new URL(cluster.url('frankfurt')), { port: '1' }).href;
  const change = {
    regions: { frankfurt: { id: 2, url: nowhere }, tokyo: { id: 1, url: cluster.url('tokyo') } },
  };
  expect(await cluster.cliWith(change, 'remove', '--yes')).toMatchObject({ code: 4 });
  expect(await catalogs(cluster)).toEqual(installed);
  const forced = await cluster.cliWith(change, 'remove', '--yes', '--force', '--json');
  expect(forced.code).toBe(4);
  expect(JSON.parse(forced.out)).toMatchObject({
    removed: ['tokyo'],
    unreachable: [{ code: 'peer_unreachable', where: 'frankfurt' }],
  });
  expect(await catalogs(cluster)).toEqual([before[0], installed[1]]);
  expect(await cluster.cli('remove', '--yes')).toMatchObject({ code: 0 });
  expect(await catalogs(cluster)).toEqual(before);
});
