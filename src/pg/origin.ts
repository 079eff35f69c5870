import type pg from 'pg';
import { classify } from '../model/error.ts';

/**
 * Marks what the session writes as not this region's own (a replication origin), so that 16 and later do not even send it on.
 * Returns false where the role may not, or the server has no origin left: then receivers drop it by the version's region.
 */
export async function useOrigin(apply: pg.Client, name: string): Promise<boolean> {
  try {
    await apply.query(
      `select case when pg_replication_origin_oid($1) is null then pg_replication_origin_create($1) end`,
      [name],
    );
    await apply.query(`select pg_replication_origin_session_setup($1)`, [name]);
    return true;
  } catch (error) {
    const { code } = classify(error);
    if (code !== 'privilege_missing' && code !== 'slot_limit') throw error;
    return false;
  }
}

/** The functions that marking applied rows takes. */
export const ORIGIN_FUNCTIONS = [
  'pg_replication_origin_oid',
  'pg_replication_origin_create',
  'pg_replication_origin_drop',
  'pg_replication_origin_session_setup',
] as const;

/** Whether the session's role may mark what it applies. Tries what can be tried without leaving anything behind. */
export async function hasOrigins(client: pg.Client): Promise<boolean> {
  const { rows } = await client.query(
    `select count(*) = $2::int and bool_and(has_function_privilege(oid, 'execute')) as may from pg_proc
      where proname = any ($1) and pronamespace = 'pg_catalog'::regnamespace`,
    [ORIGIN_FUNCTIONS, ORIGIN_FUNCTIONS.length],
  );
  if (!rows[0].may) return false;
  try {
    await client.query(`select pg_replication_origin_oid('coregent')`);
    return true;
  } catch (error) {
    if (classify(error).code !== 'privilege_missing') throw error;
    return false;
  }
}

/**
 * In a deadlock with the application the session that looks first gives way; this makes it ours, where the role may:
 * an apply is tried again by itself, the application's transaction is not.
 */
export async function yieldInDeadlocks(apply: pg.Client): Promise<void> {
  try {
    await apply.query(`set deadlock_timeout = '100ms'`);
  } catch (error) {
    if (classify(error).code !== 'privilege_missing') throw error;
  }
}
