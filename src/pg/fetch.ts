import type pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { recordArrayHeader, Tuples } from '../wire/tuples.ts';
import { readTables } from './catalog.ts';
import { outOf } from './join.ts';
import { runScript } from './script.ts';
import { type FetchRows, prepareTargets, type Target } from './target.ts';

/**
 * Reads whole rows from a peer by key, over its ordinary connection.
 * Used where an update left out a TOAST value that this region does not have: the peer's current row is whole
 * and at least as new, and applying is a join, so it stands in for the update.
 * A row that is gone there is left out: its tombstone is on its way.
 */
export function makeFetch(connection: () => pg.Client | undefined, where: string): FetchRows {
  let prepared: { client: pg.Client; targets: Map<string, Target> } | undefined;
  return async (target, keys) => {
    const client = connection();
    if (!client) throw new CoregentError('peer_unreachable', 'a row must be read from the peer', { where });
    if (prepared?.client !== client) {
      const targets = await prepareTargets(client, await readTables(client, where));
      prepared = { client, targets: new Map(targets.map((each) => [each.compiled.tombstoneType, each])) };
    }
    const theirs = prepared.targets.get(target.compiled.tombstoneType);
    if (!theirs) throw new CoregentError('schema_differs', 'the peer does not replicate this table', { where });
    const columns = target.compiled.rowColumns.map((name) => outOf(theirs.staging.table, name)).join(', ');
    const { results, error } = await runScript(client, [
      {
        text: theirs.compiled.fetch(columns),
        values: [[recordArrayHeader(theirs.tombstoneTypeOid, keys.live), keys.bytes()]],
      },
    ]);
    if (error) throw classify(error, where);
    const tuples = new Tuples();
    for (const [encoded] of results[0]!.rows) {
      const record = Buffer.from(encoded!, 'base64');
      const to = tuples.reserve(record.length + 4);
      const at = to.writeInt32BE(record.length, tuples.length);
      record.copy(to, at);
      tuples.endRow(at + record.length);
    }
    return tuples;
  };
}
