import type pg from 'pg';
import { type Table, tableLabel } from '../model/table.ts';
import type { Group, TableBatch } from '../pipe/batch.ts';
import { isReplica } from './applier.ts';
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

/** One group of a batch with its table. */
export interface Arranged {
  readonly table: TableBatch;
  readonly group: Group;
}

/**
 * A batch's groups in the order in which they are applied: table by table, deletes first. Where foreign keys fire, children that go
 * go first, then parents come before their children, and parents that go are the last: what their deletes still find is this region's own.
 */
export function arrange(tables: Iterable<TableBatch>, foreign: ForeignKeys | undefined): Arranged[] {
  const all = [...tables].flatMap((table) => inOrder(table.groups).map((group) => ({ table, group })));
  if (!foreign) return all;
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
