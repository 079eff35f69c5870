import type pg from 'pg';

/**
 * A column's type as this region has it.
 * The OIDs of types that databases make for themselves differ from region to region, and arrays and composites carry them in their binary form.
 * That does no harm: from 14 on PostgreSQL compares only OIDs of its own types there, and reads by the type of the column.
 */
export interface FoundType {
  /** See {@link Column.asText}. */
  readonly asText: boolean;
  /** See {@link Column.holdsJson}. */
  readonly holdsJson: boolean;
  /** What it is made of, by names: equal in regions whose types fit each other. */
  readonly definition: string;
  /** Why its values can't travel, and the cure. */
  readonly fault: string | undefined;
}

/** OIDs from here on are handed out by a server, below by PostgreSQL's sources (`FirstGenbkiObjectId`): those are the same everywhere. */
const FIRST_LOCAL_OID = 10_000;

/** The types and all that they are made of. Domains have their base's functions, so what a type is shows in its base. */
const FIND = `
with recursive needed (oid) as (
  select unnest($1::oid[])
  union
  select part.oid from needed n join pg_type t on t.oid = n.oid cross join lateral (
    select t.typelem where t.typsend = 'pg_catalog.array_send'::regproc
    union all select t.typbasetype where t.typtype = 'd'
    union all select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
    union all select r.rngsubtype from pg_range r where r.rngtypid = t.oid
    union all select r.rngtypid from pg_range r where r.rngmultitypid = t.oid
  ) as part (oid)
)
select t.oid::int8, format_type(t.oid, null) as name,
  case when t.typtype = 'd' then 'domain'
    when t.typsend = 'pg_catalog.array_send'::regproc then 'array'
    when t.typtype = 'c' then 'composite'
    when t.typtype = 'r' then 'range'
    when t.typtype = 'm' then 'multirange'
    when t.typtype = 'e' then 'enum'
    else 'scalar' end as kind,
  t.typsend <> 0 as sends, t.typreceive <> 0 as receives,
  t.typnamespace = 'pg_catalog'::regnamespace and t.typname ~ '^reg[a-z]+$' as alias,
  t.typtype = 'd' and t.typname = 'lo' and t.typbasetype = 'oid'::regtype as reference,
  t.typelem::int8 as element, t.typbasetype::int8 as base,
  (select rngsubtype::int8 from pg_range where rngtypid = t.oid) as subtype,
  (select rngtypid::int8 from pg_range where rngmultitypid = t.oid) as range,
  (select json_agg(json_build_object('oid', a.atttypid::int8, 'text', quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod)) order by a.attnum)
    from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) as fields,
  (select json_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid) as labels,
  case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) end as base_text
from needed join pg_type t on t.oid = needed.oid`;

interface Row {
  readonly oid: number;
  readonly name: string;
  readonly kind: 'domain' | 'array' | 'composite' | 'range' | 'multirange' | 'enum' | 'scalar';
  readonly sends: boolean;
  readonly receives: boolean;
  /** An alias of `oid`: `regclass`, `regproc`, … */
  readonly alias: boolean;
  /** The extension's `lo`: the number of a large object. */
  readonly reference: boolean;
  /** The types that it is made of, in order. */
  readonly parts: readonly number[];
  readonly definition: string;
}

/** Looks these types up, with all that they are made of. */
export async function findTypes(client: pg.Client, oids: Iterable<number>): Promise<Map<number, FoundType>> {
  const wanted = [...new Set(oids)];
  const { rows } = await client.query(FIND, [wanted]);
  const types = new Map(rows.map((row) => [Number(row.oid), rowOf(row)]));
  return new Map(wanted.map((oid) => [oid, describe(oid, types)]));
}

interface Raw {
  readonly oid: string;
  readonly name: string;
  readonly kind: Row['kind'];
  readonly sends: boolean;
  readonly receives: boolean;
  readonly alias: boolean;
  readonly reference: boolean;
  readonly element: string;
  readonly base: string;
  readonly subtype: string | null;
  readonly range: string | null;
  readonly fields: readonly { readonly oid: number; readonly text: string }[] | null;
  readonly labels: readonly string[] | null;
  readonly base_text: string | null;
}

function rowOf(raw: Raw): Row {
  const { kind, name, sends, receives, alias, reference } = raw;
  const fields = raw.fields ?? [];
  const parts = {
    domain: [raw.base],
    array: [raw.element],
    composite: fields.map(({ oid }) => oid),
    range: [raw.subtype],
    multirange: [raw.range],
    enum: [],
    scalar: [],
  }[kind].map(Number);
  const definition = {
    domain: `domain over ${raw.base_text}`,
    array: '',
    composite: `(${fields.map(({ text }) => text).join(', ')})`,
    range: 'range',
    multirange: '',
    enum: `enum (${(raw.labels ?? []).join(', ')})`,
    scalar: '',
  }[kind];
  return { oid: Number(raw.oid), kind, name, sends, receives, alias, reference, parts, definition };
}

function describe(oid: number, types: ReadonlyMap<number, Row>): FoundType {
  const all = withParts(oid, types);
  const base = baseOf(oid, types);
  const parts = all.filter((type) => type !== base && type.kind !== 'domain');
  const alias = all.find((type) => type.alias);
  const reference = all.find((type) => type.reference);
  const unsendable = parts.find((type) => !type.sends);
  const unreceivable = all.find((type) => type.sends && !type.receives);
  return {
    asText: !base.sends,
    holdsJson: all.some((type) => type.oid === JSON_OID),
    definition: all
      .filter((type) => type.definition !== '' && type.oid >= FIRST_LOCAL_OID)
      .map((type) => `${type.name} is ${type.definition}`)
      .sort()
      .join('; '),
    fault: alias
      ? `holds ${alias.name}, a number that means something else in each region: store the name, alter table … alter column … type text`
      : reference
        ? `holds ${reference.name}, a reference to a large object, which does not travel: store the object itself in a column of type bytea`
        : unsendable
          ? `holds ${unsendable.name} inside of another type, and ${unsendable.name} has no binary form: give it a column of its own`
          : unreceivable
            ? `is of the type ${unreceivable.name}, which can be sent and not received in binary form: create type … receive`
            : undefined,
  };
}

const JSON_OID = 114;

function withParts(oid: number, types: ReadonlyMap<number, Row>): Row[] {
  const found = new Set<Row>();
  const add = (each: number): void => {
    const type = types.get(each)!;
    if (found.has(type)) return;
    found.add(type);
    for (const part of type.parts) add(part);
  };
  add(oid);
  return [...found];
}

function baseOf(oid: number, types: ReadonlyMap<number, Row>): Row {
  const type = types.get(oid)!;
  return type.kind === 'domain' ? baseOf(type.parts[0]!, types) : type;
}
