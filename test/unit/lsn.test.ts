import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatLsn, LSN_ZERO, laterLsn, lsnOf, parseLsn } from '../../src/model/lsn.ts';

const lsn = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(lsnOf);

describe('LSN', () => {
  it('printed and parsed again is the same position', () => {
    fc.assert(fc.property(lsn, (position) => parseLsn(formatLsn(position)) === position));
  });

  it('prints as PostgreSQL does: upper-case hex without leading zeros', () => {
    expect(formatLsn(LSN_ZERO)).toBe('0/0');
    expect(formatLsn(lsnOf(0x16b374d848n))).toBe('16/B374D848');
    expect(formatLsn(lsnOf(2n ** 64n - 1n))).toBe('FFFFFFFF/FFFFFFFF');
    expect(parseLsn('16/b374d848')).toBe(0x16b374d848n);
  });

  it('is ordered as a number, never as text: 9/0 is before 10/0', () => {
    expect(parseLsn('9/0') < parseLsn('10/0')).toBe(true);
    expect('9/0' < '10/0').toBe(false);
    fc.assert(
      fc.property(lsn, lsn, (a, b) => {
        const later = laterLsn(a, b);
        return later >= a && later >= b && (later === a || later === b);
      }),
    );
  });

  it.each(['', '16', '16/', '/16', '16/B374D848 ', '1/2/3', 'G/0', '123456789/0', '0/123456789', '-1/0'])(
    'refuses %j',
    (text) => {
      expect(() => parseLsn(text)).toThrow(RangeError);
    },
  );
});
