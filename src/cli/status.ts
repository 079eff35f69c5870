import { loadConfig } from '../config.ts';
import { EXIT } from '../model/error.ts';
import { pause } from '../pause.ts';
import { TIERS } from '../pg/applier.ts';
import { sayPaused } from '../pg/paused.ts';
import { makeReport, type Report } from '../pg/report.ts';
import type { Context } from './context.ts';
import { bytes, colours, duration, table, toJson, visible } from './print.ts';

/** Options of `coregent status`. */
export interface StatusOptions {
  /** Seconds between two looks; true is 2. */
  readonly watch?: number | true;
}

/** `coregent status`: regions, links, lag, slots and conflicts, asked of the databases themselves. 4 when one cannot be reached, 5 when one is refused. */
export async function run({ watch }: StatusOptions, context: Context): Promise<number> {
  const config = await loadConfig(context.config, context.env);
  const show = async (): Promise<Report> => {
    const report = await makeReport(config);
    if (context.json) context.out(toJson({ schema_version: 1, ...report }));
    else context.out(`${watch && context.colour ? '\u001b[H\u001b[2J' : ''}${text(report, context.colour)}`);
    return report;
  };
  let report = await show();
  if (watch) {
    const stop = new AbortController();
    process.once('SIGINT', () => stop.abort());
    process.once('SIGTERM', () => stop.abort());
    const everyMs = (watch === true ? 2 : watch) * 1000;
    for (;;) {
      await pause(everyMs, stop.signal);
      if (stop.signal.aborted) break;
      report = await show();
    }
  }
  const is = (state: string): boolean => report.regions.some((region) => region.state === state);
  return is('unreachable') ? EXIT.unreachable : is('refused') ? EXIT.refused : EXIT.ok;
}

/** Tables that are named with their conflicts. */
const SHOWN_TABLES = 8;

/** Conflicts that the regions recorded, by table; the most first. */
function byTable(regions: Report['regions']): [table: string, count: number][] {
  const counts = new Map<string, number>();
  for (const { conflicts_by_table } of regions) {
    for (const [name, count] of Object.entries(conflicts_by_table ?? {})) {
      counts.set(name, (counts.get(name) ?? 0) + count);
    }
  }
  return [...counts].sort(([a, one], [b, other]) => other - one || (a < b ? -1 : 1));
}

/** The report for people. */
export function text({ cluster, regions, links }: Report, colour: boolean): string {
  const paint = colours(colour);
  const count = (value: number | null): string => (value === null ? '–' : String(value));
  const state = (word: string): string => {
    if (word === 'stopped') return paint.yellow(word);
    return ['ok', 'idle', 'streaming'].includes(word) ? paint.green(word) : paint.red(word);
  };
  const regionRows = regions.map((region) => [
    region.region,
    String(region.id),
    state(region.state),
    region.version ?? '–',
    region.tier ?? '–',
    region.agent === null ? '–' : region.agent ? 'running' : paint.yellow('none'),
    count(region.tables),
    count(region.conflicts),
    region.parked ? paint.red(String(region.parked)) : count(region.parked),
  ]);
  const linkRows = links.map((link) => [
    `${link.from} → ${link.to}`,
    state(link.state),
    link.lag_ms === null ? '–' : duration(link.lag_ms),
    link.lag_bytes === null ? '–' : bytes(link.lag_bytes),
    link.retained_bytes === null ? '–' : bytes(link.retained_bytes),
  ]);
  const faults = regions
    .filter(({ error }) => error)
    .flatMap(({ region, state, error }) => [
      `${region}: ${visible(error!.message)} (${error!.code})`,
      ...(state === 'refused' ? [`  ${visible(error!.cure)}`] : []),
    ]);
  const late = (words: string, { exceeded }: { exceeded: boolean }): string => (exceeded ? paint.yellow(words) : words);
  const met = byTable(regions);
  const further = met.length > SHOWN_TABLES ? ` and ${met.length - SHOWN_TABLES} more tables` : '';
  const lesser = [...new Set(regions.flatMap(({ tier }) => (tier && tier !== 'A' ? [tier] : [])))].sort();
  return [
    `cluster ${cluster}`,
    table(
      [
        { title: 'region' },
        { title: 'id', align: 'right' },
        { title: 'state' },
        { title: 'PostgreSQL' },
        { title: 'tier' },
        { title: 'agent' },
        { title: 'tables', align: 'right' },
        { title: 'conflicts', align: 'right' },
        { title: 'parked', align: 'right' },
      ],
      regionRows,
      colour,
    ),
    '',
    table(
      [
        { title: 'link' },
        { title: 'state' },
        { title: 'lag', align: 'right' },
        { title: 'behind', align: 'right' },
        { title: 'slot keeps', align: 'right' },
      ],
      linkRows,
      colour,
    ),
    ...(met.length > 0
      ? [
          '',
          `conflicts: ${met
            .slice(0, SHOWN_TABLES)
            .map(([name, count]) => `${visible(name)} ${count}`)
            .join(', ')}${further}`,
        ]
      : []),
    ...regions.flatMap(({ region, paused }) =>
      (paused ?? []).map((each) => paint.yellow(visible(sayPaused(region, each)))),
    ),
    ...regions.flatMap(({ region, alert }) =>
      alert && alert.recent > 0
        ? [late(`${region}: ${alert.recent} conflicts of late, alert at ${alert.limit}`, alert)]
        : [],
    ),
    ...lesser.map((tier) => `tier ${tier}: ${TIERS[tier]}`),
    ...faults,
  ].join('\n');
}
