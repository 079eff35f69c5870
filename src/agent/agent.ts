import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import type { Log } from '../log.ts';
import { createMetrics, type Metrics } from '../metrics.ts';
import { type AgentState, type AgentStatus, type ConflictAlert, SCHEMA_VERSION, type Tier } from '../model/api.ts';
import { CoregentError, classify } from '../model/error.ts';
import { type LSN, parseLsn } from '../model/lsn.ts';
import { Modules } from '../modules.ts';
import { pause } from '../pause.ts';
import { readAlert } from '../pg/alert.ts';
import { readInstalled } from '../pg/catalog.ts';
import { connect, connectionError } from '../pg/connect.ts';
import { leaderOf } from '../pg/earlier.ts';
import { COUNT_PARKED } from '../pg/parked.ts';
import { knowSelf } from '../pg/self.ts';
import { inTurn } from '../pg/turn.ts';
import { DatabaseClock, readMicros } from './clock.ts';
import { type HttpServer, startHttp } from './http.ts';
import { takeLock } from './lock.ts';
import { mending } from './mending.ts';
import { Peer } from './peer.ts';
import { reaping } from './reap.ts';
import { guardSlots } from './slots.ts';

/** A running agent. */
export interface Agent {
  /** Where its HTTP API listens; undefined without one. */
  readonly url: string | undefined;
  status(): AgentStatus;
  /** Closes everything. A batch under way is rolled back and comes again, once, at the next start. */
  stop(): Promise<void>;
}

export interface AgentOptions {
  readonly log: Log;
  /** Port of the HTTP API; 0 picks a free one, false leaves it out. */
  readonly port?: number | false;
  readonly host?: string;
}

const CLOCK_MS = 5_000;
const MEASURE_MS = 1_000;
const COUNT_MS = 2_000;
const LOCAL_RETRY_MS = 1_000;

/**
 * Starts the agent of one region. Resolves once its HTTP API listens; whether peers stream is in its status.
 * Throws `config_invalid` for an unknown region and `port_unavailable`.
 */
export async function startAgent(config: Config, regionName: string, options: AgentOptions): Promise<Agent> {
  const here = config.regions.find((region) => region.name === regionName);
  if (!here) {
    throw new CoregentError('config_invalid', `there is no region ${regionName}`, {
      where: config.path,
      cure: `Name one of ${config.regions.map((region) => region.name).join(', ')}.`,
    });
  }
  const agent = new RunningAgent(config, here, options.log);
  if (options.port !== false) await agent.listen(options.host ?? '127.0.0.1', options.port ?? 7420);
  agent.run();
  return agent;
}

class RunningAgent implements Agent {
  readonly #config: Config;
  readonly #here: RegionConfig;
  readonly #log: Log;
  readonly #metrics: Metrics;
  readonly #modules: Modules;
  readonly #stopping = new AbortController();
  #state: AgentState = 'starting';
  #since = new Date();
  #peers: readonly Peer[] = [];
  /** A query on the leading connection, in its turn. */
  #ask: ((text: string, values: unknown[]) => Promise<pg.QueryResult>) | undefined;
  #version: string | null = null;
  #http: HttpServer | undefined;
  #running: Promise<void> | undefined;
  #tickMs = performance.now();
  /** Of earlier terms as leader. */
  #conflictsBefore = 0;
  /** Rows parked when they were counted last, less those that the links had parked by then. */
  #parkedBefore = 0;
  #alert: ConflictAlert | null = null;

  constructor(config: Config, here: RegionConfig, log: Log) {
    this.#config = config;
    this.#here = here;
    this.#log = log;
    this.#modules = new Modules(config.path);
    this.#metrics = createMetrics(here.name);
  }

  get url(): string | undefined {
    return this.#http?.url;
  }

  async listen(host: string, port: number): Promise<void> {
    this.#http = await startHttp({
      host,
      port,
      onError: (error, path) => this.#log.event('http.failed', { path, error }),
      agent: {
        status: () => this.status(),
        live: () => performance.now() - this.#tickMs < 10_000,
        metricsText: () => this.#metrics.text(),
        conflicts: (limit) => this.#conflicts(limit),
      },
    });
    this.#log.event('http.listening', { url: this.#http.url });
  }

  run(): void {
    this.#running = this.#lead();
  }

  async stop(): Promise<void> {
    if (!this.#stopping.signal.aborted) {
      this.#enter('stopping');
      this.#log.event('agent.stopping');
      this.#stopping.abort();
    }
    await this.#running;
    await this.#modules.close();
    await this.#http?.close();
    this.#log.event('agent.stopped');
  }

  #enter(state: AgentState): void {
    if (this.#stopping.signal.aborted) return;
    this.#state = state;
    this.#since = new Date();
    for (const each of ['starting', 'standby', 'active', 'stopping']) {
      this.#metrics.agentState.set({ state: each }, each === state ? 1 : 0);
    }
  }

  /** Takes the region's lock, follows every peer while it holds, and begins again when the local server was lost. */
  async #lead(): Promise<void> {
    const { signal } = this.#stopping;
    this.#log.event('agent.started', { cluster: this.#config.cluster });
    let told: string | undefined;
    while (!signal.aborted) {
      try {
        await this.#term(signal);
      } catch (thrown) {
        if (signal.aborted) return;
        const error = classify(thrown, this.#here.name);
        if (this.#state !== 'starting' || error.code !== told) {
          const event = error.code === 'clock_unusable' ? 'clock.unusable' : 'database.lost';
          this.#log.event(event, { code: error.code, error: error.message, cure: error.cure });
        }
        told = error.code;
        this.#version = null;
        if (this.#state !== 'starting') this.#enter('starting');
        this.#tickMs = performance.now();
        await pause(LOCAL_RETRY_MS, signal);
      }
    }
  }

  /** One term as leader; ends when the signal comes, throws when the local server or its lock is lost. */
  async #term(signal: AbortSignal): Promise<void> {
    const here = this.#here;
    const local = await connect(here.localUrl, here.name, { purpose: `agent ${here.name}` });
    const term = new AbortController();
    const stop = (): void => term.abort();
    signal.addEventListener('abort', stop);
    // It may have come while the connection was made.
    if (signal.aborted) stop();
    let lose!: (reason: unknown) => void;
    const lost = new Promise<never>((_, reject) => {
      lose = reject;
      local.on('error', (error) => reject(connectionError(error, here.name)));
      local.on('end', () =>
        reject(new CoregentError('peer_unreachable', 'the connection ended', { where: here.name })),
      );
    });
    lost.catch(() => {});
    const timers: NodeJS.Timeout[] = [];
    try {
      const { rows } = await local.query('show server_version');
      this.#version = rows[0].server_version;
      if (!(await readInstalled(local, here.name))) {
        throw new CoregentError('schema_missing', 'this region is not installed', { where: here.name });
      }
      const clock = new DatabaseClock();
      await clock.read(local);
      clock.demandUsable(here.name);
      let tookOver = false;
      const lead = takeLock({
        local,
        region: here,
        signal,
        standby: () => this.#standby(),
        takenOver: () => {
          tookOver = true;
          this.#log.event('agent.takeover');
        },
      });
      if (!(await Promise.race([lead, lost])) || signal.aborted) return;
      if (await knowSelf(local, this.#config, here)) this.#log.event('region.promoted');
      await clock.read(local);
      const ask = inTurn();
      let flushed: Promise<LSN> | undefined;
      this.#ask = (text, values) => ask(() => local.query(text, values));
      const context = {
        config: this.#config,
        here,
        log: this.#log,
        metrics: this.#metrics,
        clock,
        local: { query: (text: string, values?: unknown[]) => ask(() => local.query(text, values)) },
        leader: await leaderOf(local, here.id),
        tookOver,
        modules: this.#modules,
        readMicros: () => ask(() => readMicros(local)),
        flushedLsn: () => {
          flushed ??= ask(() => local.query('select pg_current_wal_flush_lsn()::text as lsn')).then(({ rows }) => {
            flushed = undefined;
            return parseLsn(rows[0].lsn);
          });
          return flushed;
        },
        flush: async (): Promise<void> => {
          await ask(() => local.query(`select pg_logical_emit_message(true, 'coregent', '')`));
        },
      };
      this.#peers = this.#config.regions.filter((region) => region !== here).map((region) => new Peer(context, region));
      await this.#count();
      this.#enter('active');
      this.#log.event('database.connected', { version: this.#version });
      this.#log.event('agent.leading');
      timers.push(
        setInterval(() => {
          const look = ask(() => clock.read(local)).catch(() => {});
          look.then(() => clock.demandUsable(here.name)).catch(lose);
        }, CLOCK_MS),
        setInterval(() => {
          this.#tickMs = performance.now();
          for (const peer of this.#peers) peer.link.measure();
          this.#metrics.deadLetters.set({}, this.#parked());
        }, MEASURE_MS),
        setInterval(() => this.#count().catch(() => {}), COUNT_MS),
      );
      const work = [
        ...this.#peers.map((peer) => peer.run(term.signal)),
        reaping({ config: this.#config, here, log: this.#log, signal: term.signal }),
        guardSlots({ ...context, signal: term.signal }),
        mending({ ...context, neighbours: this.#peers.map(({ neighbour }) => neighbour), signal: term.signal }),
      ];
      try {
        await Promise.race([lost, Promise.all(work)]);
      } finally {
        term.abort();
        await Promise.all(work);
      }
    } finally {
      signal.removeEventListener('abort', stop);
      for (const timer of timers) clearInterval(timer);
      this.#ask = undefined;
      this.#conflictsBefore += this.#peers.reduce((sum, peer) => sum + peer.link.conflicts, 0);
      this.#parkedBefore += this.#parkedByLinks();
      this.#peers = [];
      local.removeAllListeners('end');
      await local.end().catch(() => {});
    }
  }

  #standby(): void {
    this.#tickMs = performance.now();
    if (this.#state === 'standby') return;
    this.#enter('standby');
    this.#log.event('agent.standby');
  }

  /** The worst of its sessions': one may have found no free origin. */
  #tier(): Tier | null {
    const found = this.#peers.flatMap(({ link }) => (link.tier ? [link.tier] : [])).sort();
    return found.at(-1) ?? null;
  }

  #parkedByLinks(): number {
    return this.#peers.reduce((sum, peer) => sum + peer.link.parked, 0);
  }

  #parked(): number {
    return Math.max(0, this.#parkedBefore + this.#parkedByLinks());
  }

  /** Counts what others than the links write too: rows parked before, retried or discarded by a person; conflicts of a copy. */
  async #count(): Promise<void> {
    const ask = this.#ask;
    if (!ask) return;
    const { rows } = await ask(`select ${COUNT_PARKED} as parked`, []);
    this.#parkedBefore = rows[0].parked - this.#parkedByLinks();
    const before = this.#alert?.exceeded ?? false;
    this.#alert = await readAlert({ query: (text, values) => ask(text, values ?? []) }, this.#config.conflicts.alert);
    if (!this.#alert) return;
    const { exceeded, limit, recent } = this.#alert;
    this.#metrics.conflictAlert.set({}, exceeded ? 1 : 0);
    if (exceeded !== before) this.#log.event(exceeded ? 'conflicts.alert' : 'conflicts.calm', { recent, limit });
  }

  async #conflicts(limit: number): Promise<unknown[]> {
    if (!this.#ask) throw new CoregentError('peer_unreachable', 'the local server is not connected');
    const { rows } = await this.#ask(
      // Keys and origins, not the rows: whoever may probe an agent may not read its tables.
      `select id, recorded_at, table_name, key, kind, rule, outcome, local_version::text, incoming_version::text,
        local_origin, incoming_origin from coregent.conflicts order by id desc limit $1`,
      [limit],
    );
    return rows;
  }

  status(): AgentStatus {
    return {
      schema_version: SCHEMA_VERSION,
      cluster: this.#config.cluster,
      region: this.#here.name,
      id: this.#here.id,
      state: this.#state,
      since: this.#since.toISOString(),
      database: { version: this.#version },
      tier: this.#tier(),
      peers: this.#peers.map((peer) => peer.link.status()),
      conflicts: {
        total: this.#conflictsBefore + this.#peers.reduce((sum, peer) => sum + peer.link.conflicts, 0),
        alert: this.#alert,
      },
      parked: this.#parked(),
    };
  }
}
