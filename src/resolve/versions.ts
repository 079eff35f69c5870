import { NO_PARENT, regionOf, type Version } from '../model/version.ts';
import { covers, joinVectors, NOTHING_SEEN, type Vector, withWrite } from './vector.ts';

/**
 * The rules `fww`, `siblings` and `custom` read in memory: the specification. They keep concurrent versions of a row side by side,
 * and show a pure function of them. `compile-versions.ts` reads the same into SQL; `test/property/versions.test.ts` proves on real
 * PostgreSQL that the readings are equal. `docs/convergence.md` says why the join converges.
 *
 * Every write knows which writes its author had seen (a dotted version vector; Preguiça, Baquero, Almeida, Fonte and Gonçalves, 2010):
 * so of two writes one is a successor of the other, or they are concurrent, and which it is can be told exactly.
 */

/** The parent of a row that shows several versions. */
export const MERGED: Version = -2n;

/** One delete, or what several of them come to: the last one's version and parent, and what all of them had seen. */
export interface Burial {
  readonly version: Version;
  /** The version that it replaced. */
  readonly parent: Version;
  /** What its author had seen, itself included. */
  readonly seen: Vector;
}

/** One write of a whole row, with its text as PostgreSQL prints it (`row(…)::text`, columns by name). */
export interface Sibling extends Burial {
  readonly value: string;
}

/** What a region knows of one key. */
export interface State {
  /** The writes that nobody who is known here had seen, by version. At most one of each region. */
  readonly versions: readonly Sibling[];
  readonly buried: Burial | undefined;
}

/** One write as it reaches a region. */
export type Write = ({ readonly kind: 'insert' | 'update' } & Sibling) | ({ readonly kind: 'delete' } & Burial);

/** What a region knows of a key that it never heard of. */
export const UNKNOWN: State = { versions: [], buried: undefined };

/** What a region knows of a key when it knows nothing but this write. */
export function stateOf(write: Write): State {
  const { version, parent, seen } = write;
  if (write.kind === 'delete') return { versions: [], buried: { version, parent, seen } };
  return { versions: [{ version, parent, seen, value: write.value }], buried: undefined };
}

/** The least state that knows all that both know: what no write and no delete that is known had seen stays. */
export function join(a: State, b: State): State {
  const buried = joinBurials(a.buried, b.buried);
  const all = withoutTwins([...a.versions, ...b.versions]);
  const versions = all.filter(
    ({ version }) =>
      !covers(buried?.seen ?? NOTHING_SEEN, version) &&
      !all.some((other) => other.version !== version && covers(other.seen, version)),
  );
  return { versions, buried };
}

function joinBurials(a: Burial | undefined, b: Burial | undefined): Burial | undefined {
  if (!a || !b) return a ?? b;
  const last = a.version < b.version ? b : a;
  return { version: last.version, parent: last.parent, seen: joinVectors(a.seen, b.seen) };
}

/** By version; of equal versions (a restored backup, rows older than replication) the one whose text is the greatest in the collation C. */
function withoutTwins(all: readonly Sibling[]): Sibling[] {
  const sorted = [...all].sort((a, b) => compare(a.version, b.version) || compareTexts(b.value, a.value));
  return sorted.filter(({ version }, index) => sorted[index - 1]?.version !== version);
}

function compare(a: Version, b: Version): number {
  return a < b ? -1 : Number(a > b);
}

function compareTexts(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

/** All that was seen by whoever has seen this state. */
export function seenBy({ versions, buried }: State): Vector {
  return versions.reduce((seen, each) => joinVectors(seen, each.seen), buried?.seen ?? NOTHING_SEEN);
}

/** What a table shows of several versions, in the order of their versions. */
export interface Shown {
  /** The application's columns as text. */
  readonly value: string;
  /** The version of the write that has them; undefined where the rule made them. */
  readonly version: Version | undefined;
}
export type Shows = (versions: readonly Sibling[]) => Shown;

/** `fww`: the one that was written first. */
export const firstWrite: Shows = (versions) => versions[0]!;

/** `siblings`: the one that was written last, while all are there to be seen. */
export const lastSibling: Shows = (versions) => versions.at(-1)!;

/** The version and the parent of the row that a table shows for this state, undefined where there is none. */
export function stamps({ versions }: State): { readonly version: Version; readonly parent: Version } | undefined {
  const last = versions.at(-1);
  return last && { version: last.version, parent: versions.length > 1 ? MERGED : last.parent };
}

/**
 * The parent of an application's next write of this key: the write whose values the row shows, else the delete, else none.
 * Values that an update leaves out are those of its parent.
 */
export function replaced({ versions, buried }: State, shows: Shows): Version {
  if (versions.length === 0) return buried?.version ?? NO_PARENT;
  return (versions.length > 1 ? shows(versions).version : versions[0]!.version) ?? NO_PARENT;
}

/** Versions that the next write must be greater than. */
export function floors(state: State): Version[] {
  return [...seenBy(state).values()];
}

/** What an application's write of this version has seen in a region that knows this state. */
export function seenAfter(state: State, version: Version): Vector {
  return withWrite(seenBy(state), version);
}

/** What most writes have seen: themselves, what they replaced, and all that was before these in the same regions. */
export function seenFrom(version: Version, parent: Version): Vector {
  return withWrite(parent < 0n ? NOTHING_SEEN : new Map([[regionOf(parent), parent]]), version);
}

/** A conflict as it is recorded, named as PostgreSQL 18 names it. */
export interface Conflict {
  readonly kind: 'insert_exists' | 'update_origin_differs' | 'update_missing' | 'delete_origin_differs';
  readonly localVersion: Version;
  readonly incomingVersion: Version;
}

/**
 * The conflicts that `write` meets in a region that knows `state`: one for each version there with which it is concurrent, if it is new. A delete that meets a delete is none. Equal versions of different rows are one: they must never be, and are shown.
 */
export function conflicts(state: State, write: Write): Conflict[] {
  const { buried, versions } = state;
  const met = (kind: Conflict['kind'], local: Version): Conflict => ({
    kind,
    localVersion: local,
    incomingVersion: write.version,
  });
  if (write.kind === 'delete') {
    return versions
      .filter((local) => isConcurrent(local, write))
      .map(({ version }) => met('delete_origin_differs', version));
  }
  if (buried && covers(buried.seen, write.version)) return [];
  const kind = write.kind === 'insert' ? 'insert_exists' : 'update_origin_differs';
  const same = versions.find(({ version }) => version === write.version);
  if (same) return same.value === write.value ? [] : [met(kind, write.version)];
  if (versions.some(({ seen }) => covers(seen, write.version))) return [];
  if (versions.length > 0) {
    return versions.filter((local) => isConcurrent(local, write)).map(({ version }) => met(kind, version));
  }
  return buried && isConcurrent(buried, write) && buried.version > -write.parent
    ? [met('update_missing', buried.version)]
    : [];
}

function isConcurrent(a: Burial, b: Burial): boolean {
  return !covers(a.seen, b.version) && !covers(b.seen, a.version);
}
