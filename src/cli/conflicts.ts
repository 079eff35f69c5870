import { type Config, loadConfig } from '../config.ts';
import { CoregentError, EXIT } from '../model/error.ts';
import { type Cursor, cursorOf } from '../pg/cursor.ts';
import { listParkedRows, type ParkedRow, parkedPlace } from '../pg/parked.ts';
import { type ConflictRecord, listRecords, placeOf, type RecordFilter } from '../pg/record.ts';
import { closeRegions, type OpenRegion, openRegions } from '../pg/setup.ts';
import { type KeyFilter, parseId } from './conflict-options.ts';
import { settleConflict, settleParked } from './conflict-settle.ts';
import { showConflict, showParked } from './conflict-show.ts';
import type { Context } from './context.ts';
import { table, toJson, visible } from './print.ts';

/** Options of `coregent conflicts`. */
export interface ConflictsOptions {
  readonly arguments: readonly string[];
  readonly region?: string;
  readonly parked?: boolean;
  readonly table?: string;
  readonly kind?: readonly string[];
  readonly key?: readonly KeyFilter[];
  readonly since?: string;
  readonly until?: string;
  readonly unsettled?: boolean;
  readonly limit?: number;
  readonly after?: Cursor;
  readonly keep?: 'other' | 'local' | 'incoming';
  readonly merge?: readonly (readonly (readonly [string, 'local' | 'incoming'])[])[];
  readonly file?: string;
  readonly by?: string;
  readonly force?: boolean;
  readonly dryRun?: boolean;
  readonly retry?: readonly string[];
  readonly retryAll?: boolean;
  readonly discard?: string;
}

type Option = Exclude<keyof ConflictsOptions, 'arguments'>;

/** What each verb takes, beside `--region`. */
const TAKES: Readonly<Record<string, readonly Option[]>> = {
  list: ['parked', 'table', 'kind', 'key', 'since', 'until', 'unsettled', 'limit', 'after'],
  show: ['parked'],
  settle: ['keep', 'merge', 'file', 'by', 'force', 'dryRun', 'retry', 'retryAll', 'discard'],
};

/** `coregent conflicts list | show | settle`: the conflict record, and rows that are parked. Each region records what it met itself. */
export async function run(options: ConflictsOptions, context: Context): Promise<number> {
  const [verb = '', id] = options.arguments;
  const takes = TAKES[verb];
  if (!takes) throw new CoregentError('usage', `conflicts knows ${Object.keys(TAKES).join(', ')}, not ${verb}`);
  const stray = (Object.keys(options) as (Option | 'arguments')[]).find((option) => {
    return option !== 'arguments' && option !== 'region' && !takes.includes(option);
  });
  if (stray) throw new CoregentError('usage', `conflicts ${verb} takes no ${flagOf(stray)}`);
  const parked = [options.retry, options.retryAll, options.discard].filter((each) => each !== undefined).length;
  if (verb === 'list' || parked > 0) {
    if (id !== undefined) throw new CoregentError('usage', `no number belongs here: ${id}`);
  } else if (id === undefined || parseId(id) === undefined) {
    const what = options.parked ? 'a parked row' : 'a conflict';
    throw new CoregentError('usage', `conflicts ${verb} takes the number of ${what}`, {
      cure: `\`coregent conflicts list${options.parked ? ' --parked' : ''}\` prints them.`,
    });
  }
  const config = await loadConfig(context.config, context.env);
  const work = { list, show, settle }[verb as 'list' | 'show' | 'settle'];
  const regions = regionsOf(config, options);
  const open = await openRegions({ ...config, regions }, 'conflicts');
  try {
    return await work(open, options, context, config);
  } finally {
    await closeRegions(open);
  }
}

function regionsOf(config: Config, { region }: ConflictsOptions): Config['regions'] {
  const named = config.regions.filter(({ name }) => region === undefined || name === region);
  if (named.length > 0) return named;
  throw new CoregentError('usage', `there is no region ${region}`, { where: '--region' });
}

/** `dryRun` as it is typed: `--dry-run`. */
function flagOf(option: string): string {
  return `--${option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

async function show(open: readonly OpenRegion[], options: ConflictsOptions, context: Context): Promise<number> {
  const id = options.arguments[1]!;
  return options.parked ? await showParked(open, id, context) : await showConflict(open, id, context);
}

async function settle(
  open: readonly OpenRegion[],
  options: ConflictsOptions,
  context: Context,
  config: Config,
): Promise<number> {
  const parked = options.retry ?? options.retryAll ?? options.discard;
  return parked === undefined
    ? await settleConflict(open, options, context, config)
    : await settleParked(config, open, options, context);
}

async function list(open: readonly OpenRegion[], options: ConflictsOptions, context: Context): Promise<number> {
  const limit = options.limit ?? 50;
  // One more than asked for says whether there are more.
  const filter = { ...filterOf(options), limit: limit + 1 };
  if (options.parked) {
    const stray = (['kind', 'key', 'unsettled'] as const).find((option) => options[option] !== undefined);
    if (stray) throw new CoregentError('usage', `conflicts list --parked takes no ${flagOf(stray)}`);
    const rows = await listParkedRows(open, filter);
    const shown = rows.slice(0, limit);
    const next = rows.length > limit ? cursorOf(parkedPlace(shown.at(-1)!)) : null;
    print(context, { parked: shown, next }, paged(parkedTable(shown, context.colour), next));
    return EXIT.ok;
  }
  const found = await listRecords(open, filter);
  const shown = found.slice(0, limit);
  const next = found.length > limit ? cursorOf(placeOf(shown.at(-1)!)) : null;
  print(context, { conflicts: shown, next }, paged(conflictTable(shown, context.colour), next));
  return EXIT.ok;
}

function paged(text: string, next: string | null): string {
  return next === null ? text : `${text}\n\nMore: --after ${next}`;
}

function print(context: Context, document: object, text: string): void {
  context.out(context.json ? toJson({ schema_version: 1, ...document }) : text);
}

function filterOf({
  table,
  kind,
  key = [],
  since,
  until,
  unsettled,
  after,
}: ConflictsOptions): Omit<RecordFilter, 'limit'> {
  const values = key.flatMap((each) => ('name' in each ? [[each.name, each.value]] : []));
  const json = key.flatMap((each) => ('json' in each ? [each.json] : []));
  if (json.length > 1) throw new CoregentError('usage', 'one JSON object is enough', { where: '--key' });
  return { table, kinds: kind, key: Object.fromEntries(values), keyJson: json[0], since, until, unsettled, after };
}

function conflictTable(shown: readonly ConflictRecord[], colour: boolean): string {
  if (shown.length === 0) return 'No conflict is recorded.';
  return table(
    ['time', 'region', 'id', 'table', 'key', 'kind', 'here from', 'incoming from', 'outcome', 'settled'].map(
      (title) => ({
        title,
      }),
    ),
    shown.map((row) => [
      `${row.recorded_at.slice(0, 23)}Z`,
      row.region,
      row.id,
      visible(row.table_name),
      visible(JSON.stringify(row.key)),
      row.kind,
      visible(row.local_origin ?? 'before replication'),
      visible(row.incoming_origin ?? 'before replication'),
      outcomeWord(row.outcome),
      row.settled_at === null ? '' : visible(`by ${row.settled_by}`),
    ]),
    colour,
  );
}

/** What became of the two sides, for people. */
export function outcomeWord(outcome: string): string {
  const words: Readonly<Record<string, string>> = {
    apply: 'incoming won',
    keep: 'local kept',
    merge: 'merged',
    sibling: 'both kept',
    discard: 'incoming discarded',
  };
  return words[outcome] ?? visible(outcome);
}

function parkedTable(shown: readonly ParkedRow[], colour: boolean): string {
  if (shown.length === 0) return 'No row is parked.';
  return table(
    ['time', 'region', 'id', 'table', 'key', 'operation', 'from', 'sqlstate', 'reason'].map((title) => ({ title })),
    shown.map((row) => [
      `${row.parked_at.slice(0, 23)}Z`,
      row.region,
      row.id,
      visible(row.table_name),
      row.key === null ? 'unreadable' : visible(JSON.stringify(row.key)),
      row.operation === 'tombstone' ? 'delete' : row.operation,
      visible(row.origin ?? 'before replication'),
      row.sqlstate ?? '',
      visible(row.reason),
    ]),
    colour,
  );
}
