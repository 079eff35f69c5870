import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { AgentStatus } from '../../src/model/api.ts';
import { until } from './until.ts';

/** One line of an agent's log. */
export interface LogLine {
  readonly event: string;
  readonly [field: string]: unknown;
}

/** An agent in a process of its own, as users run it: it can be killed at any instruction. */
export interface AgentProcess {
  readonly region: string;
  readonly pid: number;
  /** What it logged so far, in order. */
  readonly log: readonly LogLine[];
  /** Resolves with its exit code, or the signal that ended it. */
  readonly ended: Promise<number | NodeJS.Signals>;
  /** What `GET /v1/status` answers. */
  status(): Promise<AgentStatus>;
  /** One request of its HTTP API. */
  get(path: string): Promise<Response>;
  /** Waits until it logged the event, and gives that line. */
  logged(event: string, deadlineMs?: number): Promise<LogLine>;
  /** Waits until every peer streams. */
  streaming(): Promise<void>;
  /** Sends a signal and waits for the end; gives the exit code or signal. */
  end(signal: NodeJS.Signals): Promise<number | NodeJS.Signals>;
}

/** The command line as `npm run build` makes it. */
const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
/** Ends the agent when the pipe to its test breaks: a test that is killed leaves no process behind. */
const LEASH =
  'data:text/javascript,process.stdin.on("end",()=>process.exit(3)).on("error",()=>process.exit(3)).resume()';
const START_MS = 90_000;

/** What a real command line is started with. */
export function commandLine(args: readonly string[]): [program: string, args: string[]] {
  if (!existsSync(MAIN)) throw new Error(`${MAIN} is missing. Cure: npm run build (npm test does it by itself).`);
  return [process.execPath, [MAIN, ...args]];
}

/** Where an agent can be killed, between two things that it does; `:n` for the n-th time. See `fault.mjs`. */
export type FaultPoint = 'decoded' | 'part' | 'resolved' | 'sent' | 'committed' | 'acknowledging' | 'acknowledged';

const FAULTS = new URL('./fault.mjs', import.meta.url).href;

/** Starts `coregent start` for one region. It need not be ready yet: see `streaming`. With a fault it kills itself there. */
export function spawnAgent(
  configFile: string,
  region: string,
  fault?: FaultPoint | `${FaultPoint}:${number}`,
): AgentProcess {
  const [program, args] = commandLine([
    'start',
    '--region',
    region,
    '--config',
    configFile,
    '--port',
    '0',
    '--verbose',
  ]);
  const child = spawn(program, ['--import', LEASH, ...(fault ? ['--import', FAULTS] : []), ...args], {
    env: { ...process.env, ...(fault && { COREGENT_FAULT: fault }) },
    stdio: ['pipe', 'ignore', 'pipe'],
  });
  child.stdin.on('error', () => {});
  const log: LogLine[] = [];
  readLines(child, (line) => log.push(line));
  const ended = once(child, 'exit').then(([code, signal]) => (code ?? signal) as number | NodeJS.Signals);
  const logged = async (event: string, deadlineMs = START_MS): Promise<LogLine> => {
    const find = (): LogLine | undefined => log.find((line) => line.event === event);
    const early = ended.then((code): LogLine => {
      const last = log.slice(-5).map((line) => JSON.stringify(line));
      const line = find();
      if (!line) throw new Error(`The agent of ${region} ended (${code}) before ${event}:\n${last.join('\n')}`);
      return line;
    });
    early.catch(() => {});
    return await Promise.race([until(find, { what: `the agent of ${region} to log ${event}`, deadlineMs }), early]);
  };
  const get = async (path: string): Promise<Response> =>
    await fetch(`${(await logged('http.listening')).url}${path}`, { signal: AbortSignal.timeout(5_000) });
  const status = async (): Promise<AgentStatus> => (await (await get('/v1/status')).json()) as AgentStatus;
  return {
    region,
    pid: child.pid!,
    log,
    ended,
    get,
    status,
    logged,
    streaming: async () => {
      await until(
        async () => {
          const { peers } = await status();
          return peers.length > 0 && peers.every(({ state }) => state === 'streaming');
        },
        { what: `the agent of ${region} to stream from every peer`, deadlineMs: START_MS },
      );
    },
    end: async (signal) => {
      child.kill(signal);
      return await ended;
    },
  };
}

function readLines(child: ChildProcess, take: (line: LogLine) => void): void {
  let text = '';
  child.stderr?.setEncoding('utf8').on('data', (part: string) => {
    const lines = (text + part).split('\n');
    text = lines.pop()!;
    for (const line of lines) {
      if (line === '') continue;
      try {
        take(JSON.parse(line));
      } catch {
        take({ event: 'not a log line', text: line });
      }
    }
  });
}
