import { runCli } from '../../src/cli/program.ts';

/** What a command printed. */
export interface Printed {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Runs a command line in this process, with nothing in its environment and no terminal. */
export async function runCommand(configFile: string, args: readonly string[]): Promise<Printed> {
  const printed = { out: '', err: '' };
  const stream = (name: 'out' | 'err') => ({
    write: (text: string) => {
      printed[name] += text;
    },
  });
  const io = { env: {}, stdout: stream('out'), stderr: stream('err') };
  const code = await runCli(['--config', configFile, ...args], io);
  return { code, ...printed };
}
