import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import type { Log } from '../log.ts';
import type { Metrics } from '../metrics.ts';
import { CoregentError, classify } from '../model/error.ts';
import { formatLsn, type LSN, LSN_ZERO, laterLsn, parseLsn } from '../model/lsn.ts';
import { microsOf } from '../model/version.ts';
import type { Modules } from '../modules.ts';
import { pause } from '../pause.ts';
import { isReplica, TIERS } from '../pg/applier.ts';
import { PUBLICATION, slotName } from '../pg/catalog.ts';
import { connect, connectionError, drop, type Queryable } from '../pg/connect.ts';
import { decidersOf } from '../pg/deciders.ts';
import { endEarlier, type Leader } from '../pg/earlier.ts';
import { makeFetch } from '../pg/fetch.ts';
import { type ForeignKeys, readForeignKeys } from '../pg/foreign.ts';
import { useOrigin, yieldInDeadlocks } from '../pg/origin.ts';
import { readOrphans } from '../pg/orphans.ts';
import { forgetOwed, readOwed } from '../pg/paused.ts';
import { readRuleChanges } from '../pg/progress.ts';
import { router } from '../pg/route.ts';
import { prepareToApply } from '../pg/shape.ts';
import { findStart } from '../pg/slot.ts';
import { Store } from '../pg/store.ts';
import { inTurn } from '../pg/turn.ts';
import { startWalsender } from '../pg/walsender.ts';
import { Acknowledger } from '../pipe/acknowledge.ts';
import type { Batch } from '../pipe/batch.ts';
import { Decoder } from '../pipe/decode.ts';
import { Pipe } from '../pipe/pipe.ts';
import { type DatabaseClock, FarAhead } from './clock.ts';
import { Ending } from './ending.ts';
import { Link } from './link.ts';
import type { Neighbour } from './mending.ts';
import { backoffMs, soonest } from './reach.ts';
import { answers, PROBE_TIMEOUT_MS, regularly } from './regularly.ts';
import { Rejoin } from './rejoin.ts';
import { StaleWalsender } from './stale.ts';
import { compareTables, type Tables, Watch } from './tables.ts';

/** What a peer shares with the other peers of its agent. */
export interface PeerContext {
  readonly config: Config;
  /** This region. */
  readonly here: RegionConfig;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly clock: DatabaseClock;
  /** This region's database, for a short query now and then; one connection serves all peers. */
  readonly local: Queryable;
  /** The session of `local`: no other session applies anything once that has lost the region's lock. */
  readonly leader: Leader;
  /** Rules that are modules. */
  readonly modules: Modules;
  /** Whether the agent that led before was put out, and may have left connections behind. */
  readonly tookOver: boolean;
  /** The local database's time now, in microseconds since 1970. */
  readMicros(): Promise<number>;
  /** Where the local WAL is flushed to. One query serves all peers. */
  flushedLsn(): Promise<LSN>;
  /** Makes what is committed so far durable now. */
  flush(): Promise<void>;
}

/** How often a waiting acknowledgement looks at the local flush position, in ms. */
const FLUSH_POLL_MS = 100;
/** Rows that were applied ahead of a commit are taken back when nothing came behind them for so many ms. */
const AHEAD_PATIENCE_MS = 2_000;
/** After so many looks the flush is forced: the writer of the local WAL sees no reason to hurry. */
const FLUSH_PATIENCE = 10;
/** While a peer sends without a pause, a batch is let grow to so many rows: a large one costs far less per row. */
const GATHER_ROWS = 2_000;
/** How often the peer's clock, slot and liveness are looked at, in ms. */
const PROBE_MS = 5_000;
/** How often it is looked whether tables changed, and what is owed, in ms. */
const WATCH_MS = 3_000;
/** A session that lasted longer, in ms, was none of a row of failures. */
const SETTLED_MS = 10_000;

/**
 * One peer as this region follows it: connects, streams, applies, acknowledges, and begins again after any fault.
 * Peers share nothing but the local server, so a slow or dead one delays no other.
 */
export class Peer {
  readonly #context: PeerContext;
  readonly #region: RegionConfig;
  readonly #slot: string;
  /** What is told about the peer. */
  readonly link: Link;
  #isolate = false;
  /**
   * Tables that its sessions left settled, by OID: see `Crossing`. It lasts no longer than the agent leads: a session
   * begins only where it does. A crash of the local server, which may take back what settled a commit and not the commit, ends that too.
   */
  readonly #settled = new Set<number>();
  #rejoin: Rejoin | undefined;
  readonly #stale: StaleWalsender;
  /** The slot was held by nobody, and is free now. */
  #freed = false;

  constructor(context: PeerContext, region: RegionConfig) {
    this.#context = context;
    this.#region = region;
    this.#slot = slotName(context.config.cluster, region.id, context.here.id);
    this.#stale = new StaleWalsender(this.#slot, context.tookOver);
    const { clock, log, metrics } = context;
    this.link = new Link({ peer: region, clock, log, metrics });
  }

  /** What it is to those who settle what several regions broke together. */
  get neighbour(): Neighbour {
    const { parts } = this.link;
    return {
      id: this.#region.id,
      heard: () => parts.heard?.() ?? LSN_ZERO,
      get control() {
        return parts.control;
      },
      tryAgain: () => parts.tryAgain?.(),
    };
  }

  /** Follows the peer until the signal; never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { log } = this.#context;
    const peer = this.#region.name;
    let failures = 0;
    while (!signal.aborted) {
      const connectedAt = performance.now();
      try {
        this.link.enter('connecting');
        log.event('peer.connecting', { peer, slot: this.#slot });
        await this.#session(signal);
      } catch (thrown) {
        if (signal.aborted) break;
        const error = classify(thrown, peer);
        if (error.code === 'schema_changed') {
          log.event('tables.changed', { peer, reason: error.message });
          await pause(backoffMs(1), signal);
          continue;
        }
        if (this.#freed || performance.now() - connectedAt > SETTLED_MS) failures = 0;
        this.#freed = false;
        failures++;
        // A row's fault: the same rows again, each on its own, so that only the one at fault is parked.
        const isolates = error.code === 'apply_failed' && !this.#isolate;
        if (isolates) this.#isolate = true;
        const hopeless = error.retry === 'never' && !isolates;
        this.link.fail(error);
        this.link.enter(hopeless ? 'failed' : 'waiting');
        this.#context.metrics.applyErrors.inc({ origin: peer, reason: error.code });
        const waitMs = backoffMs(isolates ? 1 : hopeless ? failures + 4 : failures, error.code);
        log.event(hopeless ? 'peer.failed' : 'peer.retry', {
          peer,
          code: error.code,
          error: error.message,
          cure: error.cure,
          retry_in_ms: Math.round(waitMs),
        });
        await pause(waitMs, signal);
      }
    }
    this.link.enter('stopped');
    log.event('peer.stopped', { peer });
  }

  async #session(signal: AbortSignal): Promise<void> {
    const { here } = this.#context;
    const name = this.#region.name;
    const clients: pg.Client[] = [];
    const timers: NodeJS.Timeout[] = [];
    const stopping = new AbortController();
    const ended = new Ending();
    const onAbort = (): void => ended.end(new CoregentError('peer_unreachable', 'stopping'));
    signal.addEventListener('abort', onAbort);
    let over = false;
    let vigil: NodeJS.Timeout | undefined;
    const hold = (client: pg.Client, where: string): pg.Client => {
      clients.push(client);
      // Another one failed before: nobody is left to close this one.
      if (over) drop(client);
      client.on('error', (error) => ended.end(connectionError(error, where)));
      client.on('end', () => ended.end(new CoregentError('peer_unreachable', 'the connection ended', { where })));
      return client;
    };
    try {
      const purpose = `${here.name} from ${name}`;
      // Side by side: every round trip to a distant peer is a good part of a second.
      const { url } = this.#region;
      const reach = (attempt: AbortSignal): Promise<[pg.Client, pg.Client]> =>
        Promise.all([
          connect(url, name, { purpose: `control ${purpose}`, signal: attempt }),
          connect(url, name, { purpose: `stream ${purpose}`, signal: attempt, replication: true }),
        ]);
      const [apply, [control, replication]] = await Promise.all([
        connect(here.localUrl, here.name, { purpose: `apply ${purpose}`, applies: true }).then((client) =>
          hold(client, here.name),
        ),
        soonest(reach, signal).then((both) => both.map((client) => hold(client, name)) as [pg.Client, pg.Client]),
      ]);
      const { cluster } = this.#context.config;
      const { log } = this.#context;
      const slot = this.#slot;
      const anew = (reason: string): void => log.event('peer.rejoining', { peer: name, slot, reason });
      // What follows may rightly take long; whether the peer still answers at all is asked apart from it.
      vigil = regularly(PROBE_TIMEOUT_MS, () => answers(this.#region), ended);
      await ended.wait(endEarlier(apply, 'apply', this.#region.id, this.#context.leader));
      const start = await ended.wait(findStart({ apply, control, slot, here, peer: this.#region, cluster, anew }));
      const marked = await useOrigin(apply, this.#slot);
      const tier = !(await isReplica(apply)) ? 'C' : marked ? 'A' : 'B';
      this.link.tier = tier;
      log.event('tier.found', { peer: name, tier, means: TIERS[tier] });
      await yieldInDeadlocks(apply);
      const ruleChanges = await ended.wait(readRuleChanges(apply, this.#slot));
      const pauses: Link['pauses'] = (paused) => this.link.pauses(paused);
      const tables = await ended.wait(
        compareTables({ apply, control }, { slot, pauses, modules: this.#context.modules }),
      );
      this.link.owes(await ended.wait(readOwed(apply, slot)));
      const targets = await prepareToApply(apply, tables.alike);
      const foreign = await readForeignKeys(apply, tables.alike);
      const orphans = await readOrphans(apply, tables.alike, foreign);
      // From here on several ask the peer at once.
      const ask = inTurn();
      const rowsOf = makeFetch(() => control, name);
      const store = new Store({
        client: apply,
        targets,
        progress: { slot: this.#slot, peerId: this.#region.id, ruleChanges },
        lsn: start,
        fetch: (target, keys) => ask(() => rowsOf(target, keys)),
        foreign,
        orphans,
        deciders: decidersOf(this.#context.modules),
        settled: this.#settled,
      });
      store.isolateFaults(this.#isolate);
      this.link.parts.store = store;
      await this.#stream({
        signal,
        replication,
        control: { query: (text, values) => ask(() => control.query(text, values)) },
        store,
        tables,
        targets,
        foreign,
        start,
        ended,
        timers,
        stopping: stopping.signal,
        started: () => clearInterval(vigil),
      });
    } finally {
      over = true;
      clearInterval(vigil);
      signal.removeEventListener('abort', onAbort);
      for (const timer of timers) clearInterval(timer);
      stopping.abort();
      this.link.close();
      for (const client of clients) {
        client.removeAllListeners('end');
        drop(client);
      }
      await this.#rejoin?.ended();
      this.#rejoin = undefined;
    }
  }

  async #stream(session: {
    signal: AbortSignal;
    replication: pg.Client;
    /** The peer, each query in its turn. */
    control: Queryable;
    store: Store;
    tables: Tables;
    targets: Awaited<ReturnType<typeof prepareToApply>>;
    foreign: ForeignKeys | undefined;
    start: LSN;
    ended: Ending;
    timers: NodeJS.Timeout[];
    /** Ends with the session. */
    stopping: AbortSignal;
    /** Called when the stream runs. */
    started: () => void;
  }): Promise<void> {
    const { config, log, clock } = this.#context;
    const { store, start, ended, timers, control, tables, stopping } = session;
    const peer = this.#region.name;
    const decoder = new Decoder({
      region: this.#region.id,
      progress: start,
      // Looking for a row at fault, transactions are applied behind their commit and one after the other. Whether a row counts at all
      // is told by where it was committed.
      ahead: !this.#isolate && tables.beginnings.size === 0,
      limits: config.batch,
      route: router(session.targets, { ...tables, pauses: (paused) => watch.suspect(paused, look, ended) }),
      walEnd: () => this.link.walEnd,
    });
    const acks = new Acknowledger(start);
    const { link } = this;
    link.parts.decoder = decoder;
    link.parts.acks = acks;
    link.parts.control = control;

    const { rows } = await ended.wait(
      control.query(
        `select extract(epoch from current_setting('wal_sender_timeout')::interval)::float8 as timeout_s,
          current_setting('server_version_num')::int as version, pg_current_wal_flush_lsn()::text as lsn`,
      ),
    );
    link.reaches(parseLsn(rows[0].lsn));
    const senderTimeoutMs = Number(rows[0].timeout_s) * 1000 || 60_000;

    /** Nothing is acknowledged before parked rows had their first turn, if there are any. */
    let begun = !store.owesTries;
    const pipe = new Pipe({
      decoder,
      acks,
      resume: () => this.link.parts.walsender?.resume(),
      more: () => this.link.parts.walsender?.bursting === true && decoder.rows < GATHER_ROWS,
      reachClock: (batch) => this.#reachClock(batch, clock, stopping),
      apply: (batch) => this.#applyPatiently(store, batch, look, session.signal),
      owes: () => store.owesTries,
      settle: async () => {
        link.settled(await store.tryParked());
        begun = true;
      },
      applied: (batch, receipt, tookMs) => {
        if (receipt.localLsn !== undefined && this.#isolate) {
          this.#isolate = false;
          store.isolateFaults(false);
        }
        if (receipt.localLsn !== undefined && !store.owesTries) begun = true;
        link.applied(batch, receipt, tookMs);
      },
      wait: (work) => ended.wait(work),
    });
    link.parts.heard = () => (!pipe.applying && decoder.empty ? laterLsn(decoder.position, store.lsn) : store.lsn);
    link.parts.tryAgain = () => {
      store.tryAgain();
      pipe.decoded();
    };
    const watch = new Watch(tables, decoder);
    const look = (): Promise<void> => watch.look(this.#context.local, control);
    const rejoin = new Rejoin({
      context: this.#context,
      region: this.#region,
      slot: this.#slot,
      decoder,
      tables: tables.alike,
      foreign: session.foreign,
      reachClock: (batch) => this.#reachClock(batch, clock, stopping),
      link,
      signal: stopping,
    });
    this.#rejoin = rejoin;
    const confirm = (): void => {
      if (!pipe.applying && decoder.empty) acks.idle(decoder.position);
      const durable = begun ? acks.durable : LSN_ZERO;
      this.link.parts.walsender?.confirm(laterLsn(decoder.position, durable), durable);
    };
    const starting = startWalsender(session.replication, {
      slot: this.#slot,
      publication: PUBLICATION,
      start,
      origin: rows[0].version >= 160_000 ? 'none' : 'any',
      reader: {
        message: (bytes, from, to) => {
          decoder.push(bytes, from, to);
          if (decoder.ready) {
            link.pendingSinceMs ??= performance.now();
            pipe.decoded();
          }
          return !decoder.full;
        },
        keepalive: (walEnd) => {
          decoder.keepalive(walEnd);
          link.reaches(walEnd);
          if (!pipe.applying) confirm();
        },
        drained: () => pipe.decoded(),
        closed: (error) => ended.end(error),
      },
    });
    this.link.parts.walsender = await ended.wait(starting.catch((error) => this.#freeSlot(control, error)));
    session.started();

    let looks = 0;
    let looking = false;
    timers.push(
      setInterval(() => {
        if (acks.awaited === undefined || looking) return;
        looking = true;
        const look = async (): Promise<void> => {
          if (++looks % FLUSH_PATIENCE === 0 && !pipe.applying) await this.#context.flush();
          acks.flushed(await this.#context.flushedLsn());
          if (acks.awaited === undefined) looks = 0;
          confirm();
        };
        look()
          .catch((error) => ended.end(classify(error)))
          .finally(() => {
            looking = false;
          });
      }, FLUSH_POLL_MS),
      setInterval(() => {
        decoder.tire(AHEAD_PATIENCE_MS);
        if (decoder.ready) pipe.decoded();
      }, FLUSH_POLL_MS),
      // Keepalives have their own timer: a long commit must not cost the connection.
      setInterval(confirm, Math.min(10_000, Math.max(500, senderTimeoutMs / 3))),
      regularly(PROBE_MS, () => this.#probe(control), ended),
      regularly(WATCH_MS, () => this.#watch(watch, rejoin, control), ended),
    );
    const first = async (): Promise<void> => {
      await this.#stale.remember(control);
      await this.#probe(control);
      await this.#watch(watch, rejoin, control);
    };
    first().catch((error) => ended.end(classify(error)));
    link.stream();
    log.event('peer.streaming', { peer, slot: this.#slot, lsn: formatLsn(start) });

    await pipe.run();
  }

  /** The stream could not start. If nobody reads the slot at the other end of a connection that stands, it is free next time. */
  async #freeSlot(control: Queryable, thrown: unknown): Promise<never> {
    const error = classify(thrown, this.#region.name);
    if (error.code === 'slot_busy') {
      this.#freed = await this.#stale.end(control);
      if (this.#freed) this.#context.log.event('slot.freed', { peer: this.#region.name, slot: this.#slot });
    }
    throw error;
  }

  /** Applies; what only bad luck stopped (a deadlock, a lock timeout) is tried again as long as the batch is whole. */
  async #applyPatiently(
    store: Store,
    batch: Batch,
    look: () => Promise<void>,
    signal: AbortSignal,
  ): ReturnType<Store['apply']> {
    for (let attempt = 1; ; attempt++) {
      const whole = batch.complete && !store.open;
      try {
        return await store.apply(batch);
      } catch (error) {
        const { code } = classify(error);
        if (!whole || signal.aborted) throw error;
        if (code === 'apply_failed' && !this.#isolate) {
          // A value that this region's table can't hold yet: then the table pauses, and no row is parked.
          await look();
          this.#isolate = true;
          store.isolateFaults(true);
        } else if (code !== 'apply_interrupted' || attempt >= 8) {
          // The table may have changed under the statement: then it pauses, or goes on by another rule.
          if (code === 'schema_missing' || code === 'progress_fenced') await look();
          throw error;
        }
        await pause(backoffMs(attempt), signal);
      }
    }
  }

  /**
   * A row is applied only when this region's clock has passed its version, so that whoever sees it writes a greater one.
   * A peer whose clock runs ahead by more than `clock.max_offset` waits loudly.
   */
  async #reachClock(batch: Batch, clock: DatabaseClock, signal: AbortSignal): Promise<void> {
    if (clock.surelyPassed(batch.maxVersion)) return;
    const far = new FarAhead(batch.maxVersion, { theirs: this.link.clock, ours: clock, ...this.#context.config.clock });
    let told = false;
    for (;;) {
      const aheadMs = (Number(microsOf(batch.maxVersion)) - (await this.#context.readMicros())) / 1000;
      if (aheadMs < 0 || signal.aborted) break;
      if (far.taken(aheadMs)) {
        if (told) this.#context.log.event('clock.accepted', { peer: this.#region.name, until: far.until });
        break;
      }
      if (aheadMs > this.#context.config.clock.maxOffsetMs && !told) {
        told = true;
        this.link.enter('waiting');
        this.link.fail(
          far.never
            ? new CoregentError('clock_unusable', 'its rows are of the year 3111 or later', {
                where: this.#region.name,
              })
            : new CoregentError('clock_ahead', `its rows are ${Math.round(aheadMs)} ms ahead of this region’s clock`),
        );
        this.#context.log.event('clock.ahead', { peer: this.#region.name, ahead_ms: Math.round(aheadMs) });
      }
      await pause(Math.min(aheadMs + 0.1, 1_000), signal);
    }
    if (told && !signal.aborted) {
      this.#context.log.event('clock.back', { peer: this.#region.name });
      this.link.stream();
    }
  }

  /** Whether the tables are as they were, what is owed, and whether it can be joined. */
  async #watch(watch: Watch, rejoin: Rejoin, control: Queryable): Promise<void> {
    const { local } = this.#context;
    const owed = await readOwed(local, this.#slot);
    await watch.look(local, control);
    // Read before that look, which so knows of every table of which rows came.
    const forgotten = [...owed.keys()].filter((id) => !watch.knows(id));
    if (forgotten.length > 0) await forgetOwed(local, this.#slot, forgotten);
    for (const id of forgotten) owed.delete(id);
    this.link.owes(owed);
    rejoin.begin(owed.values());
  }

  async #probe(control: Queryable): Promise<void> {
    await this.link.clock.read(control);
    const { rows } = await control.query('select pg_current_wal_lsn()::text as lsn');
    this.link.reaches(parseLsn(rows[0].lsn));
  }
}
