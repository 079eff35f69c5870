import { describe, expect, it } from 'vitest';
import { CoregentError } from '../../src/model/error.ts';
import { type Blocked, Held } from '../../src/pg/held.ts';
import type { GroupKind } from '../../src/pg/steps.ts';
import type { Target } from '../../src/pg/target.ts';

/** A table of a key and a text, with version, parent and first behind them. */
const target = { staging: { table: { oid: 1 }, keyAt: [0] } } as unknown as Target;
const ROW: GroupKind = { kind: 'update', unknown: [] };
const TOMBSTONE: GroupKind = { kind: 'tombstone', unknown: [] };

const int8 = (value: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64BE(BigInt(value));
  return bytes;
};

function record(values: readonly Buffer[]): Buffer {
  const parts = values.map((value) => {
    const head = Buffer.alloc(8);
    head.writeInt32BE(value.length, 4);
    return Buffer.concat([head, value]);
  });
  return Buffer.concat([Buffer.alloc(8), ...parts]);
}

const write = (key: number, version: number, first: number, group = ROW, text = 'x'): Blocked => {
  const stamps = [version, version - 1, first].map(int8);
  const row = record(group === ROW ? [int8(key), Buffer.from(text), ...stamps] : [int8(key), ...stamps]);
  return { target, group, row, failure: new CoregentError('apply_failed', 'no place') };
};
const firstOf = ({ row }: { row: Buffer }): number => Number(row.readBigInt64BE(row.length - 8));

describe('rows that found no place yet', () => {
  it('the last one of each key is held', () => {
    const held = new Held();
    held.add(write(1, 10, 9));
    held.add(write(2, 20, 19));
    held.add(write(1, 30, 9));
    expect(held.take().map(({ row }) => row)).toEqual([write(2, 20, 19).row, write(1, 30, 9).row]);
    expect(held.take()).toEqual([]);
  });

  it('a later write of a key takes the place of what is held, and had seen what that had seen', () => {
    const held = new Held();
    held.add(write(1, 10, 9));
    held.add(write(2, 20, 19));
    const [[tombstone], [row, other]] = held.replace([
      [write(1, 30, 10, TOMBSTONE)],
      [write(1, 40, 10), write(3, 50, 49)],
    ]) as [Blocked[], Blocked[]];
    expect([tombstone!, row!, other!].map(firstOf)).toEqual([9, 9, 49]);
    expect(held.take().map(({ row }) => row)).toEqual([write(2, 20, 19).row]);
  });

  it('a row does not take the place of a tombstone of its key', () => {
    const held = new Held();
    held.add(write(1, 10, 9, TOMBSTONE));
    held.replace([[write(1, 20, 9)]]);
    expect(held.take()).toHaveLength(1);
  });

  it('no more than 5000 rows or 16 MiB are held, whatever the transaction', () => {
    const held = new Held();
    for (let key = 1; key < 5_000; key++) held.add(write(key, 10, 9));
    expect(held.full).toBe(false);
    held.add(write(5_000, 10, 9));
    expect(held.full).toBe(true);
    held.clear();
    const long = 'x'.repeat(2 ** 20);
    for (let key = 1; key < 16; key++) held.add(write(key, 10, 9, ROW, long));
    for (let version = 11; version < 30; version++) held.add(write(1, version, 9, ROW, long));
    expect(held.full).toBe(false);
    held.add(write(16, 10, 9, ROW, long));
    expect(held.full).toBe(true);
  });
});
