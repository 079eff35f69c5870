import { CoregentError, classify } from '../model/error.ts';
import { VERSION } from '../model/table.ts';
import { asTombstones, type Group, type Staging } from '../pipe/batch.ts';
import { recordArrayHeader, Tuples } from '../wire/tuples.ts';
import type { Step } from './script.ts';
import type { Target } from './target.ts';

/** What a statement must know of the group that its rows came in. */
export type GroupKind = Pick<Group, 'kind' | 'unknown'>;

/** Deletes before updates before inserts: what a delete frees, an insert may take. */
export function inOrder(groups: readonly Group[]): Group[] {
  const rank = { tombstone: 0, update: 1, insert: 2 };
  return [...groups].sort((a, b) => rank[a.kind] - rank[b.kind]);
}

/** The statement of the clean way; its count says how many rows it settled. */
export function cleanStep({ compiled, rowTypeOid, tombstoneTypeOid }: Target, group: GroupKind, records: Tuples): Step {
  if (group.kind === 'tombstone') return { text: compiled.deleteClean, values: [arrayOf(tombstoneTypeOid, records)] };
  const text = group.kind === 'insert' ? compiled.insertClean : compiled.updateClean(group.unknown);
  return { text, values: [arrayOf(rowTypeOid, records)] };
}

/** The same, failing unless every row of the group is settled by it. */
export function wholeStep({ compiled, rowTypeOid, tombstoneTypeOid }: Target, group: GroupKind, records: Tuples): Step {
  const count = String(records.live);
  if (group.kind === 'tombstone') {
    return { text: compiled.deleteAll, values: [arrayOf(tombstoneTypeOid, records), count] };
  }
  const text = group.kind === 'insert' ? compiled.insertAll : compiled.updateAll(group.unknown);
  return { text, values: [arrayOf(rowTypeOid, records), count] };
}

/** The tombstone records of the keys of rows in `record` form. */
export function keysOf(staging: Staging, records: Tuples): Tuples {
  return asTombstones(staging, {
    kind: 'update',
    unknown: [],
    tuples: records,
    firsts: new Map(),
    mark: 0,
    touched: false,
  });
}

export function arrayOf(oid: number, records: Tuples): Buffer[] {
  return [recordArrayHeader(oid, records.live), records.bytes()];
}

export function tuplesOf(rows: readonly Buffer[]): Tuples {
  const tuples = new Tuples(64);
  for (const row of rows) {
    const to = tuples.reserve(row.length);
    row.copy(to, tuples.length);
    tuples.endRow(tuples.length + row.length);
  }
  return tuples;
}

export function versionOf(target: Target, group: GroupKind, row: Buffer): bigint {
  const columns = group.kind === 'tombstone' ? target.compiled.tombstoneColumns : target.compiled.rowColumns;
  let at = 8;
  for (const name of columns) {
    const length = row.readInt32BE(at + 4);
    if (name === VERSION) return row.readBigInt64BE(at + 8);
    at += 8 + Math.max(0, length);
  }
  return 0n;
}

/** The key of a row in `record` form, as text that is the same for the same bytes. */
export function keyOf({ staging }: Target, group: GroupKind, row: Buffer): string {
  const keyAt = group.kind === 'tombstone' ? [...staging.keyAt.keys()] : staging.keyAt;
  const last = Math.max(...keyAt);
  const ends: [number, number][] = [];
  let at = 8;
  for (let column = 0; column <= last; column++) {
    const length = Math.max(0, row.readInt32BE(at + 4));
    ends.push([at + 8, at + 8 + length]);
    at += 8 + length;
  }
  return keyAt
    .map((column) => row.toString('latin1', ...ends[column]!))
    .map((text) => `${text.length}:${text}`)
    .join('');
}

/** The versions of live rows as text of an `int8[]`. */
export function versionsOf(target: Target, group: GroupKind, records: Tuples): string {
  return `{${[...records.liveRows()].map((row) => versionOf(target, group, row)).join(',')}}`;
}

/** Whether a unique or an exclusion constraint stood in the way. */
export function isUniqueViolation(error: unknown): boolean {
  const code = (error as { code?: string } | undefined)?.code;
  return code === '23505' || code === '23P01';
}

/** Whether a foreign key stood in the way. */
export function isForeignViolation(error: unknown): boolean {
  const code = (error as { code?: string } | undefined)?.code;
  return code === '23503' || code === '23001';
}

/** SQLSTATE classes that say something of a row, not of the moment; XX000 is a value that the server itself cannot read back. */
const ROW_FAULTS = /^(22|23|42|44|2B|P0|XX000|XX001|54)/;

/** SQLSTATEs of what keeps a row out only as long as other rows are as they are, as SQL: a foreign key, a unique value, an exclusion. */
export const RETRIED = `'23503', '23001', '23505', '23P01'`;

/** Of these, what says that the catalog, a table or a grant is not there: all rows would be parked for it, none at fault. */
const STATEMENT_FAULTS = /^(42P01|42703|42501)$/;

/** A statement's error as what the agent should do about it. */
export function applyError(error: Error): CoregentError {
  const { code = '', where } = error as { code?: string; where?: string };
  // With a context it was raised within a function of the application's, such as one that a check calls: for that row alone.
  const own = STATEMENT_FAULTS.test(code) && where === undefined;
  if (ROW_FAULTS.test(code) && !own) return new CoregentError('apply_failed', error.message, { cause: error });
  return classify(error);
}
