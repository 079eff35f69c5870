import { regionOf, type Version } from '../model/version.ts';

/**
 * Which writes of a key somebody has seen: of each region the last one, and so all before it, since a region sees its own.
 * In a row's state it is `{"<region>": version}`; `coregent.seen_join`, `seen_covers` and `seen_contains` are this file in SQL.
 */
export type Vector = ReadonlyMap<number, Version>;

export const NOTHING_SEEN: Vector = new Map();

/** What both have seen. */
export function joinVectors(a: Vector, b: Vector): Vector {
  const joined = new Map(a);
  for (const [region, version] of b) if (version > (joined.get(region) ?? -1n)) joined.set(region, version);
  return joined;
}

/** The same, and one write more. */
export function withWrite(seen: Vector, version: Version): Vector {
  return joinVectors(seen, new Map([[regionOf(version), version]]));
}

/** Whether this write was seen. */
export function covers(seen: Vector, version: Version): boolean {
  return (seen.get(regionOf(version)) ?? -1n) >= version;
}

/** Whether all that `b` has seen, `a` has too. */
export function contains(a: Vector, b: Vector): boolean {
  return [...b.values()].every((version) => covers(a, version));
}
