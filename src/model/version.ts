/**
 * A row's version: a hybrid logical clock and the region that wrote, in one int8 (Kulkarni et al., "Logical Physical Clocks", 2014).
 * High 56 bits: microseconds since 1970 UTC, pushed forward where needed so that a row's versions only grow.
 * Low 7 bits: the region's id, 1 to 127; 0 marks a row that was there before replication began.
 * Versions are totally ordered as integers, and no two writes of one key have the same.
 */
export type Version = bigint;

/** Bits that hold the region's id. */
export const REGION_BITS = 7n;
const REGION_MASK = 127n;

/** The version, and the parent, of a row that was there before replication began. */
export const VERSION_BEFORE: Version = 0n;

/** The parent of a write that replaced nothing its region knew. Not 0: that would claim to have seen a row of before. */
export const NO_PARENT: Version = -1n;

/** Versions of this time and later are taken by no region: a version must have room for greater ones. The year 3111, in microseconds since 1970. */
export const LAST_MICROS = 2n ** 55n;

/** Puts a clock reading (microseconds since 1970) and a region's id (1 to 127) together. */
export function makeVersion(micros: bigint, region: number): Version {
  return (micros << REGION_BITS) | BigInt(region);
}

/** The region that wrote this version. */
export function regionOf(version: Version): number {
  return Number(version & REGION_MASK);
}

/** The clock reading of this version, in microseconds since 1970 UTC. */
export function microsOf(version: Version): bigint {
  return version >> REGION_BITS;
}

/**
 * The next version that a region gives to a key: after the clock, and after everything the key has seen.
 * Never `seen + 1`: that would forge a stamp of the region that wrote `seen`.
 */
export function nextVersion(nowMicros: bigint, region: number, ...seen: Version[]): Version {
  let micros = nowMicros;
  for (const version of seen) if (microsOf(version) + 1n > micros) micros = microsOf(version) + 1n;
  return makeVersion(micros, region);
}
