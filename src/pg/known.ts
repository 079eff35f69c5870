import type pg from 'pg';
import { asRecords, type Batch } from '../pipe/batch.ts';
import { runScript } from './script.ts';
import { applyError, arrayOf } from './steps.ts';
import type { Target } from './target.ts';

/**
 * Takes out of a batch of one table the rows and tombstones that are here already, in the same version (and rows with the same bytes):
 * applying them would change and record nothing.
 * Joining again after a lost slot, that is nearly everything.
 */
export async function leaveOutKnown(client: pg.Client, target: Target, batch: Batch): Promise<void> {
  const { staging, compiled, rowTypeOid, tombstoneTypeOid } = target;
  for (const group of batch.tables.get(staging.table.oid)?.groups ?? []) {
    const [text, oid] =
      group.kind === 'tombstone' ? [compiled.newTombstones, tombstoneTypeOid] : [compiled.newRows, rowTypeOid];
    if (text === undefined || group.tuples.live === 0) continue;
    const { results, error } = await runScript(client, [{ text, values: [arrayOf(oid, asRecords(staging, group))] }]);
    if (error) throw applyError(error);
    const news = new Set(results[0]!.rows.map(([nth]) => Number(nth)));
    let nth = 0;
    for (let row = 0; row < group.tuples.rows; row++) {
      if (!group.tuples.isDead(row) && !news.has(++nth)) group.tuples.kill(row);
    }
  }
}
