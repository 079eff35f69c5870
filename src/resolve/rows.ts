import { deletesName, FIRST, PARENT, type Table, tableId, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import type { Compiled } from './compiled.ts';
import { sameKey } from './key.ts';
import { imageJson, sources } from './staged.ts';

const REGION = '127';

/** The rule `lww` for whole rows: the greater version is the row. */
export function compileRows(table: Table): Compiled {
  const target = qualified(table.schema, table.name);
  const tombs = qualified('coregent', tombstoneName(table));
  const id = tableId(table);
  const rowTypeName = `coregent_r_${id}`;
  const tombstoneTypeName = `coregent_k_${id}`;
  const rowType = `pg_temp.${ident(rowTypeName)}`;
  const tombstoneType = `pg_temp.${ident(tombstoneTypeName)}`;
  const byName = new Map(table.columns.map((column) => [column.name, column]));
  const user = table.columns.map((column) => column.name);
  const rowColumns = [...user, VERSION, PARENT];
  const tombstoneColumns = [...table.key, VERSION, PARENT];
  const list = (names: readonly string[], alias = ''): string =>
    names.map((name) => (alias ? `${alias}.${ident(name)}` : ident(name))).join(', ');
  const onKey = (a: string, b: string): string => sameKey(table, a, b);
  const v = (alias: string): string => `${alias}.${ident(VERSION)}`;
  const p = (alias: string): string => `${alias}.${ident(PARENT)}`;
  const first = (alias: string): string => `${alias}.${ident(FIRST)}`;
  const { rows, tombstones, rowsInOrder, updatesInOrder, tombstonesInOrder } = sources(
    table,
    { type: rowType, columns: rowColumns },
    { type: tombstoneType, columns: tombstoneColumns },
  );

  const sameRegion = (a: string, b: string): string => `(${v(a)} & ${REGION}) = (${v(b)} & ${REGION})`;
  // The writer of s had seen what is in t: it replaced it, or it is the writer's own earlier write.
  const seen = (s: string, t: string): string => `(${v(t)} in (${first(s)}, ${p(s)}) or ${sameRegion(s, t)})`;
  const concurrent = (s: string, t: string): string => `not ${seen(s, t)} and ${p(t)} <> ${v(s)}`;
  // Equal versions with different bytes (a restored backup, rows older than replication) need one winner everywhere.
  const image = (alias: string): string => `row(${list([...user].sort(), alias)})::text collate "C"`;
  const older = (t: string, s: string): string =>
    `(${v(t)} < ${v(s)} or (${v(t)} = ${v(s)} and ${image(t)} < ${image(s)}))`;
  const twins = (t: string, s: string): string => `${v(t)} = ${v(s)} and ${image(t)} <> ${image(s)}`;

  const hasTexts = table.columns.some(({ asText }) => asText);
  const nth = (type: string, columns: readonly string[]): string =>
    `unnest($1::${type}[]) with ordinality as s(${list([...columns, FIRST])}, _coregent_nth)`;

  const keyExact = table.exactKey;
  const settable = rowColumns.filter((name) => {
    if (byName.get(name)?.identityAlways) return false;
    // Keys that are equal may still have other bytes (numeric 1.0 and 1.00): the winner's bytes count.
    return !(keyExact && table.key.includes(name));
  });
  const set = (from: string, unknown: readonly number[]): string =>
    settable
      .filter((name) => !unknown.includes(rowColumns.indexOf(name)))
      .map((name) => `${ident(name)} = ${from}.${ident(name)}`)
      .join(', ');
  const types = (names: readonly string[]): string =>
    [...names, FIRST]
      .map((name) => {
        const column = byName.get(name);
        if (column?.asText) return `${ident(name)} text`;
        return `${ident(name)} ${column?.type ?? 'int8'}${column?.collation ? ` collate ${column.collation}` : ''}`;
      })
      .join(', ');
  const json = (alias: string): string => imageJson(table, alias);
  const keyJson = (alias: string): string =>
    `jsonb_build_object(${table.key.map((name) => `${literal(name)}, ${alias}.${ident(name)}`).join(', ')})`;
  const label = literal(tableLabel(table));
  const conflictColumns =
    'table_name, key, kind, rule, outcome, local_version, incoming_version, local_row, incoming_row';
  const outcome = (s: string, t: string): string => `case when ${older(t, s)} then 'apply' else 'keep' end`;
  const into = `insert into coregent.conflict_record (${conflictColumns})`;
  const told = 'on conflict do nothing returning kind, outcome, local_version = incoming_version, table_name';
  // Without a target every unique index would be asked, and a deferrable one refuses that.
  const onlyKey = `(${list(table.key)}) do nothing`;
  const fromRows = `insert into ${target} (${list(rowColumns)}) overriding system value`;
  const asked = (versions: string): string => `(${versions}::int8[] is null or ${v('s')} = any (${versions}::int8[]))`;
  const forbidden = `exists (select from ${tombs} x where ${onKey('x', 's')} and ${v('x')} >= ${v('s')})`;

  // The clean statements, each with a twin that divides by zero, and so ends the transaction, unless it applied `$2` rows:
  // a small batch then needs no look at counts between its statements and its commit.
  const allApplied = 'select 1 / (count(*) = $2::int8)::int from applied';
  const insertNew = `${fromRows} select ${list(rowColumns, 's')} from ${rows}
      where not exists (select from ${tombs} x where ${onKey('x', 's')} and not (${v('x')} < ${v('s')} and ${seen('s', 'x')}))
      on conflict ${onlyKey}`;
  const updateSeen = (
    unknown: readonly number[],
  ): string => `update ${target} t set ${set('s', unknown)} from ${unknown.length === 0 ? rowsInOrder : updatesInOrder}
      where ${onKey('t', 's')} and ${v('t')} < ${v('s')} and ${unknown.length === 0 ? seen('s', 't') : `${v('t')} in (${first('s')}, ${p('s')})`}`;
  const noted = `${literal(qualified('coregent', deletesName(table)))}::regclass`;
  const noteDeletes = `pg_sequence_last_value(${noted}) is not null or nextval(${noted}) > 0`;
  const bury = (
    onConflict: string,
  ): string => `with s as materialized (select s.* from ${tombstonesInOrder}), buried as (
      insert into ${tombs} as x (${list(tombstoneColumns)}) select ${list(tombstoneColumns, 's')} from s where (select ${noteDeletes})
      ${onConflict})`;
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
      where ${v('t')} = ${v('s')} and ${concurrent('s', 'x')} ${only} ${told}`;
  // No column of an application begins with _coregent_: our own names can't meet one.
  const deletes = (only: string): string => `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming, ${json('t')} as _coregent_local_row
        from ${tombstonesInOrder} join ${target} t on ${onKey('t', 's')}
        where ${concurrent('s', 't')} ${only} for no key update of t)
      ${into} select ${label}, _coregent_key, 'delete_origin_differs', 'lww',
        case when _coregent_local <= _coregent_incoming then 'apply' else 'keep' end,
        _coregent_local, _coregent_incoming, _coregent_local_row, null from met ${told}`;

  return {
    session: [
      `create temporary table if not exists ${ident(rowTypeName)} (${types(rowColumns)})`,
      `create temporary table if not exists ${ident(tombstoneTypeName)} (${types(tombstoneColumns)})`,
    ],
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
      where not exists (select from ${target} t where ${onKey('t', 's')}) and ${concurrent('s', 'x')}
        and (${asked('$2')} or ${v('x')} < ${v('s')}) ${told}`,
    recordRows: `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming,
          ${json('t')} as _coregent_local_row, ${json('s')} as _coregent_incoming_row, ${outcome('s', 't')} as _coregent_outcome
        from ${rowsInOrder} join ${target} t on ${onKey('t', 's')}
        where ((${v('t')} <> ${v('s')} and ${concurrent('s', 't')}) or (${twins('t', 's')}))
          and (${asked('$3')} or ${older('t', 's')}) for no key update of t)
      ${into} select ${label}, _coregent_key, $2, 'lww', _coregent_outcome, _coregent_local, _coregent_incoming,
        _coregent_local_row, _coregent_incoming_row from met ${told}`,
    insertAbsent: `${fromRows} select ${list(rowColumns, 's')} from ${rows} where not ${forbidden} on conflict ${onlyKey}`,
    updateOlder: (unknown) =>
      `update ${target} t set ${set('s', unknown)} from ${rowsInOrder} where ${onKey('t', 's')} and ${older('t', 's')}`,
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
