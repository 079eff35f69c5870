import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    servers: 'own',
    viaProxy: true,
    // A connection that nobody is at the other end of stays for longer than any test waits.
    settings: { wal_sender_timeout: '10min' },
    tables: 'create table items (id int primary key, v text)',
  });
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

const has = (region: string, id: number) =>
  cluster.value(region, 'select count(*)::int from items where id = $1', [id]);
const retries = (region: string) => cluster.log(region).filter(({ event }) => event === 'peer.retry');

test('E15, E17: links that fall silent, one way or both, are given up and opened again, with the slot that nobody reads any more', async () => {
  const [silent, deaf] = [cluster.link('tokyo', 'frankfurt'), cluster.link('frankfurt', 'tokyo')];
  const lost = cluster.link('tokyo', 'virginia');
  onTestFinished(() => cluster.heal());
  silent.hole('down');
  deaf.hole('up');
  lost.lose();
  const before = new Map(cluster.regions.map((region) => [region, retries(region).length]));
  await cluster.query('tokyo', `insert into items values (1, 'of tokyo')`);
  await cluster.query('frankfurt', `insert into items values (2, 'of frankfurt')`);
  await until(() => has('virginia', 2), { what: 'the row of frankfurt by a link that works' });
  for (const region of cluster.regions) {
    await until(() => retries(region).length > before.get(region)!, {
      what: `${region} to give up`,
    });
    expect(retries(region)[before.get(region)!]).toMatchObject({ code: 'peer_unreachable' });
  }
  // Tokyo was never told that its connections have no other end, and still serves them.
  await until(() => has('virginia', 1), { what: 'the row of tokyo' });
  expect(cluster.log('virginia')).toContainEqual(expect.objectContaining({ event: 'slot.freed', peer: 'tokyo' }));
  await cluster.heal();
  await cluster.converged();
});

test('E17: a network that falls silent while the agent connects is given up too', async () => {
  const link = cluster.link('tokyo', 'frankfurt');
  onTestFinished(() => link.heal());
  const before = retries('frankfurt').length;
  // Behind the handshake, in the middle of the first answers.
  link.stall(800);
  link.reset();
  await until(() => retries('frankfurt').length > before + 1, { what: 'the agent to give up' });
  await link.heal();
  await cluster.streaming('frankfurt');
  await cluster.converged();
});

test('E17: a link that was away for long is taken as soon as it is back, whatever became of the attempts before', async () => {
  const link = cluster.link('tokyo', 'frankfurt');
  onTestFinished(() => link.heal());
  await cluster.streaming('frankfurt');
  const before = retries('frankfurt').length;
  await link.cut();
  // The longest wait between two attempts is reached, and stays what it is.
  const waits = () =>
    retries('frankfurt')
      .slice(before)
      .map((line) => Number(line.retry_in_ms));
  await until(() => waits().filter((waitMs) => waitMs > 1_250).length >= 2, {
    what: 'the longest wait',
  });
  expect(Math.max(...waits())).toBeLessThanOrEqual(2_500);
  // Attempts get no answer from now on, and never will: each is two connections, and others begin beside them.
  await link.heal();
  link.stall(0);
  link.reset();
  await until(() => link.connections > 2, { what: 'an attempt beside one that hangs' });
  await cluster.query('tokyo', `insert into items values (3, 'of tokyo')`);
  await link.heal();
  await until(() => has('frankfurt', 3), { what: 'the row' });
  await cluster.converged();
});

test('E17: a narrow link that delivers a few bytes at a time delays rows and breaks nothing', async () => {
  const link = cluster.link('tokyo', 'frankfurt');
  onTestFinished(() => link.setBandwidth(Number.POSITIVE_INFINITY));
  await cluster.streaming('frankfurt');
  const before = retries('frankfurt').length;
  link.setBandwidth(2_500);
  await cluster.query('tokyo', `insert into items select 1000 + n, repeat('x', 100) from generate_series(1, 100) n`);
  await until(() => has('frankfurt', 1_100), { what: 'the rows' });
  expect(retries('frankfurt').length).toBe(before);
  link.setBandwidth(Number.POSITIVE_INFINITY);
  await cluster.converged();
});

test('E25: a peer that is away for long costs no connection here', async () => {
  const link = cluster.link('tokyo', 'frankfurt');
  onTestFinished(() => link.heal());
  const before = retries('frankfurt').length;
  await link.cut();
  await until(() => retries('frankfurt').length > before + 5, { what: 'the agent to try again' });
  const sessions = await cluster.value(
    'frankfurt',
    `select count(*)::int from pg_stat_activity where application_name = 'coregent apply frankfurt from tokyo'`,
  );
  expect(sessions).toBeLessThanOrEqual(1);
  await link.heal();
  await cluster.streaming('frankfurt');
  await cluster.converged();
  expect(retries('frankfurt').map(({ code }) => code)).not.toContain('unknown');
});
