import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CoregentError } from '../../src/model/error.ts';
import {
  emptyLocated,
  locate,
  NULL_LENGTH,
  parseRelation,
  protocolTimeMs,
  skipTuple,
  UNCHANGED_LENGTH,
} from '../../src/wire/pgoutput.ts';
import { begin, type Cell, commit, insert, relation } from '../property/encode.ts';

const cell: fc.Arbitrary<Cell> = fc.oneof(
  fc.uint8Array({ maxLength: 12 }).map((bytes) => Buffer.from(bytes)),
  fc.constant(null),
  fc.constant('unchanged' as const),
);

/** Where the tuple of an Insert message begins. */
const TUPLE_AT = 6;

describe('a tuple', () => {
  it('is located value by value, without reading or copying any', () => {
    fc.assert(
      fc.property(fc.array(cell, { maxLength: 10 }), fc.uint8Array(), (cells, behind) => {
        const message = insert(1, cells);
        const bytes = Buffer.concat([message, behind]);
        const at = emptyLocated();
        expect(locate(bytes, TUPLE_AT, message.length, at)).toBe(message.length);
        expect(skipTuple(bytes, TUPLE_AT, message.length)).toBe(message.length);
        expect(at.count).toBe(cells.length);
        expect(at.unchanged).toBe(cells.filter((each) => each === 'unchanged').length);
        for (const [column, expected] of cells.entries()) {
          const [start, length] = [at.start[column]!, at.length[column]!];
          if (expected === null) expect(length).toBe(NULL_LENGTH);
          else if (expected === 'unchanged') expect(length).toBe(UNCHANGED_LENGTH);
          else expect(bytes.subarray(start, start + length).equals(expected)).toBe(true);
        }
      }),
    );
  });

  it('that does not fit its message is refused, though the bytes behind would complete it', () => {
    fc.assert(
      fc.property(fc.array(cell, { minLength: 1, maxLength: 6 }), fc.nat(), (cells, cut) => {
        const message = insert(1, cells);
        const end = TUPLE_AT + 2 + (cut % (message.length - TUPLE_AT - 2));
        expect(() => locate(message, TUPLE_AT, end, emptyLocated())).toThrow(CoregentError);
      }),
    );
  });

  it('of more columns than PostgreSQL allows is refused', () => {
    const message = insert(
      1,
      Array.from({ length: 1665 }, () => null),
    );
    expect(() => locate(message, TUPLE_AT, message.length, emptyLocated())).toThrow('1665 columns');
  });
});

describe('a relation', () => {
  it('is read as described, names of any letters included', () => {
    const message = relation(4_000_000, 'öffentlich', 'größe "x"', ['id', 'naïve', '漢字']);
    expect(parseRelation(message, 1, message.length)).toEqual({
      id: 4_000_000,
      schema: 'öffentlich',
      name: 'größe "x"',
      columns: ['id', 'naïve', '漢字'].map((name) => ({ name, oid: 25, modifier: -1 })),
    });
  });

  it('without a schema is of pg_catalog', () => {
    const message = relation(1, '', 'pg_class', []);
    expect(parseRelation(message, 1, message.length).schema).toBe('pg_catalog');
  });

  it('whose name has no end is refused', () => {
    const message = relation(1, 'public', 'notes', []);
    expect(() => parseRelation(message, 1, 9)).toThrow(CoregentError);
  });
});

it('times count from 2000 on the wire and from 1970 here', () => {
  expect(protocolTimeMs(Buffer.alloc(8), 0)).toBe(Date.UTC(2000, 0));
  const at = Date.UTC(2026, 5, 1, 12, 30);
  expect(protocolTimeMs(begin(1n, at), 9)).toBe(at);
  expect(protocolTimeMs(commit(1n, at), 18)).toBe(at);
});
