import { DEFAULT_PORT } from '../model/api.ts';
import { conflictOptions } from './conflict-options.ts';
import type { Command } from './context.ts';
import { whole } from './whole.ts';

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
    name: 'demo',
    summary: 'regions of real PostgreSQL on this machine, WAN latency between them, a load; Ctrl-C cleans up',
    options: [
      {
        flags: '--regions <number>',
        help: 'how many regions, 2 to 8 (default: 3)',
        parse: (text) => whole(text, 2, 8),
        expects: 'a number from 2 to 8',
      },
      {
        flags: '--port <number>',
        help: `first port: agents take it and those after it, PostgreSQL from ten further on (default: ${DEFAULT_PORT})`,
        parse: (text) => whole(text, 1024, 65_000),
        expects: 'a port from 1024 to 65000',
      },
      { flags: '--no-load', help: 'nobody writes but you' },
    ],
    example: 'coregent demo',
    load: () => import('./demo.ts'),
  },
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
    name: 'doctor',
    summary: 'check every region and print the exact cure of each fault; exit 3 when there are blockers',
    options: [
      { flags: '--grants', help: 'print what an administrator grants to the role of each region’s url, as SQL' },
      { flags: '--role <name>', help: 'with --grants: for this role instead, which need not exist yet' },
    ],
    example: 'coregent doctor',
    load: () => import('./doctor.ts'),
  },
  {
    name: 'apply',
    summary: 'bring every region to what the file says; repeatable, safe on tables with data and live writes',
    options: [
      { flags: '--dry-run', help: 'print the plan and change nothing; exit 3 when there are changes' },
      {
        flags: '--restored <region>',
        help: 'this region was restored or moved, and its old server is gone: join everything both ways',
      },
    ],
    example: 'coregent apply --dry-run',
    load: () => import('./apply.ts'),
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
  {
    name: 'status',
    summary: 'regions, links, lag, slots and conflicts',
    options: [
      {
        flags: '--watch [seconds]',
        help: 'look again every so many seconds (default: 2)',
        parse: (text) => whole(text, 1, 3_600),
        expects: 'a number of seconds from 1 to 3600',
      },
    ],
    example: 'coregent status --watch',
    load: () => import('./status.ts'),
  },
  {
    name: 'verify',
    summary: 'compare the regions’ rows while writes go on; exit 3 when rows differ',
    options: [
      { flags: '--table <name>', help: 'only this table, like public.orders', repeat: true },
      { flags: '--repair', help: 'join the rows that differ, then compare again' },
    ],
    example: 'coregent verify --repair',
    load: () => import('./verify.ts'),
  },
  {
    name: 'conflicts',
    summary: 'the conflict record: list it, show both sides of a conflict, or settle it; and rows that are parked',
    arguments: ['<list|show|settle>', '[id]'],
    options: conflictOptions,
    example: 'coregent conflicts list --table public.orders --since 1h',
    load: () => import('./conflicts.ts'),
  },
  {
    name: 'remove',
    summary: 'take slots, triggers, columns and schema out of every region; rows stay',
    options: [
      { flags: '--yes', help: 'do not ask' },
      { flags: '--force', help: 'go on when a region cannot be reached' },
    ],
    example: 'coregent remove',
    load: () => import('./remove.ts'),
  },
];
