import { expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

interface Report {
  readonly code: number;
  readonly regions: readonly Record<string, unknown>[];
  readonly links: readonly (Record<string, unknown> & { from: string; to: string; state: string })[];
}

async function status(cluster: Cluster, change?: Record<string, unknown>): Promise<Report> {
  const { code, out } = await (change ? cluster.cliWith(change, 'status', '--json') : cluster.cli('status', '--json'));
  return { code, ...JSON.parse(out) };
}

test('status tells regions and links apart by what they are: not installed, running, stopped, missing, unreachable', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: 'create table items (id int primary key, v text); create table others (id int primary key)',
  });
  expect(await status(cluster)).toMatchObject({
    code: 0,
    cluster: cluster.name,
    regions: [
      { region: 'tokyo', id: 1, state: 'not installed', agent: null, error: { code: 'schema_missing' } },
      { region: 'frankfurt', id: 2, state: 'not installed' },
    ],
    links: [
      { from: 'tokyo', to: 'frankfurt', state: 'missing', lag_bytes: null },
      { from: 'frankfurt', to: 'tokyo', state: 'missing' },
    ],
  });

  await cluster.install();
  const stopped = await status(cluster);
  const version = expect.stringMatching(/^\d\d/);
  const calm = { state: 'ok', version, agent: false, tables: 2, conflicts: 0, parked: 0, error: null };
  expect(stopped).toMatchObject({ code: 0, regions: [calm, calm] });
  for (const { state, lag_bytes, retained_bytes } of stopped.links) {
    expect({ state, lag_bytes, retained_bytes }).toEqual({
      state: 'stopped',
      lag_bytes: expect.any(Number),
      retained_bytes: expect.any(Number),
    });
  }

  await cluster.query('tokyo', `insert into items values (1, 'x')`);
  await cluster.query('frankfurt', `insert into items values (1, 'y')`);
  await cluster.startAgents();
  await cluster.cli('status'); // While rows are under way it must not fail.
  await cluster.converged();
  const running = await status(cluster);
  expect(running).toMatchObject({ code: 0, regions: [{ agent: true }, { agent: true }] });
  expect(running.links.every(({ state }) => state === 'idle' || state === 'streaming')).toBe(true);
  expect(Number(running.regions[0]!.conflicts) + Number(running.regions[1]!.conflicts)).toBeGreaterThan(0);
  await until(
    async () => (await status(cluster)).links.every(({ state, lag_bytes }) => state === 'idle' && lag_bytes === 0),
    { what: 'idle links to be idle' },
  );
  const text = await cluster.cli('status');
  expect(text).toMatchObject({ code: 0, err: '' });
  expect(text.out).toMatch(/^tokyo +1 +ok +\d\d.* +running +2 +1 +0$/m);
  expect(text.out).toMatch(/^tokyo → frankfurt +(idle|streaming) /m);

  await cluster.stopAgent('frankfurt');
  await cluster.query('tokyo', `insert into items select n, 'behind' from generate_series(100, 1000) n`);
  const half = await status(cluster);
  expect(half).toMatchObject({ code: 0, regions: [{ agent: true }, { agent: false }] });
  const behind = half.links.find(({ from }) => from === 'tokyo')!;
  expect(behind).toMatchObject({ state: 'stopped', lag_ms: null });
  expect(Number(behind.lag_bytes)).toBeGreaterThan(10_000);
  expect(Number(behind.retained_bytes)).toBeGreaterThanOrEqual(Number(behind.lag_bytes));

  const nowhere = Object.assign(new URL(cluster.url('frankfurt')), { port: '1' }).href;
  const change = { regions: { tokyo: { id: 1, url: cluster.url('tokyo') }, frankfurt: { id: 2, url: nowhere } } };
  const cutOff = await status(cluster, change);
  expect(cutOff).toMatchObject({
    code: 4,
    regions: [{ state: 'ok' }, { state: 'unreachable', version: null, error: { code: 'peer_unreachable' } }],
    links: [{ state: 'stopped' }, { from: 'frankfurt', state: 'unknown', lag_bytes: null }],
  });
  expect((await cluster.cliWith(change, 'status')).out).toMatch(/^frankfurt: .*\(peer_unreachable\)$/m);

  await cluster.query('tokyo', 'select pg_drop_replication_slot($1)', [`coregent_${cluster.name}_1_2`]);
  expect((await status(cluster)).links).toMatchObject([{ state: 'missing' }, {}]);
});
