import { PARENT, type Table, tombstoneName, VERSION } from '../../src/model/table.ts';
import { MESSAGE, TUPLE } from '../../src/wire/pgoutput.ts';

/**
 * What a publisher says, written the way PostgreSQL documents it ("Logical Replication Message Formats", version 1, binary),
 * and on purpose not by the code that reads it.
 */

/** One value of a tuple: bytes, null, or a TOAST value that the update did not touch. */
export type Cell = Buffer | null | 'unchanged';

export const int4 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
};

export const int8 = (value: bigint | number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64BE(BigInt(value));
  return bytes;
};

export const text = (value: string): Buffer => Buffer.from(value, 'utf8');

const byte = (value: number): Buffer => Buffer.from([value]);

const int2 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2);
  bytes.writeInt16BE(value);
  return bytes;
};

const name = (value: string): Buffer => Buffer.from(`${value}\0`, 'utf8');

const MICROS_1970_TO_2000 = 946_684_800_000_000n;

/** Begin. `finalLsn` is where the commit record begins. */
export function begin(finalLsn: bigint, atMs = 0): Buffer {
  return Buffer.concat([byte(MESSAGE.begin), int8(finalLsn), int8(time(atMs)), int4(7)]);
}

/** Commit. `endLsn` is where the commit record ends. */
export function commit(endLsn: bigint, atMs = 0): Buffer {
  return Buffer.concat([byte(MESSAGE.commit), byte(0), int8(endLsn - 1n), int8(endLsn), int8(time(atMs))]);
}

function time(atMs: number): bigint {
  return BigInt(atMs) * 1000n - MICROS_1970_TO_2000;
}

/** A relation with these columns, in the peer's order. */
export function relation(id: number, schema: string, table: string, columns: readonly string[]): Buffer {
  const described = columns.map((column) => Buffer.concat([byte(0), name(column), int4(25), int4(-1)]));
  return Buffer.concat([
    byte(MESSAGE.relation),
    int4(id),
    name(schema),
    name(table),
    Buffer.from('d'),
    int2(columns.length),
    ...described,
  ]);
}

export function insert(id: number, cells: readonly Cell[]): Buffer {
  return Buffer.concat([byte(MESSAGE.insert), int4(id), byte(TUPLE.new), tuple(cells)]);
}

/** An update; `old` is what the replica identity adds: the key when it changed, or the whole old row. */
export function update(
  id: number,
  cells: readonly Cell[],
  old?: { readonly mark: 'key' | 'old'; readonly cells: readonly Cell[] },
): Buffer {
  const before = old ? [byte(TUPLE[old.mark]), tuple(old.cells)] : [];
  return Buffer.concat([byte(MESSAGE.update), int4(id), ...before, byte(TUPLE.new), tuple(cells)]);
}

function tuple(cells: readonly Cell[]): Buffer {
  const parts = cells.map((cell) => {
    if (cell === null) return Buffer.from('n');
    if (cell === 'unchanged') return Buffer.from('u');
    return Buffer.concat([Buffer.from('b'), int4(cell.length), cell]);
  });
  return Buffer.concat([int2(cells.length), ...parts]);
}

/** The relation ids that {@link describeTable} gives. */
export const ROWS = 1;
export const TOMBSTONES = 2;

/** The Relation messages of a replicated table and its tombstones. */
export function describeTable(table: Table): Buffer[] {
  const names = table.columns.map((column) => column.name);
  return [
    relation(ROWS, table.schema, table.name, [...names, VERSION, PARENT]),
    relation(TOMBSTONES, 'coregent', tombstoneName(table), [...table.key, VERSION, PARENT]),
  ];
}

const uint4 = (...values: number[]): Buffer => {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value, 4 * index);
  return bytes;
};

/** A transaction as it is streamed while it runs (protocol version 2), one part of it rolled back to a savepoint. */
export function streamed(
  transaction: number,
  messages: readonly Buffer[],
  rolledBack: readonly Buffer[],
  endLsn: bigint,
): Buffer[] {
  const within = (subtransaction: number) => (message: Buffer) =>
    Buffer.concat([message.subarray(0, 1), uint4(subtransaction), message.subarray(1)]);
  const streamStart = Buffer.concat([byte(MESSAGE.streamStart), uint4(transaction), byte(1)]);
  const streamStop = byte(MESSAGE.streamStop);
  return [
    streamStart,
    ...rolledBack.map(within(transaction + 1)),
    streamStop,
    Buffer.concat([byte(MESSAGE.streamAbort), uint4(transaction, transaction + 1)]),
    streamStart,
    ...messages.map(within(transaction)),
    streamStop,
    Buffer.concat([
      byte(MESSAGE.streamCommit),
      uint4(transaction),
      byte(0),
      int8(endLsn - 10n),
      int8(endLsn),
      int8(time(0)),
    ]),
  ];
}
