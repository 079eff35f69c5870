import { CoregentError } from '../model/error.ts';
import { PARENT, tombstoneName, VERSION } from '../model/table.ts';
import type { Route } from '../pipe/batch.ts';
import { makeRoute } from '../pipe/decode.ts';
import type { Relation } from '../wire/pgoutput.ts';
import type { Target } from './target.ts';

/** Maps a peer's relations to this region's tables, by name. */
export function router(targets: readonly Target[]): (relation: Relation) => Route | undefined {
  const rows = new Map(
    targets.map((target) => [`${target.staging.table.schema}\0${target.staging.table.name}`, target]),
  );
  const tombstones = new Map(targets.map((target) => [tombstoneName(target.staging.table), target]));
  return (relation) => {
    const tombstone = relation.schema === 'coregent';
    const target = tombstone ? tombstones.get(relation.name) : rows.get(`${relation.schema}\0${relation.name}`);
    // A table that `apply` has just added: a new session reads the catalog anew. Its rows must not be passed over.
    if (!target)
      throw new CoregentError('schema_missing', 'the peer replicates a table that this region does not', {
        where: `${relation.schema}.${relation.name}`,
      });
    const staged = tombstone ? target.compiled.tombstoneColumns : target.compiled.rowColumns;
    return makeRoute(relation, target.staging, tombstone, { staged, version: VERSION, parent: PARENT });
  };
}
