import type { Config } from '../config.ts';
import { CoregentError } from '../model/error.ts';
import { pause } from '../pause.ts';
import { slotName } from './catalog.ts';
import type { Queryable } from './connect.ts';
import type { OpenRegion } from './setup.ts';

/** How often a barrier looks whether the slots have passed it, in ms. */
const BARRIER_POLL_MS = 500;
/** How often it is looked whether a server's transactions have ended, in ms. */
const ENDED_POLL_MS = 100;
/** A barrier that takes longer is given up: a region is away, or its agent does not run. */
export const BARRIER_PATIENCE_MS = 60_000;

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

/** Waits until every transaction that writes at a server now has ended; false when the signal came or patience (in ms) ended first. */
export async function writersEnded(
  client: Queryable,
  { signal, patienceMs = Number.POSITIVE_INFINITY }: { readonly signal: AbortSignal; readonly patienceMs?: number },
): Promise<boolean> {
  const deadline = performance.now() + patienceMs;
  const { rows } = await client.query('select pg_snapshot_xmax(pg_current_snapshot())::text as next');
  for (;;) {
    const { rows: now } = await client.query('select pg_snapshot_xmin(pg_current_snapshot()) >= $1::xid8 as ended', [
      rows[0].next,
    ]);
    if (now[0].ended) return true;
    if (signal.aborted || performance.now() > deadline) return false;
    await pause(ENDED_POLL_MS, signal);
  }
}
