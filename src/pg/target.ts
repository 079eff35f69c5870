import type pg from 'pg';
import type { Table } from '../model/table.ts';
import { makeStaging, type Staging } from '../pipe/batch.ts';
import { compile } from '../resolve/compile.ts';
import type { Compiled } from '../resolve/compiled.ts';
import type { Tuples } from '../wire/tuples.ts';

/** One table as this session applies it. */
export interface Target {
  readonly staging: Staging;
  readonly compiled: Compiled;
  readonly rowTypeOid: number;
  readonly tombstoneTypeOid: number;
}

/** Gets the current rows of the peer for keys whose update did not carry every value; rows in `record` form. */
export type FetchRows = (target: Target, keys: Tuples) => Promise<Tuples>;

/** Prepares a session for applying: row types and compiled statements of every table. */
export async function prepareTargets(client: pg.Client, tables: readonly Table[]): Promise<Target[]> {
  const targets: Target[] = [];
  for (const table of tables) {
    const compiled = compile(table);
    for (const statement of compiled.session) await client.query(statement);
    const { rows } = await client.query('select $1::regtype::oid::int8 as r, $2::regtype::oid::int8 as k', [
      compiled.rowType,
      compiled.tombstoneType,
    ]);
    targets.push({
      compiled,
      staging: makeStaging(table, compiled.rowColumns, compiled.tombstoneColumns),
      rowTypeOid: Number(rows[0].r),
      tombstoneTypeOid: Number(rows[0].k),
    });
  }
  return targets;
}
