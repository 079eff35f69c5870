import type pg from 'pg';
import type { RegionConfig } from '../config.ts';
import { CoregentError } from '../model/error.ts';
import { formatLsn, type LSN, LSN_ZERO, parseLsn } from '../model/lsn.ts';
import { readInstalled, slotName } from './catalog.ts';
import { transaction } from './connect.ts';
import {
  IDENTITY,
  identityOf,
  readFollowed,
  readIdentity,
  type ServerIdentity,
  strangeness,
  stranger,
} from './identity.ts';
import { beginAnew } from './paused.ts';

/** A peer's slot for this region, and how far this region has followed it. */
export interface Following {
  /** A connection of this region that applies. */
  readonly apply: pg.Client;
  /** An ordinary connection to the peer. */
  readonly control: pg.Client;
  readonly slot: string;
  /** This region. */
  readonly here: RegionConfig;
  readonly peer: RegionConfig;
  readonly cluster: string;
  /** Told before everything of the peer is begun anew. */
  readonly anew: (reason: string) => void;
}

/**
 * The position to follow a peer from. A slot that is gone or has lost WAL, and a peer that was promoted, are begun anew: with a new slot,
 * and every table of the peer owed a join. Throws `slot_missing` where `apply` has not been yet, `peer_identity` where the peer
 * or this region is another server or has gone back in time, which only a person can explain.
 */
export async function findStart(following: Following): Promise<LSN> {
  const { apply, control, slot, here, peer, cluster } = following;
  const progress = await readFollowed(apply, slot);
  if (!progress) {
    throw new CoregentError('slot_missing', 'this region does not follow the peer yet', { where: peer.name });
  }
  const { rows: found } = await control.query(
    `select ${IDENTITY}, to_regclass('coregent.progress') is not null as installed,
      (select wal_status from pg_replication_slots where slot_name = $1 and database = current_database())`,
    [slot],
  );
  const { wal_status: walStatus, installed } = found[0];
  if (!installed) throw new CoregentError('schema_missing', 'the peer is not installed', { where: peer.name });
  const now = identityOf(found[0]);
  const why = strangeness(progress, now);
  if (why !== undefined) throw stranger(peer.name, why);
  // An old primary, or a copy of it from before, would go on from where its slots are by now, and miss what lies between.
  const followed = await readFollowed(control, slotName(cluster, here.id, peer.id));
  const whyMe = followed && strangeness(followed, await readIdentity(apply));
  if (whyMe !== undefined) throw stranger(here.name, whyMe);
  const { lsn } = progress;
  const anew = (reason: string): Promise<LSN> => followAnew(following, { ...now, lsn }, reason);
  if (now.timeline > progress.timeline) return await anew(`the peer was promoted, to timeline ${now.timeline}`);
  if (lsn === LSN_ZERO) return await anew('a new slot was due');
  if (walStatus === null) return await anew('its slot was gone');
  if (walStatus === 'lost') return await anew('its slot had lost WAL');
  return lsn;
}

/** Makes the slot anew. In this order, so that a kill at any point leaves a state that the next start finishes. */
async function followAnew(
  { apply, control, slot, peer, cluster, anew }: Following,
  now: ServerIdentity,
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
