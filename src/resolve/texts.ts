import { STATE, type Table } from '../model/table.ts';
import { ident, literal } from '../quote.ts';
import type { Making } from './compiled.ts';
import { layoutOf } from './layout.ts';
import type { Parts } from './parts.ts';

/** Columns of the rule `text` of which several documents were written at once show the last one until these are merged. */
export function makingTexts(table: Table, { target, tombs, from, keyJson, onKey }: Parts): Making | undefined {
  const { texts } = layoutOf(table);
  if (texts.length === 0) return undefined;
  const all = `t.${ident(STATE)} -> 't'`;
  const standIn = texts.map(({ name }) => {
    const documents = `${all} -> ${literal(name)}`;
    return `(${documents} is not null and t.${ident(name)} is not distinct from coregent.text_last(${documents}))`;
  });
  const made = texts.map(({ name }) => {
    const document = `e.value -> 'made' ->> ${literal(name)}`;
    return `${ident(name)} = case when e.value -> 'made' ? ${literal(name)} then decode(${document}, 'base64') else t.${ident(name)} end`;
  });
  const keyed = (key: string): string =>
    `jsonb_array_elements($1::jsonb) as e cross join lateral jsonb_populate_record(null::${tombs}, ${key}) as k`;
  return {
    find: `select ${keyJson('t')}::text, octet_length((${all})::text) from ${from.tombstones} join ${target} t on ${onKey('t', 's')}
      where ${all} is not null and (${standIn.join(' or ')})`,
    findAll: undefined,
    read: `select ${keyJson('t')}::text, (${all})::text from ${keyed('e.value')} join ${target} t on ${onKey('t', 'k')}`,
    write: `update ${target} t set ${made.join(', ')} from ${keyed("e.value -> 'key'")} where ${onKey('t', 'k')}`,
  };
}
