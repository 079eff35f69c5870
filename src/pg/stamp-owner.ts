import type { Owner } from '../model/owner.ts';
import { type Table, tableId, tableLabel } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import type { Queryable } from './connect.ts';

/** Comes behind an application's triggers, which may set the column that it reads. */
export const OWNER_TRIGGER = '~coregent_owner';
/** The SQLSTATE of a write that another region owns. */
export const NOT_OWNER = 'CG001';
/** The setting by which a session writes rows of any region: repairs of ours, and people when a region is gone for good. */
export const ANY_OWNER = 'coregent.any_owner';

const op = (name: string): string => `operator(pg_catalog.${name})`;

/** As what a column is compared with the values of the file: the same in every region, whatever its collation is. */
export type OwnerType = 'text' | 'int8' | 'numeric' | 'date' | 'timestamp' | 'timestamptz' | 'uuid';

const COMPARED: Readonly<Record<string, OwnerType>> = {
  smallint: 'int8',
  integer: 'int8',
  bigint: 'int8',
  numeric: 'numeric',
  date: 'date',
  'timestamp without time zone': 'timestamp',
  'timestamp with time zone': 'timestamptz',
  uuid: 'uuid',
  boolean: 'text',
};

/** What is wrong with a rule for this table, in words for people. */
interface OwnerFault {
  readonly message: string;
  readonly cure: string;
}

/** Finds how the owner's column is compared, or why it cannot be. */
export async function readOwnerType(
  client: Queryable,
  table: Table,
  owner: Owner,
): Promise<{ readonly type: OwnerType } | { readonly fault: OwnerFault }> {
  const { column } = owner;
  if (!table.columns.some(({ name }) => name === column)) {
    return {
      fault: { message: `has no column ${column}, by which its rows are to be owned`, cure: 'Correct `owner.column`.' },
    };
  }
  const { rows } = await client.query(
    `with recursive base as (
        select t.* from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = $1 and a.attname = $2
        union all select t.* from base b join pg_type t on t.oid = b.typbasetype where b.typtype = 'd')
      select format_type(oid, null) as name, typcategory as category from base where typtype <> 'd'`,
    [table.oid, column],
  );
  const { name, category } = rows[0];
  const type = COMPARED[name] ?? (category === 'S' || category === 'E' ? 'text' : undefined);
  const asText = owner.list === undefined && owner.range === undefined;
  if (type === undefined || (asText && !['text', 'int8', 'uuid'].includes(type))) {
    return {
      fault: {
        message: `cannot be owned by its column ${column}: values of ${name} ${type ? 'are not one text each' : 'cannot be compared alike in all regions'}`,
        cure: 'Own its rows by a text, an enum, an integer or a uuid; lists and ranges take dates, times and numeric too.',
      },
    };
  }
  for (const value of valuesOf(owner)) {
    const error = await client.query(`select ${typed(value, type)}`).then(
      () => undefined,
      (thrown: Error) => thrown,
    );
    if (error) {
      return {
        fault: {
          message: `cannot be owned by its column ${column}: ${error.message}`,
          cure: 'Correct that value of `owner`.',
        },
      };
    }
  }
  return { type };
}

function valuesOf({ list = {}, range = {} }: Owner): string[] {
  return [...Object.values(list).flat(), ...Object.values(range).flat()].filter((value) => value !== null);
}

function typed(value: string, type: OwnerType): string {
  return `${literal(value)}::pg_catalog.${type}`;
}

/** An expression: the name of the region that owns the row of this alias; null for none. */
function ownerOf(owner: Owner, type: OwnerType, regions: readonly string[], alias: string): string {
  const column = `${alias}.${ident(owner.column)}`;
  const text = `${column}::pg_catalog.text collate pg_catalog."C"`;
  const value = type === 'text' ? text : `${column}::pg_catalog.${type}`;
  const other = owner.default === undefined ? 'null' : literal(owner.default);
  if (owner.hash) {
    const slot = `pg_catalog.mod(pg_catalog.hashtextextended(${text}, 0) ${op('&')} 9223372036854775807, ${owner.hash.length}::pg_catalog.int8)::pg_catalog.int4`;
    return `(array[${owner.hash.map(literal).join(', ')}]::pg_catalog.text[])[1 ${op('+')} ${slot}]`;
  }
  const named = (name: string, condition: string): string => `when ${condition} then ${literal(name)}`;
  const anyOf = (values: readonly string[]): string =>
    `${value} ${op('=')} any (array[${values.map((each) => typed(each, type)).join(', ')}]::pg_catalog.${type}[])`;
  if (owner.list) {
    const lists = Object.entries(owner.list).filter(([, values]) => values.length > 0);
    if (lists.length === 0) return other;
    return `case ${lists.map(([name, values]) => named(name, anyOf(values))).join(' ')} else ${other} end`;
  }
  if (owner.range) {
    const within = ([from, to]: readonly [string | null, string | null]): string =>
      [
        ...(from === null ? [] : [`${value} ${op('>=')} ${typed(from, type)}`]),
        ...(to === null ? [] : [`${value} ${op('<')} ${typed(to, type)}`]),
      ].join(' and ') || `${column} is not null`;
    const ranges = Object.entries(owner.range).map(([name, bounds]) => named(name, within(bounds)));
    return `case ${ranges.join(' ')} else ${other} end`;
  }
  const known = `${text} ${op('=')} any (array[${regions.map(literal).join(', ')}]::pg_catalog.text[])`;
  return `case when ${known} then ${text} else ${other} end`;
}

/** What a region needs to know to refuse what others own. */
export interface Ownership {
  readonly owner: Owner;
  readonly type: OwnerType;
  /** This region. */
  readonly here: string;
  /** All of them. */
  readonly regions: readonly string[];
}

/**
 * The statements that make a table refuse rows that another region owns: an insert by what it inserts, an update and a delete by what
 * was there. A row that no region owns, because it is older than the rule, may be changed anywhere, so that it can be given away.
 * `guard`: a condition that is false where rows are applied, in sessions that fire triggers.
 */
export function ownerSql(
  table: Table,
  { owner, type, here, regions }: Ownership,
  { guard, partitioned = false }: { readonly guard?: string; readonly partitioned?: boolean } = {},
): string[] {
  const target = qualified(table.schema, table.name);
  const name = `coregent.${ident(ownerFunction(table))}`;
  const mine = literal(here);
  const of = (alias: string): string => ownerOf(owner, type, regions, alias);
  const keyOf = (alias: string): string =>
    `pg_catalog.jsonb_build_object(${table.key.map((each) => `${literal(each)}, ${alias}.${ident(each)}`).join(', ')})::pg_catalog.text`;
  // A row that moves to another partition is deleted there and inserted here, by the update that may do so.
  const moving = partitioned
    ? `if whose operator(pg_catalog.<>) ${mine} then
          perform pg_catalog.set_config('coregent.moving', ${keyOf('new')}, true);
      end if;
      `
    : '';
  const moved = partitioned
    ? `if pg_catalog.current_setting('coregent.moving', true) ${op('=')} ${keyOf('new')} then
      perform pg_catalog.set_config('coregent.moving', '', true);
      return new;
    end if;`
    : '';
  const column = ident(owner.column);
  const body = `
declare
  whose pg_catalog.text;
  key pg_catalog.text;
begin
  if tg_op ${op('=')} 'INSERT' then
    whose := ${of('new')};
    if whose ${op('=')} ${mine} then
      return new;
    end if;
    ${moved}
  elsif tg_op ${op('=')} 'DELETE' then
    whose := ${of('old')};
    if whose is null or whose ${op('=')} ${mine} then
      return old;
    end if;
  else
    whose := ${of('old')};
    if whose is null then
      return new;
    end if;
    if whose ${op('=')} ${mine} then
      whose := ${of('new')};
      if whose is not null then
        ${moving}return new;
      end if;
    end if;
  end if;
  if pg_catalog.current_setting(${literal(ANY_OWNER)}, true) ${op('=')} 'on' then
    if tg_op ${op('=')} 'DELETE' then
      return old;
    end if;
    return new;
  end if;
  if tg_op ${op('=')} 'INSERT' then
    key := ${keyOf('new')};
  else
    key := ${keyOf('old')};
  end if;
  if whose is null then
    raise exception using errcode = ${literal(NOT_OWNER)},
      message = pg_catalog.format('no region owns %s %s: its %s is %s', ${literal(tableLabel(table))}, key, ${literal(owner.column)}, coalesce(pg_catalog.quote_literal(new.${column}::pg_catalog.text), 'null')),
      hint = 'Give it a value that stands for a region, or the rule a default.',
      schema = tg_table_schema, table = tg_table_name, column = ${literal(owner.column)};
  end if;
  raise exception using errcode = ${literal(NOT_OWNER)},
    message = pg_catalog.format('region %s owns %s %s, and this is %s', whose, ${literal(tableLabel(table))}, key, ${mine}),
    detail = whose,
    hint = ${literal(`Write it in the region that owns it. To move it, update its ${owner.column} there.`)},
    schema = tg_table_schema, table = tg_table_name, column = ${literal(owner.column)};
end`;
  const when = guard === undefined ? '' : ` when (${guard})`;
  return [
    `create or replace function ${name}() returns trigger language plpgsql stable as ${literal(`\n#variable_conflict use_variable${body}`)}`,
    `create or replace trigger ${ident(OWNER_TRIGGER)} before insert or update or delete on ${target} for each row${when} execute function ${name}()`,
    `revoke all on function ${name}() from public`,
  ];
}

/** Statements for the beginning of what happens when the table, or a part of it, is truncated: every row must be this region's. */
export function truncateOwned(table: Table, { owner, type, here, regions }: Ownership): string {
  const of = ownerOf(owner, type, regions, 't');
  const [before, after] = [
    `select (select ${of} as owner from `,
    ` t where ${of} ${op('<>')} ${literal(here)} limit 1)`,
  ];
  const target = `${literal(qualified(table.schema, table.name))}::pg_catalog.regclass`;
  return `declare
    other pg_catalog.text;
  begin
    -- A partition that was detached keeps the trigger; its rows are no longer the table's.
    if tg_relid ${op('=')} ${target} or pg_catalog.pg_partition_root(tg_relid) ${op('=')} ${target} then
      execute ${literal(before)} ${op('||')} pg_catalog.format('%I.%I', tg_table_schema, tg_table_name) ${op('||')} ${literal(after)} into other;
    end if;
    if other is not null and coalesce(pg_catalog.current_setting(${literal(ANY_OWNER)}, true), '') ${op('<>')} 'on' then
      raise exception using errcode = ${literal(NOT_OWNER)},
        message = pg_catalog.format('region %s owns rows of %s, and this is %s', other, ${literal(tableLabel(table))}, ${literal(here)}),
        detail = other, hint = 'Delete this region’s rows with DELETE.',
        schema = tg_table_schema, table = tg_table_name;
    end if;
  end;
  `;
}

/** The statements that take it away again. */
export function disownSql(table: Table): string[] {
  return [
    `drop trigger if exists ${ident(OWNER_TRIGGER)} on ${qualified(table.schema, table.name)}`,
    `drop function if exists coregent.${ident(ownerFunction(table))}()`,
  ];
}

function ownerFunction(table: Table): string {
  return `owner_${tableId(table)}`;
}
