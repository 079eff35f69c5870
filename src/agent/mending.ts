import type { Config, RegionConfig } from '../config.ts';
import type { Log } from '../log.ts';
import type { Metrics } from '../metrics.ts';
import { classify } from '../model/error.ts';
import { type LSN, LSN_ZERO, laterLsn, parseLsn } from '../model/lsn.ts';
import { pause } from '../pause.ts';
import { connect, type Queryable } from '../pg/connect.ts';
import { ANY_TO_MEND, type Mended, mendRegion } from '../pg/mend.ts';
import type { Neighbours } from '../pg/neighbours.ts';

/** What settling needs of one peer. */
export interface Neighbour {
  readonly id: number;
  /** How far its WAL is surely applied here, beyond what the catalog says. */
  heard(): LSN;
  /** Asks its database; undefined where it is not connected. */
  readonly control: Queryable | undefined;
  /** Has parked rows tried again. */
  tryAgain(): void;
}

export interface MendingOptions {
  readonly config: Config;
  readonly here: RegionConfig;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly local: Queryable;
  readonly neighbours: readonly Neighbour[];
  readonly signal: AbortSignal;
}

/** How often it is looked whether anything waits to be settled, in ms; what stays open is looked at ever less often, down to the last. */
const LOOK_MS = 500;
const OPEN_MS = [250, 500, 1_000, 2_000, 5_000] as const;

/** Settles what the rows of different regions break together, until the signal. Never rejects. */
export async function mending(options: MendingOptions): Promise<void> {
  const { here, log, metrics, local, neighbours, signal } = options;
  let vain = 0;
  let waitMs: number = LOOK_MS;
  let told = '';
  while (!signal.aborted) {
    await pause(waitMs, signal);
    if (signal.aborted) return;
    waitMs = LOOK_MS;
    try {
      const { rows } = await local.query(`select ${ANY_TO_MEND} as waits`);
      if (!rows[0].waits) {
        vain = 0;
        continue;
      }
      const settled = await settle(options);
      for (const { table, kind, outcome } of settled.conflicts) {
        metrics.conflicts.inc({ table, type: kind, resolution: outcome });
      }
      if (settled.conflicts.length > 0) log.event('keys.mended', { conflicts: settled.conflicts.length });
      const failed = settled.failed.map(({ table, message }) => `${table}: ${message}`).join('; ');
      if (failed !== '' && failed !== told) log.event('keys.broken', { reason: failed });
      told = failed;
      if (settled.wrote) for (const neighbour of neighbours) neighbour.tryAgain();
      vain = settled.wrote ? 0 : vain + 1;
      waitMs = OPEN_MS[Math.min(vain, OPEN_MS.length - 1)]!;
    } catch (error) {
      // The local server is away, or the agent stops; the leading connection finds out which.
      if (signal.aborted) return;
      const reason = classify(error, here.name).message;
      if (reason !== told) log.event('keys.broken', { reason });
      told = reason;
      waitMs = OPEN_MS.at(-1)!;
    }
  }
}

/** One look, on a connection of its own: it writes as an application does, and nothing is held between looks. */
async function settle({ here, local, neighbours, signal }: MendingOptions): Promise<Mended> {
  const client = await connect(here.localUrl, here.name, { purpose: `settle ${here.name}`, signal });
  const byId = new Map(neighbours.map((each) => [each.id, each]));
  const asked: Neighbours = {
    ids: [...byId.keys()],
    heard: async (id) => {
      const { rows } = await local.query('select lsn::text as lsn from coregent.progress where peer_id = $1', [id]);
      return laterLsn(rows[0] ? parseLsn(rows[0].lsn) : LSN_ZERO, byId.get(id)?.heard() ?? LSN_ZERO);
    },
    ask: async (id, text, values) => {
      try {
        return (await byId.get(id)?.control?.query(text, values))?.rows;
      } catch {
        return undefined;
      }
    },
  };
  try {
    return await mendRegion(client, { region: here.id, name: here.name, neighbours: asked });
  } finally {
    await client.end().catch(() => {});
  }
}
