import type { Table } from '../model/table.ts';
import { ident, literal } from '../quote.ts';
import type { Compiled } from './compiled.ts';
import { partsOf } from './parts.ts';
import { registerSql } from './register-sql.ts';
import { makingTexts } from './texts.ts';

/**
 * Rows that are joined part by part: `registers.ts` read into SQL. Clean statements replace a row as one write made it by one whose
 * writer had seen it; all else is joined under the row's lock.
 */
export function compileRegisters(table: Table): Compiled {
  const parts = partsOf(table, { burialState: true });
  const { target, tombs, rowColumns, tombstoneColumns, hasTexts } = parts;
  const { list, onKey, v, p, first, seen, set, json, keyJson, label, into, told, onlyKey, fromRows, bury } = parts;
  const { rows, tombstones, rowsInOrder, updatesInOrder, tombstonesInOrder } = parts.from;
  const rule = literal(table.rule.conflict === 'columns' ? 'columns' : 'lww');

  const { simple, life, ended, hadSeen, sees, deleterSaw, twins, outcome, joined } = registerSql(table, parts);
  const forbidden = `exists (select from ${tombs} x where ${onKey('x', 's')} and ${ended('x', 's')})`;
  const settled = `exists (select from ${target} t where ${onKey('t', 's')} and (${life('t')} > ${life('s')} or ${hadSeen(sees('t'), 's')}))`;

  const allApplied = 'select 1 / (count(*) = $2::int8)::int from applied';
  const insertNew = `${fromRows} select ${list(rowColumns, 's')} from ${rows} where not ${forbidden} on conflict ${onlyKey}`;
  // What was here before replication has one version in every region, and may yet be another row in each: it is joined.
  const older = (row: string): string => `(${v(row)} & 127) = 0`;
  const updateSeen = (
    unknown: readonly number[],
  ): string => `update ${target} t set ${set('s', unknown)} from ${unknown.length === 0 ? rowsInOrder : updatesInOrder}
      where ${onKey('t', 's')} and ${v('t')} < ${v('s')} and ${simple('t')} and not ${older('t')}
      and ${unknown.length === 0 ? seen('s', 't') : `${v('t')} in (${first('s')}, ${p('s')})`}`;
  const buried = bury(`on conflict (${list(table.key)}) do update set ${tombstoneColumns
    .filter((name) => !(table.exactKey && table.key.includes(name)))
    .map((name) => `${ident(name)} = excluded.${ident(name)}`)
    .join(', ')}
      where ${v('x')} < ${v('excluded')}`);
  const deleteSeen = `delete from ${target} t using s where ${onKey('t', 's')} and ${v('t')} <= ${v('s')} and ${simple('t')} and ${seen('s', 't')}`;

  const revived = `${into}
      select ${label}, ${keyJson('s')}, 'update_missing', ${rule}, 'keep', ${v('x')}, ${v('t')}, null, ${json('t')}
      from ${tombstones} join ${tombs} x on ${onKey('x', 's')} join ${target} t on ${onKey('t', 's')}
      where ${v('t')} = ${v('s')} and ${ended('x', 't')} and not ${hadSeen(deleterSaw('x'), 't')} ${told}`;
  const deletes = `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming, ${json('t')} as _coregent_local_row
        from ${tombstonesInOrder} join ${target} t on ${onKey('t', 's')}
        where ${ended('s', 't')} and not ${hadSeen(deleterSaw('s'), 't')} for no key update of t)
      ${into} select ${label}, _coregent_key, 'delete_origin_differs', ${rule}, 'apply',
        _coregent_local, _coregent_incoming, _coregent_local_row, null from met ${told}`;

  const known = `exists (select from ${tombs} x where ${onKey('x', 's')} and ${hadSeen(deleterSaw('x'), 's')})`;
  const bytes = (alias: string): string => `row(${list(rowColumns, alias)})::record`;
  const teaches = `${life('t')} <= ${life('s')} and (not ${hadSeen(sees('t'), 's')} or ${twins})`;
  const news = `${onKey('t', 's')} and ${teaches}`;

  const onMet = table.key
    .map((name, index) => `t.${ident(name)} ${table.keyEquals[index]} m._coregent_key${index}`)
    .join(' and ');

  return {
    making: makingTexts(table, parts),
    session: parts.session,
    rowType: parts.rowType,
    tombstoneType: parts.tombstoneType,
    rowColumns,
    tombstoneColumns,

    copyIn: hasTexts ? undefined : `copy ${target} (${list(rowColumns)}) from stdin (format binary)`,
    anyTombstone: `select exists (select from ${tombs})`,
    recordRevived: revived,
    recordCrossedInserts: revived,
    removeBuried: `delete from ${target} t using ${tombstones}, ${tombs} x
      where ${onKey('t', 's')} and ${onKey('x', 's')} and ${v('t')} = ${v('s')} and ${ended('x', 't')}`,
    removeAllBuried: `delete from ${target} t using ${tombs} x where ${onKey('t', 'x')} and ${ended('x', 't')}`,

    insertClean: insertNew,
    insertAll: `with applied as (${insertNew} returning 1) ${allApplied}`,
    deleteClean: `${buried} ${deleteSeen}`,
    deleteNew: `${bury('')} ${deleteSeen}`,
    deleteAll: `${buried}, applied as (${deleteSeen} returning 1) ${allApplied}`,
    recordDeletes: deletes,
    recordCrossedDeletes: deletes,
    deleteOlder: `delete from ${target} t using ${tombstonesInOrder} where ${onKey('t', 's')} and ${ended('s', 't')}`,

    updateClean: updateSeen,
    updateAll: (unknown) => `with applied as (${updateSeen(unknown)} returning 1) ${allApplied}`,
    // A row that stands in for the one asked for is joined whole, and so recorded whole.
    recordBuried: `${into}
      select ${label}, ${keyJson('s')}, 'update_missing', ${rule}, 'keep', ${v('x')}, ${v('s')}, null, ${json('s')}
      from ${rows} join ${tombs} x on ${onKey('x', 's')}
      where not exists (select from ${target} t where ${onKey('t', 's')}) and ${ended('x', 's')} and not ${hadSeen(deleterSaw('x'), 's')}
        and ($2::int8[] is null or true) ${told}`,
    joinRows: `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming, b._coregent_outcome, b._coregent_news,
          case when b._coregent_outcome is not null then ${parts.image('t')} end as _coregent_local_row,
          case when b._coregent_outcome is not null then ${parts.image('s')} end as _coregent_incoming_row,
          ${table.key.map((name, index) => `t.${ident(name)} as _coregent_key${index}`).join(', ')}, j.*
        from ${parts.met(
          `(${v('t')} <> ${v('s')} or ${bytes('t')} operator(pg_catalog.*<>) ${bytes('s')}) and ($3::int8[] is null or true)`,
          {
            _coregent_outcome: outcome(known),
            _coregent_news: teaches,
          },
        )}
          left join lateral (${joined(parts.settable, 'b._coregent_news')}) j on true),
      recorded as (${into} select ${label}, _coregent_key, $2, ${rule}, _coregent_outcome, _coregent_local, _coregent_incoming,
          _coregent_local_row, _coregent_incoming_row from met where _coregent_outcome is not null ${told}),
      written as (update ${target} t set ${set('m', [])} from met m where ${onMet} and m._coregent_news)
      ${parts.toldAndMet('_coregent_local', '_coregent_incoming')}`,
    // Every row is locked, in conflict or not, until it is joined.
    recordRows: `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming,
          ${json('t')} as _coregent_local_row, ${json('s')} as _coregent_incoming_row, ${outcome(known)} as _coregent_outcome
        from ${rowsInOrder} join ${target} t on ${onKey('t', 's')} where $3::int8[] is null or true for no key update of t)
      ${into} select ${label}, _coregent_key, $2, ${rule}, _coregent_outcome, _coregent_local, _coregent_incoming,
        _coregent_local_row, _coregent_incoming_row from met where _coregent_outcome is not null ${told}`,
    insertAbsent: insertNew,
    unresolved: `select count(*) from ${rows} where not ${forbidden} and not ${settled}`,
    vacate: `with gone as (delete from ${target} t using ${rows} where ${news} returning t.*)
      ${fromRows} select ${list(rowColumns, 'j')} from gone t join ${rows} on ${onKey('t', 's')} cross join lateral (${joined(rowColumns)}) j
        where (select count(*) from gone) >= 0
      union all select ${list(rowColumns, 's')} from ${rows}
        where (select count(*) from gone) >= 0 and not ${forbidden} and not exists (select from ${target} t where ${onKey('t', 's')})`,
    force: `${fromRows} select ${list(rowColumns, 's')} from ${rows} where not ${forbidden}
      on conflict (${list(table.key)}) do update set ${set('excluded', [])} where false`,
    strangers: `select count(*) from ${rows} where not ${settled}`,
    newRows: hasTexts
      ? undefined
      : `select s._coregent_nth from ${parts.nth(parts.rowType, rowColumns)} where not exists (select from ${target} t where ${onKey('t', 's')}
          and ${v('t')} = ${v('s')} and ${bytes('t')} operator(pg_catalog.*=) ${bytes('s')})`,
    newTombstones: hasTexts
      ? undefined
      : `select s._coregent_nth from ${parts.nth(parts.tombstoneType, tombstoneColumns)}
          where not exists (select from ${tombs} x where ${onKey('x', 's')} and ${v('x')} = ${v('s')})
          or exists (select from ${target} t where ${onKey('t', 's')} and ${ended('s', 't')})`,
    fetch: (columns) => `select translate(encode(record_send(r), 'base64'), E'\\n', '') from (
      select ${columns}, case when ${v('t')} = ${v('s')} then ${first('s')} else ${p('t')} end from ${target} t join ${tombstones} on ${onKey('t', 's')}) r`,
  };
}
