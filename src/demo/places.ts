/** Regions that a world can have, in the order they are taken; ids count from 1. */
export const PLACES = [
  'tokyo',
  'frankfurt',
  'virginia',
  'singapore',
  'sao_paulo',
  'sydney',
  'mumbai',
  'london',
] as const;

/** One-way latency in milliseconds as clouds have it between these places: a row per place, towards those before it. */
const ONE_WAY_MS: readonly (readonly number[])[] = [
  [],
  [115],
  [80, 45],
  [35, 80, 110],
  [128, 101, 57, 162],
  [53, 125, 100, 46, 155],
  [65, 62, 95, 29, 152, 75],
  [105, 8, 38, 85, 93, 135, 57],
];

/** What the WAN adds to each packet between the places with these ids, in ms. */
export function oneWayMs(a: number, b: number): number {
  return a === b ? 0 : ONE_WAY_MS[Math.max(a, b) - 1]![Math.min(a, b) - 1]!;
}
