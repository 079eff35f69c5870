import type pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { type LSN, parseLsn } from '../model/lsn.ts';
import { parseRule } from '../model/rule.ts';
import { type Table, tableId } from '../model/table.ts';
import type { Modules } from '../modules.ts';
import { findTables } from '../pg/catalog.ts';
import type { Queryable } from '../pg/connect.ts';
import { pauseTable } from '../pg/paused.ts';
import { readBeginnings } from '../pg/progress.ts';
import type { PeerTables } from '../pg/route.ts';
import { disagreement, readStandings, type Standings, withBarred } from '../pg/standing.ts';
import type { Decoder } from '../pipe/decode.ts';
import type { Ending } from './ending.ts';

/** How this region and a peer have the replicated tables when a session begins: which can travel, and why the others pause. */
export interface Tables extends PeerTables {
  /** The tables that are alike, as this region has them. */
  readonly alike: readonly Table[];
  readonly here: Standings;
  readonly there: Standings;
  readonly modules: Modules;
}

/** Compares the tables of both sides and says which pause; `pauses` is told of these, and later of what is passed over. */
export async function compareTables(
  { apply, control }: { readonly apply: pg.Client; readonly control: pg.Client },
  {
    slot,
    pauses,
    modules,
  }: { readonly slot: string; readonly pauses: PeerTables['pauses']; readonly modules: Modules },
): Promise<Tables> {
  // Read before everything else: what changes from now on is seen as a change.
  const [here, there] = await Promise.all([readHere(apply, modules), readStandings(control)]);
  const differing = new Map<string, string>();
  for (const id of new Set([...here.tables.keys(), ...there.tables.keys()])) {
    const [mine, theirs] = [here.tables.get(id), there.tables.get(id)];
    const reason = disagreement(mine, theirs);
    if (reason === undefined) continue;
    differing.set(id, reason);
    const label = (mine ?? theirs)!.label;
    await pauseTable(apply, slot, { id, label, reason, unsent: theirs?.unpublished ?? false });
    pauses({ table: id, label, reason });
  }
  const alike = (await findTables(apply)).flatMap((table) => {
    const standing = here.tables.get(tableId(table));
    return standing && !differing.has(standing.id) ? [{ ...table, rule: parseRule(standing.rule) }] : [];
  });
  const beginnings = await readBeginnings(apply, slot);
  return { alike, here, there, standings: there.tables, differing, beginnings, pauses, modules };
}

/** How tables stand in this region, which takes nothing by a rule whose module is not here as `apply` read it. */
async function readHere(client: Queryable, modules: Modules): Promise<Standings> {
  return withBarred(await readStandings(client), ({ rule }) => modules.fault(parseRule(rule)));
}

/** Looks now and then whether the tables are still as they were when the session began. */
export class Watch {
  readonly #tables: Tables;
  readonly #decoder: Decoder;
  #alikeAt: LSN | undefined;
  readonly #suspected = new Set<string>();

  constructor(tables: Tables, decoder: Decoder) {
    this.#tables = tables;
    this.#decoder = decoder;
  }

  /** Whether either region replicates the table. */
  knows(id: string): boolean {
    return this.#tables.here.tables.has(id) || this.#tables.there.tables.has(id);
  }

  /**
   * Rows are passed over for a reason that the session did not begin with. Mostly the table was changed here too by now, and a new
   * session sees both alike: only if a look does not end this one it pauses.
   */
  suspect(paused: Parameters<PeerTables['pauses']>[0], look: () => Promise<void>, ended: Ending): void {
    const key = `${paused.table} ${paused.reason}`;
    if (this.#suspected.has(key)) return;
    this.#suspected.add(key);
    look().then(
      () => this.#tables.pauses(paused),
      (error) => ended.end(classify(error)),
    );
  }

  /** Throws `schema_changed` when a new session would see the tables otherwise. */
  async look(local: Queryable, control: Queryable): Promise<void> {
    const { here, there, alike, modules } = this.#tables;
    const [mine, theirs] = await Promise.all([readHere(local, modules), readStandings(control)]);
    if (mine.text !== here.text || theirs.text !== there.text) {
      throw new CoregentError('schema_changed', 'a replicated table was changed');
    }
    if (!alike.some((table) => this.#decoder.passes(tableId(table)))) {
      this.#alikeAt = undefined;
      return;
    }
    // Rows from before a change pass by although both sides are alike now: until the stream is past the change.
    if (this.#alikeAt === undefined) {
      const { rows } = await control.query('select pg_current_wal_flush_lsn()::text as lsn');
      this.#alikeAt = parseLsn(rows[0].lsn);
    }
    if (this.#decoder.position >= this.#alikeAt) {
      throw new CoregentError('schema_changed', 'the stream is past a change of a replicated table');
    }
  }
}
