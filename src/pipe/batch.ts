import type { LSN } from '../model/lsn.ts';
import { PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import type { Version } from '../model/version.ts';
import { type Located, NULL_LENGTH, UNCHANGED_LENGTH, viewOf } from '../wire/pgoutput.ts';
import { Tuples } from '../wire/tuples.ts';

/**
 * One replicated table as rows are staged for it: the order of columns in `copy` and `record` form.
 * Rows carry the application's columns, then version and parent; tombstones the key, then version and parent.
 * `record` form ends with one more column, the version that the first of several collapsed writes replaced.
 */
export interface Staging {
  readonly table: Table;
  /** Type OIDs in this region of a row's staged columns, version and parent included. */
  readonly rowOids: readonly number[];
  /** The same of a tombstone's. */
  readonly tombstoneOids: readonly number[];
  /** Positions of the key's columns among the staged columns, in key order. */
  readonly keyAt: readonly number[];
  /** Whether the key is one column of four or eight bytes always, which may be compared as a number. */
  readonly numberKey: boolean;
}

const INT8_OID = 20;
const TEXT_OID = 25;
const JSONB_OID = 3802;
/** int8, int4, oid, date, timestamp, timestamptz: four or eight bytes, equal as numbers when equal as bytes. */
const NUMBER_TYPES = new Set([20, 23, 26, 1082, 1114, 1184]);

/** The staging of a table whose staged columns are these, version and parent the last two of each. */
export function makeStaging(table: Table, rowColumns: readonly string[], tombstoneColumns: readonly string[]): Staging {
  const oids = new Map([
    ...table.columns.map(({ name, oid, asText }) => [name, asText ? TEXT_OID : oid] as const),
    ...[VERSION, PARENT].map((name) => [name, INT8_OID] as const),
    [STATE, JSONB_OID] as const,
  ]);
  return {
    table,
    rowOids: rowColumns.map((name) => oids.get(name)!),
    tombstoneOids: tombstoneColumns.map((name) => oids.get(name)!),
    keyAt: table.key.map((name) => rowColumns.indexOf(name)),
    numberKey: table.key.length === 1 && NUMBER_TYPES.has(oids.get(table.key[0]!)!),
  };
}

/** How a peer's relation maps onto a table here: where each staged column lies in the peer's tuple. */
export interface Route {
  readonly staging: Staging;
  readonly tombstone: boolean;
  /** For each staged column, its position in the peer's tuple. */
  readonly source: Int32Array;
  /** Positions in the peer's tuple of the key's columns, in key order. */
  readonly key: Int32Array;
  /** How many columns the peer's tuples have. */
  readonly columns: number;
  /** Positions in the peer's tuple of version and parent. */
  readonly version: number;
  readonly parent: number;
  /** Positions in the peer's tuple of columns that come as text; undefined where there are none. */
  readonly texts: readonly number[] | undefined;
  /** Rows that were committed before this position are of no interest. */
  readonly begins?: LSN | undefined;
}

/** Where the columns without a binary form are, `at` finding a column (negative: not there). */
export function textsOf(table: Table, at: (name: string) => number): readonly number[] | undefined {
  const texts = table.columns.flatMap(({ name, asText }) => (asText && at(name) >= 0 ? [at(name)] : []));
  return texts.length > 0 ? texts : undefined;
}

/** A relation whose rows are passed over, because its table is not alike here and at the peer: it pauses. */
export interface Passing {
  /** The table's id; see `tableId`. */
  readonly table: string;
  /** How people write its name. */
  readonly label: string;
  readonly reason: string;
  /** Position of the version in the peer's tuple; -1 when it has none. */
  readonly version: number;
  /** As of a route. */
  readonly begins?: LSN | undefined;
  /** Called with every row that is passed over. */
  readonly told?: () => void;
}

/** What a batch passes over of one table. */
export interface Passed {
  readonly label: string;
  readonly reason: string;
  /** The least version among the rows and tombstones passed over. */
  readonly least: Version;
}

/** Rows of one kind that one statement can apply. */
export interface Group {
  readonly kind: 'insert' | 'update' | 'tombstone';
  /** Staged columns whose value the peer did not send (TOAST it did not touch). */
  readonly unknown: readonly number[];
  /** `copy` form for inserts, `record` form otherwise. */
  readonly tuples: Tuples;
  /** Inserts only: rows whose first parent is not their parent. */
  readonly firsts: Map<number, Version>;
  /** Rows at the last commit. */
  mark: number;
  touched: boolean;
}

/** What a batch holds for one table: at most one live row and one live tombstone per key. */
export interface TableBatch {
  readonly staging: Staging;
  readonly groups: Group[];
  /** Key bytes to the last row or tombstone of that key: `group * ROWS + row`. */
  readonly keys: Map<string | number, number>;
  /** Key bytes to the key's live tombstone, likewise. */
  readonly tombstones: Map<string | number, number>;
}

/** More rows than a group ever has. A power of two, so that a place is a small integer where there is one group. */
const ROWS = 2 ** 32;

/** Whole transactions of one peer (or a part of one that is too large), collapsed to one write per key, as bytes. */
export class Batch {
  readonly tables = new Map<number, TableBatch>();
  /** What is passed over, by table id; only where it begins, or lies before what was passed over earlier. */
  readonly passed = new Map<string, Passed>();
  /** Rows received, before collapsing. */
  rows = 0;
  /** Bytes staged. */
  bytes = 0;
  transactions = 0;
  /** False when the batch ends inside a transaction: the next batch continues the same local transaction. */
  complete = true;
  /** The local transaction that an earlier incomplete batch began holds what must not be committed: it is rolled back first. */
  afresh = false;
  /** Where the last whole transaction ends in the peer's WAL. */
  endLsn: LSN | undefined;
  /** When the last whole transaction was committed at its origin, in ms since 1970. */
  committedAtMs = 0;
  /** The greatest version, in two halves. */
  #maxHigh = 0;
  #maxLow = 0;
  /** Groups that the open transaction has rows in: so many of these. An array made shorter for every commit is made anew each time. */
  readonly #touched: Group[] = [];
  #touches = 0;
  /** Bytes that the rows of the first group are likely to take. */
  #room: number | undefined;
  #killed: { group: Group; row: number }[] = [];

  /** `like`: a batch that this one is likely to be as large as; then its rows need not be moved again and again as it grows. */
  constructor(like?: Batch) {
    if (like && like.bytes > 0) this.#room = Math.ceil(like.bytes * 1.25);
  }

  /** The greatest version among the rows. */
  get maxVersion(): Version {
    return (BigInt(this.#maxHigh) << 32n) | BigInt(this.#maxLow);
  }

  /** Adds one row or tombstone that was located in a peer's message. */
  add(route: Route, bytes: Buffer, at: Located, update: boolean): void {
    const tables = this.tables;
    const oid = route.staging.table.oid;
    let table = tables.get(oid);
    if (table === undefined) {
      table = { staging: route.staging, groups: [], keys: new Map(), tombstones: new Map() };
      tables.set(oid, table);
    }
    this.rows++;
    const view = viewOf(at, bytes);
    const versionAt = at.start[route.version]!;
    const high = view.getUint32(versionAt);
    const low = view.getUint32(versionAt + 4);
    if (high > this.#maxHigh || (high === this.#maxHigh && low > this.#maxLow)) {
      this.#maxHigh = high;
      this.#maxLow = low;
    }

    const key = keyOf(at, route.key, route.staging.numberKey);
    const known = table.keys.get(key);
    const older = known === undefined ? undefined : table.groups[Math.floor(known / ROWS)]!;
    const olderRow = known === undefined ? 0 : known % ROWS;
    // Values that the update left alone are those of the row it replaced, which another region may have written in between.
    const linked =
      older !== undefined &&
      (at.unchanged === 0 || lastVersion(older, olderRow) === view.getBigInt64(at.start[route.parent]!));
    const first: Version | undefined = linked ? firstOf(older, olderRow) : undefined;

    let group: Group;
    if (route.tombstone) {
      group = this.#groupOf(table, 'tombstone', NOTHING);
    } else if (!update || (older !== undefined && older.kind === 'insert' && at.unchanged === 0)) {
      // An update of a row that this batch brings is, in sum, an insert.
      group = this.#groupOf(table, 'insert', NOTHING);
    } else {
      group = this.#groupOf(table, 'update', at.unchanged === 0 ? NOTHING : unknownOf(route, at));
    }
    this.#touch(group);

    const before = group.tuples.length;
    if (linked && at.unchanged > 0 && older.kind !== 'tombstone') {
      group = this.#addFilled(table, older, olderRow, route, bytes, at, first!);
    } else if (group.kind === 'insert') {
      writeCopy(group.tuples, route.source, at);
      if (first !== undefined) group.firsts.set(group.tuples.rows - 1, first);
    } else {
      writeRecord(group.tuples, route, at, first);
    }
    this.bytes += group.tuples.length - before;

    // A row and a tombstone of one key are two registers: a later row does not replace the tombstone.
    if (older !== undefined && older.kind !== 'tombstone') this.#kill(older, olderRow);
    const place = table.groups.indexOf(group) * ROWS + group.tuples.rows - 1;
    if (route.tombstone) {
      const buried = table.tombstones.get(key);
      if (buried !== undefined) this.#kill(group, buried % ROWS);
      table.tombstones.set(key, place);
    }
    table.keys.set(key, place);
  }

  #groupOf(table: TableBatch, kind: Group['kind'], unknown: readonly number[]): Group {
    for (const group of table.groups) {
      if (group.kind === kind && (group.unknown === unknown || sameNumbers(group.unknown, unknown))) return group;
    }
    const tuples = new Tuples(this.#room);
    this.#room = undefined;
    const group: Group = { kind, unknown, tuples, firsts: new Map(), mark: 0, touched: false };
    table.groups.push(group);
    return group;
  }

  #touch(group: Group): void {
    if (group.touched) return;
    group.touched = true;
    this.#touched[this.#touches++] = group;
  }

  #kill(group: Group, row: number): void {
    group.tuples.kill(row);
    this.#killed.push({ group, row });
  }

  /** An update that leaves TOAST values alone, behind a row of the same batch that may hold them: takes them from there. */
  #addFilled(
    table: TableBatch,
    older: Group,
    olderRow: number,
    route: Route,
    bytes: Buffer,
    at: Located,
    first: Version,
  ): Group {
    const values = readRow(older, olderRow);
    const staged: (Buffer | null)[] = [];
    const unknown: number[] = [];
    for (let column = 0; column < route.source.length; column++) {
      const source = route.source[column]!;
      const length = at.length[source]!;
      if (length !== UNCHANGED_LENGTH) {
        staged.push(length === NULL_LENGTH ? null : bytes.subarray(at.start[source]!, at.start[source]! + length));
      } else {
        staged.push(values[column]!);
        if (older.unknown.includes(column)) unknown.push(column);
      }
    }
    const group =
      unknown.length === 0 && older.kind === 'insert'
        ? this.#groupOf(table, 'insert', NOTHING)
        : this.#groupOf(table, 'update', unknown.length === 0 ? NOTHING : unknown);
    this.#touch(group);
    if (group.kind === 'insert') {
      writeCopyValues(group.tuples, staged);
      group.firsts.set(group.tuples.rows - 1, first);
    } else {
      writeRecordValues(group.tuples, route.staging.rowOids, staged, first);
    }
    return group;
  }

  /** The open transaction is committed: its rows are now part of the batch. */
  commit(endLsn: LSN, committedAtMs: number): void {
    for (let index = 0; index < this.#touches; index++) {
      const group = this.#touched[index]!;
      group.mark = group.tuples.rows;
      group.touched = false;
    }
    this.#touches = 0;
    if (this.#killed.length > 0) this.#killed.length = 0;
    this.transactions++;
    this.endLsn = endLsn;
    this.committedAtMs = committedAtMs;
  }

  /** Takes the rows of the open transaction out again. */
  rollback(): void {
    for (const { group, row } of this.#killed) group.tuples.revive(row);
    for (const group of this.#touched.slice(0, this.#touches)) {
      group.tuples.truncate(group.mark);
      group.touched = false;
      for (const row of group.firsts.keys()) if (row >= group.mark) group.firsts.delete(row);
    }
    this.#touches = 0;
    this.#killed.length = 0;
  }
}

const NOTHING: readonly number[] = [];

function sameNumbers(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}

function unknownOf(route: Route, at: Located): number[] {
  const unknown: number[] = [];
  for (let column = 0; column < route.source.length; column++) {
    if (at.length[route.source[column]!] === UNCHANGED_LENGTH) unknown.push(column);
  }
  return unknown;
}

/** A key's bytes as something a Map can hold. Two equal results are the same key; see {@link Table.exactKey} for the reverse. */
function keyOf(at: Located, key: Int32Array, number: boolean): string | number {
  const { bytes, view } = at;
  const only = key[0]!;
  if (key.length === 1) {
    const start = at.start[only]!;
    const length = at.length[only]!;
    if (number && length === 4) return view.getInt32(start);
    if (number && length === 8) {
      const high = view.getInt32(start);
      if (high >= -1_048_576 && high < 1_048_576) return high * 4_294_967_296 + view.getUint32(start + 4);
    }
    return bytes.toString('latin1', start, start + length);
  }
  let text = '';
  for (const column of key) {
    const length = at.length[column]!;
    text += `${length}:${bytes.toString('latin1', at.start[column]!, at.start[column]! + length)}`;
  }
  return text;
}

/** A value longer than this is copied faster by the buffer's own means, whose price is in the call. */
const LONG = 256;

/** Writes a column's length and value; both lie behind each other where the row lies as they will here. */
function writeColumn(to: DataView, pos: number, at: Located, column: number): number {
  const length = at.length[column]!;
  if (length < 0) {
    to.setInt32(pos, -1);
    return pos + 4;
  }
  const start = at.start[column]!;
  return copyBytes(at, start - 4, start + length, to, pos);
}

function copyBytes(at: Located, start: number, end: number, to: DataView, pos: number): number {
  if (end - start > LONG) {
    new Uint8Array(to.buffer, to.byteOffset + pos).set(at.bytes.subarray(start, end));
    return pos + end - start;
  }
  const from = at.view;
  let read = start;
  let written = pos;
  for (; read + 4 <= end; read += 4, written += 4) to.setInt32(written, from.getInt32(read));
  for (; read < end; read++, written++) to.setUint8(written, from.getUint8(read));
  return written;
}

/** No less than the values of a row take, with their lengths. */
function sizeOf(source: Int32Array, at: Located): number {
  let size = 4 * source.length;
  for (let index = 0; index < source.length; index++) {
    const length = at.length[source[index]!]!;
    if (length > 0) size += length;
  }
  return size;
}

function writeCopy(tuples: Tuples, source: Int32Array, at: Located): void {
  const to = tuples.reserveView(2 + sizeOf(source, at));
  let pos = tuples.length;
  to.setInt16(pos, source.length);
  pos += 2;
  for (let index = 0; index < source.length; index++) pos = writeColumn(to, pos, at, source[index]!);
  tuples.endRow(pos);
}

function writeRecord(tuples: Tuples, route: Route, at: Located, first: Version | undefined): void {
  const { source } = route;
  const oids = route.tombstone ? route.staging.tombstoneOids : route.staging.rowOids;
  const count = source.length;
  const to = tuples.reserveView(8 + 4 * count + sizeOf(source, at) + 16);
  const begin = tuples.length;
  to.setInt32(begin + 4, count + 1);
  let pos = begin + 8;
  for (let index = 0; index < count; index++) {
    to.setInt32(pos, oids[index]!);
    pos = writeColumn(to, pos + 4, at, source[index]!);
  }
  to.setInt32(pos, INT8_OID);
  if (first === undefined) {
    pos = writeColumn(to, pos + 4, at, route.parent);
  } else {
    to.setInt32(pos + 4, 8);
    to.setBigInt64(pos + 8, first);
    pos += 16;
  }
  to.setInt32(begin, pos - begin - 4);
  tuples.endRow(pos);
}

function writeInt32(to: Buffer, value: number, at: number): number {
  to[at] = value >>> 24;
  to[at + 1] = value >>> 16;
  to[at + 2] = value >>> 8;
  to[at + 3] = value;
  return at + 4;
}

function writeCopyValues(tuples: Tuples, values: readonly (Buffer | null)[]): void {
  const to = tuples.reserve(2 + 4 * values.length + values.reduce((sum, value) => sum + (value?.length ?? 0), 0));
  let pos = to.writeInt16BE(values.length, tuples.length);
  for (const value of values) {
    pos = writeInt32(to, value === null ? -1 : value.length, pos);
    if (value !== null) pos += value.copy(to, pos);
  }
  tuples.endRow(pos);
}

function writeRecordValues(
  tuples: Tuples,
  oids: readonly number[],
  values: readonly (Buffer | null)[],
  first: Version,
): void {
  const size = values.reduce((sum, value) => sum + (value?.length ?? 0), 0);
  const to = tuples.reserve(8 + 8 * values.length + size + 16);
  const begin = tuples.length;
  let pos = writeInt32(to, values.length + 1, begin + 4);
  for (let index = 0; index < values.length; index++) {
    const value = values[index]!;
    pos = writeInt32(to, oids[index]!, pos);
    pos = writeInt32(to, value === null ? -1 : value.length, pos);
    if (value !== null) pos += value.copy(to, pos);
  }
  pos = writeInt32(to, INT8_OID, pos);
  pos = writeInt32(to, 8, pos);
  pos = to.writeBigInt64BE(first, pos);
  writeInt32(to, pos - begin - 4, begin);
  tuples.endRow(pos);
}

/** The staged values of a row that a group holds; copies, so that the group may grow. */
export function readRow(group: Group, row: number): (Buffer | null)[] {
  const bytes = group.tuples.row(row);
  const record = group.kind !== 'insert';
  let pos = record ? 8 : 2;
  const count = record ? bytes.readInt32BE(4) - 1 : bytes.readInt16BE(0);
  const values: (Buffer | null)[] = [];
  for (let column = 0; column < count; column++) {
    if (record) pos += 4;
    const length = bytes.readInt32BE(pos);
    pos += 4;
    values.push(length < 0 ? null : Buffer.from(bytes.subarray(pos, pos + length)));
    if (length > 0) pos += length;
  }
  return values;
}

/** The version that the first of the collapsed writes behind this row replaced. */
function firstOf(group: Group, row: number): Version {
  const known = group.firsts.get(row);
  if (known !== undefined) return known;
  const bytes = group.tuples.row(row);
  return bytes.readBigInt64BE(bytes.length - 8);
}

/** The version of a row that a group holds. */
function lastVersion(group: Group, row: number): Version {
  const bytes = group.tuples.row(row);
  // Version, parent (and first) end every row: each an int8 behind its length (and type).
  return bytes.readBigInt64BE(bytes.length - (group.kind === 'insert' ? 20 : 40));
}

/** The rows of an insert group in `record` form. */
export function asRecords(staging: Staging, group: Group): Tuples {
  if (group.kind !== 'insert') return group.tuples;
  const records = new Tuples();
  for (let row = 0; row < group.tuples.rows; row++) {
    if (group.tuples.isDead(row)) continue;
    writeRecordValues(records, staging.rowOids, readRow(group, row), firstOf(group, row));
  }
  return records;
}

/** The keys, versions and parents of a group's rows, in the `record` form of tombstones; without a state, which tells of the row. */
export function asTombstones(staging: Staging, group: Group): Tuples {
  const records = new Tuples();
  const count = staging.rowOids.length;
  const { keyAt, tombstoneOids } = staging;
  const none = tombstoneOids.slice(keyAt.length, -2).map(() => null);
  for (let row = 0; row < group.tuples.rows; row++) {
    if (group.tuples.isDead(row)) continue;
    const values = readRow(group, row);
    const key = keyAt.map((column) => values[column]!);
    writeRecordValues(records, tombstoneOids, [...key, ...none, ...values.slice(count - 2)], firstOf(group, row));
  }
  return records;
}
