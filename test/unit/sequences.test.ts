import { describe, expect, it } from 'vitest';
import type { Sequence } from '../../src/pg/details.ts';
import { sequenceWarnings } from '../../src/pg/sequences.ts';

const REGIONS = ['tokyo', 'frankfurt', 'virginia', 'sydney'];
const INT4 = 2_147_483_647n;

function sequence(last: bigint, increment = 1n, max = INT4): Sequence {
  return { schema: 'public', name: 'a_id_seq', column: 'id', last, increment, max };
}

const warnings = (...sequences: (Sequence | undefined)[]) =>
  sequenceWarnings(
    'public.a',
    REGIONS,
    sequences.map((each) => (each ? [each] : [])),
  );

describe('C11: sequences of one column in several regions', () => {
  it('that step alike and apart from each other are right, also downwards', () => {
    expect(warnings(sequence(1n, 4n), sequence(2n, 4n), sequence(103n, 4n), sequence(0n, 4n))).toEqual([]);
    expect(warnings(sequence(-1n, -2n), sequence(-2n, -2n))).toEqual([]);
    expect(warnings(sequence(7n), undefined)).toEqual([]);
  });

  it.each([
    ['one apart, in steps of one', [sequence(1n), sequence(2n)]],
    ['in different steps', [sequence(1n, 2n), sequence(2n, 3n)]],
    ['on one track', [sequence(1n, 3n), sequence(2n, 3n), sequence(4n, 3n)]],
  ])('meet %s: the cure lets each go its own way, beyond all that was given', (_what, sequences) => {
    const { cure } = warnings(...sequences)[0]!;
    expect(cure.map(({ region }) => region)).toEqual(REGIONS.slice(0, sequences.length));
    const begins = cure.map(({ sql }) => BigInt(sql.match(/restart with (\d+)$/)![1]!));
    const steps = cure.map(({ sql }) => BigInt(sql.match(/increment by (\d+)/)![1]!));
    for (const begin of begins) expect(begin).toBeGreaterThan(1000n);
    expect(warnings(...begins.map((begin, index) => sequence(begin - steps[index]!, steps[index]!)))).toEqual([]);
  });

  it('of numbers that run out are told so, without a cure in sequences', () => {
    const [warning] = warnings(sequence(1n), sequence(2n), sequence(3n), sequence(INT4 - 600n));
    expect(warning).toMatchObject({ code: 'sequence_collides', cure: [] });
    expect(warning!.message).toContain(
      'Numbers up to 2147483647 do not suffice to tell the regions apart: make the column bigint',
    );
  });
});
