import { within } from '../../test/world/random.ts';
import type { AgentProcess } from '../agents.ts';
import { anyRegion, type Fault, held } from './fault.ts';

/** What happens to agents. */
export const AGENT_FAULTS: readonly Fault[] = [
  {
    name: 'agent.kill',
    weight: 5,
    plan: (world, random) => {
      const { name, keeper } = anyRegion(world, random);
      return {
        where: name,
        holds: [held.agent(name)],
        ms: random() < 0.6 ? within(random, 0, 300) : within(random, 300, 5_000),
        begin: () => keeper.end('SIGKILL'),
        end: () => keeper.start(),
      };
    },
  },
  {
    name: 'agent.restart',
    weight: 2,
    plan: (world, random) => {
      const { name, keeper } = anyRegion(world, random);
      return {
        where: name,
        holds: [held.agent(name)],
        ms: within(random, 0, 1_000),
        begin: () => keeper.end('SIGTERM'),
        end: () => keeper.start(),
      };
    },
  },
  {
    name: 'agent.pause',
    weight: 3,
    plan: (world, random) => {
      const { name, keeper } = anyRegion(world, random);
      return {
        where: name,
        holds: [held.agent(name)],
        ms: within(random, 1_000, 10_000),
        begin: async () => keeper.agent?.signal('SIGSTOP'),
        end: async () => keeper.agent?.signal('SIGCONT'),
      };
    },
  },
  {
    // A second agent; or the first is paused, another takes over, and the first wakes up.
    name: 'agent.twin',
    weight: 3,
    plan: (world, random) => {
      const { name, keeper } = anyRegion(world, random);
      const paused = random() < 0.5;
      let twin: AgentProcess | undefined;
      return {
        where: `${name}${paused ? ', the first one paused' : ''}`,
        holds: [held.agent(name)],
        ms: within(random, 2_000, 8_000),
        begin: async () => {
          if (paused) keeper.agent?.signal('SIGSTOP');
          twin = await keeper.twin();
        },
        end: async () => {
          if (paused) keeper.agent?.signal('SIGCONT');
          await twin?.end('SIGKILL');
        },
      };
    },
  },
];
