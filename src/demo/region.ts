import type pg from 'pg';
import { type Agent, startAgent } from '../agent/agent.ts';
import type { Config } from '../config.ts';
import type { Log } from '../log.ts';
import type { AgentStatus } from '../model/api.ts';
import type { CoregentError } from '../model/error.ts';
import { Secret } from '../model/secret.ts';
import { connect } from '../pg/connect.ts';
import { qualified } from '../quote.ts';
import { type Load, startLoad, type Written } from './load.ts';
import type { Server } from './postgres.ts';
import type { FaultProxy } from './proxy.ts';
import { SHOP_SCHEMA, SHOP_SEED, SHOP_TABLES } from './shop.ts';

/** The database that every region has; also the cluster's name. */
export const SHOP = 'shop';
/** Of the role `app`, which owns the shop's tables, may do nothing else, and is reachable on loopback only. */
const APP = { name: 'app', password: 'app' } as const;
const VIEW_TIMEOUT_MS = 3_000;

/** A region as it is now. Null: it is down. */
export interface RegionView {
  readonly region: string;
  readonly agent: AgentStatus | null;
  /** Rows in all tables of the shop. */
  readonly rows: number | null;
  /** Conflicts that this region recorded. */
  readonly conflicts: number | null;
  /** The same by table, those without any left out. */
  readonly conflicts_by_table: Readonly<Record<string, number>> | null;
  /** What the region's application has written so far. */
  readonly written: Written;
  /** Per peer: from its newest transaction's commit there to its being visible here, in ms. */
  readonly delays_ms: Readonly<Record<string, number>> | null;
}

/** One region of a world: a PostgreSQL with a shop in it, its agent, and an application that writes. */
export class Region {
  readonly name: string;
  readonly id: number;
  readonly server: Server;
  /** Peers' names to the proxies that this region's agent reaches them by. */
  readonly proxies = new Map<string, FaultProxy>();
  /** PostgreSQL's version, such as `18.4`. */
  version = '';
  #agent: Agent | undefined;
  #agentPort = 0;
  #load: Load | undefined;
  #written: Written = { transactions: 0, rows: 0, refused: 0 };
  #viewer: pg.Client | undefined;

  constructor({ name, id, server }: { name: string; id: number; server: Server }) {
    this.name = name;
    this.id = id;
    this.server = server;
  }

  /** How the application reaches the shop. */
  get appUrl(): string {
    return `postgres://${APP.name}:${APP.password}@127.0.0.1:${this.server.port}/${SHOP}`;
  }

  /** How agents and the command line reach the shop: as superuser. */
  get adminUrl(): Secret {
    return new Secret(this.server.url(SHOP));
  }

  get agentPort(): number {
    return this.#agentPort;
  }

  get agent(): Agent | undefined {
    return this.#agent;
  }

  /** Makes the shop's tables, as the role `app` would; fills them if asked. */
  async openShop({ seed }: { seed: boolean }): Promise<void> {
    const admin = await connect(new Secret(this.server.url()), this.name, { purpose: 'demo' });
    try {
      this.version = (await admin.query('show server_version')).rows[0].server_version;
      await admin.query(`create role ${APP.name} login password '${APP.password}'`);
      await admin.query(`create database ${SHOP} owner ${APP.name}`);
    } finally {
      await admin.end();
    }
    const app = await connect(new Secret(this.appUrl), this.name, { purpose: 'demo' });
    try {
      await app.query(`set search_path = public; ${SHOP_SCHEMA}`);
      if (seed) await app.query(SHOP_SEED, [this.name]);
    } finally {
      await app.end();
    }
  }

  /** Starts the agent on a port. Throws `port_unavailable`. */
  async startAgent(config: Config, port: number, log: Log): Promise<void> {
    this.#agent = await startAgent(config, this.name, { port, log });
    this.#agentPort = port;
  }

  async stopAgent(): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    await agent?.stop();
  }

  startLoad(transactionsPerSecond: number, onFault: (error: CoregentError) => void): void {
    this.#load ??= startLoad({ url: this.appUrl, region: this.name, transactionsPerSecond, onFault });
  }

  async stopLoad(): Promise<void> {
    const load = this.#load;
    if (!load) return;
    await load.stop();
    this.#written = load.written;
    this.#load = undefined;
  }

  /** Looks at the region. Never rejects: a region that does not answer is down. */
  async view(): Promise<RegionView> {
    const known = {
      region: this.name,
      agent: this.#agent?.status() ?? null,
      written: this.#load?.written ?? this.#written,
    };
    const counts = SHOP_TABLES.map((table) => `(select count(*) from ${qualified('public', table)})`).join(' + ');
    try {
      if (!this.server.pid) throw new Error('down');
      this.#viewer ??= await connect(this.adminUrl, this.name, { purpose: 'demo view', timeoutMs: VIEW_TIMEOUT_MS });
      const { rows } = await this.#viewer.query(
        `select (${counts})::int as rows, (select count(*) from coregent.conflict_record)::int as conflicts,
          (select coalesce(json_object_agg(table_name, n), '{}')
            from (select table_name, count(*) as n from coregent.conflict_record group by 1) c) as conflicts_by_table,
          (select coalesce(json_object_agg(peer, round(extract(epoch from applied_at - committed_at) * 1000)), '{}')
            from coregent.status where applied_at is not null) as delays_ms`,
      );
      return { ...known, ...rows[0] };
    } catch {
      await this.#closeViewer();
      return { ...known, rows: null, conflicts: null, conflicts_by_table: null, delays_ms: null };
    }
  }

  async #closeViewer(): Promise<void> {
    const viewer = this.#viewer;
    this.#viewer = undefined;
    await viewer?.end().catch(() => {});
  }

  /** Ends all of it and deletes the data. */
  async remove(): Promise<void> {
    await Promise.all([this.stopLoad(), this.stopAgent(), this.#closeViewer()]);
    await Promise.all([...this.proxies.values()].map((proxy) => proxy.close()));
    await this.server.remove();
  }
}
