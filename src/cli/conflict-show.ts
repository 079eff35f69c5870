import { EXIT } from '../model/error.ts';
import { parseRule } from '../model/rule.ts';
import { type ParkedRow, readParked } from '../pg/parked.ts';
import { type ConflictRecord, readRecord, regionOf, winnerOf } from '../pg/record.ts';
import { type RowNow, readNow } from '../pg/settle.ts';
import type { OpenRegion } from '../pg/setup.ts';
import { outcomeWord } from './conflicts.ts';
import type { Context } from './context.ts';
import { colours, duration, table, toJson, visible } from './print.ts';

/** Values are cut to this length for people; `--json` has them whole. */
const SHOWN = 60;

/** `coregent conflicts show ID`: both sides, what differed, why it came out so, and how the row stands now. */
export async function showConflict(open: readonly OpenRegion[], id: string, context: Context): Promise<number> {
  const at = await regionOf(open, 'coregent.conflict_record', id);
  const record = (await readRecord(at.client, at.region.name, id))!;
  const now = await readNow(at, record).catch((error) => ({
    changed: { how: (error as Error).message },
    row: null,
    version: null,
    origin: null,
    at: null,
  }));
  const why = whyOf(record);
  if (context.json) {
    const { row, version, origin, at: writtenAt, changed } = now as Omit<RowNow, 'table'>;
    context.out(
      toJson({
        schema_version: 1,
        conflict: record,
        differs: differing(record),
        why,
        now: { row, version, origin, written_at: writtenAt, changed: changed?.how ?? null },
      }),
    );
  } else {
    context.out(text(record, now.changed?.how, why, context.colour));
  }
  return EXIT.ok;
}

/** Columns whose values the two sides have not alike; none where one of them was a delete. */
function differing({ local_row: local, incoming_row: incoming }: ConflictRecord): string[] {
  if (local === null || incoming === null) return [];
  return columnsOf(local, incoming).filter((name) => !alike(local, incoming, name));
}

/** Generated columns are on one side alone: they travel nowhere. */
function alike(local: Record<string, unknown>, incoming: Record<string, unknown>, name: string): boolean {
  const one = !Object.hasOwn(local, name) || !Object.hasOwn(incoming, name);
  return one || JSON.stringify(local[name]) === JSON.stringify(incoming[name]);
}

function columnsOf(...rows: (Readonly<Record<string, unknown>> | null)[]): string[] {
  return [...new Set(rows.flatMap((row) => Object.keys(row ?? {})))];
}

/** Why it came out so, in a sentence. */
export function whyOf(record: ConflictRecord): string {
  const { outcome, kind } = record;
  if (outcome === 'discard') return `The row could not be applied and was given up by ${record.settled_by}.`;
  if (outcome === 'merge') return 'Neither side was dropped: the rule joined what each of them had changed.';
  if (outcome === 'sibling') return 'Both versions are kept beside each other; the row shows one of them.';
  const [won, lost] = outcome === 'apply' ? (['incoming', 'local'] as const) : (['local', 'incoming'] as const);
  const who = `${record[`${won}_origin`] ?? 'a write before replication'}${record[`${won}_row`] === null ? ' (a delete)' : ''}`;
  const versions = [BigInt(record[`${won}_version`]), BigInt(record[`${lost}_version`])] as const;
  const rule = conflictOf(record.rule);
  if (rule === 'unique') {
    return `Two rows claim one unique value: the one with the smaller key stays, and the other is deleted everywhere.`;
  }
  if (kind === 'delete_referenced') {
    return outcome === 'keep'
      ? 'Another region deleted the row while rows of this one referred to it: their foreign key does not let it go, so it was written again.'
      : `Another region deleted the row that this one refers to: its foreign key says ${rule}.`;
  }
  if (versions[0] === versions[1]) {
    return `Both have one version, as after a restore: the row that is greater as text wins, in every region the same.`;
  }
  const aheadMs = Number((versions[0] >> 7n) - (versions[1] >> 7n)) / 1000;
  if (rule === 'lww' && versions[0] > versions[1]) {
    const by = record[`${lost}_at`] === null ? '' : `, by ${duration(aheadMs)}`;
    return `Rule lww: the later write wins, and ${who} wrote later${by}.`;
  }
  if (rule === 'fww' && versions[0] < versions[1]) {
    return `Rule fww: the first of writes that had not seen each other wins, and ${who} wrote earlier, by ${duration(-aheadMs)}.`;
  }
  if (
    rule === 'columns' &&
    versions[0] > versions[1] &&
    kind !== 'delete_origin_differs' &&
    kind !== 'update_missing'
  ) {
    return `Rule columns: each column keeps its later write, and ${who} wrote later, by ${duration(aheadMs)}.`;
  }
  if (kind === 'delete_origin_differs' || kind === 'update_missing') {
    return record[`${won}_row`] === null
      ? `Rule ${rule}: the delete wins over what it had not seen.`
      : `Rule ${rule}: the row wins over a delete that had not seen it.`;
  }
  return `Rule ${rule} chose the ${won} side, of ${who}.`;
}

function conflictOf(rule: string): string {
  try {
    return parseRule(rule).conflict ?? rule;
  } catch {
    return rule;
  }
}

function text(record: ConflictRecord, changed: string | undefined, why: string, colour: boolean): string {
  const paint = colours(colour);
  const { local_row: local, incoming_row: incoming } = record;
  const cell = (row: Readonly<Record<string, unknown>> | null, name: string): string => {
    if (row === null) return '';
    return Object.hasOwn(row, name) ? shortened(row[name]) : '';
  };
  const different = new Set(differing(record));
  const [contested] = different;
  const otherwise =
    conflictOf(record.rule) === 'columns' && contested !== undefined
      ? `--merge ${visible(contested)}=${winnerOf(record) === 'incoming' ? 'local' : 'incoming'}`
      : `--keep ${winnerOf(record) ? 'other' : 'local'}`;
  const rows = [
    ['from', record.local_origin ?? 'before replication', record.incoming_origin ?? 'before replication', ''],
    ['written', record.local_at ?? '', record.incoming_at ?? '', ''],
    ['version', record.local_version, record.incoming_version, ''],
    ['', local === null ? 'deleted' : '', incoming === null ? 'deleted' : '', ''],
    ...columnsOf(local, incoming).map((name) => [
      name,
      cell(local, name),
      cell(incoming, name),
      different.has(name) ? 'differs' : '',
    ]),
  ].filter((row) => row.some((value) => value !== ''));
  return [
    `conflict ${record.id} in ${record.region}: ${record.kind} of ${visible(record.table_name)} ${visible(JSON.stringify(record.key))}`,
    `recorded ${record.recorded_at}, rule ${visible(record.rule)}, outcome ${record.outcome}: ${outcomeWord(record.outcome)}`,
    '',
    table(
      [{ title: '' }, { title: 'local' }, { title: 'incoming' }, { title: '' }],
      rows.map((row) => row.map((value) => visible(value))),
      colour,
    ),
    '',
    visible(why),
    ...(record.settled_at === null
      ? []
      : [
          visible(
            `Settled at ${record.settled_at} by ${record.settled_by}: ${record.settled_how}${record.settled_version === null ? '' : `, version ${record.settled_version}`}.`,
          ),
        ]),
    ...(record.settled_at === null && changed !== undefined
      ? [paint.yellow(visible(`The row changed since: ${changed}.`))]
      : []),
    ...(record.settled_at === null && changed === undefined
      ? [`To settle it otherwise: coregent conflicts settle ${record.id} --region ${record.region} ${otherwise}`]
      : []),
  ].join('\n');
}

function shortened(value: unknown): string {
  const written = typeof value === 'string' ? value : JSON.stringify(value);
  return written.length > SHOWN ? `${written.slice(0, SHOWN)}… (${written.length} characters)` : written;
}

/** `coregent conflicts show ID --parked`. */
export async function showParked(open: readonly OpenRegion[], id: string, context: Context): Promise<number> {
  const at = await regionOf(open, 'coregent.parked', id);
  const parked = await readParked(at, id);
  context.out(context.json ? toJson({ schema_version: 1, parked }) : parkedText(parked));
  return EXIT.ok;
}

function parkedText(parked: ParkedRow): string {
  const { id, region, operation, table_name: name, key, row, origin, written_at: writtenAt } = parked;
  const word = operation === 'tombstone' ? 'delete' : operation;
  return [
    `parked row ${id} in ${region}: ${word} of ${visible(name)} ${key === null ? '' : visible(JSON.stringify(key))}`.trimEnd(),
    `parked ${parked.parked_at}, written by ${visible(origin ?? 'nobody known')} at ${writtenAt}, version ${parked.version}`,
    visible(`${parked.sqlstate ?? 'no SQLSTATE'}: ${parked.reason}`),
    ...(row === null
      ? []
      : ['', ...Object.entries(row).map(([column, value]) => visible(`${column} = ${shortened(value)}`))]),
    ...(key === null ? ['', 'Its table has changed since: the row cannot be read by it.'] : []),
    '',
    `To try it again: coregent conflicts settle --region ${region} --retry ${id}`,
    `To give it up:   coregent conflicts settle --region ${region} --discard ${id}`,
  ].join('\n');
}
