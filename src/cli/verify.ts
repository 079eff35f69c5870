import { type Config, loadConfig } from '../config.ts';
import { CoregentError, EXIT } from '../model/error.ts';
import { tableLabel } from '../model/table.ts';
import { readTables } from '../pg/catalog.ts';
import { readPaused, sayPaused } from '../pg/paused.ts';
import { closeRegions, type OpenRegion, openRegions } from '../pg/setup.ts';
import { type Difference, repair, type Seen, type TableVerdict, verifyTable } from '../pg/verify.ts';
import type { Context } from './context.ts';
import { table, toJson, visible } from './print.ts';

/** Options of `coregent verify`. */
export interface VerifyOptions {
  readonly table?: readonly string[];
  readonly repair?: boolean;
}

/** Differing rows that are printed; --json has all. */
const LISTED = 50;

/** `coregent verify`: compares the regions' rows while writes go on. 0 equal, 3 differing rows or tables that pause; --repair joins them and looks again. */
export async function run(options: VerifyOptions, context: Context): Promise<number> {
  const config = await loadConfig(context.config, context.env);
  const open = await openRegions(config, 'verify');
  try {
    let verdicts = await verifyAll(config, open, options, context);
    const found = verdicts.flatMap(({ differences }) => differences);
    if (options.repair && found.length > 0) {
      await repair(config, open, found);
      if (!context.json) {
        context.out(list(found, open));
        context.out(`Joined ${found.length} rows; comparing again.\n`);
      }
      verdicts = await verifyAll(config, open, options, context);
    }
    const differences = verdicts.flatMap((verdict) => verdict.differences);
    if (context.json) {
      const names = open.map(({ region }) => region.name);
      const repaired = options.repair ? found.length : 0;
      context.out(
        toJson({ schema_version: 1, regions: names, tables: verdicts, differing: differences.length, repaired }),
      );
    } else {
      context.out(summary(verdicts, open, context.colour));
      for (const { paused } of verdicts) {
        for (const why of paused) context.out(visible(why));
      }
      if (differences.length > 0) context.out(list(differences, open));
    }
    const paused = verdicts.some((verdict) => verdict.paused.length > 0);
    return differences.length > 0 || paused ? EXIT.findings : EXIT.ok;
  } finally {
    await closeRegions(open);
  }
}

async function verifyAll(
  config: Config,
  open: readonly OpenRegion[],
  options: VerifyOptions,
  context: Context,
): Promise<TableVerdict[]> {
  const [first] = open;
  const tables = await readTables(first!.client, first!.region.name);
  const chosen = options.table ? tables.filter((each) => options.table!.includes(tableLabel(each))) : tables;
  const unknown = options.table?.find((label) => !tables.some((each) => tableLabel(each) === label));
  if (unknown) throw new CoregentError('usage', `${unknown} is not a replicated table`, { where: '--table' });
  const bar = context.progress('verify', chosen.length);
  const verdicts: TableVerdict[] = [];
  for (const each of chosen) {
    verdicts.push(await verifyTable(config, open, each));
    bar.update(verdicts.length);
  }
  bar.done();
  if (!options.table) verdicts.push(...(await gone(config, open, verdicts)));
  return verdicts;
}

/** Tables that pause and are not there to be compared. */
async function gone(
  config: Config,
  open: readonly OpenRegion[],
  known: readonly TableVerdict[],
): Promise<TableVerdict[]> {
  const found = new Map<string, string[]>();
  for (const { region, client } of open) {
    for (const paused of await readPaused(client, config, region)) {
      if (known.some(({ table: name }) => name === paused.table)) continue;
      found.set(paused.table, [...(found.get(paused.table) ?? []), sayPaused(region.name, paused)]);
    }
  }
  return [...found].map(([name, paused]) => ({ table: name, rows: [], differences: [], moving: 0, paused }));
}

function summary(verdicts: readonly TableVerdict[], open: readonly OpenRegion[], colour: boolean): string {
  const rows = verdicts.map((verdict) => [
    visible(verdict.table),
    ...(verdict.paused.length > 0 ? open.map(() => '–') : verdict.rows.map(String)),
    verdict.paused.length > 0
      ? 'paused'
      : verdict.differences.length === 0
        ? 'equal'
        : `${verdict.differences.length} differ`,
    verdict.moving === 0 ? '' : `${verdict.moving} rows kept changing`,
  ]);
  const columns = [
    { title: 'table' },
    ...open.map(({ region }) => ({ title: region.name, align: 'right' as const })),
    { title: 'verdict' },
    { title: '' },
  ];
  return table(columns, rows, colour);
}

function list(differences: readonly Difference[], open: readonly OpenRegion[]): string {
  const lines = differences.slice(0, LISTED).map(({ table: name, key, regions }) => {
    const what = differing(regions);
    const sides = regions.map((seen, index) => `  ${open[index]!.region.name}: ${visible(sideOf(seen, what.hidden))}`);
    return [`${visible(name)} ${visible(JSON.stringify(key))} ${visible(what.text)}`, ...sides].join('\n');
  });
  if (differences.length > LISTED) lines.push(`… and ${differences.length - LISTED} more; --json lists all.`);
  return lines.join('\n');
}

/** In what the regions' rows under a key differ, for people, and whether that does not show in their columns. */
function differing(regions: readonly Seen[]): { readonly text: string; readonly hidden: boolean } {
  const rows = regions.flatMap(({ row }) => (row ? [row] : []));
  if (rows.length < regions.length) return { text: 'is not in every region', hidden: false };
  const differ = <T>(all: readonly T[]): boolean => new Set(all.map((each) => JSON.stringify(each))).size > 1;
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) =>
    differ(rows.map((row) => row[name])),
  );
  if (names.length > 0) return { text: `differs in ${names.join(', ')}`, hidden: false };
  const version = differ(regions.map((each) => each.version)) ? ['the version'] : [];
  const state = differ(regions.map((each) => each.state)) ? ['what its rule keeps beside the columns'] : [];
  const hidden = [...version, ...state].join(' and ') || 'how its values are written';
  return { text: `has the same values; what differs is ${hidden}`, hidden: true };
}

function sideOf({ row, version, state }: Seen, hidden: boolean): string {
  if (!row) return version ? 'deleted' : 'missing';
  if (!hidden) return JSON.stringify(row);
  return [JSON.stringify(row), `version ${version}`, ...(state ? [`state ${JSON.stringify(state)}`] : [])].join(', ');
}
