import type pg from 'pg';
import { classify } from '../model/error.ts';
import { type Table, tableLabel } from '../model/table.ts';
import { regionOf, type Version } from '../model/version.ts';
import { isReplica } from './applier.ts';
import { readTables } from './catalog.ts';
import { readUniques, type Uniques } from './claims.ts';
import { transaction } from './connect.ts';
import { type ForeignKey, readKeys } from './foreign.ts';
import { mendForeign } from './mend-foreign.ts';
import { mendKeys } from './mend-keys.ts';
import { Hearsay, type Neighbours } from './neighbours.ts';
import type { RecordedConflict } from './receipt.ts';
import { runScript, type Step, type StepResult } from './script.ts';
import { prepareToApply } from './shape.ts';
import { ANY_OWNER } from './stamp-owner.ts';
import type { Target } from './target.ts';

/** A session that writes as an application of this region does, with what it must know of the tables. */
export interface Session {
  readonly client: pg.Client;
  /** This region's id. */
  readonly region: number;
  readonly neighbours: Neighbours;
  /** By label. */
  readonly targets: ReadonlyMap<string, Target>;
  /** By OID. */
  readonly uniques: ReadonlyMap<number, Uniques>;
  readonly keys: readonly ForeignKey[];
  /** Parked rows that were taken out. */
  unparked: number;
  /** What was written makes room, or stands in, for parked rows. */
  wrote: boolean;
  run(steps: readonly Step[]): Promise<readonly StepResult[]>;
  transaction<T>(work: () => Promise<T>): Promise<T>;
  /** Does the work under a savepoint; what a row is at fault for is taken back and returned. */
  attempt(work: () => Promise<void>): Promise<Error | undefined>;
  /** What fails for one table holds up no other. Throws a lost connection. */
  guarded(label: string, work: () => Promise<void>): Promise<void>;
  /** Whether all that the writer of this version had heard is here. */
  knows(hearsay: Hearsay, version: Version): Promise<boolean>;
}

/** What one look did. */
export interface Mended {
  readonly conflicts: readonly RecordedConflict[];
  readonly unparked: number;
  /** Parked rows may find their place now. */
  readonly wrote: boolean;
  readonly failed: readonly { readonly table: string; readonly message: string }[];
}

/** Whether there is anything to settle, as SQL. */
export const ANY_TO_MEND = `exists (select from coregent.parked where sqlstate in ('23505', '23503', '23001'))`;

/**
 * Settles what the rows of different regions break together: unique values that two rows claim, and foreign keys whose parent was
 * deleted. `client`: a session of its own, which does not apply. Whatever is cut off in the middle is settled by the next look.
 * Throws a lost connection.
 */
export async function mendRegion(
  client: pg.Client,
  { region, name, neighbours }: { readonly region: number; readonly name: string; readonly neighbours: Neighbours },
): Promise<Mended> {
  // A role that an administrator set to the replica role writes its tombstones itself.
  if (await isReplica(client)) await client.query('set session_replication_role = origin').catch(() => {});
  // A row that gives way goes, whoever owns it.
  await client.query(`select set_config('${ANY_OWNER}', 'on', false)`);
  const all = await readTables(client, name);
  const references = await readKeys(client, all);
  const missing = await notHeardOf(client, all, references);
  const tables = all.filter(({ oid }) => !missing.has(oid));
  const targets = await prepareToApply(client, tables);
  const failed: Mended['failed'][number][] = [];
  const run: Session['run'] = async (steps) => {
    const { results, error } = await runScript(client, steps);
    if (error) throw error;
    return results;
  };
  const session: Session = {
    client,
    region,
    neighbours,
    targets: new Map(targets.map((target) => [tableLabel(target.staging.table), target])),
    uniques: await readUniques(client, tables),
    keys: references.filter(({ parent }) => !missing.has(parent)),
    unparked: 0,
    wrote: false,
    run,
    transaction: (work) => transaction(client, work),
    attempt: async (work) => {
      await client.query('savepoint attempted');
      try {
        await work();
        await client.query('set constraints all immediate; set constraints all deferred');
        await client.query('release savepoint attempted');
        return undefined;
      } catch (error) {
        if (classify(error).code !== 'apply_failed') throw error;
        await client.query('rollback to savepoint attempted; release savepoint attempted');
        return error as Error;
      }
    },
    guarded: async (label, work) => {
      try {
        await work();
      } catch (error) {
        const { code, message } = classify(error);
        if (code === 'peer_unreachable' || code === 'peer_restarting') throw error;
        failed.push({ table: label, message });
      }
    },
    knows: async (hearsay, version) => {
      const writer = regionOf(version);
      return writer === region || (await hearsay.knowsAllOf(writer));
    },
  };
  const hearsay = new Hearsay(neighbours);
  const conflicts = [...(await mendKeys(session, hearsay)), ...(await mendForeign(session, hearsay))];
  return { conflicts, unparked: session.unparked, wrote: session.wrote, failed };
}

/**
 * Tables of which something is passed over for now, and those that foreign keys tie to them: who decides about a row must know all
 * rows that refer to it, and those that it refers to.
 */
async function notHeardOf(
  client: pg.Client,
  tables: readonly Table[],
  keys: readonly ForeignKey[],
): Promise<ReadonlySet<number>> {
  const { rows } = await client.query('select distinct table_name from coregent.paused');
  const paused = new Set(rows.map(({ table_name }) => table_name));
  const missing = new Set(tables.flatMap((table) => (paused.has(tableLabel(table)) ? table.oid : [])));
  let before: number;
  do {
    before = missing.size;
    for (const { child, parent } of keys) {
      if (!missing.has(parent) && !missing.has(child.oid)) continue;
      missing.add(parent).add(child.oid);
    }
  } while (missing.size > before);
  return missing;
}
