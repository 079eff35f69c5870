import { parseArgs } from 'node:util';

/** The parts that `--only` chooses from, in the order in which they run. */
export const PARTS = ['catchup', 'lag', 'writer', 'memory', 'heal', 'rules'] as const;
export type Part = (typeof PARTS)[number];

/** What the command line asks for, defaults filled in. */
export interface Options {
  readonly parts: readonly Part[];
  /** Times that everything is measured; medians are over these. */
  readonly rounds: number;
  /** Rows of the 1-row workloads; the others are 2.5 and 5 times as large. */
  readonly rows: number;
  /** Of the catch-up workloads, only these; undefined: all. */
  readonly workloads: readonly string[] | undefined;
  /** How long the link is cut to see it heal, in s. */
  readonly partitionSeconds: number;
  /** Shorter runs everywhere. */
  readonly quick: boolean;
  /** Where the results go; undefined: a file named by the date in `bench/results`. */
  readonly json: string | undefined;
  /** Native's subscription option `streaming`. */
  readonly nativeStreaming: string;
  /** Catch-up with what sends on one core and what receives and applies on another. */
  readonly pin: boolean;
  /** Node flags for the agent, such as `--cpu-prof`. */
  readonly agentFlags: readonly string[];
  readonly help: boolean;
}

export const USAGE = `npm run bench -- [options]

  --only <list>               of ${PARTS.join(',')}; by default all
  --rounds <n>                how often everything is measured (3)
  --rows <n>                  rows of the 1-row workloads (200000); others in proportion
  --workloads <list>          of catchup, only these: insert1,insert100,bulk,update1,delete1
  --partition <s>             how long the link is cut for heal (20)
  --pin                       catchup with the walsender on one core, and the agent and what applies on another (taskset)
  --quick                     a shorter run: a fifth of the rows, shorter waits
  --json <file>               where the results go (bench/results/<date>.json)
  --native-streaming <word>   parallel (default), on or off
  --agent-flags=<flags>       node flags for the agent, such as "--cpu-prof --cpu-prof-dir=profiles"
`;

/** Reads the command line. Throws an Error whose message says what is wrong. */
export function readOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      only: { type: 'string' },
      rounds: { type: 'string' },
      rows: { type: 'string' },
      workloads: { type: 'string' },
      partition: { type: 'string' },
      pin: { type: 'boolean', default: false },
      quick: { type: 'boolean', default: false },
      json: { type: 'string' },
      'native-streaming': { type: 'string', default: 'parallel' },
      'agent-flags': { type: 'string', default: '' },
      help: { type: 'boolean', default: false },
    },
  });
  const asked = values.only?.split(',') ?? PARTS;
  const unknown = asked.find((part) => !PARTS.includes(part as Part));
  if (unknown !== undefined) throw new Error(`--only takes ${PARTS.join(', ')}; not ${unknown}`);
  return {
    parts: PARTS.filter((part) => asked.includes(part)),
    rounds: count('--rounds', values.rounds, 3),
    rows: count('--rows', values.rows, values.quick ? 40_000 : 200_000),
    workloads: values.workloads?.split(','),
    partitionSeconds: count('--partition', values.partition, values.quick ? 5 : 20),
    pin: values.pin,
    quick: values.quick,
    json: values.json,
    nativeStreaming: values['native-streaming'],
    agentFlags: values['agent-flags'].split(' ').filter(Boolean),
    help: values.help,
  };
}

function count(name: string, text: string | undefined, otherwise: number): number {
  if (text === undefined) return otherwise;
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new Error(`${name} takes a whole number; not ${text}`);
  return Number(text);
}
