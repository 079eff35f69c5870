import { expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { checkHistory } from '../world/laws.ts';
import { seedOfRun } from '../world/random.ts';
import { until } from '../world/until.ts';
import { startWriters, WRITERS_TABLES, type Writers } from '../world/writers.ts';

const LONG_MS = 120_000;

/** Everything is confirmed, nothing owed, rows equal, and every law holds of what the writers were told. */
async function well(cluster: Cluster, writers: Writers): Promise<void> {
  await cluster.confirmed(LONG_MS);
  for (const region of cluster.regions) {
    await until(async () => (await cluster.value(region, 'select count(*)::int from coregent.paused')) === 0, {
      what: `${region} to owe nothing`,
      deadlineMs: LONG_MS,
    });
  }
  await cluster.converged(LONG_MS);
  const evidence = await checkHistory(writers.history, cluster.named);
  console.info('rejoin:', evidence);
  expect(evidence.violations).toEqual([]);
  expect(evidence.groups).toBeGreaterThan(0);
  expect(evidence.deletedGroups).toBeGreaterThan(0);
  expect(evidence.lost).toBeGreaterThan(0);
}

/** Waits until every region has written so many groups more. */
async function writesOn(writers: Writers, groups = 15): Promise<void> {
  const before = writers.history.groups.size;
  await until(() => writers.history.groups.size >= before + groups, {
    what: 'the writers to go on',
    deadlineMs: LONG_MS,
  });
}

/** Writes WAL that no slot needs, and makes PostgreSQL look at what it keeps. */
async function writeWal(cluster: Cluster, region: string, megabytes: number): Promise<void> {
  for (let written = 0; written < megabytes; written += 8) {
    await cluster.query(region, `select pg_logical_emit_message(false, 'filler', repeat('x', 8 * 1024 * 1024))`);
  }
  await cluster.query(region, 'checkpoint');
}

test('E8: a slot whose WAL PostgreSQL has dropped is made anew, the rows of both sides are joined, also through a kill', async () => {
  const seed = seedOfRun('slot invalidated');
  await using cluster = await makeCluster({
    servers: 'own',
    viaProxy: true,
    settings: { max_slot_wal_keep_size: '16MB', max_wal_size: '64MB' },
    tables: WRITERS_TABLES,
    config: { tombstones: { interval: '1s' } },
  });
  await cluster.install();
  await cluster.startAgents('tokyo', 'frankfurt');
  let virginia = cluster.spawnAgent('virginia');
  await virginia.streaming();
  const writers = await startWriters(cluster, { seed, pauseMs: 40 });
  await writesOn(writers);
  await cluster.cut('tokyo', 'virginia');
  await writesOn(writers);
  for (const region of ['tokyo', 'virginia']) {
    await writeWal(cluster, region, 64);
    await until(() => cluster.value(region, `select bool_or(wal_status = 'lost') from pg_replication_slots`), {
      what: `a slot of ${region} to be lost`,
      deadlineMs: 30_000,
    });
  }
  await writesOn(writers);
  await cluster.heal();
  await virginia.logged('table.joining', LONG_MS);
  await virginia.end('SIGKILL');
  virginia = cluster.spawnAgent('virginia');
  await writesOn(writers);
  await writers.stop();
  await well(cluster, writers);
  expect(cluster.log('tokyo')).toContainEqual(
    expect.objectContaining({ event: 'peer.rejoining', peer: 'virginia', reason: 'its slot had lost WAL' }),
  );
  expect(await virginia.end('SIGTERM')).toBe(0);
});

test('E9: a region that is away for too long loses its slot before the disk fills, loudly, and joins on return', async () => {
  const seed = seedOfRun('max_wal');
  await using cluster = await makeCluster({
    regions: 2,
    servers: 'own',
    tables: WRITERS_TABLES,
    config: { slots: { max_wal: '32MiB' } },
  });
  await cluster.install();
  await cluster.startAgents();
  const writers = await startWriters(cluster, { seed, pauseMs: 40 });
  await writesOn(writers);
  const slots = () => cluster.value('tokyo', 'select count(*)::int from pg_replication_slots');
  // Merely slow, or away for a moment: nothing is dropped.
  await cluster.stopAgent('frankfurt');
  await writeWal(cluster, 'tokyo', 20);
  const said = (event: string) => cluster.log('tokyo').filter((line) => line.event === event);
  await until(() => said('slot.filling').length > 0, { what: 'half of the budget to be said', deadlineMs: 30_000 });
  expect(await slots()).toBe(1);
  await writeWal(cluster, 'tokyo', 24);
  await until(() => said('slot.dropped').length > 0, { what: 'the slot to be dropped', deadlineMs: 30_000 });
  expect(await slots()).toBe(0);
  expect(said('slot.dropped')).toEqual([expect.objectContaining({ peer: 'frankfurt', max_wal_bytes: 32 * 1024 ** 2 })]);
  await writesOn(writers);
  await cluster.startAgents('frankfurt');
  await writesOn(writers);
  await writers.stop();
  await well(cluster, writers);
});
