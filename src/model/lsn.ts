/**
 * A position in one server's write-ahead log, in bytes, as PostgreSQL's `pg_lsn` (chapter "pg_lsn Type").
 * Branded: an LSN is only comparable with another of the same server, and never as text (`9/0` sorts after `10/0`).
 */
export type LSN = bigint & { readonly __lsn: unique symbol };

/** The position before all others; PostgreSQL's "invalid" LSN. */
export const LSN_ZERO = 0n as LSN;

/** Parses `16/B374D848`. Throws `RangeError` on anything else. */
export function parseLsn(text: string): LSN {
  const match = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/.exec(text);
  if (!match) throw new RangeError(`not an LSN: ${JSON.stringify(text)}`);
  return ((BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`)) as LSN;
}

/** The text form that PostgreSQL prints, e.g. `16/B374D848`. */
export function formatLsn(lsn: LSN): string {
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffffffffn).toString(16).toUpperCase()}`;
}

/** Takes an unsigned 64-bit number off the wire as an LSN. */
export function lsnOf(value: bigint): LSN {
  return value as LSN;
}

/** The later of two positions in the same log. */
export function laterLsn(a: LSN, b: LSN): LSN {
  return a > b ? a : b;
}
