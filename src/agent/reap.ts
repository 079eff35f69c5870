import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import type { Log } from '../log.ts';
import { CoregentError, classify } from '../model/error.ts';
import { ruleText } from '../model/rule.ts';
import { deletesName, type Table, tableId, tombstoneName, VERSION } from '../model/table.ts';
import { pause } from '../pause.ts';
import { BARRIER_PATIENCE_MS, barrier, writersEnded } from '../pg/barrier.ts';
import { readTables } from '../pg/catalog.ts';
import { connect } from '../pg/connect.ts';
import { Forgetting } from '../pg/forget.ts';
import { owesAnything } from '../pg/paused.ts';
import type { OpenRegion } from '../pg/setup.ts';
import { ident, qualified } from '../quote.ts';
import { compile } from '../resolve/compile.ts';

export interface ReapOptions {
  readonly config: Config;
  readonly here: RegionConfig;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** Removes stable tombstones of this region, and records of conflicts beyond their bounds, every `tombstones.interval`, until the signal. Never rejects. */
export async function reaping(options: ReapOptions): Promise<void> {
  const { config, here, log, signal } = options;
  const forgetting = new Forgetting(config.conflicts);
  for (;;) {
    await pause(config.tombstones.intervalMs, signal);
    if (signal.aborted) return;
    try {
      const reaped = await round(options, forgetting);
      if (reaped > 0) log.event('tombstones.reaped', { tombstones: reaped });
    } catch (error) {
      // A region that is away keeps every tombstone; that is what they are for.
      if (!signal.aborted) log.event('tombstones.kept', { reason: classify(error, here.name) });
    }
  }
}

/** One round, on a connection of its own: nothing is held between rounds. */
async function round(options: ReapOptions, forgetting: Forgetting): Promise<number> {
  const { here, log } = options;
  const local = await connect(here.localUrl, here.name, { purpose: `reap ${here.name}`, applies: true });
  try {
    const { byNumber, bySize } = await forgetting.round(local);
    if (byNumber + bySize > 0) log.event('conflicts.forgotten', { by_number: byNumber, by_size: bySize });
    return await reap(local, options);
  } finally {
    await local.end().catch(() => {});
  }
}

/**
 * One round. A tombstone may go once no older write of its key can arrive any more (causal stability):
 * 1. every region has applied all that any region had committed when the tombstone was seen, so all know the delete;
 * 2. all that was being written then has ended, and every region has applied it: nothing written in ignorance is in flight.
 * Both are the same barrier, passed twice. By age alone nothing ever goes. Returns how many were removed.
 */
async function reap(local: pg.Client, { config, here, signal }: ReapOptions): Promise<number> {
  const tables = await readTables(local, here.name);
  const withTombstones: Table[] = [];
  for (const table of tables) {
    const { rows } = await local.query(`select exists (select from ${tombstones(table)}) as any`);
    if (rows[0].any) withTombstones.push(table);
  }
  if (withTombstones.length === 0) return 0;

  const { rows } = await local.query(`select pg_snapshot_xmin(pg_current_snapshot())::text as horizon`);
  const horizon = rows[0].horizon as string;
  const clients: OpenRegion[] = [];
  try {
    for (const region of config.regions) {
      clients.push({ region, client: await connect(region.url, region.name, { purpose: `barrier ${here.name}` }) });
    }
    await barrier(config, clients, signal);
    for (const { client, region } of clients) {
      if (await writersEnded(client, { signal, patienceMs: BARRIER_PATIENCE_MS })) continue;
      throw new CoregentError('peer_behind', `a transaction of ${region.name} is open for long`, {
        where: region.name,
      });
    }
    await barrier(config, clients, signal);
    // A barrier only says what was received: rows and deletes that were passed over are yet to be joined, deletes among them.
    for (const { client, region } of clients) {
      if (await owesAnything(client)) {
        throw new CoregentError(
          'peer_behind',
          `in ${region.name} a table pauses or is being joined, or a row is parked that is tried again`,
          { where: region.name },
        );
      }
    }
    let reaped = 0;
    for (const table of withTombstones) reaped += await removeStable(local, table, horizon);
    return reaped;
  } finally {
    for (const { client } of clients) await client.end().catch(() => {});
  }
}

/**
 * Removes tombstones that were committed before the horizon. A row that its tombstone forbids
 * (an insert that was under way, unseen, when the delete arrived) goes first: the join owes that.
 */
async function removeStable(apply: pg.Client, table: Table, horizon: string): Promise<number> {
  const stable = `age(x.xmin) > age($1::xid8::xid)`;
  await apply.query('begin');
  try {
    // Which rows their tombstones end is for the rule to say, and that may have been changed meanwhile.
    const { rows: same } = await apply.query(
      'select from coregent.tables where table_id = $1 and rule = $2 for share',
      [tableId(table), ruleText(table.rule)],
    );
    if (same.length === 0) {
      await apply.query('rollback');
      return 0;
    }
    await apply.query(compile(table).removeAllBuried);
    // Not taken back with the transaction: whoever inserts, and finds no tombstone any more, must know how much was forgotten.
    await apply.query(
      `select setval($2, greatest(max(x.${ident(VERSION)}), pg_sequence_last_value($2))) from ${tombstones(table)} x where ${stable} having count(*) > 0`,
      [horizon, qualified('coregent', deletesName(table))],
    );
    const { rows } = await apply.query(
      `with gone as (delete from ${tombstones(table)} x where ${stable} returning x.${ident(VERSION)} as version),
        told as (update coregent.tables set reaped = greatest(reaped, (select max(version) from gone))
          where table_id = $2 and exists (select from gone))
        select count(*)::int as gone from gone`,
      [horizon, tableId(table)],
    );
    await apply.query('commit');
    return rows[0].gone;
  } catch (error) {
    await apply.query('rollback').catch(() => {});
    throw error;
  }
}

function tombstones(table: Table): string {
  return qualified('coregent', tombstoneName(table));
}
