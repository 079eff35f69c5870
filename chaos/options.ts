import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';

/** What `--major` takes. */
export const MAJORS = ['14', '15', '16', '17', '18', 'mixed'] as const;
export type Major = (typeof MAJORS)[number];

/** What the command line asks for, defaults filled in. */
export interface Options {
  /** How long load and faults last; healing and checking come on top. */
  readonly minutes: number;
  readonly seed: number;
  /** PostgreSQL of the regions; `mixed` gives each another. */
  readonly major: Major;
  /** Where the results go as JSON. */
  readonly json: string | undefined;
  /** Faults by the beginning of their name, such as `agent` or `link.cut`; empty: none; undefined: all. */
  readonly faults: readonly string[] | undefined;
  /** Parts of the load that need more than Coregent has by default. */
  readonly extras: readonly Extra[];
  /** Connections that write in each region. */
  readonly writers: number;
  /** Each pauses up to so long between two transactions, in ms. */
  readonly pauseMs: number;
  /** Keeps the run's folder although nothing was violated. */
  readonly keep: boolean;
  readonly help: boolean;
}

/** `partitions`: a partitioned table. */
export const EXTRAS = ['partitions'] as const;
export type Extra = (typeof EXTRAS)[number];

export const USAGE = `npm run chaos -- [options]

  --minutes <m>     how long load and faults last (1); healing and checking come on top
  --seed <n>        repeats a run as far as timing allows; also COREGENT_SEED
  --major <v>       PostgreSQL of the regions: 14, 15, 16, 17, 18 or mixed (18)
  --json <file>     the results as JSON
  --faults <list>   only faults whose names begin so: agent,server.kill,link …; "none" for no faults
  --with <list>     further load: ${EXTRAS.join(',')}; "none" for none of them
  --writers <n>     connections that write in each region (2)
  --pause <ms>      each pauses up to so long between two transactions (60)
  --keep            keep the folder with all logs although nothing was violated
`;

/** What runs without `--with`. */
const DEFAULT_EXTRAS: readonly Extra[] = [];

/** Reads the command line. Throws an Error whose message says what is wrong. */
export function readOptions(args: readonly string[], env: NodeJS.ProcessEnv = process.env): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      minutes: { type: 'string', default: '1' },
      seed: { type: 'string' },
      major: { type: 'string', default: '18' },
      json: { type: 'string' },
      faults: { type: 'string' },
      with: { type: 'string' },
      writers: { type: 'string', default: '2' },
      pause: { type: 'string', default: '60' },
      keep: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (!MAJORS.includes(values.major as Major))
    throw new Error(`--major takes ${MAJORS.join(', ')}; not ${values.major}`);
  const extras = values.with === undefined ? DEFAULT_EXTRAS : list(values.with);
  const unknown = extras.find((extra) => !EXTRAS.includes(extra as Extra));
  if (unknown !== undefined) throw new Error(`--with takes ${EXTRAS.join(', ')}; not ${unknown}`);
  const seed = values.seed ?? env.COREGENT_SEED;
  return {
    minutes: number('--minutes', values.minutes),
    seed: seed === undefined ? randomInt(2 ** 32) : number('--seed', seed),
    major: values.major as Major,
    json: values.json,
    faults: values.faults === undefined ? undefined : list(values.faults),
    extras: extras as Extra[],
    writers: number('--writers', values.writers),
    pauseMs: number('--pause', values.pause),
    keep: values.keep,
    help: values.help,
  };
}

function list(text: string): string[] {
  return text === 'none' ? [] : text.split(',').filter(Boolean);
}

function number(name: string, text: string): number {
  if (!/^\d{1,10}(\.\d+)?$/.test(text)) throw new Error(`${name} takes a number; not ${text}`);
  return Number(text);
}
