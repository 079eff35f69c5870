import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const CLI = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
const LEASH = new URL('leash.js', import.meta.url).href;

/** What a command of the product needs. */
export interface Setting {
  readonly config: string;
  /** The URLs that the configuration names. */
  readonly env: Readonly<Record<string, string>>;
}

/** Runs one command of the product to its end. Throws with its output when it fails. */
export async function runCli({ config, env }: Setting, ...args: string[]): Promise<void> {
  await promisify(execFile)(process.execPath, [CLI, '--config', config, ...args], { env: { ...process.env, ...env } });
}

/** The agent of a region in a process of its own, as users run it. Ends with ours, whichever way ours ends. */
export class AgentProcess {
  readonly #child: ChildProcess;
  readonly #logFile: string;

  private constructor(child: ChildProcess, logFile: string) {
    this.#child = child;
    this.#logFile = logFile;
  }

  static async start(
    setting: Setting,
    region: string,
    logFile: string,
    flags: readonly string[],
  ): Promise<AgentProcess> {
    const log = await open(logFile, 'w', 0o600);
    const args = [...flags, '--import', LEASH, CLI, '--config', setting.config, '--json', 'start', '--region', region];
    const child = spawn(process.execPath, [...args, '--port', '0'], {
      env: { ...process.env, ...setting.env },
      stdio: ['pipe', 'ignore', log.fd],
    });
    const spawned = once(child, 'spawn');
    await Promise.all([spawned, log.close()]);
    return new AgentProcess(child, logFile);
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Throws, with the end of its log, when it has ended by itself. */
  async check(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) return;
    const log = await readFile(this.#logFile, 'utf8');
    throw new Error(`the agent ended; the end of its log:\n${log.trimEnd().split('\n').slice(-5).join('\n')}`);
  }

  async stop(): Promise<void> {
    await this.check();
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    await ended;
  }
}
