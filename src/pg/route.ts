import type { LSN } from '../model/lsn.ts';
import { PARENT, TOMBSTONES, tableId, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import type { Passing, Route } from '../pipe/batch.ts';
import { makeRoute, missingColumns } from '../pipe/decode.ts';
import type { Relation } from '../wire/pgoutput.ts';
import type { Standing } from './standing.ts';
import type { Target } from './target.ts';

/** How the peer has its tables, and which of them pause. */
export interface PeerTables {
  /** The peer's tables, by id. */
  readonly standings: ReadonlyMap<string, Standing>;
  /** Why a table pauses, by id. */
  readonly differing: ReadonlyMap<string, string>;
  /** From which position on rows of a table count, by id; others from the first on. */
  readonly beginnings: ReadonlyMap<string, LSN>;
  /** Rows are passed over for a reason that the session did not begin with; called again and again. */
  readonly pauses: (passing: Pick<Passing, 'table' | 'label' | 'reason'>) => void;
}

/** Maps a peer's relations to this region's tables, by name. Without `peer`, all that is alike by name is taken. */
export function router(targets: readonly Target[], peer?: PeerTables): (relation: Relation) => Route | Passing {
  const byId = new Map(targets.map((target) => [tableId(target.staging.table), target]));
  const tombstones = new Map(targets.map((target) => [tombstoneName(target.staging.table), target]));
  return (relation) => {
    const tombstone = relation.schema === 'coregent';
    const target = tombstone ? tombstones.get(relation.name) : byId.get(tableId(relation));
    const id = tombstone ? relation.name.slice(TOMBSTONES.length) : tableId(relation);
    const standing = peer?.standings.get(id);
    const known = peer?.differing.get(id);
    const staged = target && (tombstone ? target.compiled.tombstoneColumns : target.compiled.rowColumns);
    const reason =
      known ??
      (staged ? missingColumns(relation, staged) : 'this region does not replicate it: run `coregent apply`') ??
      (standing && changedType(relation, standing));
    const begins = peer?.beginnings.get(id);
    if (reason === undefined) {
      const names = { staged: staged!, version: VERSION, parent: PARENT };
      return { ...makeRoute(relation, target!.staging, tombstone, names), begins };
    }
    const passing = {
      begins,
      table: id,
      label: standing?.label ?? (tombstone ? id : tableLabel(relation)),
      reason,
      version: relation.columns.findIndex(({ name }) => name === VERSION),
    };
    // Only a row shows that it pauses: a partition is described besides its table, as whose rows its rows come.
    return known === undefined && peer ? { ...passing, told: () => peer.pauses(passing) } : passing;
  };
}

/** Rows on their way may be older than the peer's table is now: of a type that it had then. */
function changedType(relation: Relation, standing: Standing): string | undefined {
  const now = new Map(standing.columns.map((column) => [column.name, column]));
  for (const { name, oid, modifier } of relation.columns) {
    const column = now.get(name);
    if (column && (column.oid !== oid || column.modifier !== modifier)) {
      return `rows on their way have ${name} in another type than the peer has now`;
    }
  }
  return undefined;
}
