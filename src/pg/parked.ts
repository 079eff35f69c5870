import type pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { parseExact } from '../model/json.ts';
import { LSN_ZERO } from '../model/lsn.ts';
import { ruleText } from '../model/rule.ts';
import { type Table, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import type { Modules } from '../modules.ts';
import { Batch, type Group } from '../pipe/batch.ts';
import { ident, literal, qualified } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';
import { ONE_MEETING } from '../resolve/parts.ts';
import { imageJson } from '../resolve/staged.ts';
import { readTables } from './catalog.ts';
import { transaction } from './connect.ts';
import type { Cursor } from './cursor.ts';
import { decidersOf } from './deciders.ts';
import { readForeignKeys } from './foreign.ts';
import { behind, likeOf, newestFirst, type RecordFilter } from './record.ts';
import type { OpenRegion } from './setup.ts';
import { fits, inShape, type ParkedBytes, reshapeParked } from './shape.ts';
import { arrayOf, tuplesOf } from './steps.ts';
import { Store } from './store.ts';
import { prepareTargets, type Target } from './target.ts';

/** A row that could not be applied, as one region keeps it. */
export interface ParkedRow {
  readonly region: string;
  readonly id: string;
  /** ISO 8601 in UTC, to the microsecond. */
  readonly parked_at: string;
  readonly table_name: string;
  readonly operation: 'insert' | 'update' | 'tombstone';
  readonly version: string;
  /** Who wrote it, and when by its clock. */
  readonly origin: string | null;
  readonly written_at: string | null;
  readonly sqlstate: string | null;
  readonly reason: string;
  /** Null: its table has changed since, so that it cannot be read by it. */
  readonly key: Readonly<Record<string, unknown>> | null;
  /** Null too for a delete. */
  readonly row: Readonly<Record<string, unknown>> | null;
}

const iso = (value: string): string => `to_char(${value} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`;
const COLUMNS = `id, ${iso('parked_at')} as parked_at, table_name, operation, version, coregent.version_region(version) as origin,
  ${iso('coregent.version_time(version)')} as written_at, sqlstate, reason, row_bytes, columns`;

/** Rows that could not be applied; what else the agent keeps there settles by itself. */
const APPLICABLE = `operation in ('insert', 'update', 'tombstone')`;

/** How many of them there are, as SQL. */
export const COUNT_PARKED = `(select count(*) from coregent.parked where ${APPLICABLE})::int`;

/** The newest rows that are parked in several regions, in one order: by time, then region, then id; each read by its table. */
export async function listParkedRows(open: readonly OpenRegion[], filter: ParkedFilter): Promise<ParkedRow[]> {
  const each = await Promise.all(open.map((at) => listParked(at, filter)));
  return each
    .flat()
    .sort((a, b) => newestFirst(parkedPlace(a), parkedPlace(b)))
    .slice(0, filter.limit);
}

/** Its place in the list. */
export function parkedPlace({ parked_at: at, region, id }: ParkedRow): Cursor {
  return { at, region, id };
}

type ParkedFilter = Pick<RecordFilter, 'table' | 'since' | 'until' | 'after' | 'limit'>;

/** Rows that are parked in one region, the newest first, each read by its table. */
async function listParked({ region, client }: OpenRegion, filter: ParkedFilter): Promise<ParkedRow[]> {
  const { rows } = await client.query(
    `select ${COLUMNS} from coregent.parked where ${APPLICABLE} and ($1::text is null or table_name like $1)
      and ($2::timestamptz is null or parked_at >= $2) and ($3::timestamptz is null or parked_at < $3)
      and ($4::timestamptz is null or parked_at < $4 or parked_at = $4 and ($5::int8 is null or id < $5))
      order by parked_at desc, id desc limit $6`,
    [
      filter.table === undefined ? null : likeOf(filter.table),
      filter.since ?? null,
      filter.until ?? null,
      ...behind(filter.after, region.name),
      filter.limit,
    ],
  );
  return await readAll(client, region.name, rows);
}

/** One of them; it must be there. */
export async function readParked({ region, client }: OpenRegion, id: string): Promise<ParkedRow> {
  const { rows } = await client.query(`select ${COLUMNS} from coregent.parked where id = $1 and ${APPLICABLE}`, [id]);
  return (await readAll(client, region.name, rows))[0]!;
}

async function readAll(
  client: pg.Client,
  region: string,
  rows: readonly { readonly row_bytes: Buffer; readonly columns: ParkedBytes['columns'] }[],
): Promise<ParkedRow[]> {
  if (rows.length === 0) return [];
  const targets = await targetsOf(client, region);
  const read: ParkedRow[] = [];
  for (const { row_bytes: row, columns, ...found } of rows) {
    const parked = found as Omit<ParkedRow, 'region' | 'key' | 'row'>;
    const target = targets.get(parked.table_name);
    const text = target && (await imageOf(client, target, { kind: parked.operation, row, columns }));
    const json = text === undefined ? undefined : (parseExact(text) as Record<string, unknown>);
    read.push({
      region,
      ...parked,
      key: json ? Object.fromEntries(target!.staging.table.key.map((name) => [name, json[name]])) : null,
      row: json && parked.operation !== 'tombstone' ? json : null,
    });
  }
  return read;
}

async function targetsOf(client: pg.Client, region: string): Promise<Map<string, Target>> {
  const targets = await prepareTargets(client, await readTables(client, region));
  return new Map(targets.map((target) => [tableLabel(target.staging.table), target]));
}

/** The application's values of a row in `record` form, or a tombstone's key, as JSON; undefined when the table is not what it was. */
async function imageOf(client: pg.Client, target: Target, parked: ParkedBytes): Promise<string | undefined> {
  const { staging, compiled, rowTypeOid, tombstoneTypeOid } = target;
  const bytes = fits(target, parked) ? parked.row : await inShape(client, target, parked);
  if (!bytes) return undefined;
  const tombstone = parked.kind === 'tombstone';
  const [type, oid] = tombstone ? [compiled.tombstoneType, tombstoneTypeOid] : [compiled.rowType, rowTypeOid];
  const key = staging.table.key.map((name) => `${literal(name)}, r.${ident(name)}`).join(', ');
  const image = tombstone ? `jsonb_build_object(${key})` : imageJson(staging.table, 'r');
  try {
    const { rows } = await client.query(`select (${image})::text as row from unnest($1::${type}[]) r`, [
      Buffer.concat(arrayOf(oid, tuplesOf([bytes]))),
    ]);
    return rows[0].row;
  } catch (thrown) {
    const error = classify(thrown);
    if (error.retry === 'reconnect') throw error;
    return undefined;
  }
}

/** What became of rows that were tried again. */
export interface Retried {
  /** How many found their place, or are not parked any more. */
  readonly placed: number;
  /** Those that did not, with the reason now. */
  readonly left: readonly { readonly id: string; readonly reason: string }[];
}

/** Rounds over all that are left, as long as one of them finds its place: it may have made room for others. */
const ROUNDS = 8;

/**
 * Tries parked rows again, whatever they failed with, as the agent would apply them now: those of `ids`, or all.
 * `at` must be a connection that applies; `modules` carry out the rules that are some.
 */
export async function retryParked(
  { region, client }: OpenRegion,
  modules: Modules,
  ids?: readonly string[],
): Promise<Retried> {
  const targets = await targetsOf(client, region.name);
  await reshapeParked(client, [...targets.values()]);
  const foreign = await readForeignKeys(
    client,
    [...targets.values()].map(({ staging }) => staging.table),
  );
  const store = new Store({
    client,
    targets: [...targets.values()],
    lsn: LSN_ZERO,
    fetch: () => Promise.reject(new CoregentError('internal_assert', 'parked rows are whole')),
    foreign,
    deciders: decidersOf(modules),
  });
  const total = await countParked(client, ids);
  // Rows that wait for each other, such as unique values that change places, go together.
  for (let round = 0; !ids && store.owesTries && round < ROUNDS; round++) await store.tryParked();
  let left: { id: string; reason: string }[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const { rows } = await client.query(
      `select id, table_name, operation, row_bytes, columns from coregent.parked where ${APPLICABLE} and ($1::int8[] is null or id = any ($1)) order by id`,
      [ids ?? null],
    );
    left = [];
    for (const { id, table_name: label, operation, row_bytes: bytes, columns } of rows) {
      const target = targets.get(label);
      const reason = !target
        ? `${label} is not replicated any more`
        : fits(target, { kind: operation, columns })
          ? await tryOne(store, target, operation, bytes)
          : `it does not fit the columns that ${label} has now`;
      if (reason === undefined) await client.query('delete from coregent.parked where id = $1', [id]);
      else left.push({ id, reason });
    }
    if (left.length === 0 || left.length === rows.length) break;
  }
  return { placed: total - left.length, left };
}

async function countParked(client: pg.Client, ids: readonly string[] | undefined): Promise<number> {
  const { rows } = await client.query(
    `select count(*)::int as n from coregent.parked where ${APPLICABLE} and ($1::int8[] is null or id = any ($1))`,
    [ids ?? null],
  );
  return rows[0].n;
}

/** Applies one row; gives why it cannot be. */
async function tryOne(store: Store, target: Target, kind: Group['kind'], bytes: Buffer): Promise<string | undefined> {
  const batch = new Batch();
  batch.rows = 1;
  // In a group of updates even a new row is as it was parked, in `record` form; it is settled just the same.
  const group = { kind: kind === 'insert' ? 'update' : kind, unknown: [], tuples: tuplesOf([bytes]) } as const;
  batch.tables.set(target.staging.table.oid, {
    staging: target.staging,
    groups: [{ ...group, firsts: new Map(), mark: 0, touched: false }],
    keys: new Map(),
    tombstones: new Map(),
  });
  try {
    await store.apply(batch);
    return undefined;
  } catch (thrown) {
    const error = classify(thrown);
    if (error.retry === 'reconnect') throw error;
    return error.message;
  }
}

/** Gives a parked row up: it leaves `coregent.parked` and stays, whole, in the conflict record, whose id is returned. */
export async function discardParked({ client, region }: OpenRegion, id: string, by: string): Promise<string> {
  const { rows: found } = await client.query(
    'select table_name, operation, version, reason, row_bytes, columns from coregent.parked where id = $1',
    [id],
  );
  const { table_name: label, operation, version, reason, row_bytes: bytes, columns } = found[0];
  const target = (await targetsOf(client, region.name)).get(label);
  const table = target?.staging.table;
  const text = target && (await imageOf(client, target, { kind: operation, row: bytes, columns }));
  // What its table cannot read any more is kept as it came.
  const row = text ?? JSON.stringify({ bytes: (bytes as Buffer).toString('hex') });
  return await transaction(client, async () => {
    const { rowCount } = await client.query('delete from coregent.parked where id = $1', [id]);
    if (rowCount === 0) throw new CoregentError('refused', `row ${id} is not parked any more`, { where: region.name });
    const now = table && text !== undefined ? await nowOf(client, table, text) : { row: null, version: '0' };
    const { rows } = await client.query(
      `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version, local_row, incoming_row,
          settled_at, settled_by, settled_how)
        values ($1, (select coalesce(jsonb_object_agg(name, $2::jsonb -> name), '{}') from unnest($3::text[]) name), 'parked', $4, 'discard',
          $5, $6, $7, $8, clock_timestamp(), $9, $10)
        on conflict ${ONE_MEETING}
        do update set settled_at = excluded.settled_at, settled_by = excluded.settled_by, settled_how = excluded.settled_how
        returning id`,
      [
        label,
        row,
        text === undefined ? [] : table!.key,
        table ? ruleText(table.rule) : 'lww',
        now.version,
        version,
        now.row,
        operation === 'tombstone' && text !== undefined ? null : row,
        by,
        `--discard, parked with: ${reason}`,
      ],
    );
    return rows[0].id;
  });
}

/** The row under a key, as text of its JSON, and its version or that of its delete. */
async function nowOf(
  client: pg.Client,
  table: Table,
  key: string,
): Promise<{ readonly row: string | null; readonly version: string }> {
  const tombs = qualified('coregent', tombstoneName(table));
  const v = ident(VERSION);
  const { rows } = await client.query(
    `select (case when t.${v} is not null then ${imageJson(table, 't')} end)::text as row, coalesce(t.${v}, x.${v}, 0)::text as version
      from jsonb_populate_record(null::${tombs}, $1::jsonb) k
      left join ${qualified(table.schema, table.name)} t on ${sameKey(table, 't', 'k')}
      left join ${tombs} x on ${sameKey(table, 'x', 'k')}`,
    [key],
  );
  return rows[0];
}
