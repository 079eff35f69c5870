import type pg from 'pg';
import { FIRST, PARENT, type Table, tableLabel, VERSION } from '../model/table.ts';
import type { TableBatch } from '../pipe/batch.ts';
import { ident, literal, qualified } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';
import type { Tuples } from '../wire/tuples.ts';
import { type ForeignKey, type ForeignKeys, readKeys, refers } from './foreign.ts';
import { outOf } from './join.ts';
import type { Step } from './script.ts';
import { shapeOf } from './shape.ts';
import { staged } from './staged.ts';
import { arrayOf, type GroupKind } from './steps.ts';
import type { Target } from './target.ts';

/** How `coregent.parked` names a row that was deleted while others referred to it. */
export const ORPHANING = 'orphaning';

/**
 * What is to be done ahead of deletes that other regions made, where foreign keys do not fire: a row that rows of this region refer
 * to is kept whole, in the transaction that deletes it. What becomes of these rows is decided behind it, when nothing can be on its way any
 * more that would mend it by itself. The region that wrote the reference had the parent when it did, so that region finds it here.
 */
export class Orphans {
  readonly #keys: ReadonlyMap<number, readonly ForeignKey[]>;
  readonly #labels: ReadonlyMap<number, string>;
  readonly #texts = new Map<number, { readonly lock: string; readonly keep: string }>();

  constructor(keys: readonly ForeignKey[], tables: readonly Table[]) {
    const byParent = new Map<number, ForeignKey[]>();
    for (const key of keys) byParent.set(key.parent, [...(byParent.get(key.parent) ?? []), key]);
    this.#keys = byParent;
    this.#labels = new Map(tables.map((table) => [table.oid, tableLabel(table)]));
  }

  /** Whether rows of other tables, or of its own, refer to the table's. */
  may(oid: number): boolean {
    return this.#keys.has(oid);
  }

  /** The tables whose rows may refer to this one's. */
  children(oid: number): number[] {
    return this.#keys.get(oid)?.map(({ child }) => child.oid) ?? [];
  }

  /** Whether the batch deletes rows that others may refer to. */
  anyIn(tables: Iterable<TableBatch>): boolean {
    for (const { staging, groups } of tables) {
      if (this.may(staging.table.oid) && groups.some(({ kind }) => kind === 'tombstone')) return true;
    }
    return false;
  }

  /** How far below others the table stands: deletes of children go ahead of those of their parents. */
  depth(oid: number, seen: ReadonlySet<number> = new Set()): number {
    if (seen.has(oid)) return 0;
    const below = this.children(oid).map((child) => this.depth(child, new Set([...seen, oid])) + 1);
    return Math.max(0, ...below);
  }

  /** The steps ahead of these rows (`record` form), if they are tombstones that may leave others without a parent. */
  ahead(target: Target, { kind }: GroupKind, tombstones: Tuples): Step[] {
    const { oid } = target.staging.table;
    if (kind !== 'tombstone' || !this.may(oid)) return [];
    const texts = this.#texts.get(oid) ?? this.#compile(target);
    this.#texts.set(oid, texts);
    const values = [arrayOf(target.tombstoneTypeOid, tombstones)];
    return [
      { text: texts.lock, values },
      { text: texts.keep, values },
    ];
  }

  #compile(target: Target): { lock: string; keep: string } {
    const { table } = target.staging;
    const { tombstones, tombstonesInOrder } = staged(target);
    const name = qualified(table.schema, table.name);
    const going = `${sameKey(table, 't', 's')} and t.${ident(VERSION)} <= s.${ident(VERSION)}`;
    const keys = this.#keys.get(table.oid)!;
    const referred = keys.map((foreign) => {
      const own = foreign.child.oid === table.oid;
      const goes = `not exists (select from ${tombstones.replace(/ as s$/, ' as g')} where ${sameKey(table, 'g', 'c')} and c.${ident(VERSION)} <= g.${ident(VERSION)})`;
      return `exists (select from ${qualified(foreign.child.schema, foreign.child.name)} c where ${refers(foreign, 'c', 't')}${own ? ` and ${goes}` : ''})`;
    });
    const children = keys.flatMap(({ child }) => this.#labels.get(child.oid) ?? []).map(literal);
    // A child that is kept itself may come back, and then needs this one.
    if (children.length > 0) {
      referred.push(
        `exists (select from coregent.parked where operation = ${literal(ORPHANING)} and table_name in (${children.join(', ')}))`,
      );
    }
    const columns = target.compiled.rowColumns.map((column) => outOf(table, column)).join(', ');
    return {
      lock: `select from ${tombstonesInOrder} join ${name} t on ${going} for update of t`,
      keep: `insert into coregent.parked (peer_id, table_name, operation, version, row_bytes, columns, sqlstate, reason)
        select s.${ident(VERSION)} & 127, ${literal(tableLabel(table))}, ${literal(ORPHANING)}, t.${ident(VERSION)}, int4send(length(b.bytes)) || b.bytes, ${literal(shapeOf(target, 'update'))}::jsonb, '23503',
          'another region deleted this row while rows of this region refer to it'
        from ${tombstones} join ${name} t on ${going}
        cross join lateral (select record_send(r) as bytes from (select ${columns}, t.${ident(PARENT)} as ${ident(FIRST)}) r) b
        where ${referred.join('\n or ')} on conflict do nothing`,
    };
  }
}

/** Reads what a session that applies must know of them; undefined where foreign keys fire. */
export async function readOrphans(
  client: pg.Client,
  tables: readonly Table[],
  foreign: ForeignKeys | undefined,
): Promise<Orphans | undefined> {
  return foreign ? undefined : new Orphans(await readKeys(client, tables), tables);
}
