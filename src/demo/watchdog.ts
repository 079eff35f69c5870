import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { chmod, lstat, mkdtemp, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { CoregentError } from '../model/error.ts';
import { canEnter, type Owner } from './binaries.ts';

/** This process's folder for servers, and the watchdog over them. */
export interface Scratch {
  /** Absolute; gone, with all that is in it, soon after this process ends in whatever way. */
  readonly folder: string;
  /** From now on the process `pid` must not outlive ours. */
  guard(pid: number): void;
  /** The process `pid` has ended; its number may be used again by others. */
  release(pid: number): void;
}

const PREFIX = 'coregent-servers-';
const UNCLAIMED_MS = 3_600_000;

/**
 * The watchdog's program, as text because it must run from TypeScript sources and from a build alike. It holds the other end
 * of a pipe to us. The pipe closes when we end, SIGKILL included; then it shuts the servers down and removes the folder.
 */
const WATCHDOG = `
const { rmSync } = require('node:fs');
const folder = process.argv[1];
const pids = new Set();
let text = '';
let last = false;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {});
process.stdin.setEncoding('utf8').on('data', (part) => {
  const lines = (text + part).split('\\n');
  text = lines.pop();
  for (const line of lines) pids[line[0] === '+' ? 'add' : 'delete'](Number(line.slice(1)));
});
for (const event of ['end', 'error', 'close']) process.stdin.on(event, () => { if (!last) { last = true; finish(); } });
function signal(name) {
  for (const pid of pids) try { process.kill(pid, name); } catch { pids.delete(pid); }
}
async function finish() {
  signal('SIGQUIT');
  for (let turn = 0; turn < 500 && pids.size > 0; turn++) {
    await new Promise((done) => setTimeout(done, 10));
    signal(0);
  }
  signal('SIGKILL');
  rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
}
`;

let scratch: Promise<Scratch> | undefined;

/**
 * Opens the one folder of this process that servers live in: a new folder in the system's temporary folder that `owner` may
 * enter. Also removes what earlier processes left behind, if even their watchdog was killed.
 */
export function openScratch(owner: Owner | undefined): Promise<Scratch> {
  scratch ??= open(owner).catch((error) => {
    scratch = undefined;
    throw error;
  });
  return scratch;
}

async function open(owner: Owner | undefined): Promise<Scratch> {
  const parent = await realpath(tmpdir());
  if (!(await canEnter(parent, owner))) {
    throw new CoregentError('file_unusable', `uid ${owner?.uid}, which servers run as, can't enter it`, {
      where: parent,
      cure: 'Set TMPDIR to a folder that is open to others, like /tmp.',
    });
  }
  await sweep(parent);
  const folder = await mkdtemp(join(parent, PREFIX));
  await writeFile(join(folder, 'owner.json'), JSON.stringify(identity(process.pid)));
  if (owner) await chmod(folder, 0o711);

  // Detached: Ctrl-C at a terminal reaches the whole foreground group, and must not reach the watchdog.
  const child = spawn(process.execPath, ['-e', WATCHDOG, folder], {
    cwd: parent,
    detached: true,
    env: { SystemRoot: process.env.SystemRoot ?? '' }, // No NODE_OPTIONS: a debugger port of ours would clash.
    stdio: ['pipe', 'ignore', 'ignore'],
    windowsHide: true,
  });
  const pipe = child.stdin as Socket;
  pipe.on('error', () => {}); // The watchdog was killed: the next process's sweep stands in for it.
  await once(child, 'spawn');
  child.unref();
  pipe.unref();
  return {
    folder,
    guard: (pid) => void pipe.write(`+${pid}\n`),
    release: (pid) => void pipe.write(`-${pid}\n`),
  };
}

/** Ends the servers and removes the folders of processes on this host that are no more. */
async function sweep(parent: string): Promise<void> {
  for (const name of await readdir(parent)) {
    if (!name.startsWith(PREFIX)) continue;
    const folder = join(parent, name);
    try {
      if (await isStale(folder)) {
        await endServers(folder);
        await rm(folder, { recursive: true, force: true });
      }
    } catch {
      // Its own watchdog or another sweep is at work on the same folder.
    }
  }
}

async function isStale(folder: string): Promise<boolean> {
  const found = await lstat(folder);
  if (!found.isDirectory() || (process.getuid && found.uid !== process.getuid())) return false;
  const text = await readFile(join(folder, 'owner.json'), 'utf8').catch(() => '');
  if (text === '') return Date.now() - found.mtimeMs > UNCLAIMED_MS; // Perhaps made a moment ago.
  const owner: ReturnType<typeof identity> = JSON.parse(text);
  if (owner.host !== hostname()) return false;
  return !isAlive(owner.pid) || identity(owner.pid).started !== owner.started;
}

async function endServers(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const data = join(folder, name, 'data');
    const pid = Number((await readFile(join(data, 'postmaster.pid'), 'utf8').catch(() => '')).split('\n')[0]);
    // The number may belong to another program by now: signal it only if its command line names this very folder.
    if (pid > 0 && readProc(pid, 'cmdline').includes(data)) process.kill(pid, 'SIGQUIT');
  }
}

/** A process number together with what tells it from a later process of the same number (on Linux: its start, in clock ticks). */
function identity(pid: number): { pid: number; host: string; started: string } {
  const fields = readProc(pid, 'stat').split(') ').pop()?.split(' ');
  return { pid, host: hostname(), started: fields?.[19] ?? '' };
}

function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return '';
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !readProc(pid, 'stat').includes(') Z '); // A zombie has ended; its parent only hasn't asked how.
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
