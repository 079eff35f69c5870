import { familyOf, LWW } from '../model/rule.ts';
import { PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import { ident, literal } from '../quote.ts';
import { arraysOf } from './arrays.ts';
import { partsOf } from './parts.ts';
import { imageJson } from './staged.ts';

/**
 * A statement that records every version that a row holds beside the one that it shows, since the table's rule is about to be one that
 * keeps no versions; undefined where the rule keeps none. The row that is shown stays, and so is the local side.
 */
export function recordHidden(table: Table): string | undefined {
  const rule = table.rule ?? LWW;
  if (familyOf(rule) !== 'versions') return undefined;
  const parts = partsOf(table, { burialState: true });
  const { image } = arraysOf(table, rule, parts);
  const { target, keyJson, label, into, v, p } = parts;
  const state = `t.${ident(STATE)}`;
  const first = `(${state} -> 'set' -> 0 ->> 'v')::int8`;
  // What a function made is none of the versions.
  const shown = rule.conflict === 'fww' ? first : v('t');
  const beside = rule.conflict === 'custom' ? 'true' : `e.v <> ${shown}`;
  return `${into}
    select ${label}, ${keyJson('t')}, 'update_origin_differs', ${literal(rule.conflict)}, 'keep', ${shown}, e.v, ${imageJson(table, 't')}, ${image('e.version')}
    from ${target} t cross join lateral (select (value ->> 'v')::int8 as v, value as version from jsonb_array_elements(${state} -> 'set')) e
    where ${p('t')} = -2 and ${beside}
    on conflict (incoming_version, local_version, table_name, jsonb_hash_extended(key, 0)) where incoming_version <> local_version
    do update set outcome = excluded.outcome`;
}

/**
 * Statements that make every row, and every tombstone, just what one write of its version made, without a state: what it shows is the
 * value from which its next rule goes on. `table` is under the rule before; the rule after decides what a merged row's parent may be.
 */
export function flatten(table: Table, { merges }: { readonly merges: boolean }): string[] {
  const { target, tombs } = partsOf(table);
  if (familyOf(table.rule ?? LWW) === 'rows') return [];
  return [
    ...(merges ? [`update ${target} set ${ident(PARENT)} = -1 where ${ident(PARENT)} = -2`] : []),
    `alter table ${target} drop column if exists ${ident(STATE)}`,
    `alter table ${tombs} drop column if exists ${ident(STATE)}`,
  ];
}

/** A statement that forgets tombstones of keys that have a row: by the rule before it has outlived them. */
export function forgetOutlived(table: Table): string {
  const { target, tombs, onKey } = partsOf(table);
  return `delete from ${tombs} x using ${target} t where ${onKey('t', 'x')}`;
}

/** The greatest version of a tombstone, as SQL; null without one. */
export function lastDelete(table: Table): string {
  return `select max(${ident(VERSION)}) from ${partsOf(table).tombs}`;
}
