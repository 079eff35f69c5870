import { type Column, table } from '#coregent/cli/print.js';
import type { CatchUp } from './catchup.ts';
import type { Heal } from './heal.ts';
import type { Lag } from './lag.ts';
import type { Machine } from './machine.ts';
import type { Idle } from './memory.ts';
import type { Options } from './options.ts';
import type { RuleRun } from './rules.ts';
import type { SideName } from './side.ts';
import { type Spread, spread } from './statistics.ts';
import type { Setup, WriterPrice } from './writer.ts';

/** Says what was just measured. */
export type Progress = (text: string) => void;

/** Everything that was measured, as it is written to the JSON file. */
export interface Results {
  readonly schema_version: 1;
  readonly date: string;
  readonly machine: Machine;
  readonly options: Pick<Options, 'rounds' | 'rows' | 'nativeStreaming' | 'pin'>;
  readonly catchUp?: readonly CatchUp[];
  readonly lag?: readonly Lag[];
  readonly writer?: WriterPrice;
  readonly idle?: readonly Idle[];
  readonly heal?: readonly Heal[];
  readonly rules?: readonly RuleRun[];
}

/** The results as tables for people. */
export function report(results: Results): string {
  const { machine, options } = results;
  const memory = (machine.memoryBytes / 2 ** 30).toFixed(0);
  return [
    `${machine.cores} cores (${machine.cpu}), ${memory} GiB, ${machine.system}, PostgreSQL ${machine.postgres}, Node ${machine.node}`,
    `rounds: ${options.rounds}; median [min..max]; ratios are of neighbouring runs${options.pin ? '; catch-up with sender and receiver pinned to a core each' : ''}`,
    ...(results.catchUp ? catchUpTables(results.catchUp) : []),
    ...(results.lag ? [lagTable(results.lag)] : []),
    ...(results.writer ? writerTables(results.writer) : []),
    ...(results.idle ? [idleTable(results.idle)] : []),
    ...(results.heal ? [healTable(results.heal)] : []),
    ...(results.rules ? [rulesTable(results.rules)] : []),
  ].join('\n\n');
}

function catchUpTables(runs: readonly CatchUp[]): string[] {
  const rates: string[][] = [];
  const cpu: string[][] = [];
  for (const title of new Set(runs.map((run) => run.title))) {
    const of = (side: SideName): CatchUp[] => runs.filter((run) => run.title === title && run.side === side);
    const [ours, native] = [of('coregent'), of('native')];
    const rate = ({ rowsPerSecond }: CatchUp): number => rowsPerSecond;
    const memory = ours.map((run) => run.agentPeakBytes).filter((bytes) => bytes !== undefined);
    rates.push([
      title,
      show(spread(ours.map(rate)), thousands),
      show(spread(native.map(rate)), thousands),
      show(ratios(ours, native, rate), twoDigits),
      memory.length > 0 ? `${(spread(memory).max / 1e6).toFixed(0)} MB` : '',
    ]);
    const micros = (side: readonly CatchUp[], role: string): string =>
      oneDigit(spread(side.map((run) => run.cpuMicros[role] ?? 0)).median);
    cpu.push([
      title,
      ...['walsender', 'agent', 'apply'].map((role) => micros(ours, role)),
      ...['walsender', 'apply'].map((role) => micros(native, role)),
      show(
        ratios(native, ours, ({ busiestMicros }) => busiestMicros),
        twoDigits,
      ),
    ]);
  }
  return [
    table(right('catch-up, rows/s', 'coregent', 'native', 'ratio', 'agent’s peak memory'), rates),
    table(
      right(
        'CPU, µs a row',
        'our walsender',
        'agent',
        'apply backends',
        'native walsender',
        'apply workers',
        'ratio, a core each',
      ),
      cpu,
    ),
  ];
}

function lagTable(runs: readonly Lag[]): string {
  const rows: string[][] = [];
  for (const rate of new Set(runs.map((run) => run.rate))) {
    const of = (side: SideName): Lag[] => runs.filter((run) => run.rate === rate && run.side === side);
    const [ours, native] = [of('coregent'), of('native')];
    const measures = { p50: (run: Lag) => run.p50Ms, p99: (run: Lag) => run.p99Ms, commit: (run: Lag) => run.commitMs };
    for (const [name, of] of Object.entries(measures)) {
      rows.push([
        `${rate} transactions/s, ${name === 'commit' ? 'writer’s commit' : name}`,
        show(spread(ours.map(of)), oneDigit),
        show(spread(native.map(of)), oneDigit),
        show(ratios(ours, native, of), twoDigits),
      ]);
    }
  }
  return table(right('insert to visible, ms', 'coregent', 'native', 'ratio'), rows);
}

function writerTables({ throughput, skipped, statements }: WriterPrice): string[] {
  const parts: string[] = [];
  if (skipped !== undefined) parts.push(`Writer’s throughput: ${skipped}.`);
  if (throughput.length > 0) {
    const of = (setup: Setup) => throughput.filter((run) => run.setup === setup);
    const plain = of('plain');
    const rows = [...new Set(throughput.map((run) => run.setup))].map((setup) => {
      const runs = of(setup);
      const cpu = runs.map((run) => run.cpuMicros).filter((micros) => micros !== undefined);
      return [
        setup,
        show(spread(runs.map((run) => run.transactionsPerSecond)), whole),
        show(
          ratios(runs, plain, (run) => run.transactionsPerSecond),
          twoDigits,
        ),
        cpu.length > 0 ? show(spread(cpu), whole) : '',
      ];
    });
    parts.push(table(right('pgbench simple-update', 'transactions/s', 'of plain', 'CPU of backends, µs each'), rows));
  }
  const rows = ['insert', 'update', 'delete'].map((kind) => {
    const median = (setup: string, measure: 'walBytesPerRow' | 'cpuMicrosPerRow'): number =>
      spread(
        statements.filter((run) => run.kind === kind && run.setup === setup).map((run) => run[measure] ?? Number.NaN),
      ).median;
    return [
      kind,
      whole(median('plain', 'walBytesPerRow')),
      whole(median('coregent', 'walBytesPerRow')),
      oneDigit(median('plain', 'cpuMicrosPerRow')),
      oneDigit(median('coregent', 'cpuMicrosPerRow')),
    ];
  });
  parts.push(
    table(right('statements, a row', 'WAL bytes, plain', 'with coregent', 'CPU in µs, plain', 'with coregent'), rows),
  );
  return parts;
}

function idleTable(runs: readonly Idle[]): string {
  const rows = runs.map(({ side, cpuPercent, walBytes }) => [
    side,
    Object.entries(cpuPercent)
      .map(([role, percent]) => `${role} ${percent.toFixed(2)}`)
      .join(', '),
    String(walBytes),
  ]);
  const [first] = runs;
  return table(
    [{ title: `idle for ${first!.seconds} s` }, { title: 'CPU, % of a core' }, { title: 'WAL bytes', align: 'right' }],
    rows,
  );
}

function healTable(runs: readonly Heal[]): string {
  const rows = runs.map(({ side, firstRowMs, caughtUpMs, backlog, rowsPerSecond }) => [
    side,
    whole(firstRowMs),
    whole(caughtUpMs),
    String(backlog),
    thousands(rowsPerSecond),
  ]);
  const title = `link cut for ${runs[0]!.seconds} s`;
  return table(right(title, 'first row after ms', 'caught up after ms', 'rows behind', 'rows/s'), rows);
}

/** Each rule against plain `lww` where nothing meets, and the writer against the writer under `lww`. */
function rulesTable(runs: readonly RuleRun[]): string {
  const of = (rule: string, load: RuleRun['load']): RuleRun[] =>
    runs.filter((run) => run.rule === rule && run.load === load);
  const rate = ({ perSecond }: RuleRun): number => perSecond;
  const against = (rule: string, load: RuleRun['load'], plain: RuleRun['load']): string => {
    const mine = of(rule, load);
    return mine.length === 0 ? '' : show(ratios(mine, of('lww', plain), rate), twoDigits);
  };
  const rows = [...new Set(runs.map(({ rule }) => rule))].map((rule) => [
    rule,
    show(spread(of(rule, 'update').map(rate)), thousands),
    against(rule, 'update', 'update'),
    show(spread(of(rule, 'conflict').map(rate)), thousands),
    against(rule, 'conflict', 'update'),
    against(rule, 'pgbench', 'pgbench'),
  ]);
  const titles = ['updates/s', 'of lww', 'all in conflict/s', 'of lww without', 'pgbench, of lww'] as const;
  return table(right('rule', ...titles), rows);
}

/** The ratio of each round's pair. */
function ratios<T extends { readonly round: number }>(
  ours: readonly T[],
  others: readonly T[],
  of: (run: T) => number,
) {
  return spread(ours.map((run) => of(run) / of(others.find((other) => other.round === run.round) ?? run)));
}

function right(first: string, ...others: string[]): Column[] {
  return [{ title: first }, ...others.map((title): Column => ({ title, align: 'right' }))];
}

function show({ median, min, max }: Spread, print: (value: number) => string): string {
  return min === max ? print(median) : `${print(median)} [${print(min)}..${print(max)}]`;
}

const thousands = (value: number): string => `${(value / 1000).toFixed(0)}k`;
const whole = (value: number): string => value.toFixed(0);
const oneDigit = (value: number): string => value.toFixed(1);
const twoDigits = (value: number): string => value.toFixed(2);
