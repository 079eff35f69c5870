import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { inject } from 'vitest';
import { type Agent, startAgent } from '../../src/agent/agent.ts';
import { type Config, parseConfig } from '../../src/config.ts';
import { type Server, type Settings, startPostgres } from '../../src/demo/postgres.ts';
import { type FaultProxy, startProxy } from '../../src/demo/proxy.ts';
import { createLogger } from '../../src/log.ts';
import type { PeerStatus, Tier } from '../../src/model/api.ts';
import { type AgentProcess, type LogLine, spawnAgent } from './agent.ts';
import { type Printed, runCommand } from './command.ts';
import { allConfirmed, allJoined } from './confirmed.ts';
import { type Database, makeDatabase } from './database.ts';
import { PACKAGES } from './majors.ts';
import { differences, type Named } from './rows.ts';
import { dropTierRole, makeTierRole, type TierRole } from './tier.ts';
import { until } from './until.ts';

/** What `makeCluster` takes. */
export interface ClusterOptions {
  /** How many, 2 to 4. Default 3. Their ids are 1, 2, …. */
  readonly regions?: number;
  /** SQL that makes the tables, run in every region; names without a schema are in `public`. All of `public` is replicated. */
  readonly tables: string;
  /** Whether agents reach their peers by proxies, one for each direction, that can be cut. Default no. */
  readonly viaProxy?: boolean;
  /** `own` servers may be broken, and nobody else writes their WAL. Default `shared`. */
  readonly servers?: 'shared' | 'own';
  /** `postgresql.conf` of own servers, over settings that are quick and survive a crash of the server. */
  readonly settings?: Settings;
  /** PostgreSQL's major version of each own server, in turn. Default: those of the run. */
  readonly majors?: readonly number[];
  /** Everything of Coregent's runs as a role with just the privileges of this tier. Default: as superuser. */
  readonly tier?: Tier;
  /** Further keys of `coregent.yaml`. */
  readonly config?: Readonly<Record<string, unknown>>;
}

const NAMES = ['tokyo', 'frankfurt', 'virginia', 'sydney'];
const QUICK: Settings = { fsync: false, full_page_writes: false, shared_buffers: '32MB', max_connections: 200 };
const CONVERGE_MS = 120_000;

/** Makes the databases and tables of a cluster; nothing is installed and no agent runs. Use it with `await using`. */
export async function makeCluster(options: ClusterOptions): Promise<Cluster> {
  const cluster = new Cluster(options);
  try {
    await cluster.begin();
    return cluster;
  } catch (error) {
    await cluster[Symbol.asyncDispose]();
    throw error;
  }
}

/** Regions on real PostgreSQL, with what a test does to them. Disposing of it ends and drops everything. */
export class Cluster implements AsyncDisposable {
  /** Unique among all tests. */
  readonly name = `c${randomBytes(6).toString('hex')}`;
  /** The regions' names, by id from 1 on. */
  readonly regions: readonly string[];
  readonly #options: ClusterOptions;
  readonly #role: TierRole | undefined;
  readonly #servers: Server[] = [];
  readonly #databases: Database[] = [];
  readonly #pools: pg.Pool[] = [];
  readonly #clients: pg.Client[] = [];
  readonly #proxies = new Map<string, FaultProxy>();
  readonly #agents = new Map<string, Agent>();
  readonly #processes = new Set<AgentProcess>();
  readonly #logs = new Map<string, LogLine[]>();
  #folder = '';

  /** Not for tests: `makeCluster` makes clusters. */
  constructor(options: ClusterOptions) {
    this.#options = options;
    if (options.tier) this.#role = { name: `r${this.name}`, password: 'secret' };
    this.regions = NAMES.slice(0, options.regions ?? 3);
  }

  /** Not for tests. */
  async begin(): Promise<void> {
    const { servers = 'shared', settings, tables, viaProxy, majors = inject('majors') } = this.#options;
    this.#folder = await mkdtemp(join(tmpdir(), 'coregent-cluster-'));
    if (servers === 'own') {
      const started = this.regions.map((name, index) => {
        const major = majors[index % majors.length]!;
        return startPostgres({ name, settings: { ...QUICK, ...settings }, major, packages: PACKAGES });
      });
      for (const each of await Promise.allSettled(started))
        if (each.status === 'fulfilled') this.#servers.push(each.value);
      await Promise.all(started);
      this.#servers.sort((a, b) => this.regions.indexOf(a.name) - this.regions.indexOf(b.name));
    }
    const made = this.regions.map(async (_, index) => {
      const database = await makeDatabase(this.#servers[index] ?? index, { cluster: this.name });
      this.#databases[index] = database;
      const pool = new pg.Pool({ connectionString: database.url, max: 12 });
      pool.on('error', () => {}); // The test may crash its server; the next query connects again.
      this.#pools[index] = pool;
      await pool.query(tables);
      if (this.#role) await makeTierRole((text, values) => pool.query(text, values), this.#role, this.#options.tier!);
    });
    await Promise.allSettled(made);
    await Promise.all(made);
    if (viaProxy) await this.#beginProxies();
    for (const region of this.regions) await this.#writeConfig(region);
    await writeFile(this.configFile, this.#configText(), { mode: 0o600 });
  }

  async #beginProxies(): Promise<void> {
    for (const from of this.regions) {
      const { hostname: host, port } = new URL(this.url(from));
      for (const to of this.regions) {
        if (to !== from) this.#proxies.set(`${from} ${to}`, await startProxy({ target: { host, port: Number(port) } }));
      }
    }
  }

  /** The configuration as `agent`, a region's agent, is given it; without: as a person's command line is. */
  #configText(agent?: string): string {
    const regions = this.regions.map((name, index) => {
      const url = new URL(this.url(name));
      const proxy = agent === undefined ? undefined : this.#proxies.get(`${name} ${agent}`);
      if (proxy) url.port = String(proxy.port);
      const role = this.#role;
      if (role) Object.assign(url, { username: role.name, password: role.password });
      return [name, { id: index + 1, url: url.href }];
    });
    const file = { cluster: this.name, regions: Object.fromEntries(regions), tables: { 'public.*': {} } };
    return JSON.stringify({ ...file, ...this.#options.config });
  }

  async #writeConfig(region: string): Promise<void> {
    await writeFile(this.agentFile(region), this.#configText(region), { mode: 0o600 });
  }

  /** `coregent.yaml` that reaches every database directly. */
  get configFile(): string {
    return join(this.#folder, 'coregent.yaml');
  }

  get config(): Config {
    return parseConfig(this.#configText(), { path: this.configFile, env: {} });
  }

  /** The configuration file of a region's agent; its peers are behind proxies, if the cluster has any. */
  agentFile(region: string): string {
    return join(this.#folder, `agent-${region}.yaml`);
  }

  /** Whom everything of Coregent's runs as, with `tier`. */
  get role(): string {
    return this.#role?.name ?? 'postgres';
  }

  /** URL of the region's database, as superuser, reached directly. */
  url(region: string): string {
    return this.#databases[this.#index(region)]!.url;
  }

  /** The region's own server. */
  server(region: string): Server {
    const server = this.#servers[this.#index(region)];
    if (!server) throw new Error('Only own servers may be touched: makeCluster({ servers: "own" }).');
    return server;
  }

  #index(region: string): number {
    const index = this.regions.indexOf(region);
    if (index < 0) throw new Error(`No region ${region}: there are ${this.regions.join(', ')}.`);
    return index;
  }

  /** One statement in a region, over any of a few connections. */
  async query(region: string, text: string, values?: unknown[]): Promise<pg.QueryResult> {
    return await this.#pools[this.#index(region)]!.query(text, values);
  }

  /** The first column of the first row. */
  async value(region: string, text: string, values?: unknown[]): Promise<unknown> {
    const [row] = (await this.query(region, text, values)).rows;
    return row && Object.values(row)[0];
  }

  /** One statement in every region, one region after the other. */
  async everywhere(text: string, values?: unknown[]): Promise<void> {
    for (const region of this.regions) await this.query(region, text, values);
  }

  /** A connection of its own, for transactions and settings; closed with the cluster at the latest. */
  async session(region: string, database?: string): Promise<pg.Client> {
    const url = new URL(this.url(region));
    if (database !== undefined) url.pathname = `/${database}`;
    const client = new pg.Client({ connectionString: url.href });
    client.on('error', () => {});
    await client.connect();
    this.#clients.push(client);
    return client;
  }

  /** Runs a command in this process, as `coregent --config … args`. */
  async cli(...args: string[]): Promise<Printed> {
    return await runCommand(this.configFile, args);
  }

  /** The same, with some top-level keys of `coregent.yaml` changed. */
  async cliWith(change: Readonly<Record<string, unknown>>, ...args: string[]): Promise<Printed> {
    const file = join(this.#folder, 'changed.yaml');
    await writeFile(file, JSON.stringify({ ...JSON.parse(this.#configText()), ...change }), { mode: 0o600 });
    return await runCommand(file, args);
  }

  /** `coregent apply`, which must succeed. */
  async install(): Promise<void> {
    const { code, out, err } = await this.cli('apply');
    if (code !== 0) throw new Error(`coregent apply failed (${code}):\n${out}${err}`);
  }

  /** Starts agents in this process, in all regions or in those named, and waits until they follow every peer that has one. */
  async startAgents(...regions: string[]): Promise<void> {
    const starting = regions.length > 0 ? regions : this.regions;
    for (const region of starting) await this.startAgent(region);
    await Promise.all(starting.map((region) => this.streaming(region)));
  }

  /** Starts a region's agent in this process and does not wait. Port false: no HTTP API. `said` is called as it logs. */
  async startAgent(
    region: string,
    { port = false, said }: { port?: number | false; said?: (line: LogLine) => void } = {},
  ): Promise<Agent> {
    const lines = this.#logs.get(region) ?? [];
    this.#logs.set(region, lines);
    const write = (text: string): void => {
      const line = JSON.parse(text);
      lines.push(line);
      said?.(line);
    };
    const log = createLogger({ level: 'debug', region, to: { write } });
    const config = parseConfig(this.#configText(region), { path: this.agentFile(region), env: {} });
    const agent = await startAgent(config, region, { port, log });
    this.#agents.set(region, agent);
    return agent;
  }

  /** The region's agent in this process. */
  agent(region: string): Agent {
    const agent = this.#agents.get(region);
    if (!agent) throw new Error(`No agent of ${region} runs in this process.`);
    return agent;
  }

  /** What the region's agents in this process logged so far. */
  log(region: string): readonly LogLine[] {
    return this.#logs.get(region) ?? [];
  }

  async stopAgent(region: string): Promise<void> {
    const agent = this.#agents.get(region);
    this.#agents.delete(region);
    await agent?.stop();
  }

  /** Starts a region's agent in a process of its own and does not wait; see `AgentProcess.streaming`. */
  spawnAgent(region: string, fault?: Parameters<typeof spawnAgent>[2]): AgentProcess {
    const agent = spawnAgent(this.agentFile(region), region, fault);
    this.#processes.add(agent);
    void agent.ended.then(() => this.#processes.delete(agent));
    return agent;
  }

  /** How the agent of `region` in this process sees a peer. */
  peer(region: string, peer: string): PeerStatus {
    const found = this.agent(region)
      .status()
      .peers.find((each) => each.region === peer);
    if (!found) throw new Error(`The agent of ${region} does not follow ${peer}.`);
    return found;
  }

  /** Waits until the region's agent in this process streams from every peer. */
  async streaming(region: string): Promise<void> {
    await until(
      () => {
        const { peers } = this.agent(region).status();
        return peers.length > 0 && peers.every(({ state }) => state === 'streaming');
      },
      { what: `the agent of ${region} to stream from every peer` },
    );
  }

  /** The link that carries rows of `from` to `to`. */
  link(from: string, to: string): FaultProxy {
    const proxy = this.#proxies.get(`${from} ${to}`);
    if (!proxy) throw new Error(`No proxy from ${from} to ${to}: makeCluster({ viaProxy: true }).`);
    return proxy;
  }

  /** Cuts two regions off from each other, both ways. */
  async cut(one: string, other: string): Promise<void> {
    await Promise.all([this.link(one, other).cut(), this.link(other, one).cut()]);
  }

  /** Heals all links. */
  async heal(): Promise<void> {
    await Promise.all([...this.#proxies.values()].map((proxy) => proxy.heal()));
  }

  /**
   * Waits until every region has confirmed all that every other committed before and owes no table, and demands that they have
   * the same rows then: what is confirmed must be there. Call it when nobody writes.
   */
  async converged(deadlineMs = CONVERGE_MS): Promise<void> {
    await this.#settled(allJoined(this.named, deadlineMs));
    const found = await differences(this.named);
    if (found !== undefined) throw new Error(`Confirmed everywhere, but not equal:\n${found}`);
  }

  /** Waits until every region has confirmed all that every other committed durably before. */
  async confirmed(deadlineMs = CONVERGE_MS): Promise<void> {
    await this.#settled(allConfirmed(this.named, deadlineMs));
  }

  /** Waits; the error has what the agents said last. */
  async #settled(waiting: Promise<void>): Promise<void> {
    await waiting.catch((cause: Error) => {
      const agents = [
        ...this.#processes,
        ...[...this.#agents.keys()].map((region) => ({ region, log: this.log(region) })),
      ];
      const said = agents.flatMap(({ region, log }) =>
        log.slice(-6).map((line) => `  ${region}: ${JSON.stringify(line)}`),
      );
      throw new Error([cause.message, ...said].join('\n'), { cause });
    });
  }

  /** The regions, for who asks them all. */
  get named(): readonly Named[] {
    return this.regions.map((region) => ({ region, query: (text, values) => this.query(region, text, values) }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const failed: unknown[] = [];
    const all = async (work: readonly Promise<unknown>[]): Promise<void> => {
      for (const each of await Promise.allSettled(work)) if (each.status === 'rejected') failed.push(each.reason);
    };
    await all([...this.#agents.values()].map((agent) => agent.stop()));
    await all([...this.#processes].map((agent) => agent.end('SIGKILL')));
    await all([...this.#proxies.values()].map((proxy) => proxy.close()));
    await all([...this.#clients, ...this.#pools].map((client) => client.end()));
    if (this.#servers.length > 0) await all(this.#servers.map((server) => server.remove()));
    else {
      await all(this.#databases.map((database) => database.drop()));
      const role = this.#role;
      if (role) await all(this.#databases.map(({ url }) => dropTierRole(url, role)));
    }
    await rm(this.#folder, { recursive: true, force: true });
    if (failed.length > 0) throw new AggregateError(failed, `The cluster could not be cleaned up: ${failed[0]}`);
  }
}
