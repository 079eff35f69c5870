import type { Decoder } from '../pipe/decode.ts';
import type { DatabaseClock } from './clock.ts';

/** While a peer sends without a pause, a batch is let grow to so many rows, for so many ms: a large one costs far less per row. */
const BURST_ROWS = 2_000;
const BURST_MS = 20;
/** What is further behind than so many ms may grow for a tenth of the time above that, up to so many ms, to so many rows. */
const LATE_MS = 500;
const LATE_SHARE = 10;
const LATE_ROWS = 10_000;
const LATE_MOST_MS = 150;

/** How long, in ms, a batch that is ready may grow: only what waits anyway waits for more. `clock` is the peer's. */
export function growthMs(
  { rows, committedAtMs }: Pick<Decoder, 'rows' | 'committedAtMs'>,
  clock: Pick<DatabaseClock, 'nowMicros'>,
  bursting: boolean,
): number {
  const lateMs = committedAtMs === 0 ? 0 : (clock.nowMicros() ?? 0) / 1000 - committedAtMs - LATE_MS;
  if (lateMs > 0 && rows < LATE_ROWS) return Math.min(LATE_MOST_MS, lateMs / LATE_SHARE);
  return bursting && rows < BURST_ROWS ? BURST_MS : 0;
}
