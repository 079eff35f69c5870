import { regionOf, type Version } from '../model/version.ts';
import { mergeTexts } from '../text.ts';
import {
  type Doc,
  docOf,
  joinNodes,
  lostNodes,
  type MapNode,
  plainNode,
  rewritten,
  storedNode,
  textOf,
} from './maps.ts';
import { contains, covers, joinVectors, NOTHING_SEEN, type Vector, withWrite } from './vector.ts';

/**
 * Rows that are joined part by part, read in memory: the rule `columns`, and the column rules `counter`, `set`, `map`, `max`, `min`, `text`.
 * The specification; `compile-registers.ts` reads it into SQL, `pg/stamp-registers.ts` into triggers. `docs/convergence.md` says why it converges.
 */

/** The parent of a row that is no single write's: the join of several. */
export const MERGED: Version = -2n;
/** The parent of a write that replaced such a row: no version stands for all that it saw. */
export const REPLACED_MERGED: Version = -3n;

/** What a table's rows are made of. Names are columns; a register may stand for several, as `*` does for all that have no rule. */
export interface Shape {
  readonly registers: readonly string[];
  /** Registers that share a constraint: whoever writes one of them writes all. */
  readonly groups?: readonly (readonly string[])[];
  readonly counters: readonly string[];
  readonly sets: readonly string[];
  readonly maps: readonly string[];
  readonly maxima: readonly string[];
  readonly minima: readonly string[];
  readonly texts?: readonly string[];
}

/** The last value that a register was given, as text. */
export interface Register {
  readonly version: Version;
  readonly value: string;
}

/** What one region has added to a counter, with the version of its last write of it. */
export interface Share {
  readonly version: Version;
  readonly share: bigint;
}

/** A row from its insert to its delete, as far as somebody knows it. */
export interface Life {
  /** The delete that the insert followed; 0 without one. Rows of one life are joined part by part, of two the later one stays. */
  readonly life: Version;
  /** Deletes up to here were known and forgotten where it was inserted. */
  readonly horizon: Version;
  /** The version of registers that were not written since the insert. */
  readonly base: Version;
  readonly registers: ReadonlyMap<string, Register>;
  readonly counters: ReadonlyMap<string, ReadonlyMap<number, Share>>;
  /** Of each element the versions of the writes that added it, ascending. */
  readonly sets: ReadonlyMap<string, ReadonlyMap<string, readonly Version[]>>;
  readonly maps: ReadonlyMap<string, MapNode | undefined>;
  readonly bounds: ReadonlyMap<string, bigint>;
  /** Of each text the documents that nobody who wrote one had seen, by version, in base64; null: none was written. */
  readonly texts: ReadonlyMap<string, ReadonlyMap<Version, string | null>>;
  /** The writes that are in it. */
  readonly seen: Vector;
}

/** A row as it is stored. */
export interface Row extends Life {
  readonly version: Version;
  readonly parent: Version;
  /** It is an insert, and stored without its state. */
  readonly plain: boolean;
}

/** A delete, and what its region had seen of the key. */
export interface Tombstone {
  readonly version: Version;
  readonly parent: Version;
  readonly seen: Vector;
}

/** What a region knows of one key. The row may be there although the key is deleted: see {@link visible}. */
export interface State {
  readonly row: Row | undefined;
  readonly tombstone: Tombstone | undefined;
}

export const UNKNOWN: State = { row: undefined, tombstone: undefined };

/** What an application puts into a row. */
export interface Values {
  readonly registers: Readonly<Record<string, string>>;
  readonly counters: Readonly<Record<string, bigint>>;
  readonly sets: Readonly<Record<string, readonly string[]>>;
  readonly maps: Readonly<Record<string, Doc | undefined>>;
  readonly bounds: Readonly<Record<string, bigint>>;
  /** In base64. */
  readonly texts?: Readonly<Record<string, string | null>>;
}

const mapOf = <T, U>(names: readonly T[], make: (name: T) => U): Map<T, U> => new Map(names.map((n) => [n, make(n)]));
const boundsOf = ({ maxima, minima }: Shape): readonly string[] => [...maxima, ...minima];
const textsOf = ({ texts = [] }: Shape): readonly string[] => texts;

/** The row that an insert makes. `buried`: the tombstone under its key; `horizon`: what deletes were forgotten here. */
export function inserted(
  shape: Shape,
  values: Values,
  version: Version,
  { buried, horizon = 0n }: { readonly buried?: Version | undefined; readonly horizon?: Version } = {},
): Row {
  const parent = buried ?? (horizon > 3n ? -horizon : -1n);
  return { ...plainRow(shape, values, version, parent), plain: true };
}

/** A row without a state, read: all that is in it is of one write. */
export function plainRow(shape: Shape, values: Values, version: Version, parent: Version): Row {
  const region = regionOf(version);
  return {
    version,
    parent,
    plain: true,
    life: parent > 0n ? parent : 0n,
    horizon: parent < REPLACED_MERGED ? -parent : 0n,
    base: version,
    registers: mapOf(shape.registers, (name) => ({ version, value: values.registers[name]! })),
    counters: mapOf(shape.counters, (name) => new Map([[region, { version, share: values.counters[name]! }]])),
    sets: mapOf(shape.sets, (name) => new Map([...new Set(values.sets[name]!)].map((element) => [element, [version]]))),
    maps: mapOf(shape.maps, (name) => plainNode(values.maps[name], version)),
    bounds: mapOf(boundsOf(shape), (name) => values.bounds[name]!),
    texts: mapOf(textsOf(shape), (name) => new Map([[version, values.texts![name]!]])),
    seen: new Map([[region, version]]),
  };
}

/** The row after a write of this version that set these values, whatever it meant by it: what differs is what it wrote. */
export function updated(shape: Shape, old: Row, values: Values, version: Version): Row {
  const region = regionOf(version);
  const before = valuesOf(shape, old);
  return {
    ...old,
    version,
    parent: replaced(old),
    plain: false,
    registers: mapOf(shape.registers, (name) => {
      const group = shape.groups?.find((names) => names.includes(name)) ?? [name];
      const written = group.some((each) => values.registers[each] !== before.registers[each]);
      return written ? { version, value: values.registers[name]! } : old.registers.get(name)!;
    }),
    counters: mapOf(shape.counters, (name) => {
      const shares = old.counters.get(name)!;
      const delta = values.counters[name]! - before.counters[name]!;
      if (delta === 0n) return shares;
      return new Map(shares).set(region, { version, share: (shares.get(region)?.share ?? 0n) + delta });
    }),
    sets: mapOf(shape.sets, (name) => {
      const elements = old.sets.get(name)!;
      return new Map([...new Set(values.sets[name]!)].map((each) => [each, elements.get(each) ?? [version]]));
    }),
    maps: mapOf(shape.maps, (name) => rewritten(old.maps.get(name), values.maps[name], version)),
    bounds: mapOf(boundsOf(shape), (name) => bound(shape, name, old.bounds.get(name)!, values.bounds[name]!)),
    texts: mapOf(textsOf(shape), (name) => {
      const value = values.texts![name]!;
      return value === before.texts![name] ? old.texts.get(name)! : new Map([[version, value]]);
    }),
    seen: withWrite(old.seen, version),
  };
}

/** The tombstone that a delete of this row leaves, where `before` is the tombstone that is there already. */
export function deleted(old: Row, version: Version, before?: Tombstone): Tombstone {
  const seen = joinVectors(before?.seen ?? NOTHING_SEEN, old.seen);
  return { version, parent: replaced(old), seen: withWrite(seen, version) };
}

/** The parent of a write that replaces this row. */
function replaced({ version, parent }: Row): Version {
  return parent === MERGED ? REPLACED_MERGED : version;
}

/** What the columns show. */
export function valuesOf(shape: Shape, row: Row): Values {
  const from = <T>(names: readonly string[], value: (name: string) => T): Record<string, T> =>
    Object.fromEntries(names.map((name) => [name, value(name)]));
  return {
    registers: from(shape.registers, (name) => row.registers.get(name)!.value),
    counters: from(shape.counters, (name) => {
      let sum = 0n;
      for (const { share } of row.counters.get(name)!.values()) sum += share;
      return sum;
    }),
    sets: from(shape.sets, (name) =>
      [...row.sets.get(name)!]
        .sort((a, b) => compare(a[1][0]!, b[1][0]!) || compareText(a[0], b[0]))
        .map(([each]) => each),
    ),
    maps: from(shape.maps, (name) => docOf(row.maps.get(name))),
    bounds: from(boundsOf(shape), (name) => row.bounds.get(name)!),
    texts: from(textsOf(shape), (name) => shownText(row.texts.get(name)!)),
  };
}

/** A document that was written alone is shown as it is, several are merged in the order of their versions. */
function shownText(documents: ReadonlyMap<Version, string | null>): string | null {
  const inOrder = [...documents].sort(([a], [b]) => compare(a, b)).map(([, document]) => document);
  if (inOrder.length === 1) return inOrder[0]!;
  const merged = mergeTexts(inOrder.map((document) => (document === null ? null : Buffer.from(document, 'base64'))));
  return merged && Buffer.from(merged).toString('base64');
}

/** The least state that knows all that both know. */
export function join(shape: Shape, a: State, b: State): State {
  const tombstone = greater(a.tombstone, b.tombstone);
  if (!a.row || !b.row) return { row: a.row ?? b.row, tombstone };
  return { row: joinRows(shape, a.row, b.row), tombstone };
}

function greater(a: Tombstone | undefined, b: Tombstone | undefined): Tombstone | undefined {
  if (!a || !b) return a ?? b;
  return a.version < b.version ? b : a;
}

/** What one write made stays that write's, with its version and parent; what none made alone is merged. */
export function joinRows(shape: Shape, a: Row, b: Row): Row {
  if (a.life !== b.life) return a.life < b.life ? b : a;
  const life = joinLives(shape, a, b);
  if (sameLife(life, a)) return a;
  if (sameLife(life, b)) return b;
  return { ...life, version: later(a.version, b.version), parent: MERGED, plain: false };
}

function joinLives(shape: Shape, a: Life, b: Life): Life {
  return {
    life: a.life,
    horizon: later(a.horizon, b.horizon),
    base: later(a.base, b.base),
    registers: mapOf(shape.registers, (name) => laterRegister(a.registers.get(name)!, b.registers.get(name)!)),
    counters: mapOf(shape.counters, (name) => joinShares(a.counters.get(name)!, b.counters.get(name)!)),
    sets: mapOf(shape.sets, (name) =>
      joinSets({ elements: a.sets.get(name)!, seen: a.seen }, { elements: b.sets.get(name)!, seen: b.seen }),
    ),
    maps: mapOf(shape.maps, (name) => joinNodes(a.maps.get(name), b.maps.get(name))),
    bounds: mapOf(boundsOf(shape), (name) => bound(shape, name, a.bounds.get(name)!, b.bounds.get(name)!)),
    texts: mapOf(textsOf(shape), (name) =>
      joinTexts({ documents: a.texts.get(name)!, seen: a.seen }, { documents: b.texts.get(name)!, seen: b.seen }),
    ),
    seen: joinVectors(a.seen, b.seen),
  };
}

/** The greater version; of equal ones (rows older than replication) the greater text. */
function laterRegister(a: Register, b: Register): Register {
  return (compare(a.version, b.version) || compareText(a.value, b.value)) < 0 ? b : a;
}

function joinShares(a: ReadonlyMap<number, Share>, b: ReadonlyMap<number, Share>): Map<number, Share> {
  const joined = new Map(a);
  for (const [region, share] of b) {
    const mine = joined.get(region);
    if (!mine || (compare(mine.version, share.version) || compare(mine.share, share.share)) < 0)
      joined.set(region, share);
  }
  return joined;
}

interface Elements {
  readonly elements: ReadonlyMap<string, readonly Version[]>;
  readonly seen: Vector;
}

/** An add stays if both have it, or if who has not has not seen it either: else it was removed there. */
function joinSets(a: Elements, b: Elements): Map<string, readonly Version[]> {
  const joined = new Map<string, readonly Version[]>();
  for (const element of new Set([...a.elements.keys(), ...b.elements.keys()])) {
    const [mine, theirs] = [a.elements.get(element) ?? [], b.elements.get(element) ?? []];
    const adds = [
      ...mine.filter((add) => theirs.includes(add) || !covers(b.seen, add)),
      ...theirs.filter((add) => !mine.includes(add) && !covers(a.seen, add)),
    ];
    if (adds.length > 0) joined.set(element, adds.sort(compare));
  }
  return joined;
}

interface Documents {
  readonly documents: ReadonlyMap<Version, string | null>;
  readonly seen: Vector;
}

/** A document stays if both have it, or if who has not has not seen it either: else it was replaced there. Of equal versions the greater text. */
function joinTexts(a: Documents, b: Documents): ReadonlyMap<Version, string | null> {
  const joined = new Map<Version, string | null>();
  for (const version of new Set([...a.documents.keys(), ...b.documents.keys()])) {
    const replaced = [a, b].some(({ documents, seen }) => !documents.has(version) && covers(seen, version));
    if (!replaced) joined.set(version, greaterText(a.documents.get(version), b.documents.get(version)));
  }
  return joined.size > 0 ? joined : new Map([...a.documents, ...b.documents]);
}

function greaterText(a: string | null = null, b: string | null = null): string | null {
  return a === null || (b !== null && compareText(a, b) < 0) ? b : a;
}

function bound(shape: Shape, name: string, a: bigint, b: bigint): bigint {
  return shape.maxima.includes(name) === a < b ? b : a;
}

/** The row that the table shows: one whose life no delete has ended. */
export function visible({ row, tombstone }: State): Row | undefined {
  return row && (!tombstone || reach(row) >= tombstone.version) ? row : undefined;
}

/** Deletes up to this one do not end the row's life. */
function reach({ life, horizon }: Life): Version {
  return later(life, horizon);
}

/** Whether who has seen this had seen the row. Who wrote a row had seen all that is in it. */
function hadSeen(seen: Vector, { version, parent, seen: writes }: Row): boolean {
  return parent === MERGED ? contains(seen, writes) : covers(seen, version);
}

/** A row or a delete on its way. */
export type Write =
  | { readonly kind: 'row'; readonly row: Row }
  | { readonly kind: 'delete'; readonly tombstone: Tombstone };

/** What a region knows of a key when it knows nothing but this write. */
export function stateOf(write: Write): State {
  return write.kind === 'row'
    ? { row: write.row, tombstone: undefined }
    : { row: undefined, tombstone: write.tombstone };
}

/** A conflict as it is recorded: something that was written is not there any more, and nobody who replaced it had seen it. */
export interface Conflict {
  readonly kind: 'row' | 'update_missing' | 'delete_origin_differs';
  /** `apply`: what came is what stays. `keep`: what was here is. `merge`: of each a part stays, and a part is lost. */
  readonly outcome: 'apply' | 'keep' | 'merge';
  readonly localVersion: Version;
  readonly incomingVersion: Version;
}

/**
 * The conflict that `write` meets in a region that knows `state`, if any. Counters, sets and bounds lose nothing: they are no conflict,
 * as long as the row lives; of a document the paths that both wrote are one. A delete that meets a delete, or a row of a later life, is none.
 */
export function conflict(shape: Shape, state: State, write: Write): Conflict | undefined {
  const here = visible(state);
  const { tombstone } = state;
  if (write.kind === 'delete') {
    const { version, seen } = write.tombstone;
    if (!here || version <= reach(here) || hadSeen(seen, here)) return undefined;
    return { kind: 'delete_origin_differs', outcome: 'apply', localVersion: here.version, incomingVersion: version };
  }
  const { row } = write;
  const known = tombstone !== undefined && hadSeen(tombstone.seen, row);
  if (!here) {
    if (!tombstone || tombstone.version <= reach(row) || known) return undefined;
    return { kind: 'update_missing', outcome: 'keep', localVersion: tombstone.version, incomingVersion: row.version };
  }
  const met = (outcome: Conflict['outcome']): Conflict => ({
    kind: 'row',
    outcome,
    localVersion: here.version,
    incomingVersion: row.version,
  });
  if (here.life < row.life) return hadSeen(row.seen, here) ? undefined : met('apply');
  if (here.life > row.life) return known || hadSeen(here.seen, row) ? undefined : met('keep');
  const lost = { here: false, there: false };
  for (const name of shape.registers) {
    const [mine, theirs] = [here.registers.get(name)!, row.registers.get(name)!];
    const unseen =
      mine.version === theirs.version || !(covers(here.seen, theirs.version) || covers(row.seen, mine.version));
    if (mine.value === theirs.value || !unseen) continue;
    if (laterRegister(mine, theirs) === theirs) lost.here = true;
    else lost.there = true;
  }
  for (const name of shape.maps) {
    const [mine, theirs] = [here.maps.get(name), row.maps.get(name)];
    const joined = joinNodes(mine, theirs);
    if (lostNodes(mine, theirs, joined, row.seen)) lost.here = true;
    if (lostNodes(theirs, mine, joined, here.seen)) lost.there = true;
  }
  if (lost.here && lost.there) return met('merge');
  if (lost.here) return met('apply');
  return lost.there ? met('keep') : undefined;
}

/** A row's state as it is stored: `_coregent_state`; undefined where there is none. Numbers are versions or shares, as bigints. */
export function storedState(shape: Shape, row: Row): unknown {
  if (row.plain) return undefined;
  const object = <K, V, T>(entries: ReadonlyMap<K, V>, value: (of: V) => T): Record<string, T> =>
    Object.fromEntries([...entries].map(([key, each]) => [String(key), value(each)]));
  const written: (readonly [string, Version])[] = [
    ...[...row.registers].map(([name, { version }]) => [name, version] as const),
    ...[...row.texts].map(([name, documents]) => [name, [...documents.keys()].reduce(later)] as const),
  ];
  const several = [...row.texts].filter(([, documents]) => documents.size > 1);
  return {
    l: row.life,
    b: row.base,
    r: object(new Map(written.filter(([, version]) => version > row.base)), (version) => version),
    seen: object(row.seen, (version) => version),
    ...(row.horizon > 0n ? { h: row.horizon } : {}),
    ...(shape.counters.length > 0
      ? { n: object(row.counters, (shares) => object(shares, ({ version, share }) => [version, share])) }
      : {}),
    ...(several.length > 0
      ? { t: object(new Map(several), (documents) => object(documents, (document) => document)) }
      : {}),
    ...(shape.sets.length > 0 ? { s: object(row.sets, (elements) => object(elements, (adds) => adds)) } : {}),
    ...(shape.maps.length > 0 ? { m: object(row.maps, (node) => storedNode(node, row.base)) } : {}),
  };
}

function sameLife(a: Life, b: Life): boolean {
  return imageOf(a) === imageOf(b);
}

/** A text that is equal for equal lives. */
export function imageOf({ life, horizon, base, registers, counters, sets, maps, bounds, texts, seen }: Life): string {
  const sorted = (value: unknown): unknown =>
    value instanceof Map
      ? [...value]
          .map(([key, each]) => [String(key), sorted(each)])
          .sort(([a], [b]) => compareText(String(a), String(b)))
      : value;
  const documents = mapOf([...maps.keys()], (name) => {
    const node = maps.get(name);
    return [textOf(docOf(node)), sorted(treeOf(storedNode(node, base)))];
  });
  const parts = [registers, counters, sets, documents, bounds, texts, seen];
  return JSON.stringify([life, horizon, base, ...parts.map(sorted)], (_, value) =>
    typeof value === 'bigint' ? String(value) : value,
  );
}

/** Objects as maps. */
function treeOf(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  return new Map(Object.entries(value).map(([key, each]) => [key, treeOf(each)]));
}

function later(a: Version, b: Version): Version {
  return compare(a, b) < 0 ? b : a;
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : Number(a > b);
}

/** In the collation C, which is the order of the bytes. */
function compareText(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}
