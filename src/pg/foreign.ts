import type pg from 'pg';
import { type Table, tableLabel } from '../model/table.ts';
import type { Group, TableBatch } from '../pipe/batch.ts';
import { ident } from '../quote.ts';
import { isReplica } from './applier.ts';
import type { Orphans } from './orphans.ts';
import { inOrder } from './steps.ts';
import type { Target } from './target.ts';

/** The foreign keys between replicated tables, for a session in which they fire (tier C). Tables are told apart by OID. */
export interface ForeignKeys {
  /** Parents have lower ranks than their children; where keys form a ring, one of them does not count. */
  rank(oid: number): number;
  /** Whether other tables refer to it. */
  isParent(oid: number): boolean;
  /** Whether deleting its rows deletes or changes rows that refer to them. */
  acts(oid: number): boolean;
  /** The tables and all that refer to them or that they refer to, as `parked` names them. */
  near(oids: Iterable<number>): string[];
}

/** Reads the foreign keys; undefined where they don't fire. */
export async function readForeignKeys(client: pg.Client, tables: readonly Table[]): Promise<ForeignKeys | undefined> {
  if (await isReplica(client)) return undefined;
  const { rows } = await client.query(
    `select conrelid::int8::float8 as child, confrelid::int8::float8 as parent, confdeltype in ('c', 'n', 'd') as acts
      from pg_constraint where contype = 'f' and conrelid <> confrelid`,
  );
  const keys = rows as { child: number; parent: number; acts: boolean }[];
  const ranks = new Map<number, number>();
  const rank = (oid: number): number => {
    const known = ranks.get(oid);
    if (known !== undefined) return known;
    ranks.set(oid, 0); // What comes back here goes in a ring.
    const above = keys.filter(({ child }) => child === oid).map(({ parent }) => rank(parent) + 1);
    const found = Math.max(0, ...above);
    ranks.set(oid, found);
    return found;
  };
  for (const { oid } of tables) rank(oid);
  const parents = new Set(keys.map(({ parent }) => parent));
  const acting = new Set(keys.filter(({ acts }) => acts).map(({ parent }) => parent));
  const labels = new Map(tables.map((table) => [table.oid, tableLabel(table)]));
  return {
    rank: (oid) => ranks.get(oid) ?? 0,
    isParent: (oid) => parents.has(oid),
    acts: (oid) => acting.has(oid),
    near: (oids) => {
      const near = new Set(oids);
      for (const oid of [...near]) {
        for (const { child, parent } of keys) {
          if (child === oid) near.add(parent);
          if (parent === oid) near.add(child);
        }
      }
      return [...near].flatMap((oid) => labels.get(oid) ?? []);
    },
  };
}

/** A foreign key between two tables, of which at least the parent is replicated. */
export interface ForeignKey {
  readonly child: { readonly oid: number; readonly schema: string; readonly name: string };
  /** The parent's OID. */
  readonly parent: number;
  /** Columns that refer, those referred to, and the equality between them: `parent.column equals child.column`. */
  readonly columns: readonly { readonly child: string; readonly parent: string; readonly equals: string }[];
  readonly onDelete: 'no action' | 'restrict' | 'cascade' | 'set null' | 'set default';
  /** The columns that `set null` and `set default` set. */
  readonly sets: readonly string[];
}

/** Parts of a partitioned table and temporal keys have none of their own. */
const READ_KEYS = `
select c.conrelid::int8::float8 as child, n.nspname as schema, r.relname as name, c.confrelid::int8::float8 as parent,
  case c.confdeltype when 'c' then 'cascade' when 'n' then 'set null' when 'd' then 'set default' when 'r' then 'restrict' else 'no action' end as "onDelete",
  (select json_agg(json_build_object('child', a.attname, 'parent', f.attname,
      'equals', 'operator(' || quote_ident(onsp.nspname) || '.' || o.oprname || ')') order by k.position)
    from unnest(c.conkey, c.confkey, c.conpfeqop) with ordinality as k (child, parent, equals, position)
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.child
    join pg_attribute f on f.attrelid = c.confrelid and f.attnum = k.parent
    join pg_operator o on o.oid = k.equals join pg_namespace onsp on onsp.oid = o.oprnamespace) as columns,
  (select json_agg(a.attname) from pg_attribute a where a.attrelid = c.conrelid and to_jsonb(a.attnum) <@ coalesce(to_jsonb(c) -> 'confdelsetcols', 'null')) as sets
from pg_constraint c join pg_class r on r.oid = c.conrelid join pg_namespace n on n.oid = r.relnamespace
where c.contype = 'f' and c.conparentid = 0 and not coalesce((to_jsonb(c) ->> 'conperiod')::bool, false) and c.confrelid = any ($1::oid[])
  -- Of a table that is not replicated the role may have no rights: then it is left to whoever has.
  and (c.conrelid = any ($1::oid[]) or not r.relrowsecurity and has_schema_privilege(n.oid, 'usage')
    and has_table_privilege(r.oid, 'select') and has_table_privilege(r.oid, 'update') and has_table_privilege(r.oid, 'delete'))
order by c.oid`;

/** Reads the foreign keys whose parents are among these tables. */
export async function readKeys(client: pg.Client, tables: readonly Table[]): Promise<ForeignKey[]> {
  const { rows } = await client.query(READ_KEYS, [tables.map(({ oid }) => oid)]);
  return rows.map(
    ({ child: oid, schema, name, parent, onDelete, columns, sets }): ForeignKey => ({
      child: { oid, schema, name },
      parent,
      columns,
      onDelete,
      sets: sets ?? columns.map((each: { child: string }) => each.child),
    }),
  );
}

/** The condition that a child refers to a parent, by their aliases. */
export function refers({ columns }: ForeignKey, child: string, parent: string): string {
  return columns
    .map((each) => `${parent}.${ident(each.parent)} ${each.equals} ${child}.${ident(each.child)}`)
    .join(' and ');
}

/** One group of a batch with its table. */
export interface Arranged {
  readonly table: TableBatch;
  readonly group: Group;
}

/**
 * A batch's groups in the order in which they are applied: table by table, deletes first. Where foreign keys fire, children that go
 * go first, then parents come before their children, and parents that go are the last: what their deletes still find is this region's own.
 * Where they don't fire, and parents go, so do their children before them; ahead of that, children change that may refer to another
 * parent now, or to none.
 */
export function arrange(
  tables: Iterable<TableBatch>,
  foreign: ForeignKeys | undefined,
  orphans?: Pick<Orphans, 'anyIn' | 'depth' | 'children'>,
): Arranged[] {
  const batches = [...tables];
  const all = batches.flatMap((table) => inOrder(table.groups).map((group) => ({ table, group })));
  if (!foreign) {
    if (!orphans?.anyIn(batches)) return all;
    const children = new Set(
      all.flatMap(({ table, group }) => (group.kind === 'tombstone' ? orphans.children(table.staging.table.oid) : [])),
    );
    const place = ({ table, group }: Arranged): number => {
      const { oid } = table.staging.table;
      if (group.kind === 'tombstone') return orphans.depth(oid);
      return group.kind === 'update' && children.has(oid) ? -1 : 1e6;
    };
    return all.sort((a, b) => place(a) - place(b));
  }
  const place = ({ table, group }: Arranged): number => {
    const { oid } = table.staging.table;
    if (group.kind !== 'tombstone') return foreign.rank(oid);
    return foreign.isParent(oid) ? 1e6 - foreign.rank(oid) : -1;
  };
  return all.sort((a, b) => place(a) - place(b));
}

/** Tables in the order in which their rows can be joined. */
export function parentsFirst(targets: readonly Target[], foreign: ForeignKeys | undefined): readonly Target[] {
  if (!foreign) return targets;
  const rank = ({ staging }: Target): number => foreign.rank(staging.table.oid);
  return [...targets].sort((a, b) => rank(a) - rank(b));
}
