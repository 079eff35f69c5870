import type { Config } from '../config.ts';
import { CoregentError } from '../model/error.ts';
import { pause } from '../pause.ts';
import { slotName } from './catalog.ts';
import type { OpenRegion } from './setup.ts';

/** How often a barrier looks whether the slots have passed it, in ms. */
const BARRIER_POLL_MS = 500;
/** A barrier that takes longer is given up: a region is away, or its agent does not run. */
const BARRIER_PATIENCE_MS = 60_000;

/** Waits until every region has durably applied all that every other had committed when it was called. */
export async function barrier(config: Config, open: readonly OpenRegion[], signal?: AbortSignal): Promise<void> {
  const deadline = performance.now() + BARRIER_PATIENCE_MS;
  const marks = await Promise.all(
    open.map(async ({ client }) => (await client.query('select pg_current_wal_insert_lsn()::text as lsn')).rows[0].lsn),
  );
  for (const [index, { region, client }] of open.entries()) {
    const slots = config.regions
      .filter((other) => other !== region)
      .map((puller) => slotName(config.cluster, region.id, puller.id));
    for (;;) {
      const { rows } = await client.query(
        `select count(*)::int as passed from pg_replication_slots where slot_name = any ($1) and confirmed_flush_lsn >= $2::pg_lsn`,
        [slots, marks[index]],
      );
      if (rows[0].passed === slots.length) break;
      if (signal?.aborted || performance.now() > deadline) {
        throw new CoregentError('peer_behind', `not every region has confirmed the writes of ${region.name}`);
      }
      await pause(BARRIER_POLL_MS, signal);
    }
  }
}
