import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, mkdir, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { CoregentError } from '../model/error.ts';
import { DEFAULT_MAJOR } from './binaries.ts';
import { giveIdentity } from './identity.ts';
import { freePort, isFree } from './port.ts';
import { childrenOf } from './process.ts';
import { copyFolder, spawnError, type Template, templateOf } from './template.ts';

/** `postgresql.conf` settings by name. */
export type Settings = Readonly<Record<string, string | number | boolean>>;

/** What `startPostgres` takes; everything may be left out. */
export interface ServerOptions {
  /** Names the server in errors and in its folder. Default `postgres`. */
  readonly name?: string;
  /** TCP port on 127.0.0.1. Default: a free one. */
  readonly port?: number;
  /** Over the defaults below. `{ fsync: false }` is faster and survives a crash of the server, not of the machine. */
  readonly settings?: Settings;
  /** PostgreSQL major version, 14 to 18. Default 18. `COREGENT_PG_BIN` overrules it. */
  readonly major?: number;
  /** Folder with a `package.json` whose dependencies other majors than 18 are found in. Default: our own. */
  readonly packages?: string;
}

const DEFAULTS: Settings = {
  wal_level: 'logical',
  max_wal_senders: 20,
  max_replication_slots: 20,
  max_connections: 100,
  shared_buffers: '64MB',
  timezone: 'UTC',
  log_timezone: 'UTC',
};
/** Not to be overridden: a server is reachable from this machine only, and its output goes to its log file. */
const FIXED: Settings = { listen_addresses: '127.0.0.1', unix_socket_directories: '', logging_collector: false };

const START_MS = 60_000;
const FAST_STOP_MS = 30_000;
const PORT_ATTEMPTS = 10;

let servers = 0;

/**
 * Starts a real PostgreSQL server on 127.0.0.1 and waits until it answers. The first of a process takes about half a second
 * longer, for `initdb`. Servers end with this process, whichever way it ends.
 * Throws an error that says what failed and the cure.
 */
export async function startPostgres(options: ServerOptions = {}): Promise<Server> {
  const { name = 'postgres', port, settings = {}, major = DEFAULT_MAJOR, packages } = options;
  const template = await templateOf(major, packages);
  const home = join(template.scratch.folder, `${++servers}-${name.replace(/[^\w-]/g, '_')}`);
  await mkdir(home);
  const data = join(home, 'data');
  await copyFolder(template.folder, data, template.owner);
  await giveIdentity(data);
  await appendFile(join(data, 'postgresql.conf'), print({ ...DEFAULTS, ...settings, ...FIXED }));

  for (let attempt = 1; ; attempt++) {
    const server = new Server({ name, home, port: port ?? (await freePort()), template });
    try {
      await server.start();
      return server;
    } catch (error) {
      const clash = error instanceof CoregentError && error.code === 'port_unavailable';
      if (clash && port === undefined && attempt < PORT_ATTEMPTS) continue;
      await server.remove();
      throw error;
    }
  }
}

/** A PostgreSQL server on this machine: starts, stops, crashes and starts again on the same data and port. */
export class Server {
  readonly name: string;
  readonly port: number;
  readonly dataDir: string;
  /** What the server wrote to its log, all its starts together. */
  readonly logFile: string;
  readonly #home: string;
  readonly #template: Template;
  #process: ChildProcess | undefined;

  /** Not for users: `startPostgres` makes servers. */
  constructor({ name, home, port, template }: { name: string; home: string; port: number; template: Template }) {
    this.name = name;
    this.port = port;
    this.dataDir = join(home, 'data');
    this.logFile = join(home, 'log');
    this.#home = home;
    this.#template = template;
  }

  /** The postmaster's process number; `undefined` while the server is down. */
  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** Connection URL of the superuser `postgres`, password included. */
  url(database = 'postgres'): string {
    return `postgres://postgres:${this.#template.password}@127.0.0.1:${this.port}/${encodeURIComponent(database)}`;
  }

  /** Starts the server on its data folder and port, and waits until it answers. Does nothing if it runs. */
  async start(): Promise<void> {
    if (this.#process) return;
    const log = await open(this.logFile, 'a', 0o600);
    const child = await this.#spawn(log.fd).finally(() => log.close());
    const deadline = performance.now() + START_MS;
    const ended = once(child, 'exit').then(() => false);
    while (!(await Promise.race([this.#answers(), ended]))) {
      if (this.#process !== child) throw await this.#failure('ended while it started');
      if (performance.now() > deadline) throw await this.#failure(`did not answer within ${START_MS / 1000} s`);
      await sleep(10);
    }
  }

  /**
   * Stops the server and waits for its end. `fast` ends sessions and writes a checkpoint; if a replication client holds it
   * up for 30 s, it becomes `immediate`, which is a crash by intent: the next start recovers from WAL.
   */
  async stop(mode: 'fast' | 'immediate' = 'fast'): Promise<void> {
    const child = this.#process;
    if (!child) return;
    const ended = once(child, 'exit');
    child.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT');
    const impatience = setTimeout(() => child.kill('SIGQUIT'), FAST_STOP_MS);
    await ended;
    clearTimeout(impatience);
  }

  /** SIGKILL to the postmaster and all its processes at once, and waits for the end. Nothing gets to say goodbye. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (!child?.pid) return;
    const ended = once(child, 'exit');
    child.kill('SIGSTOP'); // It must not start more while we look.
    for (const pid of await childrenOf(child.pid)) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Ended by itself.
      }
    }
    child.kill('SIGKILL');
    await ended;
  }

  /** Stops the server, whatever it does, and deletes its data. */
  async remove(): Promise<void> {
    await this.stop('immediate');
    await rm(this.#home, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
  }

  async #spawn(log: number): Promise<ChildProcess> {
    const { binaries, owner, scratch } = this.#template;
    try {
      const child = spawn(binaries.postgres, ['-D', this.dataDir, '-p', String(this.port)], {
        ...owner,
        cwd: this.#home,
        detached: true, // Ctrl-C at a terminal is ours to handle.
        env: binaries.env,
        stdio: ['ignore', log, log],
        windowsHide: true,
      });
      const pid = child.pid;
      if (pid !== undefined) {
        scratch.guard(pid);
        this.#process = child;
        child.once('exit', () => {
          scratch.release(pid);
          this.#process = undefined;
        });
      }
      await once(child, 'spawn');
      return child;
    } catch (cause) {
      throw spawnError(binaries.postgres, cause as NodeJS.ErrnoException);
    }
  }

  /** Whether this very server, and not another that won the port, answers a query. */
  async #answers(): Promise<boolean> {
    const client = new pg.Client({ connectionString: this.url(), connectionTimeoutMillis: 5_000 });
    client.on('error', () => {});
    try {
      await client.connect();
      const { rows } = await client.query("select current_setting('data_directory') as folder");
      return rows[0].folder === this.dataDir;
    } catch {
      return false;
    } finally {
      await client.end().catch(() => {});
    }
  }

  async #failure(what: string): Promise<CoregentError> {
    const log = (await readFile(this.logFile, 'utf8').catch(() => '')).trimEnd().split('\n').slice(-8).join('\n');
    const taken = this.#process === undefined && !(await isFree(this.port));
    return new CoregentError(
      taken ? 'port_unavailable' : 'unknown',
      `PostgreSQL ${what}; the end of its log:\n${log}`,
      {
        where: `${this.name} (127.0.0.1:${this.port})`,
        cure: taken
          ? 'Choose another port, or stop what listens there.'
          : 'Mend what the log says, then start it again.',
      },
    );
  }
}

function print(settings: Settings): string {
  const line = ([name, value]: [string, unknown]) =>
    `${name} = '${String(value).replaceAll('\\', '\\\\').replaceAll("'", "''")}'`;
  return `\n${Object.entries(settings).map(line).join('\n')}\n`;
}
