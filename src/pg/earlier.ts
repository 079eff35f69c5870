import type pg from 'pg';
import { CoregentError } from '../model/error.ts';

/** The sessions of this database that hold the advisory lock of two numbers, as SQL: `pid`. */
export const HOLDERS = `select l.pid from pg_locks l where l.locktype = 'advisory' and l.classid = $1::int8::oid
  and l.objid = $2::int8::oid and l.objsubid = 2 and l.granted
  and l.database = (select oid from pg_database where datname = current_database())`;

/** First half of the advisory lock of a session that applies a peer's stream, or joins from it; the second half is the peer's id. */
const LOCK_CLASS = { apply: 0x636f7266, rejoin: 0x636f7267 } as const;

/**
 * Ends what an earlier session of the same link left behind at this server, and waits for its end: it works on, and may commit, after
 * its agent has let go of it or is gone. From then on what is read here is settled. To be called before anything else, by the region's leader alone.
 * Throws `apply_interrupted` when the earlier session would not end.
 */
export async function endEarlier(client: pg.Client, kind: keyof typeof LOCK_CLASS, peerId: number): Promise<void> {
  const lock = [LOCK_CLASS[kind], peerId];
  for (const last of [false, true]) {
    const { rows } = await client.query('select pg_try_advisory_lock($1, $2) as mine', lock);
    if (rows[0].mine) return;
    if (!last) await client.query(`select pg_terminate_backend(pid, 5000) from (${HOLDERS}) holders`, lock);
  }
  throw new CoregentError('apply_interrupted', 'an earlier session of this link does not end');
}
