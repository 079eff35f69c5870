import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rename, rm, rmdir, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { type Cluster, type ClusterOptions, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const TABLES = 'create table items (id int primary key, v text not null)';
const run = promisify(execFile);
const APPLY = 'coregent apply frankfurt from tokyo';

/** Two regions with agents in this process. */
async function running(options: Partial<ClusterOptions> = {}): Promise<Cluster> {
  const cluster = await makeCluster({ regions: 2, servers: 'own', tables: TABLES, ...options });
  onTestFinished(() => cluster[Symbol.asyncDispose]());
  await cluster.install();
  await cluster.startAgents();
  return cluster;
}

const retries = (cluster: Cluster, region: string) =>
  cluster.log(region).filter(({ event }) => event === 'peer.retry' || event === 'peer.failed');

/** Waits until frankfurt's session that applies waits for a lock. */
async function blocked(cluster: Cluster): Promise<void> {
  const text = `select count(*)::int from pg_stat_activity where wait_event_type = 'Lock' and application_name = $1`;
  await until(() => cluster.value('frankfurt', text, [APPLY]), { what: 'rows of tokyo to wait for a lock' });
}

/** Everything of tokyo is in frankfurt once, and nothing met a conflict. */
async function once(cluster: Cluster, transactions: number): Promise<void> {
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select transactions::int from coregent.progress')).toBe(transactions);
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.conflict_record')).toBe(0);
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBe(0);
}

test('E16: an apply that takes longer than wal_sender_timeout keeps its connection', async () => {
  const cluster = await running({ settings: { wal_sender_timeout: '2s' } });
  await cluster.query('tokyo', `insert into items values (1, 'held')`);
  await cluster.converged();
  const holder = await cluster.session('frankfurt');
  await holder.query('begin; select from items where id = 1 for update');
  await cluster.query('tokyo', `update items set v = 'late' where id = 1`);
  await blocked(cluster);
  const began = performance.now();
  // The peer hears of us meanwhile, again and again: its clock of silence never gets near the bound.
  const silence = `select extract(epoch from clock_timestamp() - reply_time)::float8 * 1000 from pg_stat_replication`;
  await until(
    async () => {
      expect(Number(await cluster.value('tokyo', silence))).toBeLessThan(2_000);
      return performance.now() - began > 6_000;
    },
    { what: 'three times the timeout' },
  );
  await holder.query('commit');
  await once(cluster, 2);
  expect(retries(cluster, 'frankfurt')).toEqual([]);
});

test('an apply that is cancelled or terminated is done again, once', async () => {
  const cluster = await running();
  await cluster.query('tokyo', `insert into items values (1, 'held')`);
  await cluster.converged();
  for (const how of ['pg_cancel_backend', 'pg_terminate_backend'] as const) {
    const holder = await cluster.session('frankfurt');
    await holder.query('begin; select from items where id = 1 for update');
    await cluster.query('tokyo', `update items set v = $1 where id = 1`, [how]);
    await blocked(cluster);
    const { rows } = await cluster.query(
      'frankfurt',
      `select ${how}(pid) as done from pg_stat_activity where application_name = $1`,
      [APPLY],
    );
    expect(rows).toEqual([{ done: true }]);
    await holder.query('commit');
    await cluster.streaming('frankfurt');
    await until(async () => (await cluster.value('frankfurt', 'select v from items')) === how, { what: 'the row' });
  }
  await once(cluster, 3);
});

test('D15: of an apply and an application in a deadlock the apply gives way, and is done again', async () => {
  const cluster = await running({ settings: { deadlock_timeout: '5s' } });
  await cluster.query('tokyo', `insert into items values (1, 'one'), (2, 'two')`);
  await cluster.converged();
  const application = await cluster.session('frankfurt');
  await application.query('begin; select from items where id = 2 for update');
  // Two statements of two tables would be two locks too; one transaction of two parts holds the first row while it waits.
  await cluster.query(
    'tokyo',
    `begin; update items set v = 'a' where id = 1; update items set v = 'b' where id = 2; commit`,
  );
  await blocked(cluster);
  await application.query(`select from items where id = 1 for update`);
  await application.query('commit');
  await once(cluster, 2);
});

test('timeouts that an administrator set for the role or the database do not stop replication', async () => {
  const cluster = await running({ settings: { wal_sender_timeout: '10s' } });
  await cluster.stopAgent('frankfurt');
  await cluster.query('tokyo', `insert into items values (1, 'held')`);
  await cluster.query(
    'frankfurt',
    `do $$ declare name text; begin
      foreach name in array array['statement_timeout', 'lock_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'] loop
        if current_setting(name, true) is not null then
          execute format('alter role postgres in database %I set %I = %L', current_database(), name, '300ms');
        end if;
      end loop; end $$`,
  );
  await cluster.startAgents('frankfurt');
  const holder = await cluster.session('frankfurt');
  const off = ['statement', 'lock', 'idle_session', 'idle_in_transaction_session', 'transaction']
    .map((name) => `set_config('${name}_timeout', '0', false)`)
    .join(', ');
  await holder.query(`select ${off}`);
  await until(() => holder.query('select from items where id = 1').then(({ rowCount }) => rowCount === 1), {
    what: 'the row',
  });
  await holder.query('begin; select from items where id = 1 for update');
  await cluster.query('tokyo', `update items set v = 'late' where id = 1`);
  const waits = `select count(*)::int as waits from pg_stat_activity
    where wait_event_type = 'Lock' and application_name = $1 and clock_timestamp() - query_start > '1 s'`;
  await until(async () => (await holder.query(waits, [APPLY])).rows[0].waits, { what: 'an apply that waits for long' });
  await holder.query('commit');
  // Nor is the session that has nothing to do ended.
  await until(
    async () =>
      (await holder.query(waits.replace(`wait_event_type = 'Lock'`, `state = 'idle'`), [APPLY])).rows[0].waits,
    { what: 'an idle session that stays' },
  );
  expect((await holder.query('select v from items')).rows).toEqual([{ v: 'late' }]);
  expect(retries(cluster, 'frankfurt')).toEqual([]);
  expect(cluster.log('frankfurt').filter(({ event }) => event === 'database.lost')).toEqual([]);
});

test('E25: a local server that takes no more connections is tried again, and its cure is said', async () => {
  const cluster = await running({ settings: { max_connections: 20, superuser_reserved_connections: 0 } });
  const taken: { end(): Promise<void> }[] = [];
  const fill = async (): Promise<void> => {
    for (;;) taken.push(await cluster.session('frankfurt'));
  };
  const tokyo = await cluster.session('tokyo');
  // Whatever becomes free is taken, until it is the agent that comes too late.
  const busy = await until(
    async () => {
      await tokyo.query('select pg_terminate_backend(pid) from pg_stat_replication');
      await fill().catch(() => {});
      return retries(cluster, 'frankfurt').find(({ code }) => code === 'peer_busy');
    },
    { what: 'the agent to find no connection left' },
  );
  expect(busy.cure).toContain('max_connections');
  await cluster.query('tokyo', `insert into items values (1, 'meanwhile')`);
  for (const session of taken) await session.end();
  await until(() => cluster.value('frankfurt', 'select count(*)::int from items'), {
    what: 'the row',
  });
  await once(cluster, 1);
});

test('D8: a transaction that is left open at a peer holds WAL there, visibly, and stops no row', async () => {
  const cluster = await running({ settings: { checkpoint_timeout: '1h', autovacuum: false } });
  const retained = async (): Promise<number> => {
    const links = JSON.parse((await cluster.cli('status', '--json')).out).links;
    return links.find(({ from, to }: { from: string; to: string }) => from === 'tokyo' && to === 'frankfurt')
      .retained_bytes;
  };
  const forgotten = await cluster.session('tokyo');
  await forgotten.query(`begin; insert into items values (1, 'never committed')`);
  await cluster.query(
    'tokyo',
    `insert into items select 10 + n, repeat(md5(n::text), 30) from generate_series(1, 2000) n`,
  );
  await cluster.converged();
  expect(await retained()).toBeGreaterThan(1_000_000);
  await forgotten.query('rollback');
  // PostgreSQL moves the slot's start when it notes its running transactions next: a checkpoint does that.
  await until(
    async () => {
      await cluster.query('tokyo', 'checkpoint');
      return (await retained()) < 200_000;
    },
    { what: 'the WAL to be let go' },
  );
  await cluster.converged();
});

/** Whether a small file system can be mounted here: only root of a machine may, not that of every container. */
async function mayMount(): Promise<boolean> {
  const path = await mkdtemp(join(tmpdir(), 'coregent-mount-'));
  try {
    await run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', path]);
    await run('umount', ['--lazy', path]);
    return true;
  } catch {
    return false;
  } finally {
    await rmdir(path);
  }
}

test.runIf(await mayMount())(
  'E11: a disk that is full at the receiver delays rows until there is room again, and loses none',
  async () => {
    const cluster = await running();
    await cluster.stopAgent('frankfurt');
    const server = cluster.server('frankfurt');
    const tables = join(server.dataDir, 'base');
    const { uid, gid } = await stat(tables);
    await server.stop();
    await rename(tables, `${tables}.there`);
    await mkdir(tables, { mode: 0o700 });
    await run('mount', ['-t', 'tmpfs', '-o', `size=96m,mode=700,uid=${uid},gid=${gid}`, 'tmpfs', tables]);
    onTestFinished(async () => {
      await run('umount', ['--lazy', tables]);
    });
    await run('cp', ['--archive', `${tables}.there/.`, tables]);
    await server.start();
    await cluster.startAgents('frankfurt');

    const filler = join(tables, 'filler');
    await run('dd', ['if=/dev/zero', `of=${filler}`, 'bs=8k']).catch(() => {});
    await cluster.query(
      'tokyo',
      `insert into items select n, repeat(md5(n::text), 20) from generate_series(1, 5000) n`,
    );
    const full = await until(() => retries(cluster, 'frankfurt').find(({ code }) => code === 'disk_full'), {
      what: 'the full disk to be said',
    });
    expect(full.cure).toContain('Free disk space');
    expect(await cluster.value('frankfurt', 'select count(*)::int from items')).toBe(0);
    await cluster.query('tokyo', `insert into items values (9999, 'meanwhile')`);
    await rm(filler);
    await until(() => cluster.value('frankfurt', 'select count(*)::int from items where id = 9999'), {
      what: 'rows to come again',
    });
    await once(cluster, 2);
    expect(await cluster.value('frankfurt', 'select count(*)::int from items')).toBe(5_001);
  },
);
