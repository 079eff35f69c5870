import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Config, parseConfig } from '../config.ts';
import { createLogger, type Log } from '../log.ts';
import type { PeerState } from '../model/api.ts';
import { CoregentError } from '../model/error.ts';
import { Secret } from '../model/secret.ts';
import { pause } from '../pause.ts';
import { barrier } from '../pg/barrier.ts';
import { readTables } from '../pg/catalog.ts';
import { carryOut, closeRegions, makePlan, type OpenRegion, openRegions } from '../pg/setup.ts';
import { type TableVerdict, verifyTable } from '../pg/verify.ts';
import { serverOwner } from './binaries.ts';
import { oneWayMs, PLACES } from './places.ts';
import { freePort, isFree } from './port.ts';
import { startPostgres } from './postgres.ts';
import { startProxy } from './proxy.ts';
import { Region, type RegionView, SHOP } from './region.ts';
import { SHOP_RULES } from './shop.ts';
import { openScratch } from './watchdog.ts';

export type { RegionView } from './region.ts';

/** What `startWorld` takes. */
export interface WorldOptions {
  /** How many regions, 2 to 8. */
  readonly regions: number;
  /** The first port to try: agents take it and those after it, PostgreSQL those from `port + 10` on. Default: any free ones. */
  readonly port?: number;
  /** `real`: links are as slow as the WAN between the places. `none`: they are as fast as this machine. */
  readonly latency: 'real' | 'none';
  /** Whether a small application writes in every region from the start. */
  readonly load: boolean;
  /** Mean rate of that application in each region; 10 by default. */
  readonly transactionsPerSecond?: number;
  /** Told what happens, events of the agents' logs included. */
  readonly onEvent?: (event: WorldEvent) => void;
}

/** Something that happened; `time` is ISO 8601 in UTC. */
export interface WorldEvent {
  readonly time: string;
  readonly event: string;
  readonly region?: string;
  readonly [field: string]: unknown;
}

/** One region, for who wants to use it. */
export interface WorldRegion {
  readonly name: string;
  readonly id: number;
  /** Connection URL of the database `shop`, as its owner `app`. */
  readonly url: string;
  /** Where the agent's HTTP API listens. */
  readonly agentUrl: string;
  /** Version of its PostgreSQL, such as `18.4`. */
  readonly version: string;
}

/** One direction of a link as it is now. */
export interface LinkView {
  readonly from: string;
  readonly to: string;
  /** As the agent of `to` sees it, which pulls; null while it is down. */
  readonly state: PeerState | null;
  /**
   * While it streams: from the newest transaction's commit in `from` to its being visible in `to`; else how long nothing has
   * come. Null before anything came.
   */
  readonly lag_ms: number | null;
}

/** The whole world as it is now. */
export interface WorldView {
  readonly regions: readonly RegionView[];
  readonly links: readonly LinkView[];
}

const TRANSACTIONS_PER_SECOND = 10;
const POSTGRES_PORTS = 10;
const PORT_ATTEMPTS = 100;
const STREAMING_MS = 30_000;
const STREAMING_POLL_MS = 10;
/** Rows that broke a key together are settled within a second; these bound a hang. */
const PARKED_MS = 30_000;
const PARKED_POLL_MS = 100;

/** The data outlives a killed server, and never this process. */
const SETTINGS = { fsync: false, full_page_writes: false, shared_buffers: '32MB' };

let worlds = 0;

/** Starts a world and waits until every region follows every other. Throws what failed, and then leaves nothing running. */
export async function startWorld(options: WorldOptions): Promise<World> {
  if (!Number.isInteger(options.regions) || options.regions < 2 || options.regions > PLACES.length) {
    throw new CoregentError('usage', `a world has 2 to ${PLACES.length} regions, not ${options.regions}`);
  }
  const world = new World(options);
  try {
    await world.begin();
    return world;
  } catch (error) {
    await world.stop().catch(() => {});
    throw error;
  }
}

/** Regions of real PostgreSQL servers on this machine, with a WAN between them. All of it ends with this process. */
export class World {
  readonly #options: WorldOptions;
  readonly #ports = new Set<number>();
  readonly #regions: Region[] = [];
  #config: Config | undefined;
  #configFile = '';
  #stopped: Promise<void> | undefined;

  /** Not for users: `startWorld` makes worlds. */
  constructor(options: WorldOptions) {
    this.#options = options;
  }

  get regions(): readonly WorldRegion[] {
    return this.#regions.map(({ name, id, appUrl, agentPort, version }) => {
      return { name, id, url: appUrl, agentUrl: `http://127.0.0.1:${agentPort}`, version };
    });
  }

  /** Reaches every database as superuser and directly, whatever is cut. */
  get config(): Config {
    return this.#config!;
  }

  /** The same as a `coregent.yaml`, readable by this user only, so that the command line can ask this world. */
  get configFile(): string {
    return this.#configFile;
  }

  /** Not for users. */
  async begin(): Promise<void> {
    const { latency, load } = this.#options;
    await settle(PLACES.slice(0, this.#options.regions).map((name, index) => this.#beginRegion(name, index)));
    this.#regions.sort((a, b) => a.id - b.id);
    await Promise.all([this.#writeConfig(), this.#beginLinks()]);
    await this.#apply();
    await settle(this.#regions.map((region) => this.#startAgent(region, this.#wanted(region.id - 1))));
    await this.#streaming();
    // Only now: connecting takes a dozen round trips, and nobody has come to watch them.
    if (latency === 'real') this.#slowDown();
    if (load) for (const region of this.#regions) this.#startLoad(region);
  }

  async #beginRegion(name: string, index: number): Promise<void> {
    const server = await this.#onPort(this.#wanted(index + POSTGRES_PORTS), `PostgreSQL of ${name}`, (port) =>
      startPostgres({ name, port, settings: SETTINGS }),
    );
    const region = new Region({ name, id: index + 1, server });
    this.#regions.push(region);
    await region.openShop({ seed: index === 0 });
  }

  #wanted(offset: number): number | undefined {
    return this.#options.port === undefined ? undefined : this.#options.port + offset;
  }

  /** Begins something on the wanted port, or on the next one that is free, and says so. */
  async #onPort<T>(wanted: number | undefined, what: string, begin: (port: number) => Promise<T>): Promise<T> {
    for (let attempt = 0; attempt < PORT_ATTEMPTS; attempt++) {
      const port = wanted === undefined ? await freePort() : wanted + attempt;
      if (this.#ports.has(port)) continue;
      this.#ports.add(port);
      if (!(await isFree(port))) continue;
      try {
        const begun = await begin(port);
        if (wanted !== undefined && attempt > 0) this.#say('port.taken', { what, wanted, port });
        return begun;
      } catch (error) {
        if (!(error instanceof CoregentError) || error.code !== 'port_unavailable') throw error;
      }
    }
    throw new CoregentError('port_unavailable', `no free port for ${what}`, { where: `127.0.0.1:${wanted}` });
  }

  async #writeConfig(): Promise<void> {
    const { folder } = await openScratch(serverOwner());
    this.#configFile = join(folder, `${++worlds}-coregent.yaml`);
    const text = [
      `cluster: ${SHOP}`,
      'regions:',
      ...this.#regions.map(({ name, id, adminUrl }) => `  ${name}: { id: ${id}, url: "${adminUrl.reveal()}" }`),
      `${SHOP_RULES}conflicts: { alert: 100/min }`,
      '',
    ].join('\n');
    this.#config = parseConfig(text, { path: this.#configFile, env: {} });
    await writeFile(this.#configFile, text, { mode: 0o600 });
  }

  async #beginLinks(): Promise<void> {
    const all = this.#regions.flatMap((to) =>
      this.#regions.filter((from) => from !== to).map((from) => ({ from, to })),
    );
    await settle(
      all.map(async ({ from, to }) => {
        to.proxies.set(from.name, await startProxy({ target: { host: '127.0.0.1', port: from.server.port } }));
      }),
    );
  }

  #slowDown(): void {
    for (const to of this.#regions) {
      for (const [from, proxy] of to.proxies) proxy.setLatency(oneWayMs(this.#region(from).id, to.id));
    }
  }

  /** What `coregent apply` does: installs every region and joins the rows that one of them has. */
  async #apply(): Promise<void> {
    const open = await openRegions(this.config, 'apply');
    try {
      const [none, join] = [() => {}, () => ({ rows: () => {}, done: () => {} })];
      const nothing = { action: none, changed: none, slot: none, join };
      await carryOut(this.config, open, await makePlan(this.config, open), nothing);
      await settle(open.map(({ client }) => client.query('grant select on coregent.conflicts to app')));
    } finally {
      await closeRegions(open);
    }
  }

  async #startAgent(region: Region, wanted: number | undefined): Promise<void> {
    const config: Config = {
      ...this.config,
      regions: this.config.regions.map((each) => {
        const proxy = region.proxies.get(each.name);
        if (!proxy) return each;
        const url = new URL(each.url.reveal());
        url.port = String(proxy.port);
        return { ...each, url: new Secret(url.href) };
      }),
    };
    await this.#onPort(wanted, `the agent of ${region.name}`, (port) =>
      region.startAgent(config, port, this.#log(region.name)),
    );
  }

  #log(region: string): Log {
    const { onEvent } = this.#options;
    const write = (line: string): void => {
      const { level: _, ...event } = JSON.parse(line);
      onEvent?.(event);
    };
    return createLogger({ level: onEvent ? 'info' : 'silent', region, to: { write }, human: false });
  }

  #say(event: string, fields: Readonly<Record<string, unknown>> = {}): void {
    this.#options.onEvent?.({ time: new Date().toISOString(), event, ...fields });
  }

  async #streaming(): Promise<void> {
    const deadline = performance.now() + STREAMING_MS;
    for (;;) {
      const peers = this.#regions.flatMap(({ agent }) => agent?.status().peers ?? []);
      const there = this.#regions.length * (this.#regions.length - 1);
      if (peers.length === there && peers.every(({ state }) => state === 'streaming')) return;
      if (performance.now() > deadline) {
        const failed = peers.find(({ last_error }) => last_error)?.last_error;
        throw new CoregentError(
          'peer_behind',
          `not every region follows every other: ${failed?.message ?? 'no answer'}`,
        );
      }
      await pause(STREAMING_POLL_MS);
    }
  }

  #startLoad(region: Region): void {
    region.startLoad(this.#options.transactionsPerSecond ?? TRANSACTIONS_PER_SECOND, (error) =>
      this.#say('load.failed', { region: region.name, error: error.toJSON() }),
    );
  }

  /** One-way latency between two regions, in ms. */
  latencyMs(a: string, b: string): number {
    return this.#options.latency === 'real' ? oneWayMs(this.#region(a).id, this.#region(b).id) : 0;
  }

  /** Looks at every region; one that is down does not hold the others up. */
  async view(): Promise<WorldView> {
    const regions = await Promise.all(this.#regions.map((region) => region.view()));
    const links = regions.flatMap((to) => {
      const peers = new Map(to.agent?.peers.map((peer) => [peer.region, peer]));
      return this.#regions
        .filter(({ name }) => name !== to.region)
        .map(({ name }): LinkView => {
          const peer = peers.get(name);
          const delay = to.delays_ms?.[name];
          const newest = delay === undefined ? null : Math.max(delay, peer?.lag_ms ?? 0);
          const lag_ms = peer?.state === 'streaming' ? newest : (peer?.lag_ms ?? null);
          return { from: name, to: to.region, state: peer?.state ?? null, lag_ms };
        });
    });
    return { regions, links };
  }

  /** Breaks both directions between two regions: what is under way is lost, and new connections are refused. */
  async cut(a: string, b: string): Promise<void> {
    await settle(this.#link(a, b).map((proxy) => proxy.cut()));
    this.#say('link.cut', { between: [a, b] });
  }

  /** Ends a cut. The agents find out by themselves, within their back-off of at most 10 s. */
  async heal(a: string, b: string): Promise<void> {
    await settle(this.#link(a, b).map((proxy) => proxy.heal()));
    this.#say('link.healed', { between: [a, b] });
  }

  /** SIGKILL to a region's PostgreSQL and all its processes; its agent goes too. */
  async kill(name: string): Promise<void> {
    const region = this.#region(name);
    await settle([region.server.kill(), region.stopAgent()]);
    this.#say('region.killed', { region: name });
  }

  /** Starts a killed region again, on the same data and ports. Does nothing if it runs. */
  async start(name: string): Promise<void> {
    const region = this.#region(name);
    await region.server.start();
    if (region.agent) return;
    this.#ports.delete(region.agentPort);
    await this.#startAgent(region, region.agentPort);
    this.#say('region.started', { region: name });
  }

  /** Finishes the transactions under way of the load, if there is one. */
  async stopLoad(): Promise<void> {
    await settle(this.#regions.map((region) => region.stopLoad()));
  }

  /** Ends the load and every fault, and compares all rows. Throws `peer_behind` when a region does not follow for a minute. */
  async compare(): Promise<TableVerdict[]> {
    await this.stopLoad();
    await settle(this.#regions.flatMap(({ proxies }) => [...proxies.values()].map((proxy) => proxy.heal())));
    await settle(this.#regions.map(({ name }) => this.start(name)));
    const open = await openRegions(this.config, 'verify');
    try {
      await barrier(this.config, open); // Counts of rows would differ by what is under way.
      if (await somethingParked(open)) {
        const deadline = performance.now() + PARKED_MS;
        while ((await somethingParked(open)) && performance.now() < deadline) await pause(PARKED_POLL_MS);
        await barrier(this.config, open);
      }
      const verdicts: TableVerdict[] = [];
      for (const table of await readTables(open[0]!.client, open[0]!.region.name)) {
        verdicts.push(await verifyTable(this.config, open, table));
      }
      return verdicts;
    } finally {
      await closeRegions(open);
    }
  }

  /** Ends everything and deletes the data. Repeatable. */
  stop(): Promise<void> {
    this.#stopped ??= (async () => {
      await settle(this.#regions.map((region) => region.remove()));
      if (this.#configFile) await rm(this.#configFile, { force: true });
    })();
    return this.#stopped;
  }

  #region(name: string): Region {
    const found = this.#regions.find((region) => region.name === name);
    if (found) return found;
    const names = this.#regions.map((region) => region.name).join(', ');
    throw new CoregentError('usage', `there is no region ${name}: there are ${names}`);
  }

  #link(a: string, b: string) {
    const [one, other] = [this.#region(a), this.#region(b)];
    const proxies = [one.proxies.get(b), other.proxies.get(a)];
    return proxies.filter((proxy) => proxy !== undefined);
  }
}

/** Whether a row waits for its place in any region: until it has found it, or gives way, the regions differ by it. */
async function somethingParked(open: readonly OpenRegion[]): Promise<boolean> {
  const found = await Promise.all(open.map(({ client }) => client.query('select from coregent.parked limit 1')));
  return found.some(({ rows }) => rows.length > 0);
}

/** Waits for all of them, also when one fails, and then throws the first failure: nothing goes on unseen. */
async function settle(work: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find((each) => each.status === 'rejected');
  if (failed) throw failed.reason;
}
