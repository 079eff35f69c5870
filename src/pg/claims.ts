import type pg from 'pg';
import { familyOf } from '../model/rule.ts';
import { FIRST, type Table, tombstoneName, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import type { Compiled } from '../resolve/compiled.ts';
import { sameKey } from '../resolve/key.ts';

/** A secondary unique index as the catalog has it; every text is SQL over the table's columns by their plain names. */
interface UniqueIndex {
  readonly predicate: string | null;
  readonly nullsEqual: boolean;
  readonly parts: readonly {
    readonly expression: string;
    /** The equality that the index goes by. */
    readonly equals: string;
    /** Quoted; empty where the type has none. */
    readonly collation: string;
  }[];
}

/** What decides about unique values of one table. */
export interface Uniques {
  readonly indexes: readonly UniqueIndex[];
  /** Of each column of the primary key in order: what it goes by, and in which collation regions agree about it. */
  readonly order: readonly { readonly name: string; readonly less: string; readonly collation: string }[];
  /** Columns that each region computes, which an index may be made of. */
  readonly generated: readonly { readonly name: string; readonly expression: string }[];
}

const part = (method: string): string => `json_build_object('name', a.attname,
    'expression', pg_get_indexdef(i.indexrelid, k.position::int, false),
    'equals', (select ${method} from pg_amop p join pg_operator o on o.oid = p.amopopr join pg_namespace n on n.oid = o.oprnamespace
      where p.amopfamily = oc.opcfamily and p.amoplefttype = oc.opcintype and p.amoprighttype = oc.opcintype and p.amopmethod = 403 and p.amopstrategy = 3),
    'less', (select ${method} from pg_amop p join pg_operator o on o.oid = p.amopopr join pg_namespace n on n.oid = o.oprnamespace
      where p.amopfamily = oc.opcfamily and p.amoplefttype = oc.opcintype and p.amoprighttype = oc.opcintype and p.amopmethod = 403 and p.amopstrategy = 1),
    'deterministic', coalesce(co.collisdeterministic, true),
    'collation', coalesce((select quote_ident(nspname) from pg_namespace where oid = co.collnamespace) || '.' || quote_ident(co.collname), ''))`;

/** Strategies 3 and 1 of btree, whose access method is 403, are equality and order. */
const READ = `
select i.indrelid::int8::float8 as oid, i.indisprimary as primary,
  pg_get_expr(i.indpred, i.indrelid) as predicate, coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false) as "nullsEqual",
  (select json_agg(${part(`'operator(' || quote_ident(n.nspname) || '.' || o.oprname || ')'`)} order by k.position)
    from unnest(i.indkey, i.indclass, i.indcollation) with ordinality as k (attnum, opclass, coll, position)
    left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum and k.attnum <> 0
    left join pg_opclass oc on oc.oid = k.opclass
    left join pg_collation co on co.oid = k.coll
    where k.position <= i.indnkeyatts) as parts,
  (select coalesce(json_agg(json_build_object('name', a.attname, 'expression', pg_get_expr(d.adbin, d.adrelid)) order by a.attnum), '[]')
    from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = i.indrelid and a.attgenerated <> '' and not a.attisdropped) as generated
from pg_index i where i.indrelid = any ($1::oid[]) and i.indisunique and i.indisvalid and not i.indisexclusion
order by i.indrelid, i.indexrelid`;

/** Reads them for the tables that have any secondary unique index, by OID. */
export async function readUniques(client: pg.Client, tables: readonly Table[]): Promise<Map<number, Uniques>> {
  const { rows } = await client.query(READ, [tables.map(({ oid }) => oid)]);
  const found = new Map<number, Uniques>();
  for (const { oid } of tables) {
    const mine = rows.filter((row) => row.oid === oid);
    const key = mine.find((row) => row.primary);
    const indexes = mine.filter((row) => !row.primary && row.parts.every(({ equals }: { equals?: string }) => equals));
    if (!key || indexes.length === 0) continue;
    found.set(oid, {
      indexes,
      generated: key.generated,
      order: key.parts.map((each: { name: string; less: string; collation: string; deterministic: boolean }) => ({
        name: each.name,
        less: each.less,
        // Libraries of collations differ between regions; bytes do not.
        collation: each.collation !== '' && each.deterministic ? 'pg_catalog."C"' : each.collation,
      })),
    });
  }
  return found;
}

/** An alias that no column's expression can mean. */
const A = '_coregent_a';

/**
 * Which claims on unique values meet, for parked rows in `$1` (`record` form). A claim is the newest that is known of a key: a parked row,
 * or else the table's. Columns: the parked row's place in `$1`, its key and version; the other's place (null: it is in the table), key and version;
 * whether the first has the smaller key. Two parked rows are given once, the smaller first.
 */
export function meetings(
  table: Table,
  { indexes, order, generated }: Uniques,
  { rowType, rowColumns }: Compiled,
): string {
  const target = qualified(table.schema, table.name);
  const tombs = qualified('coregent', tombstoneName(table));
  const v = (alias: string): string => `${alias}.${ident(VERSION)}`;
  const keys = table.key.map(ident).join(', ');
  const texts = new Map(table.columns.flatMap(({ name, type, asText }) => (asText ? [[name, type]] : [])));
  const columns = rowColumns.map((name) => {
    const type = texts.get(name);
    return type === undefined ? `r.${ident(name)}` : `r.${ident(name)}::${type} as ${ident(name)}`;
  });
  const less = (a: string, b: string): string =>
    order.reduceRight((rest, { name, less: operator, collation }, at) => {
      const of = (alias: string): string => `${alias}.${ident(name)}${collation && ` collate ${collation}`}`;
      return `(${of(a)} ${operator} ${of(b)} or (${a}.${ident(name)} ${table.keyEquals[at]} ${b}.${ident(name)} and ${rest}))`;
    }, 'false');
  const jsonOf = (alias: string): string =>
    `jsonb_build_object(${table.key.map((name) => `${literal(name)}, ${alias}.${ident(name)}`).join(', ')})::text`;
  const computed = generated.map(({ name, expression }) => `, (${expression}) as ${ident(name)}`).join('');
  const where = (predicate: string | null): string => (predicate === null ? '' : ` where (${predicate})`);

  // Where a row is joined by halves, one that is older may still have something that is not here.
  const stale =
    familyOf(table.rule) === 'rows'
      ? `\n      and not exists (select from ${target} t where ${sameKey(table, 't', 'g')} and ${v('t')} >= ${v('g')})`
      : '';
  const ctes = indexes.map(({ predicate, parts }, nth) => {
    const values = parts.map(({ expression }, at) => `, ${expression} as _coregent_${at}`).join('');
    return `c${nth} as materialized (select _coregent_nth, ${keys}, ${ident(VERSION)}${values} from s${where(predicate)})`;
  });
  const found = indexes.flatMap(({ predicate, parts, nullsEqual }, nth) => {
    const equal = (left: (at: number) => string, right: (at: number) => string): string =>
      parts
        .map(({ equals, collation }, at) => {
          const as = (text: string): string => `${text}${collation && ` collate ${collation}`}`;
          const same = `${as(left(at))} ${equals} ${as(right(at))}`;
          return nullsEqual ? `(${same} or (${left(at)} is null and ${right(at)} is null))` : same;
        })
        .join(' and ');
    const met = equal(
      (at) => `(${parts[at]!.expression})`,
      (at) => `${A}._coregent_${at}`,
    );
    return [
      `select ${A}._coregent_nth, ${jsonOf(A)}, ${v(A)}, null, ${jsonOf('t')}, ${v('t')}, ${less(A, 't')}
        from c${nth} ${A} cross join lateral (select * from ${target} as _coregent_o where ${met}${predicate === null ? '' : ` and (${predicate})`}) t
        where not (${sameKey(table, A, 't')}) and not exists (select from s n where ${sameKey(table, 'n', 't')} and ${v('n')} > ${v('t')})`,
      `select ${A}._coregent_nth, ${jsonOf(A)}, ${v(A)}, b._coregent_nth, ${jsonOf('b')}, ${v('b')}, true
        from c${nth} ${A} join c${nth} b on ${equal(
          (at) => `${A}._coregent_${at}`,
          (at) => `b._coregent_${at}`,
        )} and ${less(A, 'b')}`,
    ];
  });
  return `with given as (select ${columns.join(', ')}, r._coregent_nth
      from unnest($1::${rowType}[]) with ordinality as r (${[...rowColumns, FIRST].map(ident).join(', ')}, _coregent_nth)),
    newest as (select distinct on (${keys}) * from given order by ${keys}, ${ident(VERSION)} desc),
    s as materialized (select g.*${computed} from newest g
      where not exists (select from ${tombs} x where ${sameKey(table, 'x', 'g')} and ${v('x')} >= ${v('g')})
${stale}),
    ${ctes.join(',\n')}
    ${found.join('\nunion ')}`;
}
