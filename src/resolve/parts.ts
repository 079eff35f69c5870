import {
  deletesName,
  FIRST,
  PARENT,
  STATE,
  type Table,
  tableId,
  tableLabel,
  tombstoneName,
  VERSION,
} from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { sameKey } from './key.ts';
import { imageJson, type Sources, sources } from './staged.ts';

const REGION = '127';

/** What makes two records of one meeting one, whichever write came second: the target of an `on conflict`. */
export const ONE_MEETING = `(least(local_version, incoming_version), greatest(local_version, incoming_version), table_name, jsonb_hash_extended(key, 0))
    where incoming_version <> local_version`;

/** What statements over a table's rows are made of, whatever its rule. Aliases: `t` a row here, `x` its tombstone, `s` what is staged. */
export interface Parts {
  /** The table, and its tombstones. */
  readonly target: string;
  readonly tombs: string;
  readonly session: readonly string[];
  readonly rowType: string;
  readonly tombstoneType: string;
  readonly rowColumns: readonly string[];
  readonly tombstoneColumns: readonly string[];
  readonly from: Sources;
  /** Whether a column has no binary form. */
  readonly hasTexts: boolean;
  list(names: readonly string[], alias?: string): string;
  onKey(a: string, b: string): string;
  /** The version, the parent, and what the first of several collapsed writes replaced. */
  v(alias: string): string;
  p(alias: string): string;
  first(alias: string): string;
  /** The writer of `s` had seen what is in `t`: it replaced it, or it is the writer's own earlier write. */
  seen(s: string, t: string): string;
  /** Columns that an update may set. */
  readonly settable: readonly string[];
  /** Without the columns at these places. */
  set(from: string, unknown: readonly number[]): string;
  /** The staged rows or tombstones with their places in the array. */
  nth(type: string, columns: readonly string[]): string;
  /** The application's columns, and the key's, as `jsonb` for a record. */
  json(alias: string): string;
  keyJson(alias: string): string;
  /**
   * FROM items: staged rows as `s` and the rows here that they meet, `t`, where this holds; locked in the order of the keys. `as` names
   * values of both that are found out there, under the lock. {@link image} is for these.
   */
  met(where: string, as: Readonly<Record<string, string>>): string;
  /** The application's columns of `t` or `s` of {@link met}, as `json` for a record. */
  image(alias: 't' | 's'): string;
  /** How a conflict is recorded: `label` names the table. */
  readonly label: string;
  readonly into: string;
  readonly told: string;
  /** A query: what `recorded` told, alike ones counted; then how many rows of `met`, by these versions, met another write. */
  toldAndMet(local: string, incoming: string): string;
  /** Without a target every unique index would be asked, and a deferrable one refuses that. */
  readonly onlyKey: string;
  readonly fromRows: string;
  /** CTEs: `s`, the staged tombstones, and `buried`, which writes them, and says that the table has deletes. */
  bury(onConflict: string): string;
}

/** `burialState`: tombstones have a state. */
export function partsOf(table: Table, { burialState = false } = {}): Parts {
  const target = qualified(table.schema, table.name);
  const tombs = qualified('coregent', tombstoneName(table));
  const id = tableId(table);
  const rowTypeName = `coregent_r_${id}`;
  const tombstoneTypeName = `coregent_k_${id}`;
  const rowType = `pg_temp.${ident(rowTypeName)}`;
  const tombstoneType = `pg_temp.${ident(tombstoneTypeName)}`;
  const byName = new Map(table.columns.map((column) => [column.name, column]));
  const rowColumns = [...table.columns.map((column) => column.name), VERSION, PARENT];
  const tombstoneColumns = [...table.key, ...(burialState ? [STATE] : []), VERSION, PARENT];
  const list = (names: readonly string[], alias = ''): string =>
    names.map((name) => (alias ? `${alias}.${ident(name)}` : ident(name))).join(', ');
  const v = (alias: string): string => `${alias}.${ident(VERSION)}`;
  const p = (alias: string): string => `${alias}.${ident(PARENT)}`;
  const first = (alias: string): string => `${alias}.${ident(FIRST)}`;
  const sameRegion = (a: string, b: string): string => `(${v(a)} & ${REGION}) = (${v(b)} & ${REGION})`;
  const settable = rowColumns.filter((name) => {
    if (byName.get(name)?.identityAlways) return false;
    // Keys that are equal may still have other bytes (numeric 1.0 and 1.00): the winner's bytes count.
    return !(table.exactKey && table.key.includes(name));
  });
  const types = (names: readonly string[]): string =>
    [...names, FIRST]
      .map((name) => {
        const column = byName.get(name);
        if (column?.asText) return `${ident(name)} text`;
        return `${ident(name)} ${column?.type ?? 'int8'}${column?.collation ? ` collate ${column.collation}` : ''}`;
      })
      .join(', ');
  const from = sources(
    table,
    { type: rowType, columns: rowColumns },
    { type: tombstoneType, columns: tombstoneColumns },
  );
  const sides = ['t', 's'] as const;
  const sided = (side: string, name: string): string =>
    ident(`_coregent_${side}${[...rowColumns, FIRST].indexOf(name)}`);
  const ofSide = (side: string): readonly string[] => (side === 's' ? [...rowColumns, FIRST] : rowColumns);
  const imaged = table.columns.filter(({ name }) => name !== STATE);
  const met = (where: string, as: Readonly<Record<string, string>>): string => `(select ${[
    ...sides.flatMap((side) => ofSide(side).map((name) => `${side}.${ident(name)} as ${sided(side, name)}`)),
    ...Object.entries(as).map(([name, value]) => `${value} as ${name}`),
  ].join(', ')}
      from ${from.rowsInOrder} join ${target} t on ${sameKey(table, 't', 's')} where ${where} for no key update of t) b ${sides
        .map(
          (side) => `
      cross join lateral (select ${ofSide(side)
        .map((name) => `b.${sided(side, name)} as ${ident(name)}`)
        .join(', ')}) ${side}
      cross join lateral (select ${imaged
        .map(({ name, holdsJson }) => `b.${sided(side, name)}${holdsJson ? '::text' : ''} as ${ident(name)}`)
        .join(', ')}) _coregent_image_${side}`,
        )
        .join('')}`;
  const noted = `${literal(qualified('coregent', deletesName(table)))}::regclass`;
  return {
    target,
    tombs,
    session: [
      `create temporary table if not exists ${ident(rowTypeName)} (${types(rowColumns)})`,
      `create temporary table if not exists ${ident(tombstoneTypeName)} (${types(tombstoneColumns)})`,
    ],
    rowType,
    tombstoneType,
    rowColumns,
    tombstoneColumns,
    from,
    hasTexts: table.columns.some(({ asText }) => asText),
    list,
    onKey: (a, b) => sameKey(table, a, b),
    v,
    p,
    first,
    seen: (s, t) => `(${v(t)} in (${first(s)}, ${p(s)}) or ${sameRegion(s, t)})`,
    settable,
    set: (from, unknown) =>
      settable
        .filter((name) => !unknown.includes(rowColumns.indexOf(name)))
        .map((name) => `${ident(name)} = ${from}.${ident(name)}`)
        .join(', '),
    nth: (type, columns) => `unnest($1::${type}[]) with ordinality as s(${list([...columns, FIRST])}, _coregent_nth)`,
    json: (alias) => imageJson(table, alias),
    keyJson: (alias) =>
      `jsonb_build_object(${table.key.map((name) => `${literal(name)}, ${alias}.${ident(name)}`).join(', ')})`,
    met,
    image: (alias) => `row_to_json(_coregent_image_${alias}.*)`,
    label: literal(tableLabel(table)),
    into: `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version, local_row, incoming_row)`,
    told: `on conflict ${ONE_MEETING}
      do nothing returning kind, outcome, local_version = incoming_version as twins, table_name`,
    toldAndMet: (
      local,
      incoming,
    ) => `select kind, outcome, twins, table_name, count(*) from recorded group by 1, 2, 3, 4
      union all select null, null, null, null, count(*) filter (where ${local} <> ${incoming}) from met`,
    onlyKey: `(${list(table.key)}) do nothing`,
    fromRows: `insert into ${target} (${list(rowColumns)}) overriding system value`,
    bury: (onConflict) => `with s as materialized (select s.* from ${from.tombstonesInOrder}), buried as (
      insert into ${tombs} as x (${list(tombstoneColumns)}) select ${list(tombstoneColumns, 's')} from s
        where (select pg_sequence_last_value(${noted}) is not null or nextval(${noted}) > 0)
      ${onConflict})`,
  };
}
