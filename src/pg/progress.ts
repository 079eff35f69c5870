import { formatLsn, type LSN } from '../model/lsn.ts';
import type { Batch } from '../pipe/batch.ts';
import type { Step } from './script.ts';

/** Where a batch's progress is kept. */
export interface ProgressKey {
  readonly slot: string;
  readonly peerId: number;
}

/** Moves progress in the transaction that commits the batch. Divides by zero, and so ends it, when progress is not where this agent left it. */
export function moveProgress(
  slot: string,
  { from, to }: { readonly from: LSN; readonly to: LSN },
  { transactions, committedAtMs }: Pick<Batch, 'transactions' | 'committedAtMs'>,
): Step {
  return {
    text: `with moved as (
        update coregent.progress set lsn = $3::pg_lsn, transactions = transactions + $4::int8,
          committed_at = to_timestamp($5::float8), applied_at = clock_timestamp()
        where slot = $1 and lsn = $2::pg_lsn returning 1)
      select 1 / count(*) from moved`,
    values: [slot, formatLsn(from), formatLsn(to), String(transactions), String(committedAtMs / 1000)],
  };
}
