import { PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import { ident, literal } from '../quote.ts';
import { arraysOf } from './arrays.ts';
import type { Compiled } from './compiled.ts';
import { partsOf } from './parts.ts';

/**
 * The rules `fww`, `siblings` and `custom`: versions of a row whose authors had not seen each other are kept side by side, in the
 * row's state. See `versions.ts` for what they mean.
 *
 * A row of one version is simple, just what its writer wrote. A simple row that plainly follows a simple one takes its place, as under
 * `lww`. All others are joined under the row's lock, as `jsonb`: an array of versions in their order, each whole, values as texts.
 */
export function compileVersions(table: Table): Compiled {
  const { rule } = table;
  const parts = partsOf(table, { burialState: true });
  const { target, tombs, rowType, tombstoneType, rowColumns, tombstoneColumns, hasTexts } = parts;
  const { list, onKey, v, p, first, seen, set, nth, keyJson, label, into, told, onlyKey, fromRows, bury } = parts;
  const { rows, tombstones, rowsInOrder, updatesInOrder, tombstonesInOrder } = parts.from;
  const { one, versions, seenBy, saw, showsCame, buries, image, written, outcome, calls, making } = arraysOf(
    table,
    rule,
    parts,
  );
  const simple = (...aliases: string[]): string => aliases.map((alias) => `${p(alias)} <> -2`).join(' and ');
  const named = literal(rule.conflict);
  const ignored = (parameter: string): string => `(${parameter}::int8[] is null or true)`;

  const allApplied = 'select 1 / (count(*) = $2::int8)::int from applied';
  const insertNew = `${fromRows} select ${list(rowColumns, 's')} from ${rows}
      where not exists (select from ${tombs} x where ${onKey('x', 's')} and not (${v('x')} < ${v('s')} and ${simple('s')} and ${seen('s', 'x')}))
      on conflict ${onlyKey}`;
  const updateSeen = (
    unknown: readonly number[],
  ): string => `update ${target} t set ${set('s', unknown)} from ${unknown.length === 0 ? rowsInOrder : updatesInOrder}
      where ${onKey('t', 's')} and ${v('t')} < ${v('s')} and ${simple('t', 's')}
      and ${unknown.length === 0 ? seen('s', 't') : `${v('t')} in (${first('s')}, ${p('s')})`}`;
  // Of several deletes the last one gives version and parent; it has seen what any of them had.
  const later = (name: string): string =>
    `case when ${v('x')} < ${v('excluded')} then excluded.${ident(name)} else x.${ident(name)} end`;
  const buried = bury(`on conflict (${list(table.key)}) do update set
      ${[...(table.exactKey ? [] : table.key), VERSION, PARENT].map((name) => `${ident(name)} = ${later(name)}`).join(', ')},
      ${ident(STATE)} = coregent.state_after(${later(VERSION)}, ${later(PARENT)}, coregent.seen_join(${seenBy('x')}, ${seenBy('excluded')}))
      where not coregent.seen_contains(${seenBy('x')}, ${seenBy('excluded')})`);
  const deleteSeen = `delete from ${target} t using s where ${onKey('t', 's')} and ${v('t')} < ${v('s')} and ${simple('t')} and ${seen('s', 't')}`;

  /** Each version in this array: its number, what its author had seen, itself. */
  const each = (array: string, alias: string): string =>
    `lateral (select (e.value ->> 'v')::int8 as v, coregent.write_seen((e.value ->> 'v')::int8, (e.value ->> 'p')::int8, e.value -> 'seen') as seen, e.value as version
        from jsonb_array_elements(${array}) as e) as ${alias}`;
  const covers = (seenBy: string, version: string): string => `coregent.seen_covers(${seenBy}, ${version})`;
  const heard = `left join ${tombs} x on ${onKey('x', 's')}`;
  const joined = `coregent.versions_join(${versions('t')} || ${versions('s')}, ${seenBy('x')})`;
  const forbidden = `exists (select from ${tombs} x where ${onKey('x', 's')} and ${buries('x', 's')})`;
  const noneRecorded = `select kind, outcome, false, table_name from coregent.conflict_record where false and $1::${tombstoneType}[] is null`;
  // An insert without a parent carries, negated, up to where its region had forgotten deletes, all of which it had seen.
  const unseenDelete = `not ${covers(seenBy('x'), 'n.v')} and not ${covers('n.seen', v('x'))} and ${v('x')} > - least(${first('s')}, (n.version ->> 'p')::int8)`;
  const missing = `select ${label}, ${keyJson('s')}, 'update_missing', ${named}, 'apply', ${v('x')}, n.v, null, ${image('n.version')}`;
  /** Takes out of rows here what their tombstones have seen; what is left of a row is written anew. `from` has `t` and `x`. */
  const cut = (from: string): string => `with cut as materialized (
        select ${list(table.key, 't')}, coregent.versions_join(${versions('t')}, ${seenBy('x')}) as _coregent_versions
        from ${from} where ${buries('x', 't')} for update of t),
      gone as (delete from ${target} t using cut where ${onKey('t', 'cut')} and cut._coregent_versions is null)
      update ${target} t set ${set('n', [])} from (${written('cut where cut._coregent_versions is not null', 'cut')}) n where ${onKey('t', 'n')}`;
  const unheard = `not ${covers('_coregent_buried', 'n.v')}
        and not exists (select from ${each('_coregent_here', 'k')}
          where case when k.v = n.v then k.version -> 'row' = n.version -> 'row' or l.v <> n.v else ${covers('k.seen', 'n.v')} end)
        and (l.v = n.v or not ${covers('n.seen', 'l.v')})`;
  /** A column of the row that two rows of one version each come to, where no function makes it. */
  const merged = (name: string): string => {
    const came = `s.${ident(name)}`;
    const both: Readonly<Record<string, string>> = {
      [VERSION]: `greatest(${v('t')}, ${v('s')})`,
      [PARENT]: '-2',
      [STATE]: `jsonb_build_object('set', _coregent_versions)`,
    };
    if (showsCame === undefined) return came;
    return `case when _coregent_two = 'both' then ${both[name] ?? `case when ${showsCame} then ${came} else t.${ident(name)} end`} else ${came} end`;
  };
  const cutKeys = cut(
    `${tombstonesInOrder} join ${tombs} x on ${onKey('x', 's')} join ${target} t on ${onKey('t', 's')}`,
  );

  // Of two rows of one version each, neither of them deleted, most things are known without their arrays.
  const known = (alias: string): string =>
    `case when _coregent_two = 'both' then ${one(alias)} when _coregent_two is null then ${versions(alias)} end`;
  const met = `met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('t')} as _coregent_local, ${v('s')} as _coregent_incoming, _coregent_buried, _coregent_two,
          ${table.key.map((name, index) => `t.${ident(name)} as _coregent_key${index}`).join(', ')},
          _coregent_here, _coregent_came, _coregent_versions, ${rowColumns.map((name) => `${merged(name)} as ${ident(name)}`).join(', ')},
          case when _coregent_two = 'both' then ${parts.image('t')} end as _coregent_local_row,
          case when _coregent_two = 'both' then ${parts.image('s')} end as _coregent_incoming_row
        from ${parts.met(`(${v('t')} <> ${v('s')} or row(${list(rowColumns, 't')})::record operator(pg_catalog.*<>) row(${list(rowColumns, 's')})::record) and ${ignored('$3')}`, {})}
          ${heard}
          cross join lateral (select ${seenBy('x')} as _coregent_buried, case when ${v('x')} is null and ${simple('t', 's')} and ${v('t')} <> ${v('s')}
            then case when ${saw('t', v('s'))} then 'old' when ${saw('s', v('t'))} then 'new' else 'both' end end as _coregent_two offset 0) w
          cross join lateral (select ${known('t')} as _coregent_here, ${known('s')} as _coregent_came offset 0) h
          cross join lateral (select case when _coregent_two is null then coregent.versions_join(_coregent_here || _coregent_came, _coregent_buried)
            when _coregent_two <> 'both' then null
            when ${v('t')} < ${v('s')} then jsonb_build_array(_coregent_here, _coregent_came) else jsonb_build_array(_coregent_came, _coregent_here) end as _coregent_versions offset 0) k)`;
  const arrays = `met where _coregent_versions <> _coregent_here${showsCame === undefined ? '' : ' and _coregent_two is null'}`;
  const onMet = table.key
    .map((name, index) => `t.${ident(name)} ${table.keyEquals[index]} n._coregent_key${index}`)
    .join(' and ');

  return {
    calls,
    making,
    session: parts.session,
    rowType,
    tombstoneType,
    rowColumns,
    tombstoneColumns,

    copyIn: hasTexts ? undefined : `copy ${target} (${list(rowColumns)}) from stdin (format binary)`,
    anyTombstone: `select exists (select from ${tombs})`,
    recordRevived: `${into} ${missing}
      from ${tombstones} join ${tombs} x on ${onKey('x', 's')} join ${target} t on ${onKey('t', 's')} cross join ${each(versions('t'), 'n')}
      where ${v('t')} = ${v('s')} and ${unseenDelete} ${told}`,
    // A delete takes nothing that it had not seen, so that nothing vanishes behind a commit that is to be recorded.
    recordCrossedInserts: noneRecorded,
    removeBuried: cutKeys,

    removeAllBuried: cut(`${tombs} x join ${target} t on ${onKey('t', 'x')}`),

    insertClean: insertNew,
    insertAll: `with applied as (${insertNew} returning 1) ${allApplied}`,
    deleteClean: `${buried} ${deleteSeen}`,
    deleteNew: `${bury('')} ${deleteSeen}`,
    deleteAll: `${buried}, applied as (${deleteSeen} returning 1) ${allApplied}`,
    recordDeletes: `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${v('s')} as _coregent_incoming, ${seenBy('s')} as _coregent_seen, ${versions('t')} as _coregent_here
        from ${tombstonesInOrder} join ${target} t on ${onKey('t', 's')}
        where not (${simple('t')} and ${seen('s', 't')}) for no key update of t)
      ${into} select ${label}, _coregent_key, 'delete_origin_differs', ${named}, 'keep', l.v, _coregent_incoming, ${image('l.version')}, null
      from met cross join ${each('_coregent_here', 'l')}
      where not ${covers('_coregent_seen', 'l.v')} and not ${covers('l.seen', '_coregent_incoming')} ${told}`,
    recordCrossedDeletes: noneRecorded,
    deleteOlder: cutKeys,

    updateClean: updateSeen,
    updateAll: (unknown) => `with applied as (${updateSeen(unknown)} returning 1) ${allApplied}`,
    // A row that stands in for an older write is known from then on: what it meets is recorded now.
    recordBuried: `${into} ${missing}
      from ${rows} join ${tombs} x on ${onKey('x', 's')} cross join ${each(versions('s'), 'n')}
      where ${ignored('$2')} and not exists (select from ${target} t where ${onKey('t', 's')}) and ${unseenDelete} ${told}`,
    recordRows: `with met as materialized (
        select ${keyJson('s')} as _coregent_key, ${versions('t')} as _coregent_here, ${versions('s')} as _coregent_came, ${seenBy('x')} as _coregent_buried
        from ${rowsInOrder} join ${target} t on ${onKey('t', 's')} ${heard}
        where ${ignored('$3')} for no key update of t)
      ${into} select ${label}, _coregent_key, $2, ${named}, ${outcome('l.v', 'n.v')}, l.v, n.v, ${image('l.version')}, ${image('n.version')}
      from met cross join ${each('_coregent_came', 'n')} cross join ${each('_coregent_here', 'l')}
      where ${unheard} ${told}`,
    joinRows: `with ${met},
      recorded as (${into} select ${label}, _coregent_key, $2, ${named}, ${outcome('_coregent_local', '_coregent_incoming')}, _coregent_local, _coregent_incoming,
          _coregent_local_row, _coregent_incoming_row from met where _coregent_two = 'both'
        union all select ${label}, _coregent_key, $2, ${named}, ${outcome('l.v', 'n.v')}, l.v, n.v, (${image('l.version')})::json, (${image('n.version')})::json
          from (select * from met where _coregent_two is null offset 0) met cross join ${each('_coregent_came', 'n')} cross join ${each('_coregent_here', 'l')}
          where ${unheard} ${told}),
      plain as (update ${target} t set ${set('n', [])} from met n where ${onMet} and ${showsCame === undefined ? `n._coregent_two = 'new'` : `n._coregent_two in ('new', 'both')`}),
      written as (update ${target} t set ${set('n', [])} from (${written(arrays, 'met')}) n where ${onKey('t', 'n')})
      ${parts.toldAndMet('_coregent_local', '_coregent_incoming')}`,
    insertAbsent: `with cut as materialized (
        select coregent.versions_join(${versions('s')}, ${seenBy('x')}) as _coregent_versions
        from ${rows} join ${tombs} x on ${onKey('x', 's')} where not ${simple('s')} and ${buries('x', 's')})
      ${fromRows} select ${list(rowColumns, 's')} from ${rows} where not ${forbidden}
      union all ${written('cut where cut._coregent_versions is not null', 'cut')} on conflict ${onlyKey}`,
    unresolved: `select count(*) from ${rows} ${heard}
      where coregent.versions_join(${versions('s')}, ${seenBy('x')}) is not null
      and not exists (select from ${target} t where ${onKey('t', 's')}
        and case when ${v('t')} = ${v('s')} and ${p('t')} = ${p('s')} and ${simple('t')} then true else coalesce(${joined} = ${versions('t')}, true) end)`,
    vacate: `with gone as (
        delete from ${target} t using ${rows} ${heard}
        where ${onKey('t', 's')} and ${joined} <> ${versions('t')} returning ${list(table.key, 't')}, ${versions('t')} as _coregent_here),
      met as materialized (
        select coregent.versions_join(coalesce(gone._coregent_here, '[]') || ${versions('s')}, ${seenBy('x')}) as _coregent_versions
        from ${rows} ${heard} left join gone on ${onKey('gone', 's')}
        where gone._coregent_here is not null or not exists (select from ${target} t where ${onKey('t', 's')}))
      ${fromRows} ${written('met where (select count(*) from gone) >= 0 and met._coregent_versions is not null', 'met')}`,
    force: `${fromRows} select ${list(rowColumns, 's')} from ${rows} where not ${forbidden}
      on conflict (${list(table.key)}) do update set ${set('excluded', [])} where false`,
    strangers: `select count(*) from ${rows} where not exists (select from ${target} t
      where ${onKey('t', 's')} and ${v('t')} = ${v('s')} and ${p('t')} = ${p('s')})`,
    newRows: hasTexts
      ? undefined
      : `select s._coregent_nth from ${nth(rowType, rowColumns)} where not exists (select from ${target} t where ${onKey('t', 's')}
          and row(${list(rowColumns, 't')})::record operator(pg_catalog.*=) row(${list(rowColumns, 's')})::record)`,
    newTombstones: hasTexts
      ? undefined
      : `select s._coregent_nth from ${nth(tombstoneType, tombstoneColumns)}
          where not exists (select from ${tombs} x where ${onKey('x', 's')} and coregent.seen_contains(${seenBy('x')}, ${seenBy('s')}))
          or exists (select from ${target} t where ${onKey('t', 's')} and ${buries('s', 't')})`,
    fetch: (columns) => `select translate(encode(record_send(r), 'base64'), E'\\n', '') from (
      select ${columns}, case when ${v('t')} = ${v('s')} then ${first('s')} else ${p('t')} end from ${target} t join ${tombstones} on ${onKey('t', 's')}) r`,
  };
}
