import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { conflict, join, type State, type stateOf, UNKNOWN, visible } from '../../src/resolve/registers.ts';
import { batchesOf, REGIONS, type Region } from './history.ts';
import {
  type Bench,
  contentBy,
  type History,
  histories,
  type Keyed,
  openBench,
  Place,
  TABLES,
  type Transaction,
} from './registers.ts';

/** Cases of each property and table; thousands find what tens do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 8);
const TIMEOUT_MS = Math.max(240_000, RUNS * 8_000);

let bench: Bench;
beforeAll(async () => {
  bench = await openBench();
});
afterAll(() => bench[Symbol.asyncDispose]());

interface Played {
  readonly places: ReadonlyMap<Region, Place>;
  readonly writes: readonly Keyed[];
  /** What every region must know at the end. */
  readonly states: ReadonlyMap<number, State>;
}

/** Plays a history on databases and in memory; at the end every region has heard all. */
async function play(history: History, table: string, leavesOut: boolean): Promise<Played> {
  const places = new Map(REGIONS.map((region) => [region, new Place(bench, region, table)]));
  const received = new Map<string, number>();
  for (const place of places.values()) await place.empty();
  for (const [region, key, change] of history.before) await places.get(region)!.existed(key, change);

  const sync = async (from: Place, to: Place, count: number, rows: number): Promise<void> => {
    to.commit();
    const link = `${from.region} ${to.region}`;
    const begin = received.get(link) ?? 0;
    const transactions = from.stream.slice(begin, begin + count);
    if (transactions.length === 0) return;
    received.set(link, begin + transactions.length);
    await to.receive(transactions, rows, from);
    for (const batch of batchesOf(transactions, rows)) hear(to, batch);
  };
  const copy = async (from: Place, to: Place): Promise<void> => {
    from.commit();
    to.commit();
    await to.copyFrom(from);
    for (const [key, { tombstone }] of from.states) {
      if (tombstone) meet(to, key, { kind: 'delete', tombstone });
    }
    for (const [key, state] of from.states) {
      const row = visible(state);
      if (row) meet(to, key, { kind: 'row', row });
    }
  };
  for (const step of history.steps) {
    if (step.do === 'sync') await sync(places.get(step.from)!, places.get(step.to)!, step.transactions, step.rows);
    else if (step.do === 'join') await copy(places.get(step.from)!, places.get(step.to)!);
    else
      await places
        .get(step.region)!
        .write(step.do === 'put' ? { ...step, leavesOut: leavesOut && step.leavesOut } : step);
  }
  for (const place of places.values()) place.commit();
  for (const rounds of [1, 2]) {
    for (const from of places.values()) {
      for (const to of places.values()) {
        if (from === to) continue;
        if (rounds === 1 && history.before.length > 0) await copy(from, to);
        await sync(from, to, Number.MAX_SAFE_INTEGER, 1_000);
      }
    }
  }
  const { shape } = places.get(1)!;
  const states = new Map<number, State>();
  for (const place of places.values()) {
    for (const [key, state] of place.states) states.set(key, join(shape, states.get(key) ?? UNKNOWN, state));
  }
  const writes = [...places.values()].flatMap(({ stream }) => stream.flatMap(({ messages }) => messages));
  return { places, writes, states };
}

function meet(place: Place, key: number, write: Parameters<typeof stateOf>[0]): void {
  place.meet(key, write, conflict(place.shape, place.known(key), write));
}

/** A batch holds one tombstone and, behind it, one row of a key. */
function hear(place: Place, batch: readonly Keyed[]): void {
  for (const key of new Set(batch.map((each) => each.key))) {
    const mine = batch.filter((each) => each.key === key);
    const buried = mine.findLastIndex(({ kind }) => kind === 'delete');
    if (buried >= 0) meet(place, key, mine[buried]!);
    const last = mine.at(-1)!;
    if (last.kind === 'row') meet(place, key, last);
  }
}

describe.each(Object.keys(TABLES))('rows joined part by part: %s', (table) => {
  it(
    'INV-C, INV-X: triggers and statements do what the specification says, and record its conflicts; all again changes nothing',
    async () => {
      await fc.assert(
        fc.asyncProperty(histories, fc.boolean(), async (history, leavesOut) => {
          const { places, states } = await play(history, table, leavesOut);
          for (const place of places.values()) {
            const expected = contentBy(place.shape, states);
            expect(await place.content()).toEqual(expected);
            if (!leavesOut) expect((await place.conflicts()).sort()).toEqual([...place.expected].sort());
            for (const from of places.values()) {
              if (from === place) continue;
              await place.receive(from.stream, 3, from);
              await place.copyFrom(from);
            }
            expect(await place.content()).toEqual(expected);
          }
        }),
        { numRuns: RUNS },
      );
    },
    TIMEOUT_MS,
  );

  const orders = fc.array(
    fc.record({ at: fc.nat({ max: 9 }), again: fc.nat({ max: 9 }), rows: fc.constantFrom(1, 2, 4, 1_000) }),
    {
      minLength: 5,
      maxLength: 12,
    },
  );
  it(
    'INV-C: a region that only listens ends alike, in any order of transactions, twice, and in any batches',
    async () => {
      await fc.assert(
        fc.asyncProperty(histories, orders, async (history, order) => {
          const { places, states } = await play({ ...history, before: [] }, table, false);
          const listener = places.get(3)!;
          const expected = contentBy(listener.shape, states);
          await listener.empty();
          const parcels: { at: number; transaction: Transaction; rows: number }[] = [];
          for (const { stream } of places.values()) {
            for (const transaction of stream) {
              const { at, again, rows } = order[parcels.length % order.length]!;
              for (const turn of new Set([at, again])) parcels.push({ at: turn, transaction, rows });
            }
          }
          parcels.sort((a, b) => a.at - b.at);
          for (const { transaction, rows } of parcels) {
            await listener.receive([transaction], rows, places.get(transaction.origin)!);
          }
          expect(await listener.content()).toEqual(expected);
        }),
        { numRuns: RUNS },
      );
    },
    TIMEOUT_MS,
  );
});

describe('rows joined part by part', () => {
  it('INV-X: a counter is the sum of all that was added, wherever it was added', async () => {
    const places = REGIONS.map((region) => new Place(bench, region, 'posts'));
    for (const place of places) await place.empty();
    const put = { do: 'put' as const, key: 1, commits: true, leavesOut: false };
    for (const [index, place] of places.entries()) {
      for (let n = 1; n <= 3; n++)
        await place.write({ ...put, region: place.region, change: { n: 10 ** index, add: `${n}` } });
    }
    for (const from of places) {
      for (const to of places) if (from !== to) await to.receive(from.stream, 1_000, from);
    }
    for (const place of places) {
      const row = await place.read(1);
      expect(row).toMatchObject({ n: 333, tags: ['1', '2', '3'] });
    }
  });
});
