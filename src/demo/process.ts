import { execFile } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';

/** Process numbers of the direct children of `pid`: from /proc where there is one, else as `ps` says. Empty on Windows. */
export async function childrenOf(pid: number): Promise<number[]> {
  const pairs = process.platform === 'linux' ? await fromProc() : process.platform === 'win32' ? [] : await fromPs();
  return pairs.filter(([, parent]) => parent === pid).map(([child]) => child);
}

type Pair = readonly [child: number, parent: number];

async function fromProc(): Promise<Pair[]> {
  const numbers = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  return await Promise.all(
    numbers.map(async (number): Promise<Pair> => {
      const stat = await readFile(`/proc/${number}/stat`, 'utf8').catch(() => '');
      // The second field is the program's name in parentheses, and may hold anything.
      return [Number(number), Number(stat.split(') ').pop()?.split(' ')[1])];
    }),
  );
}

async function fromPs(): Promise<Pair[]> {
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,ppid=']);
  return stdout.split('\n').map((line): Pair => {
    const [child, parent] = line.trim().split(/\s+/);
    return [Number(child), Number(parent)];
  });
}
