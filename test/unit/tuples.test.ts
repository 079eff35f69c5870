import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { copyStream, recordArrayHeader, Tuples } from '../../src/wire/tuples.ts';

function add(tuples: Tuples, row: Uint8Array): void {
  tuples.reserve(row.length).set(row, tuples.length);
  tuples.endRow(tuples.length + row.length);
}

type Step = { do: 'add'; row: Uint8Array } | { do: 'kill' | 'revive' | 'truncate'; at: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ do: fc.constant('add' as const), row: fc.uint8Array({ maxLength: 20 }) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constantFrom('kill' as const, 'revive' as const, 'truncate' as const),
      at: fc.nat({ max: 30 }),
    }),
  },
);

describe('Tuples', () => {
  it('holds exactly the rows added, less the dead and the truncated ones', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const tuples = new Tuples(4);
        let model: { row: Uint8Array; dead: boolean }[] = [];
        for (const each of steps) {
          if (each.do === 'add') {
            add(tuples, each.row);
            model.push({ row: each.row, dead: false });
          } else if (each.do === 'truncate') {
            tuples.truncate(each.at);
            model = model.slice(0, each.at);
          } else if (each.at < model.length) {
            tuples[each.do](each.at);
            model[each.at]!.dead = each.do === 'kill';
          }
        }
        const live = model.filter(({ dead }) => !dead).map(({ row }) => Buffer.from(row));
        expect(tuples.rows).toBe(model.length);
        expect(tuples.live).toBe(live.length);
        expect(tuples.length).toBe(model.reduce((sum, { row }) => sum + row.length, 0));
        expect(tuples.bytes().equals(Buffer.concat(live))).toBe(true);
        expect([...tuples.liveRows()].map((row) => row.toString('hex'))).toEqual(
          live.map((row) => row.toString('hex')),
        );
        for (const [index, { row, dead }] of model.entries()) {
          expect(tuples.row(index).equals(row)).toBe(true);
          expect(tuples.isDead(index)).toBe(dead);
        }
      }),
    );
  });

  it('grows past its first capacity without losing a byte', () => {
    const tuples = new Tuples(1);
    for (let row = 0; row < 100; row++) add(tuples, Buffer.alloc(100, row));
    for (let row = 0; row < 100; row++) expect(tuples.row(row).equals(Buffer.alloc(100, row))).toBe(true);
  });
});

it('a COPY stream is the signature, the rows and the trailer', () => {
  const bytes = Buffer.concat(copyStream(Buffer.from('rows')));
  expect(bytes.subarray(0, 11).toString('latin1')).toBe('PGCOPY\n\xff\r\n\0');
  expect(bytes.readInt32BE(11)).toBe(0);
  expect(bytes.readInt32BE(15)).toBe(0);
  expect(bytes.subarray(19, 23).toString()).toBe('rows');
  expect(bytes.readInt16BE(23)).toBe(-1);
  expect(bytes.length).toBe(25);
});

it('an array header is what array_recv reads: one dimension, no nulls, type, count, lower bound 1', () => {
  const header = recordArrayHeader(4_000_000_000, 3);
  expect([0, 4, 12, 16].map((at) => header.readInt32BE(at))).toEqual([1, 0, 3, 1]);
  expect(header.readUInt32BE(8)).toBe(4_000_000_000);
});
