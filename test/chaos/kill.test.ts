import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { AgentProcess } from '../world/agent.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { checkHistory, tornGroups } from '../world/laws.ts';
import { seeded, seedOfRun, within } from '../world/random.ts';
import { startWriters, WRITERS_TABLES } from '../world/writers.ts';

/** How many agents are killed; more in the night, fewer at a desk. */
const KILLS = Number(process.env.COREGENT_KILLS ?? 100);
const timeout = 120_000 + KILLS * 5_000;

test(`an agent may be killed at any instruction: ${KILLS} kills under load lose, repeat and tear nothing`, {
  timeout,
}, async () => {
  const seed = seedOfRun('kill');
  const random = seeded(seed);
  await using cluster = await makeCluster({
    tables: WRITERS_TABLES,
    servers: 'own',
    // Small batches: large transactions are then staged in parts, and a kill often falls between two of them.
    config: { batch: { rows: 60 }, tombstones: { interval: '2s' } },
  });
  await cluster.install();
  const writers = await startWriters(cluster, { seed, pauseMs: 60 });
  const snapshots = watchSnapshots(cluster);

  let left = KILLS;
  const agents = await Promise.all(
    cluster.regions.map(async (region) => {
      let agent = cluster.spawnAgent(region);
      while (left > 0) {
        left--;
        await randomMoment(agent, random);
        expect(await agent.end('SIGKILL')).toBe('SIGKILL');
        agent = cluster.spawnAgent(region);
      }
      return agent;
    }),
  );
  await writers.stop();
  const { polls, torn } = await snapshots.stop();
  await Promise.all(agents.map((agent) => agent.streaming()));
  await cluster.converged();

  const evidence = await checkHistory(writers.history, cluster.named);
  console.info('kill:', { ...evidence, polls });
  expect([...evidence.violations, ...torn]).toEqual([]);
  for (const [what, count] of Object.entries({ ...evidence, polls })) {
    if (what !== 'violations' && what !== 'needless') expect(count, what).toBeGreaterThan(0);
  }
  for (const agent of agents) expect(await agent.end('SIGTERM')).toBe(0);
});

/** Mostly while it streams, sometimes while it starts. */
async function randomMoment(agent: AgentProcess, random: () => number): Promise<void> {
  const early = random() < 0.25;
  if (!early) await agent.logged('peer.streaming');
  await sleep(within(random, 0, 400));
}

/** Looks at every region again and again for transactions of which only a part is visible. */
function watchSnapshots(cluster: Cluster) {
  const stopping = new AbortController();
  const torn: string[] = [];
  let polls = 0;
  const watching = cluster.regions.map(async (region) => {
    while (!stopping.signal.aborted) {
      for (const group of await tornGroups(cluster.query.bind(cluster, region))) torn.push(`${region}: ${group}`);
      polls++;
      await sleep(100, undefined, { signal: stopping.signal }).catch(() => {});
    }
  });
  return {
    stop: async () => {
      stopping.abort();
      await Promise.all(watching);
      return { polls, torn };
    },
  };
}
