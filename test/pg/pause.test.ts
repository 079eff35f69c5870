import { expect, test } from 'vitest';
import type { PeerStatus } from '../../src/model/api.ts';
import type { LogLine } from '../world/agent.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const TABLES = `
  create type mood as enum ('calm', 'busy');
  create table items (id int primary key, v text);
  create table priced (id int primary key, price numeric(10,2), kind mood);
  create table others (id int primary key, v text);`;

const HEAL_MS = 30_000;

const make = async (): Promise<Cluster> => {
  const cluster = await makeCluster({ tables: TABLES, config: { tombstones: { interval: '1s' } } });
  await cluster.install();
  await cluster.startAgents();
  return cluster;
};

/** Waits until a region says that a table of the peer pauses, and why. */
async function paused(cluster: Cluster, region: string, peer: string, table: string, reason: string): Promise<void> {
  const found = (): string | undefined =>
    cluster.peer(region, peer).paused.find((each) => each.table === `public.${table}`)?.reason;
  await until(() => found() === reason, {
    what: `${region} to pause ${table} of ${peer}: ${reason}`,
    deadlineMs: HEAL_MS,
  }).catch((cause) => {
    throw new Error(`${region} says of ${table}: ${found()}`, { cause });
  });
}

/** Waits until no region owes anything, and demands equal rows, and that no agent logged a pause twice. */
async function healed(cluster: Cluster): Promise<void> {
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked'), region).toBe(0);
    const reasons = new Map<string, unknown>();
    for (const { event, peer, table, reason } of cluster.log(region)) {
      const link = `${peer} ${table}`;
      if (event === 'agent.started') reasons.clear();
      if (event === 'table.resumed') reasons.delete(link);
      if (event !== 'table.paused') continue;
      expect(reason, `${region} says it of ${link} again`).not.toBe(reasons.get(link));
      reasons.set(link, reason);
    }
  }
}

for (const [first, order] of [
  ['tokyo', ['tokyo', 'frankfurt', 'virginia']],
  ['virginia', ['virginia', 'frankfurt', 'tokyo']],
] as const) {
  test(`H1: a column that is added in ${first} first pauses that table, the others go on, and it heals by itself`, async () => {
    await using cluster = await make();
    await cluster.query('tokyo', `insert into items select n, 'before' from generate_series(1, 100) n`);
    await cluster.converged();
    let written = 0;
    const write = async (): Promise<void> => {
      for (const region of cluster.regions) {
        const index = cluster.regions.indexOf(region);
        await cluster.query(region, `insert into items values ($1, 'meanwhile')`, [1000 + 100 * written + index]);
        await cluster.query(region, `update items set v = v || $1 where id = $2`, [region, 1 + index * 10 + written]);
        await cluster.query(region, 'delete from items where id = $1', [50 + index * 10 + written]);
        await cluster.query(region, 'insert into others values ($1)', [100 * written + index]);
      }
      written++;
    };
    await write();
    for (const region of order.slice(0, 2)) {
      await cluster.query(region, 'alter table items add column more int');
      await write();
    }
    await paused(cluster, order[2], order[0], 'items', 'this region lacks more');
    await paused(cluster, order[0], order[2], 'items', 'the peer lacks more');
    await cluster.query(order[0], 'update items set more = id where id between 91 and 100');
    for (const region of cluster.regions) {
      await until(async () => Number(await cluster.value(region, 'select count(*) from others')) === 3 * written, {
        what: `the other table to go on in ${region}`,
        deadlineMs: HEAL_MS,
      });
      await cluster.streaming(region);
    }
    // Rows on their way are of the table as it was, and it is described anew between them.
    await cluster.stopAgent(order[0]);
    for (const fillfactor of [90, 80, 70]) {
      await write();
      await cluster.query(order[2], `alter table items set (fillfactor = ${fillfactor})`);
    }
    await cluster.query(order[2], 'alter table items add column more int');
    await cluster.startAgents(order[0]);
    await write();
    await healed(cluster);
    expect(await cluster.value(order[2], 'select sum(more)::int from items')).toBe(955);
    expect(cluster.log(order[2])).toContainEqual(
      expect.objectContaining({ event: 'table.resumed', table: 'public.items', peer: order[0] }),
    );
  });
}

test('H2: a type that differs pauses, modifiers count, and so does a column renamed in one region', async () => {
  await using cluster = await make();
  await cluster.query('tokyo', `insert into priced values (1, 1.25, 'calm'), (2, 2.50, 'busy')`);
  await cluster.converged();
  await cluster.query('tokyo', 'alter table priced alter column price type numeric(10,4)');
  await cluster.query('tokyo', 'update priced set price = 1.2345 where id = 1');
  const types = 'price is numeric(10,2) here and numeric(10,4) at the peer';
  await paused(cluster, 'frankfurt', 'tokyo', 'priced', types);
  await cluster.query('frankfurt', 'update priced set price = 7.77 where id = 2');
  await cluster.confirmed();
  expect(await cluster.value('frankfurt', 'select price::text from priced where id = 1')).toBe('1.25');
  expect((await cluster.cli('status')).out).toContain(types);
  const verdict = await cluster.cli('verify', '--table', 'public.priced');
  expect(verdict.code).toBe(3);
  expect(verdict.out).toMatch(/paused/);
  for (const region of ['frankfurt', 'virginia']) {
    await cluster.query(region, 'alter table priced alter column price type numeric(10,4)');
  }
  await healed(cluster);
  for (const region of cluster.regions) {
    expect(
      await cluster.value(region, 'select string_agg(price::text, $1 order by id) from priced', [' ']),
      region,
    ).toBe('1.2345 7.7700');
  }

  await cluster.query('virginia', 'alter table priced rename column price to amount');
  await cluster.query('virginia', 'update priced set amount = 3 where id = 1');
  await paused(cluster, 'tokyo', 'virginia', 'priced', 'the peer lacks price; this region lacks amount');
  await cluster.query('tokyo', 'alter table priced rename column price to amount');
  await cluster.query('frankfurt', 'alter table priced rename column price to amount');
  await healed(cluster);
  expect(await cluster.value('tokyo', 'select amount::text from priced where id = 1')).toBe('3.0000');
  expect((await cluster.cli('verify')).code).toBe(0);
});

test('H6: a label of an enum that this region lacks pauses its table, and no row is parked', async () => {
  await using cluster = await make();
  await cluster.query('tokyo', `alter type mood add value 'angry'`);
  await cluster.query('tokyo', `insert into priced values (1, 1, 'angry'), (2, 2, 'calm')`);
  await paused(cluster, 'virginia', 'tokyo', 'priced', 'the type of kind lacks here: angry');
  // A stream says what it owes from its first moment on.
  await cluster.stopAgent('virginia');
  const begins = new Promise<PeerStatus>((resolve, reject) => {
    const said = ({ event, peer }: LogLine): void => {
      if (event === 'peer.streaming' && peer === 'tokyo') resolve(cluster.peer('virginia', 'tokyo'));
    };
    cluster.startAgent('virginia', { said }).catch(reject);
  });
  expect(await begins).toMatchObject({
    state: 'streaming',
    paused: [{ table: 'public.priced', state: 'paused', reason: 'the type of kind lacks here: angry' }],
  });
  await cluster.query('virginia', `insert into priced values (3, 3, 'busy')`);
  await cluster.query('virginia', `alter type mood add value 'angry'`);
  await cluster.query('frankfurt', `alter type mood add value 'angry' before 'calm'`);
  await healed(cluster);
  expect(await cluster.value('frankfurt', 'select count(*)::int from priced')).toBe(3);
});

test('A6: no delete is forgotten anywhere while a table pauses somewhere, and what was deleted meanwhile stays so', async () => {
  await using cluster = await make();
  await cluster.query('tokyo', `insert into items select n, 'x' from generate_series(1, 20) n`);
  await cluster.converged();
  await cluster.query('frankfurt', 'alter table items add column more int');
  await paused(cluster, 'frankfurt', 'tokyo', 'items', 'the peer lacks more');
  await cluster.query('tokyo', 'delete from items where id <= 10');
  await cluster.confirmed();
  const name = await cluster.value(
    'tokyo',
    `select 'coregent.tomb_' || table_id from coregent.tables where table_name = 'items'`,
  );
  const before = cluster.log('tokyo').length;
  // Rounds of reaping go by, in which every region has confirmed the deletes.
  await until(
    () =>
      cluster
        .log('tokyo')
        .slice(before)
        .filter(({ event }) => event === 'tombstones.kept').length >= 2,
    {
      what: 'two rounds that keep what they find',
      deadlineMs: HEAL_MS,
    },
  );
  for (const region of ['tokyo', 'virginia']) {
    expect(await cluster.value(region, `select count(*)::int from ${name}`), region).toBe(10);
  }
  for (const region of ['tokyo', 'virginia']) await cluster.query(region, 'alter table items add column more int');
  await healed(cluster);
  expect(await cluster.value('frankfurt', 'select count(*)::int from items')).toBe(10);
  for (const region of cluster.regions) {
    await until(async () => (await cluster.value(region, `select count(*)::int from ${name}`)) === 0, {
      what: `the tombstones of ${region} to go`,
    });
  }
});
