import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { makeVersion, nextVersion, type Version } from '../../src/model/version.ts';
import {
  conflicts,
  firstWrite,
  floors,
  join,
  lastSibling,
  replaced,
  type Shows,
  type State,
  seenAfter,
  seenFrom,
  stamps,
  stateOf,
  UNKNOWN,
  type Write,
} from '../../src/resolve/versions.ts';

/** A write, and every write of its key that its author had seen: the truth that version vectors stand for. */
interface Truth {
  readonly write: Write;
  readonly seen: ReadonlySet<Version>;
}

/** One region's key: what the rule knows, and which writes it heard of, by themselves or as what an author had seen. */
class Region {
  readonly #id: number;
  state: State = UNKNOWN;
  readonly heard: Truth[] = [];

  constructor(id: number) {
    this.#id = id;
  }

  write(kind: 'put' | 'delete', clock: number): Truth | undefined {
    const there = stamps(this.state) !== undefined;
    if (kind === 'delete' && !there) return undefined;
    const version = nextVersion(BigInt(clock), this.#id, ...floors(this.state));
    const parent = replaced(this.state, lastSibling);
    const seen = seenAfter(this.state, version);
    const write: Write =
      kind === 'delete'
        ? { kind, version, parent, seen }
        : { kind: there ? 'update' : 'insert', version, parent, seen, value: `v${version}` };
    const truth = { write, seen: this.seen };
    this.hear(truth);
    return truth;
  }

  hear(truth: Truth): void {
    this.heard.push(truth);
    this.state = join(this.state, stateOf(truth.write));
  }

  get seen(): Set<Version> {
    return new Set(this.heard.flatMap(({ write, seen }) => [write.version, ...seen]));
  }

  /** What should be there, by the truth: what nobody who was heard of had seen. */
  get standing(): Version[] {
    return this.heard
      .filter(({ write }) => write.kind !== 'delete' && !this.heard.some(({ seen }) => seen.has(write.version)))
      .map(({ write }) => write.version);
  }
}

type Step = {
  readonly region: number;
  readonly from: number;
  readonly clock: number;
  readonly does: 'put' | 'delete' | 'hear' | 'copy';
};
const steps = fc.array(
  fc.record<Step>({
    region: fc.nat({ max: 3 }),
    from: fc.nat({ max: 3 }),
    clock: fc.nat({ max: 20 }),
    does: fc.constantFrom('put', 'put', 'put', 'delete', 'hear', 'hear', 'hear', 'copy'),
  }),
  { maxLength: 40, size: 'max' },
);

/** Lets regions write and hear of each other: each of the others' writes in their order, or all that another one knows at once. */
function play(all: readonly Step[], told?: (region: Region, truth: Truth) => void): Region[] {
  const regions = [1, 2, 3, 4].map((id) => new Region(id));
  const written: Truth[][] = regions.map(() => []);
  const positions = new Map<string, number>();
  for (const { region, from, clock, does } of all) {
    const here = regions[region]!;
    if (does === 'put' || does === 'delete') {
      const truth = here.write(does, clock);
      if (truth) written[region]!.push(truth);
    } else if (from !== region && does === 'hear') {
      const link = `${from} ${region}`;
      const at = positions.get(link) ?? 0;
      const truth = written[from]![at];
      if (!truth) continue;
      positions.set(link, at + 1);
      told?.(here, truth);
      here.hear(truth);
    } else if (from !== region) {
      here.heard.push(...regions[from]!.heard);
      here.state = join(here.state, regions[from]!.state);
    }
  }
  return regions;
}

const versionsOf = (state: State): Version[] => state.versions.map(({ version }) => version);
const sorted = (versions: Iterable<Version>): Version[] => [...new Set(versions)].sort((a, b) => (a < b ? -1 : 1));

describe('versions side by side', () => {
  it('INV-C: the join is commutative, associative and idempotent', () => {
    fc.assert(
      fc.property(steps, (all) => {
        const [a, b, c] = play(all).map(({ state }) => state) as [State, State, State];
        expect(join(a, b)).toEqual(join(b, a));
        expect(join(join(a, b), c)).toEqual(join(a, join(b, c)));
        expect(join(a, a)).toEqual(a);
        expect(join(join(a, b), a)).toEqual(join(a, b));
      }),
      { numRuns: 100 },
    );
  });

  it('INV-C: rows that were there before, with other bytes in each region, have one winner in any order', () => {
    const texts = fc.array(fc.constantFrom('x', 'y', 'z'), { minLength: 3, maxLength: 3 });
    fc.assert(
      fc.property(texts, (values) => {
        const [a, b, c] = values.map((value) =>
          stateOf({ kind: 'insert', version: 0n, parent: 0n, seen: seenFrom(0n, 0n), value }),
        ) as [State, State, State];
        expect(join(join(a, b), c)).toEqual(join(c, join(b, a)));
        expect(join(join(a, b), c).versions.map(({ value }) => value)).toEqual([[...values].sort().at(-1)]);
      }),
    );
  });

  it('successors are never conflicts, and conflicts never successors, as those know who know what every author had seen', () => {
    const met = { conflicts: 0, several: 0 };
    fc.assert(
      fc.property(steps, (all) => {
        const regions = play(all, (region, { write, seen }) => {
          const found = conflicts(region.state, write);
          met.conflicts += found.length;
          const truth = new Map(region.heard.map((each) => [each.write.version, each]));
          for (const { localVersion } of found) {
            expect(seen.has(localVersion)).toBe(false);
            expect(truth.get(localVersion)!.seen.has(write.version)).toBe(false);
          }
          // Nothing that stood is gone unless the author of the newcomer had seen it.
          const before = region.standing;
          const after = versionsOf(join(region.state, stateOf(write)));
          expect(sorted(before.filter((version) => !after.includes(version)))).toEqual(
            sorted(before.filter((version) => seen.has(version))),
          );
          // It stands beside others if, and only if, that is told.
          if (write.kind !== 'delete' && !region.seen.has(write.version) && before.length > 0) {
            expect(sorted(found.map(({ localVersion }) => localVersion))).toEqual(
              sorted(before.filter((version) => !seen.has(version))),
            );
          }
        });
        for (const { state, standing } of regions) {
          expect(versionsOf(state)).toEqual(sorted(standing));
          if (standing.length > 1) met.several++;
        }
      }),
      { numRuns: 200 },
    );
    expect(met.conflicts).toBeGreaterThan(100);
    expect(met.several).toBeGreaterThan(20);
  });

  it('a local write replaces all that its region shows', () => {
    fc.assert(
      fc.property(steps, (all) => {
        for (const region of play(all)) {
          const put = region.write('put', 0)!;
          expect(versionsOf(region.state)).toEqual([put.write.version]);
        }
      }),
      { numRuns: 100 },
    );
  });

  it('a version is greater than all that its author had seen, though clocks step back', () => {
    fc.assert(
      fc.property(steps, (all) => {
        for (const { heard } of play(all)) {
          for (const { write, seen } of heard) for (const each of seen) expect(write.version > each).toBe(true);
        }
      }),
      { numRuns: 100 },
    );
  });

  it('where one region writes, or two take turns, version and parent alone tell what was seen', () => {
    const [a, b] = [new Region(1), new Region(2)];
    for (let clock = 1; clock < 9; clock++) {
      const [writer, reader] = clock > 4 && clock % 2 === 0 ? [b, a] : [a, b];
      const { write } = writer.write('put', clock)!;
      expect(write.seen).toEqual(seenFrom(write.version, write.parent));
      reader.hear(writer.heard.at(-1)!);
    }
  });
});

describe('a delete', () => {
  const [tokyo, frankfurt, virginia] = [1, 2, 3];
  const put = (region: number, at: number, state: State): Write => {
    const version = makeVersion(BigInt(at), region);
    return {
      kind: 'update',
      version,
      parent: replaced(state, lastSibling),
      seen: seenAfter(state, version),
      value: `v${at}`,
    };
  };
  const remove = (region: number, at: number, state: State): Write => {
    const version = makeVersion(BigInt(at), region);
    return { kind: 'delete', version, parent: replaced(state, lastSibling), seen: seenAfter(state, version) };
  };
  const know = (...writes: Write[]): State => writes.map(stateOf).reduce(join, UNKNOWN);

  it('removes what its author had seen; a concurrent version survives, whichever is newer and whichever comes first', () => {
    const x1 = put(tokyo, 1, UNKNOWN);
    for (const at of [2, 9]) {
      const y = put(frankfurt, at, know(x1));
      const gone = remove(virginia, 5, know(x1));
      expect(know(x1, y, gone).versions.map(({ value }) => value)).toEqual([`v${at}`]);
      expect(know(gone, y, x1)).toEqual(know(x1, y, gone));
      expect(conflicts(know(x1, y), gone)).toMatchObject([{ kind: 'delete_origin_differs', localVersion: y.version }]);
      expect(conflicts(know(gone), y)).toMatchObject([{ kind: 'update_missing', localVersion: gone.version }]);
    }
  });

  it('followed by a new insert is no conflict, in whatever order they arrive, and takes nothing of the new row', () => {
    const x1 = put(tokyo, 1, UNKNOWN);
    const gone = remove(frankfurt, 2, know(x1));
    const again = put(virginia, 3, know(gone));
    expect(conflicts(know(x1, gone), again)).toEqual([]);
    expect(conflicts(know(again), gone)).toEqual([]);
    expect(conflicts(know(again), x1)).toEqual([]);
    expect(know(again, x1, gone)).toEqual(know(x1, gone, again));
    expect(know(again, x1, gone).versions.map(({ value }) => value)).toEqual(['v3']);
  });

  it('that met another one is none', () => {
    const x1 = put(tokyo, 1, UNKNOWN);
    const [a, b] = [remove(tokyo, 2, know(x1)), remove(frankfurt, 3, know(x1))];
    expect(conflicts(know(x1, a), b)).toEqual([]);
    expect(know(x1, a, b)).toEqual(know(b, a, x1));
  });
});

describe('three replicas', () => {
  it('x1 at A, its successor x3 made by B, and y2 at C: the same row is shown in whatever order they meet', () => {
    const of = (version: Version, parent: Version, seen: ReadonlyMap<number, Version>, value: string): Write => ({
      kind: 'update',
      ...{ version, parent, seen, value },
    });
    const [a1, b3, c2] = [makeVersion(1n, 1), makeVersion(3n, 2), makeVersion(2n, 3)];
    const x1 = of(a1, -1n, new Map([[1, a1]]), 'x1');
    const x3 = of(
      b3,
      a1,
      new Map([
        [1, a1],
        [2, b3],
      ]),
      'x3',
    );
    const y2 = of(c2, -1n, new Map([[3, c2]]), 'y2');
    const shown = (shows: Shows, ...writes: Write[]): string =>
      shows(writes.map(stateOf).reduce(join, UNKNOWN).versions).value;
    const orders = [
      [x1, x3, y2],
      [x1, y2, x3],
      [x3, x1, y2],
      [x3, y2, x1],
      [y2, x1, x3],
      [y2, x3, x1],
    ];
    for (const order of orders) {
      expect(shown(firstWrite, ...order)).toBe('y2');
      expect(shown(lastSibling, ...order)).toBe('x3');
    }
    // x3 is a successor of x1, and no conflict; both are in conflict with y2.
    expect(conflicts(stateOf(x1), x3)).toEqual([]);
    expect(conflicts(stateOf(x3), x1)).toEqual([]);
    expect(conflicts(stateOf(y2), x3)).toHaveLength(1);
    expect(conflicts(stateOf(x1), y2)).toHaveLength(1);
  });
});
