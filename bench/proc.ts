import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { promisify } from 'node:util';

/** Clock ticks a second in /proc/<pid>/stat: 100 on every Linux that Node runs on. */
const TICKS = 100;

/** CPU seconds, user and system, that a process has used so far; undefined where there is no /proc or no such process. */
export function cpuSeconds(pid: number): Promise<number | undefined> {
  return ticks(pid, 11);
}

/** CPU seconds that the children of a process used, those that have ended. */
export function reapedCpuSeconds(pid: number): Promise<number | undefined> {
  return ticks(pid, 13);
}

/** The sum of two neighbouring fields, in seconds. */
async function ticks(pid: number, field: number): Promise<number | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  // The second field is the program's name in parentheses, and may hold anything.
  const fields = stat.split(') ').pop()!.split(' ');
  return fields.length > field + 1 ? (Number(fields[field]) + Number(fields[field + 1])) / TICKS : undefined;
}

/** The most memory that a process has had resident so far, in bytes; undefined where there is no /proc. */
export async function peakBytes(pid: number): Promise<number | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  const kilobytes = /^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1];
  return kilobytes === undefined ? undefined : Number(kilobytes) * 1024;
}

/** Process numbers by what the processes do. */
export type Processes = ReadonlyMap<string, readonly number[]>;

/** CPU seconds so far by process. */
export async function cpuByPid(processes: Processes): Promise<Map<number, number>> {
  const pids = [...processes.values()].flat();
  const seconds = await Promise.all(pids.map(cpuSeconds));
  return new Map(pids.map((pid, index) => [pid, seconds[index] ?? 0]));
}

/** CPU seconds so far by what the processes do. */
export async function cpuByRole(processes: Processes): Promise<Map<string, number>> {
  const used = await cpuByPid(processes);
  const sum = (pids: readonly number[]): number => pids.reduce((all, pid) => all + used.get(pid)!, 0);
  return new Map([...processes].map(([role, pids]) => [role, sum(pids)]));
}

/**
 * Puts what sends on the first core and everything else on the second; all threads of each process, and no process that starts later.
 * Needs `taskset`.
 */
export async function pin(processes: Processes): Promise<void> {
  const all = [...processes].flatMap(([role, pids]) => pids.map((pid) => ({ role, pid })));
  const core = (role: string): string => (role === 'walsender' || role === 'control' ? '0' : '1');
  const set = promisify(execFile);
  // A worker may have ended in between.
  await Promise.all(all.map(({ role, pid }) => set('taskset', ['-acp', core(role), String(pid)]).catch(() => {})));
}
