import { execFile } from 'node:child_process';
import { chmod, cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { type Server, startPostgres } from '#coregent/demo/postgres.js';
import { type FaultProxy, startProxy } from '#coregent/demo/proxy.js';
import { SETTABLE_CLOCK } from '../test/world/clock.ts';
import { installMajors } from '../test/world/packages.ts';
import { seeded, within } from '../test/world/random.ts';
import { COMMAND, Keeper } from './agents.ts';
import type { Options } from './options.ts';
import { MODULE, RULES, type Tables, tablesWith } from './tables.ts';

const NAMES = ['tokyo', 'frankfurt', 'virginia'] as const;
const DATABASE = 'shop';

/** One region: its server, its agent, and a few connections of ours. */
export interface Region {
  readonly name: string;
  readonly major: number;
  readonly server: Server;
  readonly url: string;
  readonly keeper: Keeper;
  /** One statement over any of a few connections. */
  query(text: string, values?: unknown[]): Promise<pg.QueryResult>;
  /** A connection of its own, with an error listener. */
  connect(): Promise<pg.Client>;
}

/** The link that carries the rows of `from` to `to`. */
export interface Link {
  readonly from: string;
  readonly to: string;
  readonly proxy: FaultProxy;
}

/** Three regions on servers of their own, agents in processes of their own, links that break. */
export interface World {
  readonly regions: readonly Region[];
  readonly links: readonly Link[];
  readonly tables: Tables;
  readonly folder: string;
  /** What this run drew from its seed. */
  readonly drawn: Readonly<Record<string, unknown>>;
  /** Whether no tombstone goes during the run. */
  readonly keepsTombstones: boolean;
  /** What ended or answered as it never should. */
  readonly surprises: string[];
  /** Runs a command line of the product with the regions reached directly. Throws with its output when it fails. */
  coregent(...args: string[]): Promise<string>;
  /** Copies the servers' logs into the folder. */
  keepLogs(): Promise<void>;
  /** Ends everything; the folder stays if `keep`. */
  close(keep: boolean): Promise<void>;
}

/** Where the tests keep PostgreSQL of other majors. */
const PACKAGES = join(dirname(COMMAND), '../../test/servers');

/** Survives a crash of a server; only a crash of the machine could lose what was written. */
const SETTINGS = {
  fsync: false,
  shared_buffers: '48MB',
  max_connections: 100,
  logical_decoding_work_mem: '64kB',
  max_wal_size: '256MB',
  wal_sender_timeout: '20s',
  log_min_messages: 'warning',
  log_line_prefix: '%m [%p] %a ',
};

/** Starts servers, makes tables, installs, and starts agents. */
export async function makeWorld(options: Options): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), `coregent-chaos-${options.seed}-`));
  await chmod(folder, 0o755);
  const random = seeded(options.seed ^ 0x5eed);
  const keepsTombstones = random() < 0.5;
  const drawn = {
    majors: majorsOf(options, random),
    batchRows: [60, 500, 20_000][within(random, 0, 2)]!,
    tombstones: keepsTombstones ? '24h' : '3s',
  };
  const tables = tablesWith(options.extras);
  const closing: (() => Promise<unknown>)[] = [];
  const surprises: string[] = [];
  const close = async (keep: boolean): Promise<void> => {
    for (const step of closing.reverse()) await step().catch(() => {});
    if (!keep) await rm(folder, { recursive: true, force: true });
  };
  try {
    await installMajors(PACKAGES, drawn.majors);
    const servers = await startServers(drawn.majors, closing);
    const urls = servers.map((server) => server.url(DATABASE));
    const links: Link[] = [];
    for (const [index, from] of NAMES.entries()) {
      for (const to of NAMES) {
        if (to === from) continue;
        const target = { host: '127.0.0.1', port: servers[index]!.port };
        const proxy = await startProxy({ target, random: seeded(random() * 2 ** 32) });
        closing.push(() => proxy.close());
        links.push({ from, to, proxy });
      }
    }
    const configOf = (agent: string | undefined): string => {
      const regions = NAMES.map((name, index) => {
        const url = new URL(urls[index]!);
        const link = links.find(({ from, to }) => from === name && to === agent);
        if (link) url.port = String(link.proxy.port);
        return [name, { id: index + 1, url: url.href }];
      });
      return JSON.stringify({
        cluster: 'chaos',
        regions: Object.fromEntries(regions),
        tables: { 'public.*': {}, ...RULES },
        batch: { rows: drawn.batchRows },
        tombstones: { interval: drawn.tombstones },
      });
    };
    await writeFile(join(folder, MODULE.file), MODULE.text);
    await writeFile(join(folder, 'coregent.yaml'), configOf(undefined), { mode: 0o600 });
    for (const name of NAMES) await writeFile(join(folder, `agent-${name}.yaml`), configOf(name), { mode: 0o600 });
    const regions = NAMES.map((name, index): Region => {
      const url = urls[index]!;
      const pool = new pg.Pool({
        connectionString: url,
        max: 8,
        // Who asks here must not fail because the machine is busy.
        connectionTimeoutMillis: 60_000,
        application_name: 'chaos',
      });
      pool.on('error', () => {});
      closing.push(() => pool.end());
      const files = [join(folder, `agent-${name}.yaml`), join(folder, `agent-${name}.log`)] as const;
      return {
        name,
        major: drawn.majors[index]!,
        server: servers[index]!,
        url,
        keeper: new Keeper(name, ...files, (what) => surprises.push(what)),
        query: (text, values) => pool.query(text, values),
        connect: async () => {
          const client = new pg.Client({
            connectionString: url,
            connectionTimeoutMillis: 5_000,
            application_name: 'chaos',
          });
          client.on('error', () => {});
          await client.connect();
          return client;
        },
      };
    });
    for (const { query } of regions) await query(`${SETTABLE_CLOCK}; ${tables.sql}`);
    for (const { keeper } of regions) closing.push(() => keeper.end('SIGKILL'));
    const coregent = async (...args: string[]): Promise<string> => {
      const command = [COMMAND, '--config', join(folder, 'coregent.yaml'), ...args];
      const { stdout } = await promisify(execFile)(process.execPath, command, { maxBuffer: 64 * 1024 ** 2 });
      return stdout;
    };
    const keepLogs = async (): Promise<void> => {
      await mkdir(folder, { recursive: true });
      for (const { name, server } of regions) {
        await cp(server.logFile, join(folder, `server-${name}.log`)).catch(() => {});
      }
    };
    return { regions, links, tables, folder, drawn, keepsTombstones, surprises, coregent, keepLogs, close };
  } catch (error) {
    await close(false);
    throw error;
  }
}

function majorsOf({ major }: Options, random: () => number): number[] {
  if (major !== 'mixed') return NAMES.map(() => Number(major));
  const all = [14, 15, 16, 17, 18];
  return NAMES.map(() => all.splice(within(random, 0, all.length - 1), 1)[0]!);
}

async function startServers(majors: readonly number[], closing: (() => Promise<unknown>)[]): Promise<Server[]> {
  const servers: Server[] = [];
  for (const [index, name] of NAMES.entries()) {
    const server = await startPostgres({ name, major: majors[index]!, settings: SETTINGS, packages: PACKAGES });
    closing.push(() => server.remove());
    servers.push(server);
    const admin = new pg.Client({ connectionString: server.url() });
    await admin.connect();
    await admin.query(`create database ${DATABASE} template template0`);
    await admin.end();
  }
  return servers;
}
