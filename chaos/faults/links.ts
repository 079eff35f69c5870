import { within } from '../../test/world/random.ts';
import { anyLink, anyRegion, type Fault, held, type Planned } from './fault.ts';

/** A fault of one link that `heal` ends. */
function ofLink(
  name: string,
  weight: number,
  ms: readonly [number, number],
  begin: (proxy: ReturnType<typeof anyLink>['proxy'], random: () => number) => Promise<void> | void,
): Fault {
  return {
    name,
    weight,
    plan: (world, random) => {
      const link = anyLink(world, random);
      return {
        where: `${link.from} > ${link.to}`,
        holds: [held.link(link)],
        ms: within(random, ...ms),
        begin: async () => {
          await begin(link.proxy, random);
        },
        end: () => clear(link.proxy),
      };
    },
  };
}

/** Takes all faults from a link. */
export async function clear(proxy: ReturnType<typeof anyLink>['proxy']): Promise<void> {
  proxy.setLatency(0, 0);
  proxy.setBandwidth(Number.POSITIVE_INFINITY);
  await proxy.heal();
}

/** What happens to links. */
export const LINK_FAULTS: readonly Fault[] = [
  ofLink('link.cut', 3, [500, 10_000], (proxy) => proxy.cut()),
  ofLink('link.hole', 2, [1_000, 20_000], (proxy, random) =>
    proxy.hole((['up', 'down', 'both'] as const)[within(random, 0, 2)]),
  ),
  ofLink('link.slow', 2, [2_000, 10_000], (proxy, random) =>
    proxy.setLatency(within(random, 20, 300), within(random, 0, 100)),
  ),
  ofLink('link.trickle', 1.5, [2_000, 8_000], (proxy, random) => proxy.setBandwidth(within(random, 200, 20_000))),
  ofLink('link.reset', 3, [500, 3_000], (proxy, random) => proxy.reset(random() < 0.2 ? 0 : within(random, 1, 60_000))),
  {
    name: 'link.split',
    weight: 2,
    plan: (world, random): Planned => {
      const { name } = anyRegion(world, random);
      const links = world.links.filter(({ from, to }) => from === name || to === name);
      return {
        where: `${name} from all others`,
        holds: links.map(held.link),
        ms: within(random, 2_000, 15_000),
        begin: async () => {
          await Promise.all(links.map(({ proxy }) => proxy.cut()));
        },
        end: async () => {
          await Promise.all(links.map(({ proxy }) => clear(proxy)));
        },
      };
    },
  },
];
