import type pg from 'pg';
import { CoregentError } from '../model/error.ts';
import type { Queryable } from './connect.ts';

/** The sessions of this database that hold the advisory lock of two numbers, as SQL: `pid`. */
export const HOLDERS = `select l.pid from pg_locks l where l.locktype = 'advisory' and l.classid = $1::int8::oid
  and l.objid = $2::int8::oid and l.objsubid = 2 and l.granted
  and l.database = (select oid from pg_database where datname = current_database())`;

/** First half of the advisory lock that makes one agent of a region lead; the second half is the region's id. */
export const LEADER_CLASS = 0x636f7265;
/** The same of a session that applies a peer's stream, or joins from it; the second half is the peer's id. */
const LOCK_CLASS = { apply: 0x636f7266, rejoin: 0x636f7267 } as const;

/** The session whose lock makes an agent lead. */
export interface Leader {
  /** The region's. */
  readonly id: number;
  /** Its process at the server, and since when that runs: a number alone comes again. */
  readonly session: string;
}

const SESSION = `concat_ws(' ', pid, extract(epoch from backend_start))`;

/** The session of `local`, which holds the leader's lock of region `id`. */
export async function leaderOf(local: Queryable, id: number): Promise<Leader> {
  const { rows } = await local.query(`select ${SESSION} as session from pg_stat_activity where pid = pg_backend_pid()`);
  return { id, session: rows[0].session };
}

/**
 * Ends what an earlier session of the same link left behind at this server, and waits for its end: it works on, and may commit, after
 * its agent has let go of it or is gone. From then on what is read here is settled. To be called before anything else.
 * Throws `apply_interrupted` when the earlier session would not end, and when `leader` does not lead at this server: another agent may,
 * whose sessions must go on; or the server is another one than that agent leads at, promoted in its place.
 */
export async function endEarlier(
  client: pg.Client,
  kind: keyof typeof LOCK_CLASS,
  peerId: number,
  leader: Leader,
): Promise<void> {
  const lock = [LOCK_CLASS[kind], peerId];
  for (const last of [false, true]) {
    const { rows } = await client.query('select pg_try_advisory_lock($1, $2) as mine', lock);
    const { rowCount } = await client.query(
      `select from pg_stat_activity where pid in (${HOLDERS}) and ${SESSION} = $3`,
      [LEADER_CLASS, leader.id, leader.session],
    );
    if (rowCount === 0) throw new CoregentError('apply_interrupted', 'this agent does not lead here any more');
    if (rows[0].mine) return;
    if (!last) await client.query(`select pg_terminate_backend(pid, 5000) from (${HOLDERS}) holders`, lock);
  }
  throw new CoregentError('apply_interrupted', 'an earlier session of this link does not end');
}
