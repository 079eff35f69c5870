import { CoregentError } from '../model/error.ts';

/**
 * The logical replication protocol's messages (PostgreSQL, "Logical Replication Message Formats"), protocol version 2, binary tuples.
 * Only what is rare is parsed into objects; row messages are walked in place by {@link locate}.
 */

/** A relation as the peer describes it, before its first row. */
export interface Relation {
  readonly id: number;
  readonly schema: string;
  readonly name: string;
  /** The type's OID and modifier are the peer's. */
  readonly columns: readonly { readonly name: string; readonly oid: number; readonly modifier: number }[];
}

/** First bytes of the messages that are used. */
export const MESSAGE = {
  begin: 0x42,
  commit: 0x43,
  origin: 0x4f,
  relation: 0x52,
  type: 0x59,
  insert: 0x49,
  update: 0x55,
  delete: 0x44,
  truncate: 0x54,
  logical: 0x4d,
  streamStart: 0x53,
  streamStop: 0x45,
  streamCommit: 0x63,
  streamAbort: 0x41,
} as const;

/** Marks of a tuple within a row message. */
export const TUPLE = { new: 0x4e, key: 0x4b, old: 0x4f } as const;

/** Length that stands for null in {@link Located}, as on the wire of COPY. */
export const NULL_LENGTH = -1;
/** Length that stands for a TOAST value that the update did not touch: unknown, not null. */
export const UNCHANGED_LENGTH = -2;

const BINARY = 0x62;
const TEXT = 0x74;
const NULL = 0x6e;
const UNCHANGED = 0x75;
const MAX_COLUMNS = 1664;

/** Where each column of one tuple lies. Reused from row to row. Ahead of every value stand four bytes, its length. */
export interface Located {
  /** The bytes looked at last, and a view of them. */
  bytes: Buffer;
  view: DataView;
  count: number;
  /** Columns whose value the update did not send. */
  unchanged: number;
  /** Columns in text form: of types without a binary one. */
  texts: number;
  readonly start: Int32Array;
  readonly length: Int32Array;
}

/** An empty scratch for {@link locate}. */
export function emptyLocated(): Located {
  const bytes = Buffer.alloc(0);
  const columns = { start: new Int32Array(MAX_COLUMNS), length: new Int32Array(MAX_COLUMNS) };
  return { bytes, view: dataView(bytes), count: 0, unchanged: 0, texts: 0, ...columns };
}

/** A view of the bytes, which reads and writes numbers much faster than `Buffer` does. */
export function dataView(bytes: Buffer): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The view of the bytes that rows lie in: many lie in one chunk. */
export function viewOf(at: Located, bytes: Buffer): DataView {
  if (at.bytes !== bytes) {
    at.bytes = bytes;
    at.view = dataView(bytes);
  }
  return at.view;
}

/**
 * Finds the columns of the tuple at `at`; returns the offset behind it.
 * Throws `peer_protocol` for a tuple that does not fit its message.
 */
export function locate(bytes: Buffer, at: number, end: number, into: Located): number {
  const view = viewOf(into, bytes);
  const count = view.getInt16(at);
  if (count < 0 || count > MAX_COLUMNS) throw violation(`a tuple of ${count} columns`);
  let pos = at + 2;
  let unchanged = 0;
  let texts = 0;
  for (let column = 0; column < count; column++) {
    const kind = bytes[pos++];
    if (kind === BINARY || kind === TEXT) {
      if (kind === TEXT) texts++;
      const length = view.getInt32(pos);
      pos += 4;
      if (length < 0 || pos + length > end)
        throw violation(`a column of ${length} bytes that its message does not hold`);
      into.start[column] = pos;
      into.length[column] = length;
      pos += length;
    } else if (kind === NULL) {
      into.length[column] = NULL_LENGTH;
    } else if (kind === UNCHANGED) {
      into.length[column] = UNCHANGED_LENGTH;
      unchanged++;
    } else {
      throw violation(`a column of kind ${kind === undefined ? 'nothing' : JSON.stringify(String.fromCharCode(kind))}`);
    }
  }
  if (pos > end) throw violation('a tuple that ends behind its message');
  into.count = count;
  into.unchanged = unchanged;
  into.texts = texts;
  return pos;
}

/** Skips a tuple; returns the offset behind it. */
export function skipTuple(bytes: Buffer, at: number, end: number): number {
  const count = bytes.readInt16BE(at);
  let pos = at + 2;
  for (let column = 0; column < count; column++) {
    const kind = bytes[pos++];
    if (kind === NULL || kind === UNCHANGED) continue;
    pos += 4 + bytes.readInt32BE(pos);
    if (pos > end) throw violation('a tuple that ends behind its message');
  }
  return pos;
}

/**
 * The value of one column of the tuple at `at`, of which nothing else is looked at; undefined for null, a value that was not
 * sent, or a column that is not there.
 */
export function valueAt(bytes: Buffer, at: number, end: number, wanted: number): Buffer | undefined {
  const count = bytes.readInt16BE(at);
  let pos = at + 2;
  for (let column = 0; column < count; column++) {
    const kind = bytes[pos++];
    const length = kind === NULL || kind === UNCHANGED ? -1 : bytes.readInt32BE(pos);
    const start = length < 0 ? pos : pos + 4;
    pos = start + Math.max(0, length);
    if (pos > end) throw violation('a tuple that ends behind its message');
    if (column === wanted) return length < 0 ? undefined : bytes.subarray(start, pos);
  }
  return undefined;
}

/** Parses a Relation message that begins at `at` (behind its first byte). */
export function parseRelation(bytes: Buffer, at: number, end: number): Relation {
  const id = bytes.readUInt32BE(at);
  const [schema, afterSchema] = cstring(bytes, at + 4, end);
  const [name, afterName] = cstring(bytes, afterSchema, end);
  const count = bytes.readInt16BE(afterName + 1);
  const columns: { name: string; oid: number; modifier: number }[] = [];
  let pos = afterName + 3;
  for (let column = 0; column < count; column++) {
    const [columnName, after] = cstring(bytes, pos + 1, end);
    columns.push({ name: columnName, oid: bytes.readUInt32BE(after), modifier: bytes.readInt32BE(after + 4) });
    pos = after + 8;
  }
  if (pos > end) throw violation('a relation that ends behind its message');
  // An empty schema on the wire means pg_catalog.
  return { id, schema: schema === '' ? 'pg_catalog' : schema, name, columns };
}

function cstring(bytes: Buffer, at: number, end: number): [string, number] {
  const zero = bytes.indexOf(0, at);
  if (zero < 0 || zero >= end) throw violation('a name without an end');
  return [bytes.toString('utf8', at, zero), zero + 1];
}

/** The error for a peer that does not speak the protocol. */
export function violation(what: string): CoregentError {
  return new CoregentError('peer_protocol', `the peer sent ${what}`);
}

const EPOCH_2000_MS = 946_684_800_000;

/** The protocol's timestamp at this offset (microseconds since 2000-01-01 UTC) in milliseconds since 1970. */
export function protocolTimeMs(bytes: Buffer, at: number): number {
  return (bytes.readInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4)) / 1000 + EPOCH_2000_MS;
}
