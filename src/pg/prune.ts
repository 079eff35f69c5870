import { pipeline } from 'node:stream/promises';
import type pg from 'pg';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';
import { OURS, type Table, tableId, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';

/**
 * Removes rows that a restored region has and that the peer, which had every one of them, knows neither as a row nor as a delete
 * any more: they were deleted, and the delete was forgotten because all had confirmed it. What goes is recorded whole as a conflict.
 * To be called once the peer's rows and deletes have been joined. Returns how many rows went.
 */
export async function pruneForgotten(peer: pg.Client, apply: pg.Client, table: Table): Promise<number> {
  const { rows } = await peer.query('select reaped::text from coregent.tables where table_id = $1', [tableId(table)]);
  const reaped = rows[0]?.reaped as string | undefined;
  if (reaped === undefined || reaped === '0') return 0;
  const key = table.key.map(ident).join(', ');
  const tombs = qualified('coregent', tombstoneName(table));
  const target = qualified(table.schema, table.name);
  const known = `pg_temp.${ident('coregent_known')}`;
  await apply.query(`drop table if exists ${known}`);
  await apply.query(`create temporary table ${ident('coregent_known')} as select ${key} from ${tombs} with no data`);
  await pipeline(
    peer.query(copyTo(`copy (select ${key} from ${target} union all select ${key} from ${tombs}) to stdout`)),
    apply.query(copyFrom(`copy ${known} from stdin`)),
  );
  await apply.query(`create index on ${known} (${key})`);
  const keyJson = table.key.map((name) => `${literal(name)}, t.${ident(name)}`).join(', ');
  const { rowCount } = await apply.query(
    `with t as (
        delete from ${target} t where t.${ident(VERSION)} <= $1::int8
        and not exists (select from ${known} k where ${sameKey(table, 't', 'k')}) returning t.*)
      insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version, local_row)
      select ${literal(tableLabel(table))}, jsonb_build_object(${keyJson}), 'update_missing', ${literal(table.rule.conflict)}, 'apply',
        t.${ident(VERSION)}, $1::int8, to_jsonb(t.*) - array[${OURS.map(literal).join(', ')}]
      from t on conflict do nothing`,
    [reaped],
  );
  await apply.query(`drop table ${known}`);
  return rowCount ?? 0;
}
