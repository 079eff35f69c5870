import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/**
 * Tests are sorted by what they need. Groups run one after the other, so that the cheapest failure shows first; their files run
 * beside each other, more of them than there are cores, because most wait most of the time. A worker keeps its modules from file
 * to file (`isolate: false`), which is half of what vitest costs: no test leaves a module changed.
 */
const majors = './test/world/majors.ts';
const servers = './test/world/servers.ts';

/** There is no package of 14 for other platforms. */
const oldest = process.platform === 'linux' && process.arch === 'x64' ? 14 : 15;

const onMajors = (name: string, list: string, include: readonly string[]) => ({
  test: {
    name,
    include: [...include],
    env: { COREGENT_TEST_MAJORS: list, COREGENT_RUNS: process.env.COREGENT_RUNS ?? '10' },
    globalSetup: [majors, servers],
    isolate: false,
    maxWorkers: 5,
    testTimeout: 240_000,
    hookTimeout: 120_000,
    sequence: { groupOrder: 2 },
  },
});

/** What every major version of PostgreSQL has to show, and a cluster of several: the whole pipe, in little time. */
const everyMajor = (name: string, list: string, more: readonly string[] = []) =>
  onMajors(name, list, ['test/pg/agent.test.ts', 'test/property/regions.test.ts', ...more]);

/** What majors do differently: the oldest, and a cluster of several. */
const PARTITIONS = ['test/pg/partitions.test.ts'];
/** The pipe in all three tiers of privileges, and how a tier is found. On 18 it is part of `pg`. */
const TIERS = ['test/pg/pipe.test.ts', 'test/pg/tiers.test.ts'];

/** Files that take a minute and more: begun last, they would run alone in the end. */
const LONG = [
  'kill',
  'points',
  'rejoin',
  'agent',
  'links',
  'servers',
  'crash',
  'chaos',
  'pipe',
  'pause',
  'postgres',
  'recreate',
].map((name) => `${name}.test.ts`);

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification): number => {
      const place = LONG.indexOf(moduleId.split('/').at(-1)!);
      return place < 0 ? LONG.length : place;
    };
    return (await super.sort(files)).sort((a, b) => rank(a) - rank(b));
  }
}

export default defineConfig({
  test: {
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/*.test.ts', 'test/unit/**/*.test.ts', 'test/golden/**/*.test.ts'],
          isolate: false,
          maxWorkers: 2,
          // Longer than what waits for a condition does, whose error says what was waited for.
          testTimeout: 120_000,
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          name: 'property',
          include: ['test/property/**/*.test.ts'],
          globalSetup: [majors, servers],
          isolate: false,
          maxWorkers: 4,
          testTimeout: 240_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          name: 'pg',
          include: ['test/pg/**/*.test.ts'],
          globalSetup: [majors, servers],
          isolate: false,
          maxWorkers: 4,
          testTimeout: 240_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 1 },
        },
      },
      ...(oldest === 14 ? [everyMajor('pg14', '14', [...PARTITIONS, 'test/pg/stamping.test.ts'])] : []),
      everyMajor('pg15', '15', [...PARTITIONS, ...TIERS]),
      everyMajor('pg16', '16'),
      everyMajor('pg17', '17', TIERS),
      everyMajor('pg18', '18'),
      everyMajor('mixed', `${oldest},16,18`, PARTITIONS),
      everyMajor('mixed-odd', '15,17,18', TIERS),
      ...(oldest === 14 ? [onMajors('pg14-tiers', '14', TIERS)] : []),
      onMajors('pg16-tiers', '16', TIERS),
      {
        test: {
          name: 'chaos',
          include: ['test/chaos/**/*.test.ts'],
          globalSetup: majors,
          // Each file starts and breaks servers of its own.
          isolate: false,
          maxWorkers: 5,
          testTimeout: 300_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
