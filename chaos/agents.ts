import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { freePort } from '#coregent/demo/port.js';
import type { AgentStatus } from '#coregent/model/api.js';

/** The command line as `npm run build` makes it. */
export const COMMAND = createRequire(import.meta.url).resolve('#coregent/cli/main.js');
/** Ends an agent when the pipe to this process breaks: whoever is killed leaves no process behind. */
const LEASH =
  'data:text/javascript,process.stdin.on("end",()=>process.exit(3)).on("error",()=>process.exit(3)).resume()';

/** One process of `coregent start`. */
export class AgentProcess {
  readonly #child: ChildProcess;
  readonly #port: number;
  readonly ended: Promise<number | NodeJS.Signals>;
  #stopped = false;

  private constructor(child: ChildProcess, port: number) {
    this.#child = child;
    this.#port = port;
    this.ended = once(child, 'exit').then(([code, signal]) => (code ?? signal) as number | NodeJS.Signals);
  }

  static async start(region: string, configFile: string, logFile: string): Promise<AgentProcess> {
    const port = await freePort();
    const log = await open(logFile, 'a', 0o600);
    const args = ['start', '--region', region, '--config', configFile, '--port', String(port), '--verbose'];
    const child = spawn(process.execPath, ['--import', LEASH, COMMAND, ...args], { stdio: ['pipe', 'ignore', log.fd] });
    child.stdin?.on('error', () => {});
    await Promise.all([once(child, 'spawn'), log.close()]);
    return new AgentProcess(child, port);
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get alive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
    this.#stopped = signal === 'SIGSTOP' || (this.#stopped && signal !== 'SIGCONT');
  }

  /** Sends a signal that ends it, and waits for the end. */
  async end(signal: 'SIGKILL' | 'SIGTERM'): Promise<number | NodeJS.Signals> {
    if (this.#stopped && signal === 'SIGTERM') this.signal('SIGCONT');
    this.#child.kill(signal);
    return await this.ended;
  }

  /** What `GET /v1/status` answers; undefined when it does not within 5 s. */
  async status(): Promise<AgentStatus | undefined> {
    try {
      const answer = await fetch(`http://127.0.0.1:${this.#port}/v1/status`, { signal: AbortSignal.timeout(5_000) });
      return (await answer.json()) as AgentStatus;
    } catch {
      return undefined;
    }
  }

  /** Resident memory in MiB; undefined where /proc does not tell. */
  async memoryMiB(): Promise<number | undefined> {
    const text = await readFile(`/proc/${this.pid}/status`, 'utf8').catch(() => '');
    const kib = /^VmRSS:\s+(\d+) kB/m.exec(text)?.[1];
    return kib === undefined ? undefined : Number(kib) / 1024;
  }
}

/** Keeps an agent of one region running, except while a fault wants it otherwise. */
export class Keeper {
  readonly region: string;
  readonly #configFile: string;
  readonly #logFile: string;
  readonly #onSurprise: (what: string) => void;
  #agent: AgentProcess | undefined;
  #wanted = false;
  /** Times that it was started. */
  starts = 0;

  constructor(region: string, configFile: string, logFile: string, onSurprise: (what: string) => void) {
    this.region = region;
    this.#configFile = configFile;
    this.#logFile = logFile;
    this.#onSurprise = onSurprise;
  }

  get agent(): AgentProcess | undefined {
    return this.#agent;
  }

  async start(): Promise<void> {
    if (this.#agent?.alive) return;
    this.#wanted = true;
    this.starts++;
    const agent = await AgentProcess.start(this.region, this.#configFile, this.#logFile);
    this.#agent = agent;
    void agent.ended.then(async (code) => {
      if (!this.#wanted || this.#agent !== agent) return;
      this.#onSurprise(`the agent of ${this.region} ended by itself (${code})`);
      await this.start();
    });
  }

  async end(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    this.#wanted = false;
    const code = await this.#agent?.end(signal);
    // It may not listen for signals yet.
    if (signal === 'SIGTERM' && code !== 0 && code !== 'SIGTERM')
      this.#onSurprise(`the agent of ${this.region} ended with ${code} at SIGTERM`);
  }

  /** A second agent of the region, which the caller ends. */
  async twin(): Promise<AgentProcess> {
    return await AgentProcess.start(this.region, this.#configFile, this.#logFile);
  }

  /** Waits until it streams from every peer; the error says what it says itself. */
  async streaming(deadlineMs: number): Promise<void> {
    const deadline = performance.now() + deadlineMs;
    for (;;) {
      const status = await this.#agent?.status();
      if (status && status.peers.length > 0 && status.peers.every(({ state }) => state === 'streaming')) return;
      if (performance.now() > deadline) {
        const peers = status?.peers.map((peer) => `${peer.region} ${peer.state} (${peer.last_error?.message ?? ''})`);
        const says = status ? `${status.state}; ${peers?.join('; ')}` : 'nothing';
        throw new Error(`the agent of ${this.region} does not stream from every peer after ${deadlineMs} ms: ${says}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
