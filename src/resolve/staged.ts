import { FIRST, OURS, STATE, type Table, VERSION } from '../model/table.ts';
import { ident, literal } from '../quote.ts';

/** FROM items with the alias `s`: the staged rows or tombstones in `$1`, at most one for each key. */
export interface Sources {
  readonly rows: string;
  readonly tombstones: string;
  /** In the order of the keys: two peers' batches lock rows alike and never wait for each other in a circle. */
  readonly rowsInOrder: string;
  /** The same for updates that leave values out: the newest stands for itself alone, since what it left out was not in the others. */
  readonly updatesInOrder: string;
  readonly tombstonesInOrder: string;
}

/** How a table's staged rows are read. `type` names the type of the array's elements, `columns` its columns but the last. */
export function sources(
  table: Table,
  row: { readonly type: string; readonly columns: readonly string[] },
  tombstone: { readonly type: string; readonly columns: readonly string[] },
): Sources {
  const texts = new Map(table.columns.flatMap(({ name, type, asText }) => (asText ? [[name, type]] : [])));
  const key = table.key.map((name) => `u.${ident(name)}`).join(', ');
  const typed = ({ type, columns }: typeof row): string => {
    if (!columns.some((name) => texts.has(name))) return `unnest($1::${type}[]) as u`;
    const cast = columns.map(
      (name) => `r.${ident(name)}${texts.has(name) ? `::${texts.get(name)} as ${ident(name)}` : ''}`,
    );
    return `(select ${cast.join(', ')}, r.${ident(FIRST)} from unnest($1::${type}[]) as r) as u`;
  };
  const source = (of: typeof row, inOrder: boolean, alone = false): string => {
    if (table.exactKey) {
      if (!inOrder) return typed(of).replace(/ as u$/, ' as s');
      return `(select u.* from ${typed(of)} order by ${key}) as s`;
    }
    // Equal keys of other bytes (numeric 1.0 and 1.00) are one key: the newest row stands for all, on the first one's behalf.
    const version = `u.${ident(VERSION)}`;
    const first = `u.${ident(FIRST)}`;
    return `(select distinct on (${key}) ${of.columns.map((name) => `u.${ident(name)}`).join(', ')},
        ${alone ? first : `first_value(${first}) over (partition by ${key} order by ${version}) as ${ident(FIRST)}`}
      from ${typed(of)} order by ${key}, ${version} desc) as s`;
  };
  return {
    rows: source(row, false),
    tombstones: source(tombstone, false),
    rowsInOrder: source(row, true),
    updatesInOrder: source(row, true, true),
    tombstonesInOrder: source(tombstone, true),
  };
}

/**
 * The application's columns of the row with this alias, as `jsonb` for a record. A `json` goes as its text:
 * not every `json` is a `jsonb` (a `\\u0000`, a number beyond all bounds), and a record must never fail.
 */
export function imageJson(table: Table, alias: string): string {
  const ours = `array[${[...OURS, FIRST].map(literal).join(', ')}]`;
  if (!table.columns.some(({ holdsJson }) => holdsJson)) return `to_jsonb(${alias}.*) - ${ours}`;
  const columns = table.columns
    .filter(({ name }) => name !== STATE)
    .map(({ name, holdsJson }) => `${alias}.${ident(name)}${holdsJson ? `::text as ${ident(name)}` : ''}`);
  return `(select to_jsonb(r) from (select ${columns.join(', ')}) as r)`;
}
