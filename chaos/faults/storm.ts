import { setTimeout as sleep } from 'node:timers/promises';
import { seeded, within } from '../../test/world/random.ts';
import type { Options } from '../options.ts';
import type { World } from '../world.ts';
import { AGENT_FAULTS } from './agents.ts';
import type { Fault, Planned } from './fault.ts';
import { clear, LINK_FAULTS } from './links.ts';
import { OPERATOR_FAULTS } from './operators.ts';
import { SERVER_FAULTS } from './servers.ts';

/** A fault that happened; times in ms of the process's clock. */
export interface Happened {
  readonly name: string;
  readonly where: string;
  /** Regions whose own writers it may have stopped. */
  readonly stops: readonly string[];
  readonly from: number;
  to: number;
}

/** A running storm of faults. */
export interface Storm {
  readonly happened: readonly Happened[];
  /** Ends the storm and heals everything. */
  heal(): Promise<void>;
}

const ALL: readonly Fault[] = [...AGENT_FAULTS, ...SERVER_FAULTS, ...LINK_FAULTS, ...OPERATOR_FAULTS];
/** Ms between the beginnings of two faults. */
const GAP = [600, 5_000] as const;

/** Starts to break things; `tell` is told each one. */
export function startStorm(world: World, options: Options, tell: (line: string) => void): Storm {
  const faults = ALL.filter(({ name }) => options.faults?.some((prefix) => name.startsWith(prefix)) ?? true);
  const random = seeded(options.seed ^ 0xfa017);
  const stopping = new AbortController();
  const happened: Happened[] = [];
  const holds = new Set<string>();
  const underWay = new Set<Promise<void>>();

  const happen = async (name: string, planned: Planned): Promise<void> => {
    const event: Happened = {
      name,
      where: planned.where,
      stops: planned.stops ?? [],
      from: performance.now(),
      to: Infinity,
    };
    happened.push(event);
    tell(`${name} (${planned.where}), ${planned.ms} ms`);
    try {
      // A server may be down already: then there is nothing to break.
      await planned.begin().catch((error) => tell(`${name} (${planned.where}) came to nothing: ${error.message}`));
      await sleep(planned.ms, undefined, { signal: stopping.signal }).catch(() => {});
    } finally {
      await planned.end?.();
      event.to = performance.now();
      for (const hold of planned.holds) holds.delete(hold);
    }
  };

  const weights = faults.reduce((sum, { weight }) => sum + weight, 0);
  const choose = (): Fault => {
    let at = random() * weights;
    for (const fault of faults) {
      at -= fault.weight;
      if (at < 0) return fault;
    }
    return faults[0]!;
  };
  const storm = async (): Promise<void> => {
    while (!stopping.signal.aborted) {
      await sleep(within(random, ...GAP), undefined, { signal: stopping.signal }).catch(() => {});
      if (stopping.signal.aborted) return;
      const { name, plan } = choose();
      const planned = plan(world, random);
      if (planned.holds.some((hold) => holds.has(hold))) continue;
      for (const hold of planned.holds) holds.add(hold);
      const work = happen(name, planned);
      underWay.add(work);
      work.finally(() => underWay.delete(work)).catch(() => {});
    }
  };
  const running = faults.length > 0 ? storm() : Promise.resolve();
  return {
    happened,
    heal: async () => {
      stopping.abort();
      await running;
      await Promise.all(underWay);
      await Promise.all(world.links.map(({ proxy }) => clear(proxy)));
      await Promise.all(world.regions.map(({ server }) => server.start()));
      await Promise.all(world.regions.map(({ keeper }) => keeper.start()));
    },
  };
}
