import { CoregentError } from '../model/error.ts';
import type { Queryable } from './connect.ts';
import type { Cursor } from './cursor.ts';
import { ORPHANING } from './orphans.ts';
import type { OpenRegion } from './setup.ts';

/** A conflict as one region recorded it. Versions are texts: JavaScript's numbers don't hold them. */
export interface ConflictRecord {
  readonly region: string;
  readonly id: string;
  /** ISO 8601 in UTC, to the microsecond. */
  readonly recorded_at: string;
  /** How people write the table's name. */
  readonly table_name: string;
  readonly key: Readonly<Record<string, unknown>>;
  readonly kind: string;
  readonly rule: string;
  readonly outcome: string;
  readonly local_version: string;
  readonly incoming_version: string;
  /** Null: written before replication, or by a region that is gone. */
  readonly local_origin: string | null;
  readonly incoming_origin: string | null;
  /** When each side was written, by its writer's clock. */
  readonly local_at: string | null;
  readonly incoming_at: string | null;
  /** Null: that side was a delete. */
  readonly local_row: Readonly<Record<string, unknown>> | null;
  readonly incoming_row: Readonly<Record<string, unknown>> | null;
  readonly settled_at: string | null;
  readonly settled_by: string | null;
  readonly settled_how: string | null;
  /** The version of the write by which it was settled. */
  readonly settled_version: string | null;
}

/** Which records are wanted. */
export interface RecordFilter {
  /** A glob like `public.*`. */
  readonly table?: string | undefined;
  readonly kinds?: readonly string[] | undefined;
  /** Recorded at this time or later, and before that one. ISO 8601. */
  readonly since?: string | undefined;
  readonly until?: string | undefined;
  /** Columns of the key and their values as text. */
  readonly key?: Readonly<Record<string, string>> | undefined;
  /** JSON that the key contains. */
  readonly keyJson?: string | undefined;
  /** Only those that nobody has settled. */
  readonly unsettled?: boolean | undefined;
  /** Only those behind this one; see `cursorOf`. */
  readonly after?: Cursor | undefined;
  readonly limit: number;
}

const iso = (column: string): string => `to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`;
const COLUMNS = `id, ${iso('recorded_at')} as recorded_at, table_name, key, kind, rule, outcome, local_version, incoming_version,
  local_origin, incoming_origin, ${iso('local_at')} as local_at, ${iso('incoming_at')} as incoming_at, local_row, incoming_row,
  ${iso('settled_at')} as settled_at, settled_by, settled_how, settled_version`;

/** A record's place in the list. */
export function placeOf({ recorded_at: at, region, id }: ConflictRecord): Cursor {
  return { at, region, id };
}

/** The newest records of several regions, in one order: by time, then region, then id. */
export async function listRecords(open: readonly OpenRegion[], filter: RecordFilter): Promise<ConflictRecord[]> {
  const each = await Promise.all(open.map(({ region, client }) => listOf(client, region.name, filter)));
  return each
    .flat()
    .sort((a, b) => newestFirst(placeOf(a), placeOf(b)))
    .slice(0, filter.limit);
}

async function listOf(client: Queryable, region: string, filter: RecordFilter): Promise<ConflictRecord[]> {
  const { rows } = await client.query(
    `select ${COLUMNS} from coregent.conflicts c
      where ($1::text is null or c.table_name like $1) and ($2::text[] is null or c.kind = any ($2))
      and ($3::timestamptz is null or c.recorded_at >= $3) and ($4::timestamptz is null or c.recorded_at < $4)
      and ($5::jsonb is null or c.key @> $5)
      and not exists (select from jsonb_each_text($6::jsonb) k where c.key ->> k.key is distinct from k.value)
      and ($7::boolean is not true or c.settled_at is null)
      and ($8::timestamptz is null or c.recorded_at < $8 or c.recorded_at = $8 and ($9::int8 is null or c.id < $9))
      order by c.recorded_at desc, c.id desc limit $10`,
    [
      filter.table === undefined ? null : likeOf(filter.table),
      filter.kinds ?? null,
      filter.since ?? null,
      filter.until ?? null,
      filter.keyJson ?? null,
      JSON.stringify(filter.key ?? {}),
      filter.unsettled ?? null,
      ...behind(filter.after, region),
      filter.limit,
    ],
  );
  return rows.map((row) => ({ region, ...row }));
}

/** A region's parameters for what is behind the place: the time, and of that moment the number. Of one moment, those of regions whose names come later are behind it whole. */
export function behind(after: Cursor | undefined, region: string): (string | null)[] {
  if (!after) return [null, null];
  return [after.at, region === after.region ? after.id : region > after.region ? null : '0'];
}

/** The order of a list of several regions. */
export function newestFirst(a: Cursor, b: Cursor): number {
  if (a.at !== b.at) return a.at < b.at ? 1 : -1;
  if (a.region !== b.region) return a.region < b.region ? -1 : 1;
  return BigInt(a.id) < BigInt(b.id) ? 1 : -1;
}

/** A glob as a pattern of LIKE. */
export function likeOf(glob: string): string {
  return glob
    .replace(/[\\%_]/g, '\\$&')
    .replace(/\*+/g, '%')
    .replace(/\?/g, '_');
}

/** One record of a region; undefined when it is not there. */
export async function readRecord(client: Queryable, region: string, id: string): Promise<ConflictRecord | undefined> {
  const { rows } = await client.query(`select ${COLUMNS} from coregent.conflicts where id = $1`, [id]);
  return rows[0] && { region, ...rows[0] };
}

/**
 * The one region among these that has something of this number in `from`. Every region counts for itself.
 * Throws `usage` when none has, or several have.
 */
export async function regionOf(
  open: readonly OpenRegion[],
  from: 'coregent.conflict_record' | 'coregent.parked',
  id: string,
): Promise<OpenRegion> {
  const what = from === 'coregent.parked' ? 'parked row' : 'conflict';
  const found: OpenRegion[] = [];
  for (const each of open) {
    const { rows } = await each.client.query(
      `select exists (select from ${from} where id = $1${from === 'coregent.parked' ? ` and operation <> '${ORPHANING}'` : ''}) as there`,
      [id],
    );
    if (rows[0].there) found.push(each);
  }
  const [first, ...others] = found;
  const names = (regions: readonly OpenRegion[]): string => regions.map(({ region }) => region.name).join(', ');
  if (!first) {
    throw new CoregentError('usage', `there is no ${what} ${id} in ${names(open)}`, {
      cure: 'See `coregent conflicts list`: a record goes after conflicts.retention, a parked row when it fits.',
    });
  }
  if (others.length > 0) {
    throw new CoregentError('usage', `there is a ${what} ${id} in each of ${names(found)}`, {
      cure: 'Every region counts for itself: name one with --region.',
    });
  }
  return first;
}

/** The side that the region was left with, and the other one. Undefined where it shows neither, such as a merge of both. */
export function winnerOf({ outcome }: Pick<ConflictRecord, 'outcome'>): 'local' | 'incoming' | undefined {
  if (outcome === 'apply') return 'incoming';
  return outcome === 'keep' || outcome === 'discard' ? 'local' : undefined;
}
