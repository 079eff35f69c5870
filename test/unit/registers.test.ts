import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { makeVersion, regionOf, type Version } from '../../src/model/version.ts';
import { type Doc, textOf } from '../../src/resolve/maps.ts';
import {
  conflict,
  deleted,
  imageOf,
  inserted,
  join,
  joinRows,
  MERGED,
  type Row,
  type Shape,
  type State,
  stateOf,
  UNKNOWN,
  updated,
  type Values,
  valuesOf,
  visible,
  type Write,
} from '../../src/resolve/registers.ts';
import { contains, covers } from '../../src/resolve/vector.ts';
import { editText } from '../../src/text.ts';

const RUNS = Number(process.env.COREGENT_RUNS ?? 120);

const SHAPE: Shape = {
  registers: ['a', 'b'],
  counters: ['n'],
  sets: ['tags'],
  maps: ['doc'],
  maxima: ['high'],
  minima: ['low'],
  texts: ['body'],
};
const REGIONS = [1, 2, 3];
const ELEMENTS = ['x', 'y', 'z'];

/** What an application changes in a row; what is left out stays. */
interface Change {
  readonly a?: string | undefined;
  readonly b?: string | undefined;
  readonly n?: bigint | undefined;
  readonly add?: string | undefined;
  readonly remove?: string | undefined;
  readonly doc?: { readonly path: readonly string[]; readonly to: Doc | undefined } | undefined;
  readonly high?: bigint | undefined;
  /** Put into the document `body`; `null`: it is none any more. */
  readonly edit?: string | undefined;
}

type Step =
  | { readonly do: 'put'; readonly at: number; readonly change: Change }
  | { readonly do: 'delete'; readonly at: number }
  | { readonly do: 'hear'; readonly at: number; readonly from: number };

const place = fc.constantFrom(...REGIONS);
const some = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: undefined });
const change: fc.Arbitrary<Change> = fc.record({
  a: some(fc.constantFrom('p', 'q', 'r')),
  b: some(fc.constantFrom('p', 'q', 'r')),
  n: some(fc.bigInt({ min: -5n, max: 5n })),
  add: some(fc.constantFrom(...ELEMENTS)),
  remove: some(fc.constantFrom(...ELEMENTS)),
  doc: some(
    fc.record({
      path: fc.array(fc.constantFrom('k', 'k', 'l'), { maxLength: 3 }),
      to: fc.constantFrom(undefined, undefined, '1', '2', new Map(), new Map([['k', '3']])),
    }),
  ),
  high: some(fc.bigInt({ min: 0n, max: 9n })),
  edit: some(fc.constantFrom('u', 'v', 'null')),
});
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('put' as const), at: place, change }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('delete' as const), at: place }) },
  { weight: 5, arbitrary: fc.record({ do: fc.constant('hear' as const), at: place, from: place }) },
);
const histories = fc.array(step, { minLength: 2, maxLength: 25 });

const EMPTY: Values = {
  registers: { a: '', b: '' },
  counters: { n: 0n },
  sets: { tags: [] },
  maps: { doc: undefined },
  bounds: { high: 0n, low: 9n },
  texts: { body: null },
};

function changed(values: Values, { a, b, n = 0n, add, remove, doc, high, edit }: Change): Values {
  const tags = [...values.sets.tags!, ...(add === undefined ? [] : [add])].filter((each) => each !== remove);
  return {
    registers: { a: a ?? values.registers.a!, b: b ?? values.registers.b! },
    counters: { n: values.counters.n! + n },
    sets: { tags },
    maps: { doc: doc ? put(values.maps.doc, doc.path, doc.to) : values.maps.doc },
    bounds: { high: high ?? values.bounds.high!, low: 9n - (high ?? 0n) },
    texts: { body: edit === undefined ? values.texts!.body! : edited(values.texts!.body!, edit) },
  };
}

function edited(body: string | null, edit: string): string | null {
  if (edit === 'null') return null;
  const document = editText(body === null ? null : Buffer.from(body, 'base64'), [{ at: 0, insert: edit }]);
  return Buffer.from(document).toString('base64');
}

/** The document with something else at this path, or without it. */
function put(doc: Doc | undefined, [key, ...rest]: readonly string[], to: Doc | undefined): Doc | undefined {
  if (key === undefined) return to;
  const keys = new Map(typeof doc === 'string' ? [] : doc);
  const below = put(keys.get(key), rest, to);
  keys.delete(key);
  return below === undefined ? keys : keys.set(key, below);
}

/** What a write says of a document: of a path that it is a value, an object, or nothing. */
interface Said {
  readonly path: readonly string[];
  readonly version: Version;
  readonly is: string;
}

const isObject = (doc: Doc | undefined): doc is ReadonlyMap<string, Doc> => doc instanceof Map;

/** Read from the documents alone: `before` is undefined where there was no row. */
function saidBy(
  before: Doc | undefined,
  after: Doc | undefined,
  version: Version,
  path: readonly string[] = [],
): readonly Said[] {
  const below = (key: string): readonly Said[] =>
    saidBy(isObject(before) ? before.get(key) : undefined, isObject(after) ? after.get(key) : undefined, version, [
      ...path,
      key,
    ]);
  if (isObject(after)) {
    const keys = new Set([...(isObject(before) ? before.keys() : []), ...after.keys()]);
    return [...(isObject(before) ? [] : [{ path, version, is: 'object' }]), ...[...keys].flatMap(below)];
  }
  return before === after ? [] : [{ path, version, is: after ?? 'nothing' }];
}

/** The document that all this comes to, by definition. */
function docBy(said: readonly Said[], path: readonly string[] = [], floor: Version = -1n): Doc | undefined {
  const alive = said.filter(({ version }) => version >= floor);
  const puts = alive.filter((each) => each.path.length === path.length && each.is !== 'object');
  const last = puts.reduce<Said | undefined>((a, b) => (a && a.version > b.version ? a : b), undefined);
  const over = last?.version ?? floor;
  const within = alive.filter(
    ({ path: { length }, is, version }) => version > over && (length > path.length || is === 'object'),
  );
  if (within.length === 0) return last && last.is !== 'nothing' ? last.is : undefined;
  const inside = within.filter((each) => each.path.length > path.length);
  const keys = [...new Set(inside.map((each) => each.path[path.length]!))];
  const shown = keys.map((key) => {
    return [
      key,
      docBy(
        inside.filter((each) => each.path[path.length] === key),
        [...path, key],
        over,
      ),
    ] as const;
  });
  return new Map(shown.filter((entry): entry is [string, Doc] => entry[1] !== undefined));
}

/** A write with what its region knew when it wrote. */
interface Told {
  readonly write: Write;
  readonly change: Change;
  readonly before: State;
  readonly after: State;
  /** Of its document. */
  readonly said: readonly Said[];
}

interface Played {
  readonly writes: readonly Told[];
  /** What was known somewhere at some time. */
  readonly states: readonly State[];
}

const docIn = (row: Row | undefined): Doc | undefined => row && valuesOf(SHAPE, row).maps.doc;
const at = (doc: Doc | undefined, [key, ...rest]: readonly string[]): Doc | undefined =>
  key === undefined ? doc : at(isObject(doc) ? doc.get(key) : undefined, rest);

/** Plays a history of one key in memory. Clocks are one step apart, so that versions say nothing of who saw whom. */
function play(history: readonly Step[]): Played {
  const known = new Map<number, State>(REGIONS.map((region) => [region, UNKNOWN]));
  const states: State[] = [];
  const writes: Told[] = [];
  for (const [index, step] of history.entries()) {
    const before = known.get(step.at)!;
    const row = visible(before);
    const version = makeVersion(BigInt(index + 1), step.at);
    let write: Write | undefined;
    if (step.do === 'hear') {
      known.set(step.at, join(SHAPE, before, known.get(step.from)!));
    } else if (step.do === 'delete') {
      if (row) write = { kind: 'delete', tombstone: deleted(row, version, before.tombstone) };
    } else if (row) {
      write = { kind: 'row', row: updated(SHAPE, row, changed(valuesOf(SHAPE, row), step.change), version) };
    } else {
      const values = changed(EMPTY, step.change);
      write = { kind: 'row', row: inserted(SHAPE, values, version, { buried: before.tombstone?.version }) };
    }
    if (write) {
      known.set(step.at, join(SHAPE, before, stateOf(write)));
      const change = step.do === 'put' ? step.change : {};
      const said = write.kind === 'row' ? saidBy(docIn(row), docIn(write.row), version) : [];
      writes.push({ write, change, before, after: known.get(step.at)!, said });
    }
    states.push(known.get(step.at)!);
  }
  return { writes, states };
}

const told = ({ row, tombstone }: State): unknown => [
  row && [row.version, row.parent, row.plain, imageOf(row)],
  tombstone && [tombstone.version, tombstone.parent, [...tombstone.seen].sort()],
];
/** What can be told of a state from outside: a row that is buried may be forgotten. */
const shown = (state: State): unknown => told({ ...state, row: visible(state) });
const joinAll = (states: readonly State[]): State => states.reduce((a, b) => join(SHAPE, a, b), UNKNOWN);
const shuffled = (count: number) =>
  fc.shuffledSubarray(
    Array.from({ length: count }, (_, index) => index),
    { minLength: count },
  );
const versionOf = (write: Write): Version => (write.kind === 'row' ? write.row.version : write.tombstone.version);

describe('rows joined part by part', () => {
  it('INV-C: the join is commutative, associative and idempotent, and forgetting what is buried changes nothing', () => {
    fc.assert(
      fc.property(histories, fc.nat(), fc.nat(), fc.nat(), (history, i, j, k) => {
        const { states } = play(history);
        const [a, b, c] = [i, j, k].map((index) => states[index % states.length]!) as [State, State, State];
        const bare = (state: State): State => ({ ...state, row: visible(state) });
        expect(told(join(SHAPE, a, a))).toEqual(told(a));
        expect(told(join(SHAPE, a, b))).toEqual(told(join(SHAPE, b, a)));
        expect(told(join(SHAPE, join(SHAPE, a, b), c))).toEqual(told(join(SHAPE, a, join(SHAPE, b, c))));
        expect(shown(join(SHAPE, bare(a), bare(b)))).toEqual(shown(join(SHAPE, a, b)));
      }),
      { numRuns: RUNS },
    );
  });

  it('INV-C: whoever heard the same writes shows the same, in any order, twice, alone or together with what was known', () => {
    const cases = histories.chain((history) => {
      const played = play(history);
      return fc.record({ played: fc.constant(played), order: shuffled(played.writes.length) });
    });
    fc.assert(
      fc.property(cases, ({ played, order }) => {
        const alone = joinAll(played.writes.map(({ write }) => stateOf(write)));
        const mixed = joinAll([...order, ...order.slice(0, 3)].map((index) => stateOf(played.writes[index]!.write)));
        expect(shown(mixed)).toEqual(shown(alone));
        expect(shown(joinAll(played.states))).toEqual(shown(alone));
      }),
      { numRuns: RUNS },
    );
  });

  it('a row is stored as one write made it if and only if one write saw all that is in it', () => {
    fc.assert(
      fc.property(histories, (history) => {
        const { writes, states } = play(history);
        const rows = new Map(
          writes.flatMap(({ write }) => (write.kind === 'row' ? [[write.row.version, write.row]] : [])),
        );
        for (const { row } of states) {
          if (!row) continue;
          const simple = [...rows.values()].find((each) => imageOf(each) === imageOf(row));
          if (simple) expect(row).toEqual(simple);
          else expect(row.parent).toBe(MERGED);
          expect(row.version).toBe([...row.seen.values()].sort((a, b) => (a < b ? 1 : -1))[0]);
        }
      }),
      { numRuns: RUNS },
    );
  });

  it('INV-L: a value that is gone was replaced by who saw it, or its loss is a conflict wherever the two meet', () => {
    fc.assert(
      fc.property(histories, (history) => {
        const { writes } = play(history);
        for (const one of writes) {
          for (const other of writes) {
            if (one === other) continue;
            const state = stateOf(one.write);
            const met = conflict(SHAPE, state, other.write);
            const sees = (a: Write, b: Write): boolean =>
              covers(a.kind === 'row' ? a.row.seen : a.tombstone.seen, versionOf(b));
            if (sees(one.write, other.write) || sees(other.write, one.write)) expect(met).toBeUndefined();
            if (one.write.kind !== 'row' || other.write.kind !== 'row') continue;
            if (sees(one.write, other.write) || sees(other.write, one.write)) continue;
            const [mine, theirs] = [one.write.row, other.write.row];
            const joined = valuesOf(SHAPE, joinRows(SHAPE, mine, theirs));
            const gone = (of: Row, against: Row): boolean =>
              of.life === against.life &&
              SHAPE.registers.some((name) => {
                const written = of.registers.get(name)!;
                return joined.registers[name] !== written.value && !covers(against.seen, written.version);
              });
            const goneIn = (told: Told, of: Row, against: Row): boolean =>
              of.life === against.life &&
              told.said.some(({ path, is }) => {
                const found = at(joined.maps.doc, path);
                return (isObject(found) ? 'object' : (found ?? 'nothing')) !== is;
              });
            if (goneIn(one, mine, theirs)) expect(['apply', 'merge']).toContain(met?.outcome);
            if (goneIn(other, theirs, mine)) expect(['keep', 'merge']).toContain(met?.outcome);
            if (gone(mine, theirs)) expect(['apply', 'merge']).toContain(met?.outcome);
            if (gone(theirs, mine)) expect(['keep', 'merge']).toContain(met?.outcome);
            if (mine.life !== theirs.life) expect(met?.outcome).toBe(mine.life < theirs.life ? 'apply' : 'keep');
          }
        }
      }),
      { numRuns: RUNS },
    );
  });

  it('A16: counters are the sum of the deltas of their life, sets keep every add that no remove had seen, other columns survive', () => {
    fc.assert(
      fc.property(histories, (history) => {
        const { writes, states } = play(history);
        const row = visible(joinAll(states));
        if (!row) return;
        const values = valuesOf(SHAPE, row);
        const mine = writes.filter(({ after }) => after.row?.life === row.life && covers(row.seen, after.row.version));
        const living = mine.filter(({ write }) => write.kind === 'row');
        expect(values.counters.n).toBe(living.reduce((sum, { change }) => sum + (change.n ?? 0n), 0n));
        for (const element of ELEMENTS) {
          const has = (state: State): boolean => visible(state)?.sets.get('tags')?.has(element) ?? false;
          const adds = living.filter(
            ({ before, after }) => has(after) && !(has(before) && before.row?.life === row.life),
          );
          const removes = living.filter(({ before, after }) => has(before) && !has(after));
          const stands = adds.some(
            (add) =>
              !removes.some(({ before }) => {
                const saw = before.row!.sets.get('tags')!.get(element)!;
                return covers(before.row!.seen, versionOf(add.write)) && saw.length > 0;
              }),
          );
          expect(values.sets.tags!.includes(element)).toBe(stands);
        }
        for (const name of SHAPE.registers) {
          const written = living.filter(({ before, after }) => {
            const old = before.row?.life === row.life ? visible(before) : undefined;
            return old?.registers.get(name)?.value !== after.row!.registers.get(name)!.value;
          });
          expect(values.registers[name]).toBe(written.at(-1)!.after.row!.registers.get(name)!.value);
        }
        expect(textOf(values.maps.doc)).toBe(textOf(docBy(living.flatMap(({ said }) => said))));
        const highs = living.map(({ after }) => after.row!.bounds.get('high')!);
        expect(highs).toContain(values.bounds.high);
        expect(highs.some((high) => high > values.bounds.high!)).toBe(false);
        expect(
          contains(row.seen, new Map(living.map(({ write }) => [regionOf(versionOf(write)), versionOf(write)]))),
        ).toBe(true);
      }),
      { numRuns: RUNS },
    );
  });

  it('A9: a delete ends what it had not seen too, and an insert behind it begins anew', () => {
    const [one, two] = REGIONS.map((region) => (time: bigint) => makeVersion(time, region));
    const born = inserted(SHAPE, { ...EMPTY, counters: { n: 10n } }, one!(1n));
    const more = updated(SHAPE, born, { ...EMPTY, counters: { n: 15n } }, two!(9n));
    const gone = deleted(born, one!(2n));
    const again = inserted(SHAPE, EMPTY, one!(3n), { buried: gone.version });
    const all: Write[] = [
      { kind: 'row', row: born },
      { kind: 'row', row: more },
      { kind: 'delete', tombstone: gone },
      { kind: 'row', row: again },
    ];
    expect(visible(joinAll(all.map(stateOf)))).toEqual(again);
    expect(visible(joinAll([...all].reverse().map(stateOf)))).toEqual(again);
    expect(conflict(SHAPE, stateOf(all[1]!), all[2]!)).toMatchObject({
      kind: 'delete_origin_differs',
      outcome: 'apply',
    });
    expect(conflict(SHAPE, stateOf(all[2]!), all[1]!)).toMatchObject({ kind: 'update_missing', outcome: 'keep' });
  });

  it('H5: a delete that was forgotten everywhere but here does not end what was inserted behind it elsewhere', () => {
    const tombstone = deleted(inserted(SHAPE, EMPTY, makeVersion(1n, 1)), makeVersion(2n, 1));
    const row = inserted(SHAPE, EMPTY, makeVersion(5n, 2), { horizon: makeVersion(3n, 3) });
    expect(visible(join(SHAPE, { row: undefined, tombstone }, { row, tombstone: undefined }))).toEqual(row);
  });
});
