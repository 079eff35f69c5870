import { type Table, VERSION } from '../model/table.ts';
import { ident } from '../quote.ts';
import type { Compiled } from './compiled.ts';
import { partsOf } from './parts.ts';

/** The rule `lww` for whole rows: the greater version is the row. */
export function compileRows(table: Table): Compiled {
  const parts = partsOf(table);
  const { target, tombs, rowType, tombstoneType, rowColumns, tombstoneColumns, hasTexts } = parts;
  const { list, onKey, v, p, first, seen, set, nth, json, keyJson, label, into, told, onlyKey, fromRows, bury } = parts;
  const { rows, tombstones, rowsInOrder, updatesInOrder, tombstonesInOrder } = parts.from;
  const user = table.columns.map((column) => column.name);
  const keyExact = table.exactKey;

  const concurrent = (s: string, t: string): string => `not ${seen(s, t)} and ${p(t)} <> ${v(s)}`;
  // An insert without a parent carries, negated, up to where its region had forgotten deletes, all of which it had seen.
  const forgot = (s: string, x: string): string => `(${v(x)} <= - ${first(s)})`;
  // Equal versions with different bytes (a restored backup, rows older than replication) need one winner everywhere.
  const image = (alias: string): string => `row(${list([...user].sort(), alias)})::text collate "C"`;
  // Nearly all rows of one version are the same bytes, which is told faster than their texts.
  const equal = (t: string, s: string): string =>
    `${v(t)} = ${v(s)} and row(${list(user, t)})::record operator(pg_catalog.*<>) row(${list(user, s)})::record`;
  const older = (t: string, s: string): string =>
    `(${v(t)} < ${v(s)} or (${equal(t, s)} and ${image(t)} < ${image(s)}))`;
  const twins = (t: string, s: string): string => `${equal(t, s)} and ${image(t)} <> ${image(s)}`;

  const outcome = (s: string, t: string): string => `case when ${older(t, s)} then 'apply' else 'keep' end`;
  const asked = (versions: string): string => `(${versions}::int8[] is null or ${v('s')} = any (${versions}::int8[]))`;
  const forbidden = `exists (select from ${tombs} x where ${onKey('x', 's')} and ${v('x')} >= ${v('s')})`;

  // The clean statements, each with a twin that divides by zero, and so ends the transaction, unless it applied `$2` rows:
  // a small batch then needs no look at counts between its statements and its commit.
  const allApplied = 'select 1 / (count(*) = $2::int8)::int from applied';
  const insertNew = `${fromRows} select ${list(rowColumns, 's')} from ${rows}
      where not exists (select from ${tombs} x where ${onKey('x', 's')} and not (${v('x')} < ${v('s')} and (${seen('s', 'x')} or ${forgot('s', 'x')})))
      on conflict ${onlyKey}`;
  const updateSeen = (
    unknown: readonly number[],
  ): string => `update ${target} t set ${set('s', unknown)} from ${unknown.length === 0 ? rowsInOrder : updatesInOrder}
      where ${onKey('t', 's')} and ${v('t')} < ${v('s')} and ${unknown.length === 0 ? seen('s', 't') : `${v('t')} in (${first('s')}, ${p('s')})`}`;
  const buried = bury(`on conflict (${list(table.key)}) do update set ${tombstoneColumns
    .filter((name) => !(keyExact && table.key.includes(name)))
    .map((name) => `${ident(name)} = excluded.${ident(name)}`)
    .join(', ')}
      where ${v('x')} < ${v('excluded')}`);
  const deleteSeen = `delete from ${target} t using s where ${onKey('t', 's')} and ${v('t')} <= ${v('s')} and ${seen('s', 't')}`;

  const revived = (only: string): string => `${into}
      select ${label}, ${keyJson('s')}, 'update_missing', 'lww', case when ${v('x')} < ${v('s')} then 'apply' else 'keep' end,
        ${v('x')}, ${v('s')}, null, ${json('t')}
      from ${tombstones} join ${tombs} x on ${onKey('x', 's')} join ${target} t on ${onKey('t', 's')}
      where ${v('t')} = ${v('s')} and ${concurrent('s', 'x')} and not ${forgot('s', 'x')} ${only} ${told}`;
  const meets = `((${v('t')} <> ${v('s')} and ${concurrent('s', 't')}) or (${twins('t', 's')}))
          and (${asked('$3')} or ${older('t', 's')})`;
  // No column of an application begins with _coregent_: our own names can't meet one.
  const deletes = (only: string): string => `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming, ${json('t')} as _coregent_local_row
        from ${tombstonesInOrder} join ${target} t on ${onKey('t', 's')}
        where ${concurrent('s', 't')} ${only} for no key update of t)
      ${into} select ${label}, _coregent_key, 'delete_origin_differs', 'lww',
        case when _coregent_local <= _coregent_incoming then 'apply' else 'keep' end,
        _coregent_local, _coregent_incoming, _coregent_local_row, null from met ${told}`;

  return {
    session: parts.session,
    rowType,
    tombstoneType,
    rowColumns,
    tombstoneColumns,

    copyIn: hasTexts ? undefined : `copy ${target} (${list(rowColumns)}) from stdin (format binary)`,
    anyTombstone: `select exists (select from ${tombs})`,
    recordRevived: revived(''),
    recordCrossedInserts: revived(`and ${v('x')} >= ${v('s')}`),
    removeBuried: `delete from ${target} t using ${tombstones}, ${tombs} x
      where ${onKey('t', 's')} and ${onKey('x', 's')} and ${v('t')} = ${v('s')} and ${v('x')} >= ${v('s')}`,

    removeAllBuried: `delete from ${target} t using ${tombs} x where ${onKey('t', 'x')} and ${v('t')} <= ${v('x')}`,

    insertClean: insertNew,
    insertAll: `with applied as (${insertNew} returning 1) ${allApplied}`,
    deleteClean: `${buried} ${deleteSeen}`,
    deleteNew: `${bury('')} ${deleteSeen}`,
    deleteAll: `${buried}, applied as (${deleteSeen} returning 1) ${allApplied}`,
    recordDeletes: deletes(''),
    recordCrossedDeletes: deletes(`and ${v('t')} <= ${v('s')}`),
    deleteOlder: `delete from ${target} t using ${tombstonesInOrder} where ${onKey('t', 's')} and ${v('t')} <= ${v('s')}`,

    updateClean: updateSeen,
    updateAll: (unknown) => `with applied as (${updateSeen(unknown)} returning 1) ${allApplied}`,
    recordBuried: `${into}
      select ${label}, ${keyJson('s')}, 'update_missing', 'lww', case when ${v('x')} < ${v('s')} then 'apply' else 'keep' end,
        ${v('x')}, ${v('s')}, null, ${json('s')}
      from ${rows} join ${tombs} x on ${onKey('x', 's')}
      where not exists (select from ${target} t where ${onKey('t', 's')}) and ${concurrent('s', 'x')} and not ${forgot('s', 'x')}
        and (${asked('$2')} or ${v('x')} < ${v('s')}) ${told}`,
    joinRows: `with met as materialized (
        select ${list(rowColumns, 's')}, ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, b._coregent_outcome,
          case when b._coregent_outcome is not null then ${parts.image('t')} end as _coregent_local_row,
          case when b._coregent_outcome is not null then ${parts.image('s')} end as _coregent_incoming_row
        from ${parts.met(`${v('t')} <> ${v('s')} or (${twins('t', 's')})`, {
          _coregent_outcome: `case when ${meets} then ${outcome('s', 't')} end`,
        })}),
      recorded as (${into} select ${label}, _coregent_key, $2, 'lww', _coregent_outcome, _coregent_local, ${v('m')},
          _coregent_local_row, _coregent_incoming_row from met m where _coregent_outcome is not null ${told}),
      written as (update ${target} t set ${set('m', [])} from met m where ${onKey('t', 'm')} and ${older('t', 'm')})
      ${parts.toldAndMet('_coregent_local', ident(VERSION))}`,
    recordRows: `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming,
          ${json('t')} as _coregent_local_row, ${json('s')} as _coregent_incoming_row, ${outcome('s', 't')} as _coregent_outcome
        from ${rowsInOrder} join ${target} t on ${onKey('t', 's')}
        where ${meets} for no key update of t)
      ${into} select ${label}, _coregent_key, $2, 'lww', _coregent_outcome, _coregent_local, _coregent_incoming,
        _coregent_local_row, _coregent_incoming_row from met ${told}`,
    insertAbsent: `${fromRows} select ${list(rowColumns, 's')} from ${rows} where not ${forbidden} on conflict ${onlyKey}`,
    unresolved: `select count(*) from ${rows} where not ${forbidden}
      and not exists (select from ${target} t where ${onKey('t', 's')} and ${v('t')} >= ${v('s')})`,
    vacate: `with gone as (delete from ${target} t using ${rows} where ${onKey('t', 's')} and ${v('t')} < ${v('s')} returning 1)
      ${fromRows} select ${list(rowColumns, 's')} from ${rows}
      where (select count(*) from gone) >= 0 and not ${forbidden}
      and not exists (select from ${target} t where ${onKey('t', 's')} and ${v('t')} >= ${v('s')})`,
    force: `${fromRows} select ${list(rowColumns, 's')} from ${rows} where not ${forbidden}
      on conflict (${list(table.key)}) do update set ${set('excluded', [])} where false`,
    strangers: `select count(*) from ${rows} where not exists (select from ${target} t
      where ${onKey('t', 's')} and ${v('t')} = ${v('s')})`,
    newRows: hasTexts
      ? undefined
      : `select s._coregent_nth from ${nth(rowType, rowColumns)} where not exists (select from ${target} t where ${onKey('t', 's')}
          and ${v('t')} = ${v('s')} and row(${list(user, 't')})::record operator(pg_catalog.*=) row(${list(user, 's')})::record)`,
    newTombstones: hasTexts
      ? undefined
      : `select s._coregent_nth from ${nth(tombstoneType, tombstoneColumns)}
          where not exists (select from ${tombs} x where ${onKey('x', 's')} and ${v('x')} = ${v('s')})
          or exists (select from ${target} t where ${onKey('t', 's')} and ${v('t')} <= ${v('s')})`,
    fetch: (columns) => `select translate(encode(record_send(r), 'base64'), E'\\n', '') from (
      select ${columns}, case when ${v('t')} = ${v('s')} then ${first('s')} else ${p('t')} end from ${target} t join ${tombstones} on ${onKey('t', 's')}) r`,
  };
}
