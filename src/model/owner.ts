/**
 * Which region may write a row: by the value of one column, which is a region's name, or what a list, a range or a hash makes of it.
 * All other regions' writes are refused, so that no two regions ever write a row at once.
 */
export interface Owner {
  readonly column: string;
  /** Values by region, as text. */
  readonly list?: Readonly<Record<string, readonly string[]>>;
  /** From (inclusive) and to (exclusive) by region; null: no bound. */
  readonly range?: Readonly<Record<string, Bounds>>;
  /** Regions that share all values, evenly. */
  readonly hash?: readonly string[];
  /** Who owns what nothing else names. */
  readonly default?: string;
}

export type Bounds = readonly [from: string | null, to: string | null];

/** The same whatever order lists and regions are written in; those that share a hash are in an order that counts. */
export function canonicalOwner({ column, list, range, hash, default: other }: Owner): Owner {
  const sorted = <T>(map: Readonly<Record<string, T>>, value: (each: T) => T): Record<string, T> =>
    Object.fromEntries(
      Object.keys(map)
        .sort()
        .map((name) => [name, value(map[name]!)]),
    );
  return {
    column,
    ...(list ? { list: sorted(list, (values) => [...values].sort()) } : {}),
    ...(range ? { range: sorted(range, ([from, to]) => [from, to] as const) } : {}),
    ...(hash ? { hash: [...hash] } : {}),
    ...(other === undefined ? {} : { default: other }),
  };
}
