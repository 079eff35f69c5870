import { formatLsn, type LSN, parseLsn } from '../model/lsn.ts';
import type { Batch } from '../pipe/batch.ts';
import type { Queryable } from './connect.ts';
import type { Step } from './script.ts';

/** Where a batch's progress is kept. */
export interface ProgressKey {
  readonly slot: string;
  readonly peerId: number;
  /** How often rules of tables had been changed when the session's statements were compiled; see {@link readRuleChanges}. */
  readonly ruleChanges?: bigint;
}

/** How often rules of tables were changed here. To be read before the tables are. */
export async function readRuleChanges(client: Queryable, slot: string): Promise<bigint> {
  const { rows } = await client.query('select rule_changes::text as changes from coregent.progress where slot = $1', [
    slot,
  ]);
  return BigInt(rows[0]?.changes ?? 0);
}

/** By table id, the position ahead of progress from which on rows of it count: what was committed before is here already, or owed. */
export async function readBeginnings(client: Queryable, slot: string): Promise<Map<string, LSN>> {
  const { rows } = await client.query(
    `select j.table_id, j.from_lsn::text as lsn from coregent.joined j join coregent.progress p using (slot)
      where slot = $1 and j.from_lsn > p.lsn`,
    [slot],
  );
  return new Map(rows.map((row) => [row.table_id, parseLsn(row.lsn)]));
}

/**
 * Moves progress in the transaction that commits the batch. Divides by zero, and so ends it, when progress is not where this agent
 * left it, or the rule of a table was changed since the batch's statements were compiled.
 */
export function moveProgress(
  { slot, ruleChanges = 0n }: ProgressKey,
  { from, to }: { readonly from: LSN; readonly to: LSN },
  { transactions, committedAtMs }: Pick<Batch, 'transactions' | 'committedAtMs'>,
): Step {
  return {
    text: `with moved as (
        update coregent.progress set lsn = $3::pg_lsn, transactions = transactions + $4::int8,
          committed_at = to_timestamp($5::float8), applied_at = clock_timestamp()
        where slot = $1 and lsn = $2::pg_lsn and rule_changes = $6::int8 returning 1)
      select 1 / count(*) from moved`,
    values: [
      slot,
      formatLsn(from),
      formatLsn(to),
      String(transactions),
      String(committedAtMs / 1000),
      String(ruleChanges),
    ],
  };
}
