import pg from 'pg';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { GATES, lockGate, seen } from '../world/gate.ts';
import { until } from '../world/until.ts';

// What an agent does alike on every major version; agent.test.ts has what PostgreSQL could do otherwise.

let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    viaProxy: true,
    tables: `
      create table items (id int primary key, v text);
      ${GATES}`,
  });
  await cluster.install();
  await cluster.startAgents();
});
afterAll(() => cluster[Symbol.asyncDispose]());

test('a catalog that lacks what the agent needs stops the link with the cure, parks no row, and the link goes on once it is there', async () => {
  await cluster.query('tokyo', `insert into items values (150, 'before'), (151, 'before')`);
  await cluster.converged();
  const parked = await cluster.value('virginia', 'select count(*)::int from coregent.parked');
  await cluster.query('virginia', 'alter table coregent.conflict_record rename column local_row to former_row');
  await cluster.cut('tokyo', 'virginia');
  for (const region of ['tokyo', 'virginia'])
    await cluster.query(region, 'update items set v = $1 where id = 150', [region]);
  await cluster.heal();
  const missing = await until(
    () => {
      const { state, last_error: error } = cluster.peer('virginia', 'tokyo');
      return state === 'waiting' && error?.code === 'schema_missing' ? error : undefined;
    },
    { what: 'the missing column to be said' },
  );
  expect(missing.message).toContain('local_row');
  expect(cluster.log('virginia')).toContainEqual(
    expect.objectContaining({
      event: 'peer.retry',
      peer: 'tokyo',
      code: 'schema_missing',
      cure: expect.stringContaining('`coregent apply`'),
    }),
  );
  await cluster.query('frankfurt', `insert into items values (152, 'of another peer')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 152', 'a row of another peer');
  expect(await cluster.value('virginia', 'select count(*)::int from coregent.parked')).toBe(parked);

  await cluster.query('virginia', 'alter table coregent.conflict_record rename column former_row to local_row');
  await cluster.converged();
  const recorded = `select count(*)::int from coregent.conflicts where table_name = 'public.items' and key ->> 'id' = '150'`;
  expect(await cluster.value('virginia', recorded)).toBe(1);
  expect(await cluster.value('virginia', 'select count(*)::int from coregent.parked')).toBe(parked);
});

test('progress that another moved ends the session, and nothing is applied twice or left out', async () => {
  await cluster.query('tokyo', `insert into items values (200, 'before')`);
  await cluster.converged();
  // As a second agent would that was paused for long: it puts progress back to where it once was.
  const slot = `coregent_${cluster.name}_1_3`;
  const before = await cluster.value('virginia', 'select lsn from coregent.progress where slot = $1', [slot]);
  const transactions = Number(
    await cluster.value('virginia', 'select transactions from coregent.progress where slot = $1', [slot]),
  );
  await cluster.query('tokyo', `update items set v = 'after' where id = 200`);
  await cluster.converged();
  await cluster.query('virginia', 'update coregent.progress set lsn = $2 where slot = $1', [slot, before]);
  await cluster.query('tokyo', `insert into items values (201, 'next')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 201', 'the next row');
  await cluster.converged();
  const fenced = cluster
    .log('virginia')
    .filter(({ event, code }) => event === 'peer.retry' && code === 'progress_fenced');
  expect(fenced.length).toBeGreaterThan(0);
  // What was confirmed is not sent again: the update counts once, the insert once.
  expect(
    await cluster.value('virginia', 'select transactions::int from coregent.progress where slot = $1', [slot]),
  ).toBe(transactions + 2);
  expect(
    await cluster.value(
      'virginia',
      `select count(*)::int from coregent.conflicts where key ->> 'id' in ('200', '201')`,
    ),
  ).toBe(0);
});

test('a peer whose database is away is tried again until it is back', async () => {
  const database = new URL(cluster.url('frankfurt')).pathname.slice(1);
  const admin = new pg.Client({
    connectionString: Object.assign(new URL(cluster.url('frankfurt')), { pathname: '/postgres' }).href,
  });
  await admin.connect();
  onTestFinished(() => admin.end());
  const rename = (from: string, to: string) =>
    until(
      async () => {
        await admin.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = $1', [from]);
        await admin.query(`alter database ${from} rename to ${to}`);
        return true;
      },
      { what: `database ${from} to be renamed` },
    );
  await rename(database, `${database}_away`);
  await until(() => cluster.peer('tokyo', 'frankfurt').last_error?.code === 'peer_database_missing', {
    what: 'tokyo to say that the database of frankfurt is missing',
  });
  await until(() => cluster.agent('frankfurt').status().state === 'starting', {
    what: 'the agent of frankfurt to have lost its own database',
  });
  await cluster.query('tokyo', `insert into items values (400, 'in the meantime')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 400', 'the row');
  await rename(`${database}_away`, database);
  await cluster.streaming('frankfurt');
  await cluster.streaming('tokyo');
  await cluster.streaming('virginia');
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from items where id = 400')).toBe(1);
});

test('an agent that is told to stop while it still connects does stop, and leads nothing', async () => {
  await cluster.stopAgent('virginia');
  for (let turns = 0; turns < 20; turns++) {
    await cluster.startAgent('virginia');
    // Later and later in its first steps: before the connection, in the middle of it, behind it.
    for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
    await cluster.stopAgent('virginia');
  }
  await cluster.startAgent('virginia');
  await cluster.streaming('virginia');
});

test('probes answer from memory: ready without a bound on lag, not ready beyond it, alive all along', async () => {
  await cluster.stopAgent('virginia');
  const { url } = await cluster.startAgent('virginia', { port: 0 });
  await cluster.streaming('virginia');
  const probe = async (path: string): Promise<number> => (await fetch(`${url}${path}`)).status;
  const becomes = (path: string, status: number) =>
    until(async () => (await probe(path)) === status, { what: `${path} to answer ${status}` });
  await becomes('/readyz?max-lag=300ms', 200);

  const open = await lockGate(cluster, 'virginia', 500);
  await cluster.query('tokyo', `update gates set v = 'x' where id = 500`);
  await becomes('/readyz?max-lag=300ms', 503);
  const answer = await (await fetch(`${url}/readyz?max-lag=300ms`)).json();
  expect(answer).toMatchObject({ ready: false, checks: [{ name: 'lag:tokyo', ok: false }] });
  expect(await probe('/readyz')).toBe(200);
  expect(await probe('/livez')).toBe(200);
  await open();
  await becomes('/readyz?max-lag=300ms', 200);

  await cluster.cut('frankfurt', 'virginia');
  await becomes('/readyz?max-lag=300ms', 503);
  expect(await probe('/readyz')).toBe(200);
  expect(await probe('/livez')).toBe(200);
  await cluster.heal();
  await becomes('/readyz?max-lag=300ms', 200);
  expect(await (await fetch(`${url}/metrics`)).text()).toMatch(/coregent_link_up\{[^}]*origin="frankfurt"[^}]*\} 1/);
});

test('of two agents of a region one stands by, and takes over when the other is killed', async () => {
  await cluster.stopAgent('virginia');
  const one = cluster.spawnAgent('virginia');
  await one.streaming();
  const other = cluster.spawnAgent('virginia');
  await other.logged('agent.standby');
  expect(await other.status()).toMatchObject({ state: 'standby', peers: [] });
  expect((await other.get('/readyz')).status).toBe(503);
  expect((await other.get('/livez')).status).toBe(200);
  await one.end('SIGKILL');
  await other.logged('agent.leading');
  await other.streaming();
  expect((await other.get('/readyz')).status).toBe(200);
  await cluster.query('tokyo', `insert into items values (700, 'after')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 700', 'the row');
  // A stop that is asked for is clean, and said.
  expect(await other.end('SIGTERM')).toBe(0);
  expect(other.log.at(-1)).toMatchObject({ event: 'agent.stopped' });
  await cluster.startAgents('virginia');
});

test('rows of a peer whose clock runs ahead wait, loudly, and only they', async () => {
  const aheadMs = 5_000;
  const tokyo = await cluster.session('tokyo');
  await tokyo.query(`set session_replication_role = replica`);
  await tokyo.query(
    `insert into items values (800, 'from the future', (((extract(epoch from clock_timestamp()) * 1000 + $1) * 1000)::bigint << 7) | 1, -1)`,
    [aheadMs],
  );
  const peer = await until(
    () => {
      const peer = cluster.peer('virginia', 'tokyo');
      return peer.state === 'waiting' && peer;
    },
    { what: 'rows of tokyo to wait in virginia' },
  );
  expect(peer.last_error).toMatchObject({ code: 'clock_ahead' });
  expect(cluster.log('virginia')).toContainEqual(expect.objectContaining({ event: 'clock.ahead', peer: 'tokyo' }));
  await cluster.query('frankfurt', `insert into items values (801, 'of now')`);
  await seen(cluster, 'virginia', 'select count(*)::int from items where id = 801', 'the row of another peer');
  expect(await cluster.value('virginia', 'select count(*)::int from items where id = 800')).toBe(0);
  await cluster.converged();
  // Whoever sees the row writes a greater version.
  await cluster.query('virginia', `update items set v = 'seen' where id = 800`);
  await cluster.converged();
  expect(await cluster.value('tokyo', 'select v from items where id = 800')).toBe('seen');
  expect(cluster.peer('virginia', 'tokyo')).toMatchObject({ state: 'streaming', last_error: null });
});
