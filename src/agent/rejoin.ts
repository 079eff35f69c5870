import type pg from 'pg';
import type { RegionConfig } from '../config.ts';
import { CoregentError, classify } from '../model/error.ts';
import { LSN_ZERO } from '../model/lsn.ts';
import { type Table, tableId } from '../model/table.ts';
import { writersEnded } from '../pg/barrier.ts';
import { slotName } from '../pg/catalog.ts';
import { connect } from '../pg/connect.ts';
import { decidersOf } from '../pg/deciders.ts';
import { endEarlier } from '../pg/earlier.ts';
import type { ForeignKeys } from '../pg/foreign.ts';
import { joinTable } from '../pg/join.ts';
import { useOrigin, yieldInDeadlocks } from '../pg/origin.ts';
import { readOrphans } from '../pg/orphans.ts';
import { type Owed, owesOwn, readOwed, settleOwed, tellJoining } from '../pg/paused.ts';
import { pruneForgotten } from '../pg/prune.ts';
import { knowsSelf } from '../pg/self.ts';
import { Store } from '../pg/store.ts';
import { prepareTargets } from '../pg/target.ts';
import type { Batch } from '../pipe/batch.ts';
import type { Decoder } from '../pipe/decode.ts';
import type { Link } from './link.ts';
import type { PeerContext } from './peer.ts';

/** What joining takes of the session that streams. */
interface RejoinOptions {
  readonly context: PeerContext;
  readonly region: RegionConfig;
  readonly slot: string;
  readonly decoder: Decoder;
  /** The tables that are alike in both regions. */
  readonly tables: readonly Table[];
  /** Where foreign keys fire. */
  readonly foreign: ForeignKeys | undefined;
  /** Resolves when this region's clock has passed every version of the batch. */
  readonly reachClock: (batch: Batch) => Promise<void>;
  /** Told of what was joined. */
  readonly link: Link;
  /** Ends with the session. */
  readonly signal: AbortSignal;
}

/** The catalog is told of so many more rows at a time. */
const TOLD_ROWS = 50_000;

/**
 * Joins what this region owes of a peer, beside the stream, which applies the same tables meanwhile: whatever arrives by both
 * ways changes nothing the second time. What is passed over during a join is owed again, and joined by the next.
 */
export class Rejoin {
  readonly #options: RejoinOptions;
  #running: Promise<void> | undefined;

  constructor(options: RejoinOptions) {
    this.#options = options;
  }

  /** Begins to join what is owed and can be; does nothing while a join runs. Faults are told, and the next call tries again. */
  begin(owed: Iterable<Owed>): void {
    const { decoder, tables, foreign, signal } = this.#options;
    const alike = new Map(tables.map((table) => [tableId(table), table]));
    const rank = ({ id }: Owed): number => foreign?.rank(alike.get(id)!.oid) ?? 0;
    const due = [...owed].filter(({ id }) => alike.has(id) && !decoder.passes(id)).sort((a, b) => rank(a) - rank(b));
    if (due.length === 0 || this.#running || signal.aborted) return;
    this.#running = this.#join(due).finally(() => {
      this.#running = undefined;
    });
  }

  /** Resolves when nothing runs any more. */
  async ended(): Promise<void> {
    await this.#running;
  }

  async #join(due: readonly Owed[]): Promise<void> {
    const { context, region, signal } = this.#options;
    const clients: pg.Client[] = [];
    const stop = (): void => {
      for (const client of clients) client.end().catch(() => {});
    };
    signal.addEventListener('abort', stop);
    try {
      const purpose = `${context.here.name} from ${region.name}`;
      const peer = await connect(region.url, region.name, { purpose: `rejoin ${purpose}` });
      clients.push(peer);
      for (const owed of due) if (!signal.aborted) await this.#joinOne(owed, peer, clients);
    } catch (thrown) {
      if (signal.aborted) return;
      const error = classify(thrown, region.name);
      context.log.event('rejoin.retry', {
        peer: region.name,
        code: error.code,
        error: error.message,
        cure: error.cure,
      });
    } finally {
      signal.removeEventListener('abort', stop);
      stop();
    }
  }

  async #joinOne(due: Owed, peer: pg.Client, clients: pg.Client[]): Promise<void> {
    const { context, region, slot, decoder, tables, reachClock, link, signal } = this.#options;
    const { here, log } = context;
    // From here on what is passed over is said anew, so that it can't be taken for what is joined now.
    decoder.forget(due.id);
    const owed = (await readOwed(context.local, slot)).get(due.id);
    if (!owed) return;
    if (owed.minVersion === undefined) {
      if (await settleOwed(context.local, slot, owed)) link.resumed(owed, { rows: 0 });
      return;
    }
    // A promoted or restored region first finds out what it should have deleted: else its deleted rows would be joined from here.
    if (!owed.own && !(await knowsSelf(peer))) return;
    if (!owed.own && (await owesOwn(peer, slotName(context.config.cluster, here.id, region.id), owed.id))) return;
    // A walsender sends a commit a moment before others can see it (much longer where it waits for a synchronous standby),
    // and a copy must see all that was passed over. Making a slot waits alike.
    if (!(await writersEnded(peer, { signal }))) return;
    const apply = await connect(here.localUrl, here.name, {
      purpose: `rejoin ${here.name} from ${region.name}`,
      applies: true,
    });
    clients.push(apply);
    const origin = `${slot}_join`;
    try {
      await endEarlier(apply, 'rejoin', region.id, context.leader);
      // Rows of this region's own that come back must travel on from here, as every write of it does.
      if (!owed.own) await useOrigin(apply, origin);
      await yieldInDeadlocks(apply);
      const [target] = await prepareTargets(
        apply,
        tables.filter((table) => tableId(table) === owed.id),
      );
      const store = new Store({
        client: apply,
        targets: [target!],
        lsn: LSN_ZERO,
        foreign: this.#options.foreign,
        orphans: await readOrphans(apply, tables, this.#options.foreign),
        fetch: () => Promise.reject(new CoregentError('internal_assert', 'copied rows are whole')),
        deciders: decidersOf(context.modules),
      });
      log.event('table.joining', { peer: region.name, table: owed.label, reason: owed.reason });
      await tellJoining(context.local, slot, owed.id, 0);
      link.joined(owed.id, 0);
      let rows = 0;
      let toldAt = 0;
      const joined = await joinTable(peer, store, target!, {
        from: owed.minVersion,
        ready: reachClock,
        known: apply,
        onRows: (more) => {
          rows += more;
          link.joined(owed.id, rows);
          if (rows < toldAt + TOLD_ROWS) return;
          toldAt = rows;
          tellJoining(context.local, slot, owed.id, rows).catch(() => {});
        },
      });
      if (owed.own) await pruneForgotten(peer, apply, target!.staging.table);
      if (await settleOwed(context.local, slot, owed)) {
        link.resumed(owed, { rows: joined.rows, conflicts: joined.conflicts });
      }
    } finally {
      await apply.end().catch(() => {});
      if (!owed.own) {
        await context.local
          .query('select pg_replication_origin_drop(roname) from pg_replication_origin where roname = $1', [origin])
          .catch(() => {});
      }
    }
  }
}
