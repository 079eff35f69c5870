import { execFile } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { checkHistory } from '../world/laws.ts';
import { seedOfRun } from '../world/random.ts';
import { until } from '../world/until.ts';
import { startWriters, WRITERS_TABLES, type Writers } from '../world/writers.ts';

const LONG_MS = 120_000;

/** Everything is confirmed, nothing owed, rows equal, and every law holds of what the writers were told. */
async function well(cluster: Cluster, writers: Writers): Promise<void> {
  await cluster.converged(LONG_MS);
  const evidence = await checkHistory(writers.history, cluster.named);
  console.info('rejoin:', evidence);
  expect(evidence.violations).toEqual([]);
  expect(evidence.groups).toBeGreaterThan(0);
  expect(evidence.deletedGroups).toBeGreaterThan(0);
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

/** Takes the region's server back to a copy of its data folder that was made while it was down. */
async function goBack(cluster: Cluster, region: string, copy: string, signal?: string): Promise<void> {
  const server = cluster.server(region);
  await server.stop('immediate');
  await rm(server.dataDir, { recursive: true, force: true });
  await promisify(execFile)('cp', ['-a', copy, server.dataDir]);
  if (signal) await writeFile(join(server.dataDir, signal), '');
  await server.start();
}

/** A copy of the data folder of a region's server, which is down for as long as that takes. */
async function copyOf(cluster: Cluster, region: string): Promise<string> {
  const server = cluster.server(region);
  await server.stop();
  const copy = `${server.dataDir}-copy`;
  await promisify(execFile)('cp', ['-a', server.dataDir, copy]);
  await server.start();
  return copy;
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
  await until(() => said('slot.filling').length > 0, { what: 'half of the budget to be said' });
  expect(await slots()).toBe(1);
  await writeWal(cluster, 'tokyo', 24);
  await until(() => said('slot.dropped').length > 0, { what: 'the slot to be dropped' });
  expect(await slots()).toBe(0);
  expect(said('slot.dropped')).toEqual([expect.objectContaining({ peer: 'frankfurt', max_wal_bytes: 32 * 1024 ** 2 })]);
  await writesOn(writers);
  await cluster.startAgents('frankfurt');
  await writesOn(writers);
  await writers.stop();
  await well(cluster, writers);
});

/** Servers that can be taken back to a copy, and that soon forget deletes. */
const FORGETFUL = { servers: 'own', tables: WRITERS_TABLES, config: { tombstones: { interval: '1s' } } } as const;

/** A cluster under load, of which frankfurt has written much since its data folder was copied. */
async function writtenSinceCopy(cluster: Cluster, seed: number): Promise<{ writers: Writers; copy: string }> {
  await cluster.install();
  await cluster.startAgents();
  const writers = await startWriters(cluster, { seed, pauseMs: 40, crashes: true });
  await writesOn(writers);
  const copy = await copyOf(cluster, 'frankfurt');
  await writesOn(writers, 40);
  return { writers, copy };
}

/** The load ends, and deletes since the copy are forgotten: nobody but the rows' absence tells of them. */
async function deletesForgotten(cluster: Cluster, writers: Writers): Promise<void> {
  await writers.stop();
  await cluster.converged(LONG_MS);
  await until(async () => Number(await cluster.value('tokyo', 'select sum(reaped) from coregent.tables')) > 0, {
    what: 'deletes to be forgotten',
    deadlineMs: LONG_MS,
  });
}

test('E6: a standby that was behind is promoted: what it had lost comes back from its peers, by itself', async () => {
  const seed = seedOfRun('promoted');
  await using cluster = await makeCluster(FORGETFUL);
  const { writers, copy } = await writtenSinceCopy(cluster, seed);
  await deletesForgotten(cluster, writers);
  await goBack(cluster, 'frankfurt', copy, 'standby.signal');
  await cluster.query('frankfurt', 'select pg_promote()');
  await cluster.query('frankfurt', `insert into contested values (100000, 'after the promotion')`);
  await until(() => cluster.log('frankfurt').some(({ event }) => event === 'region.promoted'), {
    what: 'frankfurt to know that it was promoted',
    deadlineMs: LONG_MS,
  });
  for (const region of ['tokyo', 'virginia']) {
    await until(
      () => cluster.log(region).some(({ event, peer }) => event === 'peer.rejoining' && peer === 'frankfurt'),
      {
        what: `${region} to join frankfurt again`,
        deadlineMs: LONG_MS,
      },
    );
  }
  await until(() => cluster.value('virginia', 'select count(*)::int from contested where id = 100000'), {
    what: 'a new write to arrive',
    deadlineMs: LONG_MS,
  });
  await cluster.query('frankfurt', 'delete from contested where id = 100000');
  await well(cluster, writers);

  // The old primary in its place again is refused by everyone, itself included.
  await goBack(cluster, 'frankfurt', copy);
  for (const [region, peer] of [
    ['tokyo', 'frankfurt'],
    ['frankfurt', 'tokyo'],
  ] as const) {
    await until(() => cluster.peer(region, peer).last_error?.code === 'peer_identity', {
      what: `${region} to refuse the old primary`,
      deadlineMs: LONG_MS,
    });
  }
  const { code, out } = await cluster.cli('status');
  expect(code).toBe(5);
  expect(out).toMatch(/frankfurt: .* on timeline 1, and was \d+ on timeline 2/);
});

test('E7: a region restored from an old copy is refused until a person says so, and then has what it had lost', async () => {
  const seed = seedOfRun('restored');
  await using cluster = await makeCluster(FORGETFUL);
  const { writers, copy } = await writtenSinceCopy(cluster, seed);
  await writeWal(cluster, 'frankfurt', 16);
  await deletesForgotten(cluster, writers);
  await goBack(cluster, 'frankfurt', copy);
  await until(() => cluster.peer('tokyo', 'frankfurt').last_error?.code === 'peer_identity', {
    what: 'tokyo to refuse the restored region',
    deadlineMs: LONG_MS,
  });
  // Nor does it take anything itself: its slots are past what it lost.
  await until(() => cluster.peer('frankfurt', 'tokyo').last_error?.code === 'peer_identity', {
    what: 'the restored region to refuse itself',
    deadlineMs: LONG_MS,
  });
  const status = await cluster.cli('status');
  expect(status.code).toBe(5);
  expect(status.out).toMatch(
    /frankfurt: .*gone back in time \(peer_identity\)\n.*`coregent apply --restored frankfurt`/,
  );
  const refused = await cluster.cli('apply');
  expect(refused.code).toBe(5);
  expect(refused.err).toContain('coregent apply --restored frankfurt');
  const { code, out, err } = await cluster.cli('apply', '--restored', 'frankfurt');
  expect({ code, err }).toEqual({ code: 0, err: '' });
  expect(out).toContain('frankfurt: accepted');
  await cluster.streaming('tokyo');
  await cluster.streaming('virginia');
  await well(cluster, writers);
});
