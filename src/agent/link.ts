import type { Log } from '../log.ts';
import type { Metrics } from '../metrics.ts';
import type { LastError, PeerState, PeerStatus, Tier } from '../model/api.ts';
import type { CoregentError } from '../model/error.ts';
import { formatLsn, type LSN, LSN_ZERO } from '../model/lsn.ts';
import type { Queryable } from '../pg/connect.ts';
import type { Owed } from '../pg/paused.ts';
import type { Receipt, Settled } from '../pg/receipt.ts';
import type { Store } from '../pg/store.ts';
import type { Walsender } from '../pg/walsender.ts';
import type { Acknowledger } from '../pipe/acknowledge.ts';
import type { Batch, Passing } from '../pipe/batch.ts';
import type { Decoder } from '../pipe/decode.ts';
import { DatabaseClock, offsetMs } from './clock.ts';

/** The parts of the session under way, as far as they are there; the last session's until the next one begins. */
export interface SessionParts {
  decoder?: Decoder;
  walsender?: Walsender | undefined;
  store?: Store;
  acks?: Acknowledger;
  /** The peer's database. */
  control?: Queryable | undefined;
  /** How far its WAL is applied here. */
  heard?: () => LSN;
  /** Has parked rows tried again. */
  tryAgain?: () => void;
}

/** What a link's numbers are made of. */
interface LinkOptions {
  readonly peer: { readonly name: string; readonly id: number };
  /** This region's clock. */
  readonly clock: DatabaseClock;
  readonly log: Log;
  readonly metrics: Metrics;
}

/** What is told about one peer: its state, its numbers and its last error, over all sessions with it. */
export class Link {
  readonly #options: LinkOptions;
  readonly parts: SessionParts = {};
  /** The peer's clock. */
  readonly clock = new DatabaseClock();
  /** When the oldest change that waits here arrived, in ms of the process's monotonic clock. */
  pendingSinceMs: number | undefined;
  /** What the role may do, as the last session that applies found it. */
  tier: Tier | undefined;
  #state: PeerState = 'connecting';
  #since = new Date();
  #lastError: LastError | null = null;
  #owed: readonly Owed[] = [];
  /** Why each table that pauses does, as the log has it, by id. */
  readonly #reasons = new Map<string, string>();
  readonly #joined = new Map<string, number>();
  #walEnd: LSN = LSN_ZERO;
  #lostAtMs: number | undefined = performance.now();
  #transactions = 0;
  #rows = 0;
  #conflicts = 0;
  #parked = 0;
  #countedBytes = 0;
  #rate = 0;
  #rateRows = 0;
  #rateAtMs = performance.now();

  constructor(options: LinkOptions) {
    this.#options = options;
  }

  /** What is owed of the peer, as the catalog has it. */
  owes(owed: ReadonlyMap<string, Owed>): void {
    const { metrics, peer } = this.#options;
    this.#owed = [...owed.values()];
    metrics.pausedTables.set({ origin: peer.name }, owed.size);
  }

  /** A table pauses: logged once until it is resumed, and again when the reason is another. */
  pauses({ table, label, reason }: Pick<Passing, 'table' | 'label' | 'reason'>): void {
    if (this.#reasons.get(table) === reason) return;
    this.#reasons.set(table, reason);
    const { log, peer } = this.#options;
    log.event('table.paused', { peer: peer.name, table: label, reason });
  }

  /** All that was owed of a table is here. */
  resumed({ id, label }: Owed, joined: { readonly rows: number; readonly conflicts?: number }): void {
    this.#reasons.delete(id);
    const { log, peer } = this.#options;
    log.event('table.resumed', { peer: peer.name, table: label, ...joined });
  }

  /** A table is being joined, so many rows of it so far. */
  joined(table: string, rows: number): void {
    this.#joined.set(table, rows);
  }

  enter(state: PeerState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#since = new Date();
    const up = state === 'streaming';
    if (up) this.#lostAtMs = undefined;
    else this.#lostAtMs ??= performance.now();
    this.#options.metrics.linkUp.set({ origin: this.#options.peer.name }, up ? 1 : 0);
  }

  fail(error: CoregentError): void {
    this.#lastError = { code: error.code, message: error.message, at: new Date().toISOString() };
  }

  /** Changes stream. */
  stream(): void {
    this.#lastError = null;
    this.enter('streaming');
  }

  /** The session is over. */
  close(): void {
    this.#countedBytes = 0;
    this.parts.decoder?.close();
    this.parts.walsender?.close();
    this.parts.walsender = undefined;
    this.parts.control = undefined;
  }

  /** Where the peer's WAL ended when that was last heard. */
  get walEnd(): LSN {
    return this.#walEnd;
  }

  /** The peer's WAL goes at least so far. */
  reaches(walEnd: LSN): void {
    if (walEnd > this.#walEnd) this.#walEnd = walEnd;
  }

  /** Counts and tells what a batch did. */
  applied(batch: Batch, receipt: Receipt, tookMs: number): void {
    const { log, metrics } = this.#options;
    const peer = this.#options.peer.name;
    const { rows } = receipt;
    if (!this.parts.decoder?.ready) this.pendingSinceMs = undefined;
    this.#transactions += batch.transactions;
    this.#rows += rows;
    const labels = { origin: peer };
    metrics.transactionsApplied.inc(labels, batch.transactions);
    metrics.rowsApplied.inc(labels, rows);
    metrics.batchRows.observe(labels, rows);
    metrics.applySeconds.observe(labels, tookMs / 1000);
    this.settled(receipt);
    log.event('batch.applied', { peer, rows, transactions: batch.transactions });
  }

  /** Tells of rows that were no plain successors, behind a batch too. */
  settled({ conflicts, parked, failedLooks = [] }: Settled): void {
    const { log, metrics } = this.#options;
    const peer = this.#options.peer.name;
    this.#conflicts += conflicts.length;
    this.#parked += parked;
    for (const { table, kind, outcome } of conflicts) metrics.conflicts.inc({ table, type: kind, resolution: outcome });
    const twins = conflicts.filter((conflict) => conflict.equalVersions).length;
    if (conflicts.length > 0) log.event('conflict.recorded', { peer, conflicts: conflicts.length });
    if (twins > 0) log.event('version.equal', { peer, rows: twins });
    if (parked > 0) log.event('row.parked', { peer, rows: parked });
    for (const { table, message } of failedLooks) log.event('look.failed', { peer, table, error: message });
  }

  /** Rows waiting here because they could not be applied, since the agent started. */
  get parked(): number {
    return this.#parked;
  }

  get conflicts(): number {
    return this.#conflicts;
  }

  /** How far behind this region is, in ms: age of the oldest write that may be missing here. */
  #lagMs(): number {
    const since = this.#lostAtMs ?? this.pendingSinceMs;
    return since === undefined ? 0 : performance.now() - since;
  }

  #lagBytes(): number {
    const received = this.parts.decoder?.position ?? LSN_ZERO;
    return this.#walEnd > received ? Number(this.#walEnd - received) : 0;
  }

  /** Sets the gauges of this link. */
  measure(): void {
    const { metrics, peer, clock } = this.#options;
    const labels = { origin: peer.name };
    const offset = offsetMs(this.clock, clock);
    metrics.lag.set(labels, this.#lagMs() / 1000);
    metrics.lagBytes.set(labels, this.#lagBytes());
    if (this.parts.acks) metrics.confirmedLSN.set(labels, Number(this.parts.acks.durable));
    if (offset !== undefined) metrics.clockSkew.set({ peer: peer.name }, offset / 1000);
    const received = this.parts.walsender?.receivedBytes ?? 0;
    metrics.receivedBytes.inc(labels, Math.max(0, received - this.#countedBytes));
    this.#countedBytes = received;
    const now = performance.now();
    this.#rate = (this.#rows - this.#rateRows) / ((now - this.#rateAtMs) / 1000);
    this.#rateRows = this.#rows;
    this.#rateAtMs = now;
  }

  status(): PeerStatus {
    const { peer, clock } = this.#options;
    const { acks, decoder, store } = this.parts;
    const offset = offsetMs(this.clock, clock);
    return {
      region: peer.name,
      id: peer.id,
      state: this.#state,
      since: this.#since.toISOString(),
      received_lsn: formatLsn(decoder?.position ?? LSN_ZERO),
      applied_lsn: formatLsn(store?.lsn ?? LSN_ZERO),
      durable_lsn: formatLsn(acks?.durable ?? LSN_ZERO),
      lag_bytes: this.#lagBytes(),
      lag_ms: Math.round(this.#lagMs()),
      rows_per_second: Math.round(this.#rate),
      clock_offset_ms: offset === undefined ? null : Math.round(offset * 10) / 10,
      transactions: this.#transactions,
      rows: this.#rows,
      conflicts: this.#conflicts,
      paused: this.#owed.map(({ id, label, reason, joining, since, rows }) => ({
        table: label,
        state: joining ? ('joining' as const) : ('paused' as const),
        reason,
        since: since.toISOString(),
        rows: joining ? Math.max(rows, this.#joined.get(id) ?? 0) : 0,
      })),
      last_error: this.#lastError,
    };
  }
}
