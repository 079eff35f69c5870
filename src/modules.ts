import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { Worker } from 'node:worker_threads';
import { CoregentError } from './model/error.ts';
import type { Rule } from './model/rule.ts';
import { MODULE_THREAD } from './module-thread.ts';

/** One version of a row as a module's thread gets it. */
export interface GivenVersion {
  /** Digits. */
  readonly version: string;
  /** Of each column the JSON text; null for SQL null. */
  readonly row: Readonly<Record<string, string | null>>;
}

/** A row that a module is to make. */
export interface GivenRow {
  readonly versions: readonly GivenVersion[];
  readonly columns: readonly string[];
  readonly key: readonly string[];
}

/** What a module made: the columns but the key, as JSON; or why it made none. */
export type MadeRow = { readonly made: string } | { readonly error: string };

/** How long a module may take for one row, in ms; and for one that it took longer for, alone and in a thread of its own. */
const ROW_MS = 1_000;
const ALONE_MS = 4_000;
const START_MS = 10_000;
const GRACE_MS = 20;
/** Memory of a thread, in MB. */
const MEMORY_MB = 256;
/** Rows that took too long are not tried again by this process; so many are remembered. */
const REMEMBERED = 1_000;

/** Modules that settle concurrent versions (`custom: ./resolvers/ticket.ts`), each in a thread of its own. */
export class Modules {
  readonly #directory: string;
  readonly #running = new Map<string, Running>();

  /** `configPath`: the file that names the modules, from where it lies. */
  constructor(configPath: string) {
    this.#directory = dirname(configPath);
  }

  /** The SHA-256 of a module's bytes, in hex. Throws `file_unusable`. */
  async hash(path: string): Promise<string> {
    return hashOf(await this.#read(path));
  }

  /** Loads a module, and gives its hash. Throws `file_unusable`, or `config_invalid` where it is no module as the rule needs. */
  async check(path: string): Promise<string> {
    const bytes = await this.#read(path);
    const thread = await startThread(await codeOf(path, bytes));
    if (typeof thread === 'string') throw new CoregentError('config_invalid', thread, { where: path });
    await thread.terminate();
    return hashOf(bytes);
  }

  /** Why a rule cannot be carried out here, for people; undefined where it can, or is no module's. */
  async fault({ custom, hash }: Rule): Promise<string | undefined> {
    if (custom === undefined || hash === undefined) return undefined;
    try {
      const found = await this.hash(custom);
      if (found === hash) return undefined;
      return `has the rule ${custom}, and the file beside this agent's configuration is not the one that \`coregent apply\` was run with (SHA-256 ${found.slice(0, 12)}, not ${hash.slice(0, 12)}): bring the same file to every agent, and run \`coregent apply\` if it is the new one`;
    } catch (error) {
      return `has the rule ${custom}, and ${(error as Error).message}: bring the file to where this agent's configuration lies`;
    }
  }

  /**
   * Has a module make these rows, one after the other. One that it takes too long for is an error, as one that it throws for is.
   * Throws `file_unusable`, and `config_invalid` for a module that is not the rule's any more.
   */
  async make({ custom, hash }: Rule, rows: readonly GivenRow[]): Promise<readonly MadeRow[]> {
    const id = `${custom} ${hash}`;
    let running = this.#running.get(id);
    if (!running) {
      const bytes = await this.#read(custom!);
      if (hashOf(bytes) !== hash)
        throw new CoregentError('config_invalid', 'it is another file now', { where: custom! });
      running = new Running(await codeOf(custom!, bytes));
      this.#running.set(id, running);
    }
    return await running.make(rows);
  }

  /** Ends all threads. */
  async close(): Promise<void> {
    await Promise.all([...this.#running.values()].map((each) => each.end()));
    this.#running.clear();
  }

  async #read(path: string): Promise<Buffer> {
    try {
      return await readFile(resolve(this.#directory, path));
    } catch (error) {
      const { code } = error as { code?: string };
      const why = code === 'ENOENT' ? 'there is no such file' : (error as Error).message;
      throw new CoregentError('file_unusable', `${why}: ${path}`, { where: path, cause: error });
    }
  }
}

/** One module and its thread, which is begun when it is needed and again after it was ended. */
class Running {
  readonly #code: string;
  #thread: Worker | undefined;
  #last: Promise<unknown> = Promise.resolve();
  readonly #tooLong = new Map<string, MadeRow>();

  constructor(code: string) {
    this.#code = code;
  }

  /** Those who ask at once have their turns. */
  make(rows: readonly GivenRow[]): Promise<readonly MadeRow[]> {
    const turn = this.#last.then(() => this.#make(rows));
    this.#last = turn.catch(() => {});
    return turn;
  }

  async end(): Promise<void> {
    const thread = this.#thread;
    this.#thread = undefined;
    await thread?.terminate();
  }

  async #make(rows: readonly GivenRow[]): Promise<readonly MadeRow[]> {
    const made: MadeRow[] = [];
    while (made.length < rows.length) {
      const next = rows[made.length]!;
      const before = this.#tooLong.get(JSON.stringify(next));
      if (before) {
        made.push(before);
        continue;
      }
      const some = await this.#send(rows.slice(made.length), ROW_MS);
      made.push(...some);
      if (some.length > 0) continue;
      // A busy machine may have been what took so long.
      const [alone] = await this.#send([next], ALONE_MS);
      if (!alone) this.#remember(next);
      made.push(alone ?? TOO_LONG);
    }
    return made;
  }

  #remember(row: GivenRow): void {
    if (this.#tooLong.size === REMEMBERED) this.#tooLong.clear();
    this.#tooLong.set(JSON.stringify(row), TOO_LONG);
  }

  /** What the thread made of the first rows, until one took too long; a thread that did is ended. */
  async #send(rows: readonly GivenRow[], limitMs: number): Promise<readonly MadeRow[]> {
    const started = this.#thread ?? (await startThread(this.#code));
    if (typeof started === 'string') return rows.map(() => ({ error: started }));
    const thread = started;
    this.#thread = thread;
    const made: MadeRow[] = [];
    let timer: NodeJS.Timeout | undefined;
    const whole = await new Promise<boolean>((done) => {
      let failed = false;
      const fail = (error: string): void => {
        // A thread that fails ends, too: both are the same row's.
        if (!failed) made.push({ error });
        failed = true;
        done(false);
      };
      const wait = (): void => {
        clearTimeout(timer);
        // Answers that are here already are read before it is believed that there are none.
        timer = setTimeout(() => {
          timer = setTimeout(() => done(false), GRACE_MS);
        }, limitMs);
      };
      const ended = { error: (error: Error) => fail(error.message), exit: () => fail('it ended its thread') };
      thread.on('message', (answer: MadeRow) => {
        made.push(answer);
        if (made.length === rows.length) done(true);
        else wait();
      });
      thread.once('error', ended.error).once('exit', ended.exit);
      wait();
      thread.postMessage(rows);
    });
    clearTimeout(timer);
    hearNothing(thread);
    if (!whole) await this.end();
    return made;
  }
}

const TOO_LONG: MadeRow = { error: `it took longer than ${ALONE_MS / 1_000} s` };

/** A thread that has loaded the module; or why it could not. */
async function startThread(code: string): Promise<Worker | string> {
  const url = `data:text/javascript;base64,${Buffer.from(code).toString('base64')}`;
  const thread = new Worker(MODULE_THREAD, {
    eval: true,
    workerData: url,
    // It is to depend on nothing but its rows, and what it prints is nobody's answer.
    env: {},
    execArgv: [],
    argv: [],
    stdout: true,
    stderr: true,
    resourceLimits: { maxOldGenerationSizeMb: MEMORY_MB },
  });
  thread.stdout.resume();
  thread.stderr.resume();
  thread.unref();
  let timer: NodeJS.Timeout | undefined;
  const broken = await new Promise<string | undefined>((done) => {
    timer = setTimeout(() => done(`it did not load within ${START_MS / 1_000} s`), START_MS);
    thread.once('message', (loaded: { broken?: string }) => done(loaded.broken));
    thread.once('error', (error) => done(error.message)).once('exit', () => done('it ended its thread'));
  });
  clearTimeout(timer);
  hearNothing(thread);
  if (broken === undefined) return thread;
  await thread.terminate();
  // In a module that is one file nothing else can be found.
  return /Failed to resolve module specifier|Invalid relative URL|ERR_UNSUPPORTED_RESOLVE/.test(broken)
    ? `it imports another file or package, and must be one file by itself: ${broken.split('\n')[0]}`
    : broken;
}

/** A thread listens to itself too: not to all. One that is about to end may fail yet, which is nobody's. */
function hearNothing(thread: Worker): void {
  for (const event of ['message', 'error', 'exit']) thread.removeAllListeners(event);
  thread.on('error', () => {});
}

/** A module's JavaScript. Throws `config_invalid` for TypeScript that is not erasable, or no TypeScript at all. */
async function codeOf(path: string, bytes: Buffer): Promise<string> {
  const text = bytes.toString('utf8');
  if (!/\.m?ts$/.test(path)) return text;
  const { transform } = await import('@swc/wasm-typescript');
  try {
    return (await transform(text, { mode: 'strip-only', module: true, filename: path })).code;
  } catch (error) {
    const message = (error as { message?: string }).message ?? String(error);
    throw new CoregentError('config_invalid', message, { where: path, cause: error });
  }
}

function hashOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
