import type { ConflictAlert } from '../model/api.ts';
import { formatRate, type Rate } from '../model/units.ts';
import type { Queryable } from './connect.ts';

/** More are not counted, so that a look costs the same however large a storm is. */
const COUNTED = 100_000;

/** Compares the conflicts recorded of late with a rate; null without one. By the clock of the region's database. */
export async function readAlert(client: Queryable, rate: Rate | undefined): Promise<ConflictAlert | null> {
  if (!rate) return null;
  const { rows } = await client.query(
    `select count(*)::int as recent from (select from coregent.conflict_record
      where recorded_at > clock_timestamp() - $1::float8 * interval '1 ms' limit $2) r`,
    [rate.windowMs, Math.max(COUNTED, rate.count + 1)],
  );
  const { recent } = rows[0];
  return { limit: formatRate(rate), recent, exceeded: recent > rate.count };
}
