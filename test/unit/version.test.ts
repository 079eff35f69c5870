import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { makeVersion, microsOf, nextVersion, regionOf, VERSION_BEFORE } from '../../src/model/version.ts';

const region = fc.integer({ min: 1, max: 127 });
const micros = fc.bigInt({ min: 0n, max: 2n ** 55n });
const version = fc.oneof(
  fc.constant(VERSION_BEFORE),
  fc.tuple(micros, region).map(([at, by]) => makeVersion(at, by)),
);

describe('a version', () => {
  it('holds its clock reading and its region', () => {
    fc.assert(
      fc.property(micros, region, (at, by) => {
        const made = makeVersion(at, by);
        expect(microsOf(made)).toBe(at);
        expect(regionOf(made)).toBe(by);
      }),
    );
  });

  it('is ordered by clock first and by region second', () => {
    expect(makeVersion(5n, 127) < makeVersion(6n, 1)).toBe(true);
    expect(makeVersion(5n, 1) < makeVersion(5n, 2)).toBe(true);
  });

  it('fits an int8 until the year 4253', () => {
    const micros = BigInt(Date.UTC(4253, 0)) * 1000n;
    expect(makeVersion(micros, 127) < 2n ** 63n).toBe(true);
  });
});

describe('the next version', () => {
  it('is after the clock and after everything seen, and is the region’s own', () => {
    fc.assert(
      fc.property(micros, region, fc.array(version, { maxLength: 4 }), (now, by, seen) => {
        const next = nextVersion(now, by, ...seen);
        expect(regionOf(next)).toBe(by);
        expect(microsOf(next) >= now).toBe(true);
        for (const each of seen) expect(next > each).toBe(true);
      }),
    );
  });

  it('T6: never equals what any other region could stamp, whatever it has seen', () => {
    fc.assert(
      fc.property(micros, fc.uniqueArray(region, { minLength: 2, maxLength: 2 }), version, (now, [a, b], seen) => {
        expect(nextVersion(now, a!, seen)).not.toBe(nextVersion(now, b!, seen));
      }),
    );
    // OLD + 1 would be region 4's own stamp of that very tick.
    const seen = makeVersion(1_000n, 3);
    expect(nextVersion(0n, 4, seen)).toBe(makeVersion(1_001n, 4));
    expect(seen + 1n).toBe(makeVersion(1_000n, 4));
  });

  it('grows though the clock steps back', () => {
    const ahead = makeVersion(10n ** 15n, 2);
    expect(nextVersion(5n, 1, ahead)).toBe(makeVersion(10n ** 15n + 1n, 1));
  });
});
