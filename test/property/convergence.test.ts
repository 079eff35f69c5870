import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { regionOf, type Version } from '../../src/model/version.ts';
import { join, type State, stateOf, UNKNOWN, visible } from '../../src/resolve/meaning.ts';
import {
  expectedConflicts,
  histories,
  type KeyedConflict,
  type Message,
  type Played,
  play,
  REGIONS,
  type States,
  type Transaction,
} from './history.ts';
import { type Bench, type Content, listen, type Manner, openBench, type Parcel, replay } from './replay.ts';

/** Cases of each property; thousands find what hundreds do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 60);
const TIMEOUT_MS = Math.max(120_000, RUNS * 1_000);

let bench: Bench;
beforeAll(async () => {
  bench = await openBench();
});
afterAll(() => bench[Symbol.asyncDispose]());

const manners = (keys: Manner['keys']): fc.Arbitrary<Manner> =>
  fc.record({
    keys: fc.constant(keys),
    spellings: fc.constant(keys === 'numeric'),
    leavesOut: fc.boolean(),
    padding: fc.constantFrom(0, 0, 45),
    streamed: fc.boolean(),
  });

/** What the specification says a region knows once it has heard these writes. */
function fold(messages: readonly Message[]): States {
  const states = new Map<number, State>();
  for (const message of messages) {
    states.set(message.key, join(states.get(message.key) ?? UNKNOWN, stateOf(message)));
  }
  return states;
}

/** What a table and its tombstones hold then. */
function contentBy(states: States): Content {
  const content: [string, string][] = [];
  for (const [key, state] of states) {
    const row = visible(state);
    if (row) content.push([`row ${key}`, `${row.value} ${row.version} ${row.parent}`]);
    const { tombstone } = state;
    if (tombstone) content.push([`tombstone ${key}`, `${tombstone.version} ${tombstone.parent}`]);
  }
  return Object.fromEntries(content);
}

/** Conflicts as sorted lines: a multiset that can be compared and read. */
const lines = (conflicts: readonly KeyedConflict[]): string[] =>
  conflicts
    .map(({ key, kind, outcome, localVersion, incomingVersion }) =>
      [`key ${key}`, kind, outcome, `local ${localVersion}`, `incoming ${incomingVersion}`].join(', '),
    )
    .sort();

const told = (conflicts: readonly { kind: string; outcome: string }[]): string[] =>
  conflicts.map(({ kind, outcome }) => `${kind}, ${outcome}`).sort();

/**
 * INV-L: every row written is there at the end, or was replaced by a writer who saw it, or is in some region's record.
 * A delete that met only other deletes has had its way.
 */
function lostWrites(played: Played, recorded: readonly KeyedConflict[]): string[] {
  const kept = new Set<string>();
  const keep = (key: number, version: Version): void => void kept.add(`${key} ${version}`);
  for (const [key, state] of played.finals.get(1)!) keep(key, visible(state)?.version ?? -1n);
  for (const { key, parent } of played.messages) keep(key, parent);
  for (const { key, localVersion, incomingVersion } of recorded) {
    keep(key, localVersion);
    keep(key, incomingVersion);
  }
  return played.messages
    .filter(({ kind, key, version }) => kind !== 'delete' && !kept.has(`${key} ${version}`))
    .map(({ kind, key, version }) => `${kind} of key ${key}, version ${version}, region ${regionOf(version)}`);
}

describe('three regions, each in its own order', () => {
  const replayAll = (played: Played, manner: Manner) =>
    Promise.all(REGIONS.map((region) => replay(bench, played, region, manner)));

  it(
    'INV-C, INV-L, INV-X: end as the specification says, record its conflicts, lose no write, learn nothing from hearing all again',
    async () => {
      const met = { kinds: new Set<string>(), lost: 0 };
      await fc.assert(
        fc.asyncProperty(histories, manners('integer'), async (history, manner) => {
          const played = play(history, manner);
          const replays = await replayAll(played, manner);
          const expected = contentBy(fold(played.messages));
          for (const [index, { content, conflicts, receipts }] of replays.entries()) {
            expect(content).toEqual(expected);
            expect(lines(conflicts)).toEqual(lines(expectedConflicts(played, REGIONS[index]!, manner)));
            expect(told(receipts.flatMap((each) => each.conflicts))).toEqual(told(conflicts));
            expect(receipts.every(({ parked }) => parked === 0)).toBe(true);
          }
          const recorded = replays.flatMap(({ conflicts }) => conflicts);
          expect(lostWrites(played, recorded)).toEqual([]);
          met.lost += lostWrites(played, []).length;
          for (const line of told(recorded)) met.kinds.add(line);
          await Promise.all(
            replays.map(async ({ content, conflicts, hearAgain }) => {
              expect(await hearAgain('progress')).toEqual({ content, conflicts });
              // Without progress a write that lost meets what is here by now, and that may be a conflict anew; but no row changes.
              expect((await hearAgain('nothing')).content).toEqual(content);
            }),
          );
        }),
        { numRuns: RUNS },
      );
      // Laws that met nothing have proved nothing.
      expect(met.lost).toBeGreaterThan(RUNS / 10);
      const kinds = ['insert_exists', 'update_origin_differs', 'update_missing', 'delete_origin_differs'];
      expect([...met.kinds].sort()).toEqual(kinds.flatMap((kind) => [`${kind}, apply`, `${kind}, keep`]).sort());
    },
    TIMEOUT_MS,
  );

  it(
    'INV-C: end as the specification says where equal keys have several spellings',
    async () => {
      await fc.assert(
        fc.asyncProperty(histories, manners('numeric'), async (history, manner) => {
          const played = play(history, manner);
          const expected = contentBy(fold(played.messages));
          for (const { content } of await replayAll(played, manner)) expect(content).toEqual(expected);
        }),
        { numRuns: RUNS },
      );
    },
    TIMEOUT_MS,
  );
});

/** Any order: each transaction goes into one or two of a few parcels; parcels are delivered one after the other. */
function parcelsOf(played: Played, shuffle: readonly { parcel: number; again: number; rows: number }[]): Parcel[] {
  const parcels = new Map<string, Transaction[]>();
  let turn = 0;
  for (const [origin, stream] of played.streams) {
    for (const transaction of stream) {
      const { parcel, again } = shuffle[turn++ % shuffle.length]!;
      for (const number of new Set([parcel, again])) {
        const name = `${number} ${origin}`;
        parcels.set(name, [...(parcels.get(name) ?? []), transaction]);
      }
    }
  }
  return [...parcels]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([, transactions], index) => ({ transactions, rows: shuffle[index % shuffle.length]!.rows }));
}

const shuffles = fc.array(
  fc.record({ parcel: fc.nat({ max: 9 }), again: fc.nat({ max: 9 }), rows: fc.constantFrom(1, 2, 4, 1_000) }),
  { minLength: 5, maxLength: 12 },
);

describe('a region that only listens', () => {
  it.each(['integer', 'numeric'] as const)(
    'ends with what the specification says, in any order of transactions, twice, and in any batches (%s keys)',
    async (keys) => {
      const orders = fc.tuple(shuffles, shuffles, shuffles);
      await fc.assert(
        fc.asyncProperty(histories, orders, manners(keys), async (history, shuffled, manner) => {
          const played = play(history, manner);
          const expected = contentBy(fold(played.messages));
          const contents = await Promise.all(
            REGIONS.map((region, index) => listen(bench, played, parcelsOf(played, shuffled[index]!), region, manner)),
          );
          for (const content of contents) expect(content).toEqual(expected);
        }),
        { numRuns: RUNS },
      );
    },
    TIMEOUT_MS,
  );
});
