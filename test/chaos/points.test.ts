import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    regions: 2,
    servers: 'own',
    tables: 'create table items (id int primary key, v text not null)',
    config: { batch: { rows: 500 } },
  });
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** Rows of a transaction that is applied in several round trips, and of one that is applied in parts. */
const ROWS = 150;
const MANY = 2_000;
let used = 0;

interface Workload {
  /** Rows of both regions, before. */
  readonly rows: number;
  /** What frankfurt does first, unseen by tokyo; each conflicts with tokyo's once. */
  readonly there?: readonly string[];
  /** What tokyo does: each a transaction of its own. `$` is where its ids begin. */
  readonly here: readonly string[];
}

const INSERTS = {
  there: `insert into items values ($ + 1007, 'of frankfurt')`,
  here: `insert into items select $ + 1000 + n, 'new' from generate_series(1, ${ROWS}) n`,
};
const UPDATES = {
  there: `update items set v = 'of frankfurt' where id = $ + 7`,
  here: `update items set v = 'changed' where id > $ and id <= $ + ${ROWS}`,
};
const DELETES = {
  there: `update items set v = 'of frankfurt' where id = $ + ${ROWS + 7}`,
  here: `delete from items where id > $ + ${ROWS} and id <= $ + 1000`,
};

const WORKLOADS: Readonly<Record<string, Workload>> = {
  'a few rows': {
    rows: 2,
    here: [
      `insert into items values ($ + 10, 'new')`,
      `update items set v = 'changed' where id = $ + 1`,
      'delete from items where id = $ + 2',
    ],
  },
  inserts: { rows: 0, there: [INSERTS.there], here: [INSERTS.here] },
  updates: { rows: ROWS, there: [UPDATES.there], here: [UPDATES.here] },
  deletes: { rows: 2 * ROWS, there: [DELETES.there], here: [DELETES.here] },
  'all kinds': {
    rows: 2 * ROWS,
    there: [INSERTS, UPDATES, DELETES].map(({ there }) => there),
    here: [INSERTS, UPDATES, DELETES].map(({ here }) => here),
  },
  'a large transaction': {
    rows: 10,
    there: [UPDATES.there],
    here: [
      `insert into items select $ + n, 'large' from generate_series(1, ${MANY}) n on conflict (id) do update set v = excluded.v`,
    ],
  },
};

const ANYWHERE = ['decoded', 'sent', 'committed', 'acknowledging', 'acknowledged'] as const;
const CASES = [
  ...['a few rows', 'all kinds', 'a large transaction'].flatMap((name) =>
    ANYWHERE.map((point) => [point, name] as const),
  ),
  ...['inserts', 'updates', 'deletes', 'a large transaction'].map((name) => ['resolved', name] as const),
  ...(['part', 'part:3'] as const).map((point) => [point, 'a large transaction'] as const),
];

test.each(CASES)('E1: an agent killed when %s, with %s: the next one goes on, nothing twice', async (point, name) => {
  const { rows, there = [], here } = WORKLOADS[name]!;
  const base = ++used * 10_000;
  const sql = (text: string): string => text.replaceAll('$', String(base));
  if (rows > 0)
    await cluster.query('tokyo', sql(`insert into items select $ + n, 'old' from generate_series(1, ${rows}) n`));
  await cluster.converged();
  for (const region of cluster.regions) await cluster.stopAgent(region);
  const before = await transactions();
  for (const each of there) await cluster.query('frankfurt', sql(each));
  for (const each of here) await cluster.query('tokyo', sql(each));

  const killed = cluster.spawnAgent('frankfurt', point);
  expect(await killed.ended, killed.log.map((line) => JSON.stringify(line)).join('\n')).toBe('SIGKILL');
  await cluster.startAgents();
  await cluster.converged();

  expect(await transactions(), 'transactions counted').toBe(before + here.length);
  for (const region of cluster.regions) {
    const { rows: recorded } = await cluster.query(
      region,
      `select count(*)::int as records, count(distinct (local_version, incoming_version))::int as conflicts
        from coregent.conflict_record where (key ->> 'id')::int between $1 and $1 + 9999`,
      [base],
    );
    expect(recorded, region).toEqual([{ records: there.length, conflicts: there.length }]);
  }
});

/** Transactions of tokyo that frankfurt counted as applied. */
async function transactions(): Promise<number> {
  return Number(await cluster.value('frankfurt', 'select transactions from coregent.progress'));
}

test('E1: an agent killed while its peer streams a transaction that is still running: the next one applies it whole', async () => {
  await cluster.query(
    'tokyo',
    `do $$ begin execute format('alter database %I set logical_decoding_work_mem = 64', current_database()); end $$`,
  );
  await cluster.stopAgent('frankfurt');
  const agent = cluster.spawnAgent('frankfurt');
  await agent.streaming();
  const session = await cluster.session('tokyo');
  const fill = (first: number) =>
    session.query(`insert into items select $1::int + n, repeat('x', 100) from generate_series(1, ${MANY}) n`, [first]);
  await session.query('begin');
  await fill(1_000_000);
  await until(
    async () => Number(await cluster.value('tokyo', 'select stream_bytes from pg_stat_replication_slots')) > 0,
    {
      what: 'tokyo to stream the transaction while it runs',
    },
  );
  expect(await agent.end('SIGKILL')).toBe('SIGKILL');
  await fill(1_010_000);
  await session.query('commit');
  await cluster.startAgents('frankfurt');
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from items where id > 1000000')).toBe(2 * MANY);
});
