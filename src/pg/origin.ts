import type pg from 'pg';
import { classify } from '../model/error.ts';

/** Marks the session's writes as not this region's own, where the role may; else the version's region is the only filter. */
export async function useOrigin(apply: pg.Client, name: string): Promise<void> {
  try {
    await apply.query(
      `select case when pg_replication_origin_oid($1) is null then pg_replication_origin_create($1) end`,
      [name],
    );
    await apply.query(`select pg_replication_origin_session_setup($1)`, [name]);
  } catch (error) {
    if (classify(error).code !== 'privilege_missing') throw error;
  }
}
