const durations = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

const sizes = {
  B: 1,
  kB: 1e3,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
} as const;

/** Milliseconds of `500ms`, `5s`, `10m`, `1h`, `7d`; undefined for anything else, a bare number included. */
export function parseDuration(text: string): number | undefined {
  return parseUnit(text, durations);
}

/** Bytes of `512B`, `64MB` (10^6), `1GiB` (2^30); undefined for anything else, a bare number included. */
export function parseSize(text: string): number | undefined {
  return parseUnit(text, sizes);
}

const rates = { s: 1000, min: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** So many of something in a window of time. */
export interface Rate {
  readonly count: number;
  readonly windowMs: number;
}

/** `10/min`, `1/s`, `500/h`, `1000/d`; undefined for anything else. */
export function parseRate(text: string): Rate | undefined {
  const match = /^(\d{1,9}) ?\/ ?(s|min|h|d)$/.exec(text.trim());
  return match ? { count: Number(match[1]), windowMs: rates[match[2] as keyof typeof rates] } : undefined;
}

/** As {@link parseRate} reads it. */
export function formatRate({ count, windowMs }: Rate): string {
  return `${count}/${Object.entries(rates).find(([, ms]) => ms === windowMs)?.[0] ?? `${windowMs}ms`}`;
}

function parseUnit(text: string, units: Readonly<Record<string, number>>): number | undefined {
  const match = /^(\d{1,15}(?:\.\d{1,3})?) ?([A-Za-z]{1,3})$/.exec(text.trim());
  if (!match || !Object.hasOwn(units, match[2]!)) return undefined;
  return Math.round(Number(match[1]) * units[match[2]!]!);
}
