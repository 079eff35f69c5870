import { isModule, type Rule } from '../model/rule.ts';
import { PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import type { Making } from './compiled.ts';
import type { Parts } from './parts.ts';

/** How rows become arrays of versions, and arrays rows, as SQL. */
export interface Arrays {
  /** The version that a row of one version stands for; the versions of any row, in their order. */
  one(alias: string): string;
  versions(alias: string): string;
  /** What whoever saw this row, or this tombstone, has seen; null where an outer join found none. */
  seenBy(alias: string): string;
  /** A condition: who wrote this row of one version had seen that version. */
  saw(alias: string, version: string): string;
  /** Whether the row that two versions come to shows that of `s`, not that of `t`; undefined where a function makes it. */
  readonly showsCame: string | undefined;
  /** A condition: the tombstone `x` has seen a version of the row `t`. */
  buries(x: string, t: string): string;
  /** The application's columns of one version, for a record. */
  image(version: string): string;
  /** A query of staged columns: one row for each array `_coregent_versions` of `alias`, which `from` brings. */
  written(from: string, alias: string): string;
  /** The function that {@link written} calls, as people write it. */
  readonly calls: string | undefined;
  /** Where a module makes the row of several versions: it shows the last one until it is made, and its state says so. */
  readonly making: Making | undefined;
  /** What became of the version `incoming` that met `local`, for a record. */
  outcome(local: string, incoming: string): string;
}

/** Values travel as texts, as an applying session writes them: settings are pinned, so that all regions write the same. */
export function arraysOf(table: Table, rule: Rule, parts: Parts): Arrays {
  const { target, rowColumns, v, p } = parts;
  const columns = table.columns.filter(({ name }) => name !== STATE);
  const state = (alias: string): string => `${alias}.${ident(STATE)}`;
  const record = (fields: readonly string[]): string => `(select to_jsonb(r) from (select ${fields.join(', ')}) as r)`;
  const names = `array[${columns.map(({ name }) => literal(name)).join(', ')}]`;
  const texts = (alias: string): string =>
    `jsonb_object(${names}, array[${columns.map(({ name }) => `${alias}.${ident(name)}::text`).join(', ')}])`;
  const one = (alias: string): string => {
    const written = `jsonb_build_object('v', ${v(alias)}, 'p', ${p(alias)}, 'row', ${texts(alias)})`;
    return `case when ${state(alias)} is null then ${written} else ${written} || ${state(alias)} end`;
  };
  const value = (version: string, { name, type }: Table['columns'][number]): string =>
    `(${version} -> 'row' ->> ${literal(name)})::${type}`;
  const seenBy = (alias: string): string =>
    `case when ${v(alias)} is not null then coregent.row_seen(${v(alias)}, ${p(alias)}, ${state(alias)}) end`;
  const decides = rule.custom !== undefined && isModule(rule.custom);
  const several = 'jsonb_array_length(m.versions) > 1';
  const last = 'm.versions -> -1';
  const ours: Readonly<Record<string, string>> = {
    [VERSION]: `(${last} ->> 'v')::int8`,
    [PARENT]: `case when ${several} then -2 else (${last} ->> 'p')::int8 end`,
    [STATE]: `case when ${several} then jsonb_build_object('set', m.versions${decides ? `, ${UNMADE}, true` : ''}) when ${last} ? 'seen' then jsonb_build_object('seen', ${last} -> 'seen') end`,
  };
  const custom = rule.custom === undefined || decides ? undefined : functionName(rule.custom);
  const choice = rule.conflict === 'fww' ? 'm.versions -> 0' : last;
  const shown = (column: Table['columns'][number]): string => {
    const chosen = value(choice, column);
    // The key is not the function's to change.
    if (custom === undefined || table.key.includes(column.name)) return chosen;
    return `case when ${several} then (made.one).${ident(column.name)} else ${chosen} end`;
  };
  const fields = rowColumns.map((name) => {
    const column = columns.find((each) => each.name === name);
    return `${column ? shown(column) : ours[name]} as ${ident(name)}`;
  });
  // JSON values go in as themselves; all others are read from their texts.
  const given = columns.map(({ name, type }) => {
    const json = type === 'json' || type === 'jsonb';
    return `(e.version -> 'row' ->> ${literal(name)})${json ? '::json' : ''} as ${ident(name)}`;
  });
  const version = `json_populate_record(null::${target}, (select row_to_json(r) from (select ${given.join(', ')},
      (e.version ->> 'v')::int8 as ${ident(VERSION)}, (e.version ->> 'p')::int8 as ${ident(PARENT)}) as r))`;
  const argument = `array(select ${version}
    from jsonb_array_elements(m.versions) with ordinality as e (version, nth) order by e.nth)`;
  // Called once, and only for several versions.
  const make = `left join lateral (select ${custom}(${argument}) as one where ${several} offset 0) as made on true
    where not ${several} or not (made.one is null) or coregent.made_nothing(${literal(rule.custom ?? '')})`;
  return {
    calls: custom === undefined ? undefined : rule.custom,
    making: decides ? makingVersions(table, version, parts) : undefined,
    one,
    versions: (alias) =>
      `case when ${p(alias)} = -2 then ${state(alias)} -> 'set' else jsonb_build_array(${one(alias)}) end`,
    seenBy,
    saw: (
      alias,
      version,
    ) => `case when ${state(alias)} is not null then coregent.seen_covers(${state(alias)} -> 'seen', ${version})
      else ((${v(alias)} & 127) = (${version} & 127) and ${v(alias)} >= ${version}) or (${p(alias)} >= 0 and (${p(alias)} & 127) = (${version} & 127) and ${p(alias)} >= ${version}) end`,
    showsCame: rule.conflict === 'custom' ? undefined : `${v('s')} ${rule.conflict === 'fww' ? '<' : '>'} ${v('t')}`,
    buries: (x, t) =>
      `case when ${p(t)} = -2 then exists (select from jsonb_array_elements(${state(t)} -> 'set') as e
          where coregent.seen_covers(${seenBy(x)}, (e.value ->> 'v')::int8))
        else ${v(t)} <= ${v(x)} and coregent.seen_covers(${seenBy(x)}, ${v(t)}) end`,
    image: (version) => record(columns.map((column) => imageField(version, column, value(version, column)))),
    written: (from, alias) =>
      `select ${fields.join(', ')} from (select ${alias}._coregent_versions as versions from ${from}) as m ${custom === undefined ? '' : make}`,
    outcome: (local, incoming) => {
      if (rule.conflict === 'fww') return `case when ${incoming} < ${local} then 'apply' else 'keep' end`;
      return literal(rule.conflict === 'custom' ? 'merge' : 'sibling');
    },
  };
}

/** A `json` goes as its text: not every `json` is a `jsonb`, and a record must never fail. */
function imageField(version: string, { name, holdsJson }: Table['columns'][number], value: string): string {
  return `${holdsJson ? `${version} -> 'row' ->> ${literal(name)}` : value} as ${ident(name)}`;
}

/** A function's name as SQL, from `schema.function`. */
function functionName(name: string): string {
  const dot = name.indexOf('.');
  return qualified(name.slice(0, dot), name.slice(dot + 1));
}

/** In the state of a row that a module is to make; never seen outside of the transaction that joined it. */
const UNMADE = literal('unmade');

/** Numbers that JavaScript would not hold exactly. */
const EXACT = /^(bigint|numeric(\(.*\))?)(\[\])*$/;

/** `version` reads the version `e.version` of a row's array into a record. */
function makingVersions(
  table: Table,
  version: string,
  { target, tombs, from, keyJson, onKey, settable }: Parts,
): Making {
  const state = `t.${ident(STATE)}`;
  const columns = table.columns.filter(({ name }) => name !== STATE);
  const json = columns.map(({ name, type }) => {
    const [value, exact] = [`r.${ident(name)}`, EXACT.exec(type)];
    return `to_json(${exact ? `${value}::text${exact[3] ?? ''}` : value})::text as ${ident(name)}`;
  });
  const keyed = (key: string): string => `jsonb_populate_record(null::${tombs}, ${key}) as k`;
  const set = settable.filter((name) => !table.key.includes(name) && columns.some((column) => column.name === name));
  const values = [...set.map((name) => `${ident(name)} = m.${ident(name)}`), `${ident(STATE)} = ${state} - ${UNMADE}`];
  return {
    find: `select ${keyJson('t')}::text, octet_length(${state}::text) from ${from.tombstones} join ${target} t on ${onKey('t', 's')} where ${state} ? ${UNMADE}`,
    findAll: `select ${keyJson('t')}::text, octet_length(${state}::text) from ${target} t where ${state} ? ${UNMADE}`,
    read: `select ${keyJson('t')}::text, (select json_agg(json_build_object('version', e.version ->> 'v', 'row',
        (select row_to_json(j) from (select ${json.join(', ')} from ${version} as r) as j)) order by e.nth)
        from jsonb_array_elements(${state} -> 'set') with ordinality as e (version, nth))::text
      from jsonb_array_elements($1::jsonb) as q cross join lateral ${keyed('q.value')} join ${target} t on ${onKey('t', 'k')}`,
    write: `update ${target} t set ${values.join(', ')} from json_array_elements($1::json) as q
      cross join lateral ${keyed("(q.value -> 'key')::jsonb")} cross join lateral json_populate_record(null::${target}, q.value -> 'made') as m
      where ${onKey('t', 'k')}`,
  };
}
