import stringWidth from 'string-width';
import type { World, WorldEvent, WorldView } from '../demo/world.ts';
import type { TableVerdict } from '../pg/verify.ts';
import { VERSION } from '../version.ts';
import { colours, duration, table, visible } from './print.ts';

/** What the application had written at a time, by region. */
export interface Sample {
  readonly atMs: number;
  readonly view: WorldView;
}

/** What the demo did, for its last words. */
export interface Summary {
  readonly elapsedMs: number;
  readonly view: WorldView;
  readonly verdicts: readonly TableVerdict[];
}

/** Events worth a person's eye; the others are in the NDJSON only. */
const SHOWN =
  /^(link|region|load|slot|clock)\.|^peer\.(retry|streaming|failed)$|^conflict\.recorded$|^conflicts\.(alert|calm)$|^keys\.mended$|^table\.parked$|^version\.equal$/;
const SHOWN_EVENTS = 4;

/** What stands above the live part: where everything is, and how far apart. */
export function banner(world: World, options: { readyMs: number; keys: boolean; colour: boolean }): string {
  const paint = colours(options.colour);
  const { regions } = world;
  const versions = [...new Set(regions.map(({ version }) => version))].join(', ');
  const where = table(
    [{ title: 'region' }, { title: 'psql' }, { title: 'agent' }],
    regions.map(({ name, url, agentUrl }) => [name, paint.cyan(url), paint.cyan(agentUrl)]),
    options.colour,
  );
  const distances = matrix(
    'round trip',
    regions.map(({ name }) => name),
    (a, b) => `${2 * world.latencyMs(a, b)} ms`,
    options.colour,
  );
  const keys = options.keys ? ['Keys:    c cut a link · h heal all · q quit'] : [];
  return [
    `${paint.bold(`coregent ${VERSION} demo`)}  PostgreSQL ${versions}, Node ${process.versions.node}, ${regions.length} regions  ${paint.green(`ready in ${duration(options.readyMs)}`)}`,
    '',
    where,
    '',
    distances,
    '',
    `Look:    npx coregent --config ${world.configFile} status`,
    ...keys,
    'All of it lives in a temporary folder and goes when you quit. Not for production.',
  ].join('\n');
}

/** The live part: what happened between two samples. */
export function liveBlock(
  now: Sample,
  before: Sample | undefined,
  events: readonly WorldEvent[],
  colour: boolean,
): string {
  const paint = colours(colour);
  const count = (value: number | null | undefined): string =>
    value === null || value === undefined ? '–' : `${value}`;
  const rows = now.view.regions.map((region) => {
    const earlier = before?.view.regions.find((each) => each.region === region.region);
    const seconds = (now.atMs - (before?.atMs ?? now.atMs)) / 1000;
    const rate = earlier && seconds > 0 ? Math.round((region.written.rows - earlier.written.rows) / seconds) : 0;
    const state = region.rows === null ? 'down' : (region.agent?.state ?? 'no agent');
    return [
      region.region,
      state === 'active' ? paint.green(state) : paint.red(state),
      `${rate}`,
      count(region.agent?.peers.reduce((sum, peer) => sum + peer.rows_per_second, 0)),
      count(region.rows),
      region.conflicts ? paint.yellow(`${region.conflicts}`) : count(region.conflicts),
    ];
  });
  const lags = new Map(now.view.links.map((link) => [`${link.from} ${link.to}`, link]));
  const lag = (from: string, to: string): string => {
    const link = lags.get(`${from} ${to}`);
    if (!link?.state) return paint.red('no agent');
    if (link.lag_ms === null) return link.state;
    return link.state === 'streaming' ? duration(link.lag_ms) : paint.red(`${link.state} ${duration(link.lag_ms)}`);
  };
  const names = now.view.regions.map(({ region }) => region);
  const met = conflictsByTable(now.view).map(([name, count]) => `${visible(name)} ${paint.yellow(`${count}`)}`);
  const shown = events.filter(({ event }) => SHOWN.test(event)).slice(-SHOWN_EVENTS);
  return [
    table(
      [
        { title: 'region' },
        { title: 'agent' },
        { title: 'written/s', align: 'right' },
        { title: 'applied/s', align: 'right' },
        { title: 'rows', align: 'right' },
        { title: 'conflicts', align: 'right' },
      ],
      rows,
      colour,
    ),
    '',
    matrix('lag, from ↓ to →', names, lag, colour),
    '',
    `conflicts: ${met.join(', ') || 'none yet'}`,
    '',
    // Always as many lines, so that the block doesn't jump.
    ...Array.from({ length: SHOWN_EVENTS }, (_, index) => (shown[index] ? paint.dim(eventLine(shown[index])) : '')),
  ].join('\n');
}

/** Conflicts that the regions recorded, by table without its schema; the most first. */
function conflictsByTable({ regions }: WorldView): [table: string, count: number][] {
  const counts = new Map<string, number>();
  for (const { conflicts_by_table } of regions) {
    for (const [label, count] of Object.entries(conflicts_by_table ?? {})) {
      const name = label.replace(/^public\./, '');
      counts.set(name, (counts.get(name) ?? 0) + count);
    }
  }
  return [...counts].sort(([a, one], [b, other]) => other - one || (a < b ? -1 : 1));
}

/** The last words. */
export function closing({ elapsedMs, view, verdicts }: Summary, colour: boolean): string {
  const paint = colours(colour);
  const names = view.regions.map(({ region }) => region);
  const transactions = view.regions.reduce((sum, { written }) => sum + written.transactions, 0);
  const written = view.regions.reduce((sum, region) => sum + region.written.rows, 0);
  const differing = verdicts.reduce((sum, { differences }) => sum + differences.length, 0);
  const refused = view.regions.reduce((sum, region) => sum + region.written.refused, 0);
  const met = new Map(conflictsByTable(view));
  return [
    `${transactions} transactions (${written} rows) written in ${names.length} regions in ${duration(elapsedMs)}.`,
    `Conflicts settled: ${view.regions.map(({ region, conflicts }) => `${region} ${conflicts ?? '–'}`).join(', ')}. Writes of rows that another region owns, refused: ${refused}.`,
    '',
    table(
      [
        { title: 'rows' },
        ...[...names, 'conflicts'].map((title) => ({ title, align: 'right' as const })),
        { title: '' },
      ],
      verdicts.map(({ table: name, rows, differences }) => [
        name,
        ...rows.map(String),
        String(met.get(name.replace(/^public\./, '')) ?? 0),
        differences.length === 0 ? paint.green('equal') : paint.red(`${differences.length} differ`),
      ]),
      colour,
    ),
    '',
    differing === 0 ? 'Every region has the same rows.' : paint.red(`The regions differ in ${differing} rows.`),
    'Your own databases: npx coregent init',
  ].join('\n');
}

/** A table of pairs of regions. */
function matrix(
  title: string,
  names: readonly string[],
  cell: (row: string, column: string) => string,
  colour: boolean,
): string {
  return table(
    [{ title }, ...names.map((name) => ({ title: name, align: 'right' as const }))],
    names.map((row) => [row, ...names.map((column) => (row === column ? '·' : cell(row, column)))]),
    colour,
  );
}

/** `12:03:10 tokyo conflict.recorded peer=frankfurt conflicts=1` */
function eventLine({ time, event, region, cure: _, ...fields }: WorldEvent): string {
  const shown = Object.entries(fields).map(
    ([key, value]) => `${key}=${Array.isArray(value) ? value.join('↔') : value}`,
  );
  return visible([time.slice(11, 19), region, event, ...shown].filter((word) => word !== undefined).join(' '));
}

/** A line cut off where the terminal ends: a wrapped one would spoil the redrawing. Colours take no room. */
export function clip(line: string, columns: number): string {
  let width = 0;
  let clipped = '';
  for (const part of line.split(/(\p{Cc}\[[\d;]*m)/u)) {
    if (/^\p{Cc}/u.test(part)) {
      clipped += part;
      continue;
    }
    for (const character of part) {
      width += stringWidth(character);
      if (width <= columns) clipped += character;
    }
  }
  return clipped;
}
