import type pg from 'pg';
import type { RegionConfig } from '../config.ts';
import { CoregentError } from '../model/error.ts';
import { formatLsn, type LSN, LSN_ZERO, parseLsn } from '../model/lsn.ts';
import { readInstalled } from './catalog.ts';
import { transaction } from './connect.ts';
import { beginAnew } from './paused.ts';

/** A peer's slot for this region, and how far this region has followed it. */
export interface Following {
  /** A connection of this region that applies. */
  readonly apply: pg.Client;
  /** An ordinary connection to the peer. */
  readonly control: pg.Client;
  /** A connection to the peer that speaks the replication protocol. */
  readonly replication: pg.Client;
  readonly slot: string;
  readonly peer: RegionConfig;
  readonly cluster: string;
  /** Told before everything of the peer is begun anew. */
  readonly anew: (reason: string) => void;
}

/**
 * The position to follow a peer from. A slot that is gone or has lost WAL, and a peer that was promoted, are begun anew: with a new slot,
 * and every table of the peer owed a join. Throws `slot_missing` where `apply` has not been yet, `peer_identity` where the peer
 * is another server or has gone back in time, which only a person can explain.
 */
export async function findStart(following: Following): Promise<LSN> {
  const { apply, control, replication, slot, peer } = following;
  const where = peer.name;
  const { rows } = await apply.query(
    `select system_identifier, timeline, lsn::text from coregent.progress where slot = $1`,
    [slot],
  );
  const progress = rows[0];
  if (!progress) throw new CoregentError('slot_missing', 'this region does not follow the peer yet', { where });
  const { rows: identity } = await replication.query('IDENTIFY_SYSTEM');
  const { systemid, timeline: at } = identity[0];
  const timeline = Number(at);
  const { rows: slots } = await control.query(
    `select s.wal_status, pg_current_wal_flush_lsn()::text as flushed
      from (select) one left join pg_replication_slots s on s.slot_name = $1 and s.database = current_database()`,
    [slot],
  );
  const { wal_status: walStatus, flushed } = slots[0];
  const lsn = parseLsn(progress.lsn);
  if (systemid !== progress.system_identifier || timeline < progress.timeline) {
    throw new CoregentError(
      'peer_identity',
      `the peer is server ${systemid} on timeline ${timeline}, progress is of ${progress.system_identifier} on ${progress.timeline}`,
      { where, cure: restoredCure(where) },
    );
  }
  const anew = (reason: string): Promise<LSN> =>
    followAnew(following, { systemIdentifier: systemid, timeline, lsn }, reason);
  if (timeline > progress.timeline) return await anew(`the peer was promoted, to timeline ${timeline}`);
  if (lsn === LSN_ZERO) return await anew('a new slot was due');
  if (walStatus === null) return await anew('its slot was gone');
  if (walStatus === 'lost') return await anew('its slot had lost WAL');
  if (parseLsn(flushed) < lsn) {
    throw new CoregentError(
      'peer_identity',
      `the peer’s WAL ends at ${flushed}, before ${progress.lsn}, which was applied here: it has gone back in time`,
      { where, cure: restoredCure(where) },
    );
  }
  return lsn;
}

function restoredCure(region: string): string {
  return `Check the url. If ${region} was restored from a backup or moved to another server, run \`coregent apply --restored ${region}\`.`;
}

/** Makes the slot anew. In this order, so that a kill at any point leaves a state that the next start finishes. */
async function followAnew(
  { apply, control, slot, peer, cluster, anew }: Following,
  now: { readonly systemIdentifier: string; readonly timeline: number; readonly lsn: LSN },
  reason: string,
): Promise<LSN> {
  const where = peer.name;
  const installed = await readInstalled(control, where);
  if (!installed) throw new CoregentError('schema_missing', 'the peer is not installed', { where });
  if (installed.region.id !== peer.id || installed.region.cluster !== cluster) {
    throw new CoregentError(
      'peer_identity',
      `the peer is region ${installed.region.name} (${installed.region.id}) of cluster ${installed.region.cluster}`,
      { where },
    );
  }
  anew(reason);
  if (now.lsn !== LSN_ZERO) {
    await transaction(apply, async () => {
      // The old slot goes next: what is remembered of it must survive a crash.
      await apply.query('set local synchronous_commit = on');
      if (!(await beginAnew(apply, slot, now.lsn, reason))) throw fenced(slot);
    });
  }
  await control.query('select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1', [
    slot,
  ]);
  const { rows } = await control.query(`select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput')`, [
    slot,
  ]);
  const lsn = parseLsn(rows[0].lsn);
  const { rowCount } = await apply.query(
    `update coregent.progress set system_identifier = $2, timeline = $3, lsn = $4::pg_lsn where slot = $1 and lsn = '0/0'`,
    [slot, now.systemIdentifier, now.timeline, formatLsn(lsn)],
  );
  if (rowCount !== 1) throw fenced(slot);
  return lsn;
}

function fenced(slot: string): CoregentError {
  return new CoregentError('progress_fenced', 'progress is not where this agent read it', { where: slot });
}
