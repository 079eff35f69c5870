import { regionOf, type Version } from '../model/version.ts';

/**
 * The rule `lww` read in memory: the specification. `compile.ts` reads the same rule into SQL;
 * `test/property/convergence.test.ts` proves on real PostgreSQL that the readings are equal.
 * `docs/convergence.md` says why a join of such states converges.
 */

/** The last write that a register saw. */
export interface Register {
  readonly version: Version;
  /** The version that this write replaced; no write’s version when it replaced none. */
  readonly parent: Version;
}

/** A row, with its text as PostgreSQL prints it (`row(…)::text`, columns by name). */
export interface Row extends Register {
  readonly value: string;
}

/** What a region knows of one key. The row may be there although the key is deleted: see {@link visible}. */
export interface State {
  readonly row: Row | undefined;
  readonly tombstone: Register | undefined;
}

/** One write as it reaches a region; `first` is what the first of several collapsed writes replaced, else the parent. */
export type Write =
  | ({ readonly kind: 'insert' | 'update'; readonly first: Version } & Row)
  | ({ readonly kind: 'delete'; readonly first: Version } & Register);

/** What a region knows of a key that it never heard of. */
export const UNKNOWN: State = { row: undefined, tombstone: undefined };

/** What a region knows of a key when it knows nothing but this write. */
export function stateOf(write: Write): State {
  const { version, parent } = write;
  if (write.kind === 'delete') return { row: undefined, tombstone: { version, parent } };
  return { row: { version, parent, value: write.value }, tombstone: undefined };
}

/** The least state that knows all that both know: the greater row and the greater tombstone. */
export function join(a: State, b: State): State {
  return { row: greater(a.row, b.row, compareRows), tombstone: greater(a.tombstone, b.tombstone, compareVersions) };
}

/** The row that the table shows: there is one only while it is newer than the tombstone. */
export function visible({ row, tombstone }: State): Row | undefined {
  return row && (!tombstone || row.version > tombstone.version) ? row : undefined;
}

/** A conflict as it is recorded, named as PostgreSQL 18 names it. */
export interface Conflict {
  readonly kind: 'insert_exists' | 'update_origin_differs' | 'update_missing' | 'delete_origin_differs';
  /** `apply`: the incoming write is what stays. `keep`: what was here is. */
  readonly outcome: 'apply' | 'keep';
  readonly localVersion: Version;
  readonly incomingVersion: Version;
}

/**
 * The conflict that `write` meets in a region that knows `state`, if any: neither writer had seen the other's write.
 * A delete that meets a delete is none. Equal versions of different rows are one: they must never be, and are shown.
 */
export function conflict(state: State, write: Write): Conflict | undefined {
  const row = visible(state);
  if (write.kind === 'delete') {
    if (!row || !concurrent(write, row)) return undefined;
    return met('delete_origin_differs', row, write, row.version <= write.version);
  }
  if (row) {
    const order = compareRows(row, write);
    const same = row.version === write.version;
    if (same ? order === 0 : !concurrent(write, row)) return undefined;
    return met(write.kind === 'insert' ? 'insert_exists' : 'update_origin_differs', row, write, order < 0);
  }
  const { tombstone } = state;
  if (!tombstone || !concurrent(write, tombstone) || forgot(write, tombstone)) return undefined;
  return met('update_missing', tombstone, write, tombstone.version < write.version);
}

function met(kind: Conflict['kind'], local: Register, write: Write, applies: boolean): Conflict {
  return { kind, outcome: applies ? 'apply' : 'keep', localVersion: local.version, incomingVersion: write.version };
}

/** Whether neither write replaced the other, as far as a version, its region and its parent can tell. */
function concurrent(write: Write, local: Register): boolean {
  return !hadSeen(write, local) && local.parent !== write.version;
}

/** Whether the writer had seen what is here: it replaced it, or it wrote both. */
export function hadSeen(write: Write, local: Register): boolean {
  const { version } = local;
  return version === write.first || version === write.parent || regionOf(version) === regionOf(write.version);
}

/** Whether the writer had forgotten the delete: an insert without a parent carries, negated, up to which version its region had forgotten deletes, having seen all of them. */
export function forgot(write: { readonly first: Version }, { version }: { readonly version: Version }): boolean {
  return version <= -write.first;
}

function greater<T>(a: T | undefined, b: T | undefined, compare: (a: T, b: T) => number): T | undefined {
  if (!a || !b) return a ?? b;
  return compare(a, b) < 0 ? b : a;
}

function compareVersions(a: Register, b: Register): number {
  return a.version < b.version ? -1 : Number(a.version > b.version);
}

/** By version; equal versions by the rows' text in the collation C, which is the order of its bytes. */
export function compareRows(a: Row, b: Row): number {
  return compareVersions(a, b) || Buffer.compare(Buffer.from(a.value), Buffer.from(b.value));
}
