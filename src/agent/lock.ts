import type pg from 'pg';
import { pause } from '../pause.ts';
import { HOLDERS, LEADER_CLASS } from '../pg/earlier.ts';

const POLL_MS = 1_000;
/** A leader asks its database for the time every 5 s; one that was silent for so long, in ms, is stopped or cut off. */
const SILENT_MS = 15_000;

interface LockOptions {
  /** The connection that holds the lock from then on, as long as it lasts. */
  readonly local: pg.Client;
  readonly region: { readonly name: string; readonly id: number };
  readonly signal: AbortSignal;
  /** Called every second as long as another agent leads. */
  readonly standby: () => void;
  /** Called when a leader that had fallen silent was put out. */
  readonly takenOver: () => void;
}

/**
 * Waits until this agent leads its region; false when the signal came first.
 *
 * A leader that is paused, or whose machine is gone, would keep the lock as long as its TCP connection stands: for hours. So
 * the one that waits watches the leader's session, and when that stays silent ends it, and with it all sessions that apply
 * for this region: what the old leader had under way is rolled back, and it can commit nothing when it comes back.
 */
export async function takeLock({ local, region, signal, standby, takenOver }: LockOptions): Promise<boolean> {
  let seen: { readonly session: string; readonly sinceMs: number } | undefined;
  for (;;) {
    const { rows } = await local.query('select pg_try_advisory_lock($1, $2) as mine', [LEADER_CLASS, region.id]);
    if (rows[0].mine) return true;
    standby();
    const session = await idleLeader(local, region.id);
    if (session === undefined) seen = undefined;
    else if (seen?.session !== session) seen = { session, sinceMs: performance.now() };
    else if (performance.now() - seen.sinceMs > SILENT_MS) {
      await putOut(local, region);
      takenOver();
    }
    await pause(POLL_MS, signal);
    if (signal.aborted) return false;
  }
}

/** The leader's session and when it did something last; undefined while it does something, or none of ours leads. */
async function idleLeader(local: pg.Client, id: number): Promise<string | undefined> {
  const { rows } = await local.query(
    `select concat_ws(' ', pid, backend_start, state_change) as session from pg_stat_activity
      where pid in (${HOLDERS}) and state = 'idle'`,
    [LEADER_CLASS, id],
  );
  return rows[0]?.session;
}

/** Those that apply go first: once the lock is free, nothing of the old leader is under way. */
async function putOut(local: pg.Client, { name, id }: LockOptions['region']): Promise<void> {
  await local.query(
    `select pg_terminate_backend(pid, 5000) from pg_stat_activity
      where datname = current_database() and usename = session_user and starts_with(application_name, $1)`,
    [`coregent apply ${name} from `.slice(0, 63)],
  );
  await local.query(`select pg_terminate_backend(pid, 5000) from (${HOLDERS}) holders`, [LEADER_CLASS, id]);
}
