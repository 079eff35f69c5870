import type { Config, RegionConfig } from '../config.ts';
import type { Log } from '../log.ts';
import type { Metrics } from '../metrics.ts';
import { classify } from '../model/error.ts';
import { pause } from '../pause.ts';
import { slotName } from '../pg/catalog.ts';
import type { Queryable } from '../pg/connect.ts';

interface GuardOptions {
  readonly config: Config;
  readonly here: RegionConfig;
  readonly local: Queryable;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly signal: AbortSignal;
}

/** How often this region's slots are looked at, in ms. */
const LOOK_MS = 2_000;
/** Parts of `slots.max_wal` at which it is said. */
const WARNINGS = [0.5, 0.8] as const;

/** One slot in this region, by which a peer follows it. */
interface SlotState {
  readonly slot: string;
  readonly active: boolean;
  readonly active_pid: number | null;
  /** WAL that it keeps, in bytes; null when PostgreSQL has dropped WAL that it needs. */
  readonly retained: number | null;
  /** WAL that the peer has not confirmed, in bytes. */
  readonly behind: number | null;
  /** How much more may be written before PostgreSQL drops its WAL; null without `max_slot_wal_keep_size`. */
  readonly safe: number | null;
}

/**
 * Watches the WAL that this region keeps for its peers, until the signal. With `slots.max_wal` a slot that keeps more is dropped
 * before the disk fills: its peer makes it anew when it is back, and joins. Never rejects.
 */
export async function guardSlots({ config, here, local, log, metrics, signal }: GuardOptions): Promise<void> {
  const peers = new Map(
    config.regions
      .filter((each) => each !== here)
      .map((each) => [slotName(config.cluster, here.id, each.id), each.name]),
  );
  const warned = new Map<string, number>();
  while (!signal.aborted) {
    try {
      const { rows } = await local.query(
        `select slot_name as slot, active, active_pid, (pg_current_wal_lsn() - restart_lsn)::float8 as retained,
          (pg_current_wal_lsn() - confirmed_flush_lsn)::float8 as behind, safe_wal_size::float8 as safe
          from pg_replication_slots where slot_name = any ($1) and database = current_database()`,
        [[...peers.keys()]],
      );
      for (const state of rows as SlotState[]) {
        const peer = peers.get(state.slot)!;
        const used = usedBytes(state);
        metrics.slotRetained.set({ slot: state.slot }, state.retained ?? 0);
        const safe = safeBytes(state, config.slots.maxWalBytes);
        if (safe !== undefined) metrics.slotSafe.set({ slot: state.slot }, safe);
        const budget = config.slots.maxWalBytes;
        if (budget === undefined) continue;
        const fields = { peer, slot: state.slot, retained_bytes: used, max_wal_bytes: budget };
        if (used > budget) {
          if (state.active_pid !== null) await local.query('select pg_terminate_backend($1, 5000)', [state.active_pid]);
          await local.query('select pg_drop_replication_slot($1)', [state.slot]);
          log.event('slot.dropped', fields);
          warned.delete(state.slot);
          continue;
        }
        const level = WARNINGS.filter((part) => used > part * budget).length;
        if (level > (warned.get(state.slot) ?? 0)) {
          log.event('slot.filling', { ...fields, percent: Math.floor((100 * used) / budget) });
        }
        warned.set(state.slot, level);
      }
      for (const slot of peers.keys()) {
        if (rows.some((row) => row.slot === slot)) continue;
        metrics.slotRetained.remove({ slot });
        metrics.slotSafe.remove({ slot });
      }
    } catch (error) {
      // A slot that is taken again this very moment; the next look sees. A lost server ends the term elsewhere.
      if (!signal.aborted) log.event('slot.unguarded', { reason: classify(error, here.name) });
    }
    await pause(LOOK_MS, signal);
  }
}

/** What counts: WAL that a peer has not confirmed; of one that is away, all that its slot keeps. */
function usedBytes({ active, retained, behind }: SlotState): number {
  // A long transaction of this region keeps WAL for every slot: no reason to drop one whose peer has read it all.
  return (active ? behind : retained) ?? 0;
}

/** How much more WAL may be written before the slot goes, by our budget or PostgreSQL's. */
function safeBytes(state: SlotState, budget: number | undefined): number | undefined {
  const bounds = [
    ...(state.safe === null ? [] : [state.safe]),
    ...(budget === undefined ? [] : [budget - usedBytes(state)]),
  ];
  return bounds.length === 0 ? undefined : Math.max(0, Math.min(...bounds));
}
