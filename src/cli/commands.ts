import { DEFAULT_PORT } from '../model/api.ts';
import type { Command } from './context.ts';

/** An option of a subcommand; commander's notation: `--port <number>` takes a value, `--force` is a switch. */
export interface OptionRow {
  readonly flags: string;
  readonly help: string;
  /** May be given several times; the command gets a list. */
  readonly repeat?: true;
  readonly required?: true;
  /** Turns the text into a value; undefined refuses it. */
  readonly parse?: (text: string) => unknown;
  /** What `parse` takes, for the fault: "a port from 0 to 65535". */
  readonly expects?: string;
}

/** A subcommand. Positional arguments arrive as `options.arguments`, a list of texts. */
export interface CommandRow {
  readonly name: string;
  readonly summary: string;
  readonly arguments?: readonly string[];
  readonly options: readonly OptionRow[];
  readonly example: string;
  /** Loaded only when it runs, so that `--help` stays quick. */
  readonly load: () => Promise<Command>;
}

const port = { parse: (text: string) => whole(text, 0, 65_535), expects: 'a port from 0 to 65535' };

/** Every subcommand. To add one: one row here, one module that exports `run`. */
export const commands: readonly CommandRow[] = [
  {
    name: 'init',
    summary: 'look at the databases and write coregent.yaml',
    options: [
      {
        flags: '--region <name[=url]>',
        help: 'a region; without a url its NAME_URL variable is read, which keeps passwords out of the process list',
        repeat: true,
      },
      { flags: '--table <glob>', help: 'tables to replicate, like public.*; by default what is found', repeat: true },
      { flags: '--cluster <name>', help: 'name of the cluster; by default that of the database' },
      { flags: '--out <file>', help: 'the file to write; by default that of --config' },
      { flags: '--force', help: 'overwrite the file' },
    ],
    example: 'coregent init --region tokyo --region frankfurt',
    load: () => import('./init.ts'),
  },
  {
    name: 'start',
    summary: 'run the agent of a region in the foreground; logs go to stderr, SIGTERM ends it cleanly',
    options: [
      { flags: '--region <name>', help: 'the region whose agent this is', required: true },
      {
        flags: '--port <number>',
        help: `port of the HTTP API; 0 picks a free one (default: ${DEFAULT_PORT})`,
        ...port,
      },
      { flags: '--host <address>', help: 'address the HTTP API listens on (default: 127.0.0.1)' },
    ],
    example: 'coregent start --region tokyo',
    load: () => import('./start.ts'),
  },
];

/** The whole number that the text is, from `least` to `most`; undefined for anything else. */
export function whole(text: string, least: number, most: number): number | undefined {
  const number = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  return number >= least && number <= most ? number : undefined;
}
