import type pg from 'pg';
import type { Tier } from '../model/api.ts';
import { CoregentError, classify } from '../model/error.ts';
import { literal } from '../quote.ts';
import { hasOrigins } from './origin.ts';

/** Session settings of a connection that applies. */
export const APPLY_SETTINGS = [
  ['synchronous_commit', 'off'],
  // Batches join a few thousand keys to tables of any size: always by index, whatever statistics say.
  ['plan_cache_mode', 'force_generic_plan'],
  ['enable_seqscan', 'off'],
  ['enable_bitmapscan', 'off'],
  ['enable_hashjoin', 'off'],
  ['enable_mergejoin', 'off'],
  ['enable_material', 'off'],
  ['enable_memoize', 'off'],
  ['jit', 'off'],
] as const;

/** What each tier costs, for people. */
export const TIERS: Readonly<Record<Tier, string>> = {
  A: 'applied rows carry a replication origin, and neither triggers nor foreign keys fire on apply',
  B: 'applied rows travel one step further before they are left out; neither triggers nor foreign keys fire on apply',
  C: 'triggers and foreign keys fire on apply: rows wait for their parents, and triggers need a guard',
};

const REPLICA = 'session_replication_role';
/** The setting by which an apply session without the replica role makes itself known to our triggers. */
export const APPLY_SETTING = 'coregent.apply';

/**
 * Makes a connected session one that applies: in the replica role, where neither an application's triggers nor its foreign keys
 * fire, or, if the role may not have that, marked so that our stamping triggers pass its rows by.
 * Throws `privilege_missing` when the tables were not told so: stamped anew, applied rows would go round for ever.
 */
export async function becomeApplier(client: pg.Client, where: string): Promise<void> {
  try {
    // Set for the role by an administrator it holds already, and may not be set again.
    await client.query(`select case when current_setting($1) <> 'replica' then set_config($1, 'replica', false) end`, [
      REPLICA,
    ]);
    return;
  } catch (error) {
    if (classify(error).code !== 'privilege_missing') throw error;
  }
  await client.query(`select set_config($1, 'on', false)`, [APPLY_SETTING]);
  const { rows } = await client.query(
    `select session_user as role, t.tgrelid::regclass::text as table_name from pg_trigger t
      where t.tgname like '~coregent%' and t.tgtype & 32 = 0
      and pg_get_triggerdef(t.oid) not like '%' || $1 || '%' || quote_literal(session_user) || '%' limit 1`,
    ['SESSION_USER'],
  );
  if (rows[0]) {
    throw new CoregentError(
      'privilege_missing',
      `the role ${rows[0].role} may not set ${REPLICA}, and the triggers of ${rows[0].table_name} do not know it`,
      { where, cure: 'Run `coregent apply` as that role, or grant what `coregent doctor --grants` prints.' },
    );
  }
}

/** Whether the session is in the replica role. */
export async function isReplica(client: pg.Client): Promise<boolean> {
  const { rows } = await client.query('select current_setting($1) as role', [REPLICA]);
  return rows[0].role === 'replica';
}

/** Whether the session's role may apply in the replica role, found by trying; changes nothing. */
export async function mayReplicate(client: pg.Client): Promise<boolean> {
  if (await isReplica(client)) return true;
  await client.query('begin');
  try {
    await client.query(`set local ${REPLICA} = replica`);
    return true;
  } catch (error) {
    if (classify(error).code !== 'privilege_missing') throw error;
    return false;
  } finally {
    await client.query('rollback');
  }
}

/** What the session's role may have, found by trying. */
export async function findTier(client: pg.Client): Promise<Tier> {
  if (!(await mayReplicate(client))) return 'C';
  return (await hasOrigins(client)) ? 'A' : 'B';
}

/** Conditions of triggers, in SQL. The cheapest part stands first: for an application it is the only one. */
export interface Guards {
  /**
   * True unless the row is written by an apply session of this role itself: what a trigger or a foreign key writes in consequence is
   * a write of this region like any other.
   */
  readonly stamp: string;
  /** True unless the session applies: nothing that it causes is refused. */
  readonly owner: string;
}

/**
 * The roles whose applied rows the stamping triggers must pass by; undefined where none needs it, and triggers cost nothing
 * for it. The role's name is part of it, because the setting alone could be set by any application, which could then forge versions.
 */
export async function guardsOf(client: pg.Client): Promise<Guards | undefined> {
  if (await mayReplicate(client)) return undefined;
  const { rows } = await client.query('select session_user as role');
  const another = `session_user <> ${literal(rows[0].role)}`;
  return { stamp: `(${another} or ${notAppliedHere()})`, owner: `(${another} or ${APPLIES_NOT})` };
}

const APPLIES_NOT = `pg_catalog.current_setting(${literal(APPLY_SETTING)}, true) is distinct from 'on'`;

/** The same for an application's own triggers, where nothing can be forged. */
export function notAppliedHere(): string {
  return `pg_catalog.pg_trigger_depth() > 0 or ${APPLIES_NOT}`;
}
