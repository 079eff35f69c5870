import type pg from 'pg';
import { CoregentError } from '../model/error.ts';
import { parseRule } from '../model/rule.ts';
import { type Column, PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import { findTypes } from './types.ts';

/** A table as inspection finds it, replicated or not: its rule is nothing that it could tell. */
export interface FoundTable extends Omit<Table, 'rule'> {
  readonly kind: 'table' | 'partitioned' | 'partition' | 'other';
  readonly unlogged: boolean;
  /** Whether the metadata columns are there. */
  readonly stamped: boolean;
  /** Names of our triggers that are there and enabled, but for those that a partition has from its table. */
  readonly triggers: readonly string[];
  readonly estimatedRows: number;
  /** What the types of some columns are made of, by column; equal in regions whose types fit each other. */
  readonly definitions: ReadonlyMap<string, string>;
  /** Columns whose values can't travel: why, and the cure. */
  readonly typeFaults: readonly string[];
}

/** Types whose equal values always have equal bytes, so that the agent may compare keys by their bytes. */
const EXACT_TYPES = new Set(
  'bool bytea char name int8 int2 int4 oid text varchar date time timestamp timestamptz uuid'.split(' '),
);

const FIND = `
select
  c.oid, n.nspname, c.relname,
  case when c.relispartition then 'partition' when c.relkind = 'p' then 'partitioned' when c.relkind = 'r' then 'table' else 'other' end as kind,
  c.relpersistence <> 'p' as unlogged,
  greatest(c.reltuples, 0)::float8 as estimated_rows,
  (select coalesce(json_agg(json_build_object(
      'name', a.attname, 'oid', a.atttypid::int8, 'type', format_type(a.atttypid, a.atttypmod),
      'identityAlways', a.attidentity = 'a', 'generated', a.attgenerated <> '',
      'collation', case when a.attcollation <> t.typcollation and a.attcollation <> 0
        then (select quote_ident(cn.nspname) || '.' || quote_ident(co.collname) from pg_collation co join pg_namespace cn on cn.oid = co.collnamespace where co.oid = a.attcollation) else '' end,
      'exact', (t.typname = any ($1::text[]) and t.typnamespace = 'pg_catalog'::regnamespace or t.typtype = 'e')
        and coalesce((select co.collisdeterministic from pg_collation co where co.oid = a.attcollation), true)
    ) order by a.attnum), '[]')
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
  (select coalesce(json_agg(json_build_object('name', a.attname,
      'equals', 'operator(' || quote_ident(onsp.nspname) || '.' || o.oprname || ')') order by k.position), '[]')
    from pg_index i cross join lateral unnest(i.indkey, i.indclass) with ordinality as k (attnum, opclass, position)
    join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum and a.attgenerated = ''
    join pg_opclass oc on oc.oid = k.opclass
    -- 403 is btree; its strategy 3 is equality.
    join pg_amop p on p.amopfamily = oc.opcfamily and p.amoplefttype = oc.opcintype and p.amoprighttype = oc.opcintype
      and p.amopmethod = 403 and p.amopstrategy = 3
    join pg_operator o on o.oid = p.amopopr
    join pg_namespace onsp on onsp.oid = o.oprnamespace
    where i.indrelid = c.oid and i.indisprimary and i.indisvalid and i.indimmediate and k.position <= i.indnkeyatts) as key,
  (select coalesce(json_agg(g.tgname), '[]') from pg_trigger g
    where g.tgrelid = c.oid and g.tgname like '~coregent%' and g.tgenabled = 'O' and g.tgparentid = 0) as triggers
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'f', 'm')
  and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'coregent')
order by n.nspname, c.relname`;

interface FoundColumn extends Column {
  readonly generated: boolean;
  readonly exact: boolean;
}

/** Every table of the database outside of system schemas and our own, by schema and name. */
export async function findTables(client: pg.Client): Promise<FoundTable[]> {
  const { rows } = await client.query(FIND, [[...EXACT_TYPES]]);
  const types = await findTypes(
    client,
    rows.flatMap((row) => (row.columns as FoundColumn[]).map(({ oid }) => oid)),
  );
  return rows.map((row): FoundTable => {
    const found = row.columns as FoundColumn[];
    const travelling = found.filter(({ name, generated }) => !generated && name !== VERSION && name !== PARENT);
    const columns = travelling.map(({ name, oid, type, identityAlways, collation }): Column => {
      const { asText, holdsJson } = types.get(oid)!;
      return {
        ...{ name, oid, type, identityAlways, collation },
        ...(asText ? { asText } : {}),
        ...(holdsJson ? { holdsJson } : {}),
      };
    });
    const key = row.key as { readonly name: string; readonly equals: string }[];
    return {
      oid: Number(row.oid),
      schema: row.nspname,
      name: row.relname,
      columns,
      key: key.map(({ name }) => name),
      keyEquals: key.map(({ equals }) => equals),
      exactKey: key.every(({ name }) => found.find((column) => column.name === name)?.exact),
      kind: row.kind,
      unlogged: row.unlogged,
      stamped: found.some((column) => column.name === VERSION) && found.some((column) => column.name === PARENT),
      triggers: row.triggers,
      estimatedRows: row.estimated_rows,
      definitions: new Map(
        travelling.filter(({ name }) => name !== STATE).map(({ name, oid }) => [name, types.get(oid)!.definition]),
      ),
      typeFaults: travelling.flatMap(({ name, oid }) => {
        const { fault } = types.get(oid)!;
        return fault ? [`the column ${name} ${fault}`] : [];
      }),
    };
  });
}

/** What the catalog says of the region it lies in. */
export interface Installed {
  readonly catalogVersion: number;
  readonly region: { readonly id: number; readonly name: string; readonly cluster: string };
  /** Replicated tables by schema and name. */
  readonly tables: readonly { readonly schema: string; readonly name: string; readonly rule: string }[];
}

/** The version of `sql/` that this agent was made for. */
export const CATALOG_VERSION = 1;

/** Reads the catalog; `undefined` when the region is not installed. Throws `schema_too_new` for a later catalog. */
export async function readInstalled(client: pg.Client, where: string): Promise<Installed | undefined> {
  const { rows: there } = await client.query(`select to_regclass('coregent.catalog') is not null as there`);
  if (!there[0].there) return undefined;
  const { rows } = await client.query(
    `select (select version from coregent.catalog) as version,
      (select json_build_object('id', id, 'name', name, 'cluster', cluster) from coregent.this_region) as region,
      (select coalesce(json_agg(json_build_object('schema', schema_name, 'name', table_name, 'rule', rule) order by schema_name, table_name), '[]') from coregent.tables) as tables`,
  );
  const [row] = rows;
  if (row.version > CATALOG_VERSION) {
    throw new CoregentError(
      'schema_too_new',
      `the catalog has version ${row.version}, this agent knows ${CATALOG_VERSION}`,
      { where },
    );
  }
  return { catalogVersion: row.version, region: row.region, tables: row.tables };
}

/** The replicated tables as this region has them now; one that is gone is left out. Throws `schema_missing` without a catalog. */
export async function readTables(client: pg.Client, where: string): Promise<Table[]> {
  const installed = await readInstalled(client, where);
  if (!installed) throw new CoregentError('schema_missing', 'schema coregent is not there', { where });
  const found = await findTables(client);
  return installed.tables.flatMap(({ schema, name, rule }) => {
    const table = found.find((candidate) => candidate.schema === schema && candidate.name === name);
    return table ? { ...table, rule: parseRule(rule) } : [];
  });
}

/** The slot at `peer` from which `puller` reads; also the name of the replication origin at `puller`. */
export function slotName(cluster: string, peer: number, puller: number): string {
  return `coregent_${cluster
    .toLowerCase()
    .replace(/[^a-z0-9_]/g, '_')
    .slice(0, 40)}_${peer}_${puller}`;
}

/** The publication in every region. */
export const PUBLICATION = 'coregent';
