import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { makeCluster } from '../world/cluster.ts';
import { checkHistory } from '../world/laws.ts';
import { seeded, seedOfRun, within } from '../world/random.ts';
import { until } from '../world/until.ts';
import { startWriters, WRITERS_TABLES } from '../world/writers.ts';

test('links that break in every way, in the middle of messages too, delay rows and lose none; every region goes on writing', async () => {
  const seed = seedOfRun('links');
  const random = seeded(seed);
  await using cluster = await makeCluster({
    tables: WRITERS_TABLES,
    servers: 'own',
    viaProxy: true,
    config: { batch: { rows: 60 }, tombstones: { interval: '2s' } },
  });
  await cluster.install();
  await cluster.startAgents();
  const writers = await startWriters(cluster, { seed, pauseMs: 60 });
  const links = cluster.regions.flatMap((from) =>
    cluster.regions.filter((to) => to !== from).map((to) => ({ from, to, proxy: cluster.link(from, to) })),
  );

  // Nothing passes, and nobody is told: only the agent's own patience ends such a connection. The others' streams go on.
  const { from, to, proxy } = links[within(random, 0, links.length - 1)]!;
  proxy.hole('down');
  for (let fault = 0; fault < 12; fault++) {
    const link = links[within(random, 0, links.length - 1)]!;
    if (link.proxy === proxy) continue;
    const dice = random();
    if (dice < 0.5) link.proxy.reset(within(random, 1, 20_000));
    else if (dice < 0.7) link.proxy.setLatency(within(random, 0, 50), 20);
    else {
      await link.proxy.cut();
      await sleep(within(random, 0, 800));
      await link.proxy.heal();
    }
    await sleep(within(random, 0, 600));
  }
  const others = cluster.regions.filter((region) => region !== to);
  for (const region of others) await cluster.streaming(region);
  await until(() => cluster.peer(to, from).last_error?.code === 'peer_unreachable', {
    what: `the agent of ${to} to give up on the silent link from ${from}`,
  });
  const third = others.find((region) => region !== from)!;
  await until(() => cluster.peer(to, third).state === 'streaming', { what: `${to} to follow ${third} all the same` });
  expect(cluster.peer(to, from).state).not.toBe('streaming');
  await cluster.heal();
  for (const region of cluster.regions) await cluster.streaming(region);
  await writers.stop();
  await cluster.converged();

  const evidence = await checkHistory(writers.history, cluster.named);
  console.info('links:', evidence);
  expect(evidence.violations).toEqual([]);
  expect(evidence.conflicts).toBeGreaterThan(0);
});
