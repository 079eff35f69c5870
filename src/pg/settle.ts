import type pg from 'pg';
import { CoregentError } from '../model/error.ts';
import { type Column, OURS, type Table, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { imageJson } from '../resolve/staged.ts';
import { readTables } from './catalog.ts';
import { keyIn } from './join.ts';
import { type ConflictRecord, readRecord, winnerOf } from './record.ts';
import type { OpenRegion } from './setup.ts';

/** One side of a conflict. */
export type Side = 'local' | 'incoming';

/** What the row is to become. */
export type Choice =
  | { readonly keep: Side | 'other' }
  /** Columns by name; all others stay. */
  | { readonly merge: ReadonlyMap<string, Side> }
  /** A JSON object; columns that it lacks stay. */
  | { readonly file: string };

/** What a settlement is asked to do. */
export interface SettleOptions {
  readonly id: string;
  readonly choice: Choice;
  /** For people: `--keep other`. */
  readonly how: string;
  readonly by: string;
  /** Although the row changed since, or was settled before. */
  readonly force: boolean;
  readonly dryRun: boolean;
}

/** One statement with its parameters, all texts or null. */
interface Write {
  readonly text: string;
  readonly values: readonly (string | null)[];
}

/** What a settlement did. */
export interface Settlement {
  readonly record: ConflictRecord;
  /** The key as the record has it. */
  readonly key: string;
  /** What it runs, as SQL to read or to run by hand. */
  readonly sql: readonly string[];
  /** Whether the row had to be written at all. */
  readonly written: boolean;
  /** The version of that write; null when there was none. */
  readonly version: string | null;
}

/** The row of a conflict as its region has it now. */
export interface RowNow {
  readonly table: Table;
  /** Null: deleted, or never there. */
  readonly row: Readonly<Record<string, unknown>> | null;
  /** Of the row, or of the delete. */
  readonly version: string | null;
  readonly origin: string | null;
  readonly at: string | null;
  /** What the conflict left is not there any more: how, for people. */
  readonly changed: string | undefined;
}

/** The row of a conflict as it is now; locked when asked. Throws `refused` when its table is not replicated any more. */
export async function readNow(
  { region, client }: OpenRegion,
  record: ConflictRecord,
  { lock = false }: { readonly lock?: boolean } = {},
): Promise<RowNow> {
  const table = (await readTables(client, region.name)).find((each) => tableLabel(each) === record.table_name);
  if (!table) {
    throw new CoregentError('refused', `${record.table_name} is not replicated in ${region.name} any more`, {
      where: region.name,
      cure: 'Create it and run `coregent apply`, or write the rows of the record where they belong now.',
    });
  }
  const told = (alias: string): string =>
    `${alias}.${ident(VERSION)}::text as version, coregent.version_region(${alias}.${ident(VERSION)}) as origin, coregent.version_time(${alias}.${ident(VERSION)})::text as at`;
  const where = keyIn(table, [record.key]);
  const { rows } = await client.query(
    `select ${imageJson(table, 't')} as row, ${told('t')} from ${qualified(table.schema, table.name)} t where ${where}${lock ? ' for update' : ''}`,
  );
  const { rows: buried } = await client.query(
    `select null::jsonb as row, ${told('t')} from ${qualified('coregent', tombstoneName(table))} t where ${where}`,
  );
  const now = rows[0] ?? buried[0] ?? { row: null, version: null, origin: null, at: null };
  return { table, ...now, changed: await changeSince(client, record, table, now) };
}

async function changeSince(
  client: pg.Client,
  record: ConflictRecord,
  table: Table,
  now: Pick<RowNow, 'row' | 'version' | 'origin' | 'at'>,
): Promise<string | undefined> {
  const later = BigInt(record.local_version) > BigInt(record.incoming_version) ? 'local' : 'incoming';
  const left = winnerOf(record) ?? later;
  const row = record[`${left}_row`];
  const by = `by ${now.origin ?? 'nobody known'}${now.at === null ? '' : ` at ${now.at}`}`;
  if (row === null) return now.row === null ? undefined : `it was deleted, and is there again, written ${by}`;
  if (now.row === null) return `it was deleted ${by}`;
  if (now.version === record[`${left}_version`]) return undefined;
  const { rows } = await client.query(
    `select c.name, n.value as now from unnest($2::text[]) as c (name), lateral (select left(($3::jsonb -> c.name)::text, 60)) n (value)
      where (select ${left}_row -> c.name from coregent.conflict_record where id = $1) is distinct from $3::jsonb -> c.name`,
    [record.id, columnsOf(table).map(({ name }) => name), await imageText(client, record, table)],
  );
  const what = rows.map((each) => `${each.name} is ${each.now}`).join(', ');
  return `it was written ${by}${what === '' ? ', to the same values' : `: ${what}`}`;
}

/** The current row as text of its JSON: what was parsed could have lost digits. */
async function imageText(client: pg.Client, record: ConflictRecord, table: Table): Promise<string> {
  const { rows } = await client.query(
    `select (${imageJson(table, 't')})::text as row from ${qualified(table.schema, table.name)} t where ${keyIn(table, [record.key])}`,
  );
  return rows[0]?.row ?? '{}';
}

/** The application's columns. */
function columnsOf(table: Table): Column[] {
  return table.columns.filter(({ name }) => !OURS.includes(name));
}

/**
 * Settles a conflict by an ordinary write of its row, which the triggers stamp and which replicates, and notes that in the record,
 * all in one transaction. Throws `usage`, and `refused` when the row changed since or the conflict was settled before.
 */
export async function settle(at: OpenRegion, options: SettleOptions): Promise<Settlement> {
  const { client, region } = at;
  await client.query('begin');
  try {
    const { rows: found } = await client.query(
      'select key::text from coregent.conflict_record where id = $1 for update',
      [options.id],
    );
    const record = (await readRecord(client, region.name, options.id))!;
    if (record.settled_at !== null && !options.force) {
      throw new CoregentError(
        'refused',
        `conflict ${record.id} was settled at ${record.settled_at} by ${record.settled_by}: ${record.settled_how}`,
        { where: region.name, cure: 'Nothing needs to be done; --force settles it once more.' },
      );
    }
    const now = await readNow(at, record, { lock: true });
    if (now.changed !== undefined && !options.force) {
      throw new CoregentError('refused', `the row changed since the conflict: ${now.changed}`, {
        where: `${region.name}: ${record.table_name} ${JSON.stringify(record.key)}`,
        cure: 'Look at it with `coregent conflicts show`; --force writes it all the same.',
      });
    }
    const write = await writeOf(client, record, now, options.choice);
    // What the application's triggers call must be found as when the application writes.
    const path = `select set_config('search_path', reset_val, true) from pg_settings where name = 'search_path'`;
    let version: string | null = null;
    if (write && !options.dryRun) {
      await client.query(path);
      const { rows, rowCount } = await client.query(write.text, [...write.values]);
      if (rowCount !== 1) {
        throw new CoregentError('refused', 'a trigger or a rule of the table let the row not be written', {
          where: `${region.name}: ${record.table_name}`,
          cure: 'Run the SQL that --dry-run prints, and see what the table makes of it.',
        });
      }
      version = rows[0]?.version ?? (await buriedAt(client, record, now.table));
    }
    const note = noteOf(record, options, version);
    if (!options.dryRun) await client.query(note.text, [...note.values]);
    await client.query(options.dryRun ? 'rollback' : 'commit');
    const sql = ['begin', ...(write ? [printed(write)] : []), printed(note), 'commit'];
    return { record, key: found[0].key, sql, written: write !== undefined, version };
  } catch (error) {
    await client.query('rollback').catch(() => {});
    throw error;
  }
}

/** The version of the row's delete. */
async function buriedAt(client: pg.Client, record: ConflictRecord, table: Table): Promise<string | null> {
  const tombs = qualified('coregent', tombstoneName(table));
  const { rows } = await client.query(
    `select t.${ident(VERSION)}::text as version from ${tombs} t where ${keyIn(table, [record.key])}`,
  );
  return rows[0]?.version ?? null;
}

function noteOf(record: ConflictRecord, { by, how }: SettleOptions, version: string | null): Write {
  return {
    text: `update coregent.conflict_record set settled_at = clock_timestamp(), settled_by = $1, settled_how = $2, settled_version = $3::int8
where id = $4::int8`,
    values: [by, how, version, record.id],
  };
}

/** Notes a settlement in what another region recorded of the same two writes. Returns how many records that were. */
export async function noteElsewhere(
  client: pg.Client,
  { record, key, version }: Settlement,
  { by, how }: Pick<SettleOptions, 'by' | 'how'>,
): Promise<number> {
  const { rowCount } = await client.query(
    `update coregent.conflict_record set settled_at = clock_timestamp(), settled_by = $1, settled_how = $2, settled_version = $3::int8
      where table_name = $4 and key = $5::jsonb and settled_at is null
      and (local_version, incoming_version) in (($6::int8, $7::int8), ($7::int8, $6::int8))`,
    [by, `${how} in ${record.region}`, version, record.table_name, key, record.local_version, record.incoming_version],
  );
  return rowCount ?? 0;
}

/** A value of a column as text: as it is, and as it is to be. */
interface Value {
  readonly name: string;
  readonly given: boolean;
  readonly now: string | null;
  readonly wanted: string | null;
}

/** The write that makes the row what was chosen; undefined when it is that already. */
async function writeOf(
  client: pg.Client,
  record: ConflictRecord,
  { table, row, version }: RowNow,
  choice: Choice,
): Promise<Write | undefined> {
  const side = sideOf(record, choice);
  const target = qualified(table.schema, table.name);
  const stamped = ident(VERSION);
  if (side !== undefined && record[`${side}_row`] === null) {
    if (row === null) return undefined;
    const { text, values } = await whereOf(client, record, table, version!);
    return { text: `delete from ${target} t\nwhere ${text}`, values };
  }
  const wanted = await wantedOf(client, { record, table, row }, side, choice);
  const types = new Map(table.columns.map((column) => [column.name, column]));
  if (row === null) {
    const given = wanted.filter((value) => value.given);
    const places = given.map(({ name }, index) => `$${index + 1}::${types.get(name)!.type}`);
    return {
      text: `insert into ${target} (${given.map(({ name }) => ident(name)).join(', ')})\noverriding system value values (${places.join(', ')})\nreturning ${stamped}::text as version`,
      values: given.map((value) => value.wanted),
    };
  }
  const differing = wanted.filter(({ name, given, now, wanted: to }) => {
    return given && now !== to && !table.key.includes(name) && !types.get(name)!.identityAlways;
  });
  if (differing.length === 0) return undefined;
  const where = await whereOf(client, record, table, version!, differing.length);
  const set = differing.map(({ name }, index) => `${ident(name)} = $${index + 1}::${types.get(name)!.type}`);
  return {
    text: `update ${target} t\nset ${set.join(', ')}\nwhere ${where.text}\nreturning t.${stamped}::text as version`,
    values: [...differing.map((value) => value.wanted), ...where.values],
  };
}

/** The row's key and version, as a condition: what was printed and run later must not overwrite what came between. */
async function whereOf(
  client: pg.Client,
  record: ConflictRecord,
  table: Table,
  version: string,
  from = 0,
): Promise<Write> {
  const { rows } = await client.query(
    `select ${table.key.map((name) => `k.${ident(name)}::text`).join(', ')}
      from jsonb_populate_record(null::${qualified('coregent', tombstoneName(table))}, (select key from coregent.conflict_record where id = $1)) k`,
    [record.id],
  );
  const types = new Map(table.columns.map((column) => [column.name, column.type]));
  const key = table.key.map((name, index) => {
    return `t.${ident(name)} ${table.keyEquals[index]} $${from + index + 1}::${types.get(name)}`;
  });
  return {
    text: `${key.join(' and ')} and t.${ident(VERSION)} = $${from + table.key.length + 1}::int8`,
    values: [...table.key.map((name) => rows[0][name]), version],
  };
}

/** The side whose row, whole, is wanted. */
function sideOf(record: ConflictRecord, choice: Choice): Side | undefined {
  if (!('keep' in choice)) return undefined;
  if (choice.keep !== 'other') return choice.keep;
  const winner = winnerOf(record);
  if (winner) return winner === 'local' ? 'incoming' : 'local';
  throw new CoregentError('usage', `of conflict ${record.id} neither side won: its outcome is ${record.outcome}`, {
    where: '--keep',
    cure: 'Say --keep local, --keep incoming, or which column comes from which side with --merge.',
  });
}

/** Every column's value as the database writes it, from the record or the file, over the current row. */
async function wantedOf(
  client: pg.Client,
  { record, table, row }: Pick<RowNow, 'table' | 'row'> & { readonly record: ConflictRecord },
  side: Side | undefined,
  choice: Choice,
): Promise<Value[]> {
  const columns = columnsOf(table);
  if ('merge' in choice) checkMerge(record, choice.merge, columns);
  if ('file' in choice) await checkFile(client, record, table, choice.file);
  // Where there is no row, a merge needs a whole one.
  const parts = [row === null && 'merge' in choice ? 'coalesce(incoming_row, local_row)' : 'key'];
  if (side !== undefined) parts.push(`${side}_row`);
  if ('file' in choice) parts.push('$2::jsonb');
  for (const [name, from] of 'merge' in choice ? choice.merge : []) {
    parts.push(`jsonb_build_object(${literal(name)}, ${from}_row -> ${literal(name)})`);
  }
  const source = `select ${parts.join(' || ')} as row from coregent.conflict_record where id = $1`;
  // A `json` is in the record as its text, since not every one could be read as a jsonb.
  const texts = columns.filter(({ holdsJson }) => holdsJson).map(({ name }) => name);
  const value = ({ name }: Column): string => {
    const wanted = texts.includes(name) ? `w.row ->> ${literal(name)}` : `p.${ident(name)}::text`;
    return `json_build_object('name', ${literal(name)}, 'given', w.row ? ${literal(name)}, 'now', t.${ident(name)}::text, 'wanted', ${wanted})`;
  };
  const plain = `w.row - ${texts.length > 0 ? `array[${texts.map(literal).join(', ')}]` : `'{}'::text[]`}`;
  const { rows } = await client.query(
    `select to_json(array[${columns.map(value).join(', ')}]) as "values" from (${source}) w
      left join ${qualified(table.schema, table.name)} t on ${keyIn(table, [record.key])}
      cross join lateral jsonb_populate_record(t, ${plain}) p`,
    'file' in choice ? [record.id, choice.file] : [record.id],
  );
  return rows[0].values;
}

function checkMerge(record: ConflictRecord, merge: ReadonlyMap<string, Side>, columns: readonly Column[]): void {
  for (const [name, side] of merge) {
    const row = record[`${side}_row`];
    if (row === null) {
      throw new CoregentError('usage', `the ${side} side was a delete: it has no ${name}`, {
        where: '--merge',
        cure: 'Take columns from the other side, or the delete itself with --keep.',
      });
    }
    if (!columns.some((column) => column.name === name) || !Object.hasOwn(row, name)) {
      throw new CoregentError('usage', `${record.table_name} has no column ${name}`, { where: '--merge' });
    }
  }
}

async function checkFile(client: pg.Client, record: ConflictRecord, table: Table, file: string): Promise<void> {
  const row = JSON.parse(file) as Record<string, unknown>;
  const known = columnsOf(table).map(({ name }) => name);
  const unknown = Object.keys(row).find((name) => !known.includes(name));
  if (unknown !== undefined) {
    throw new CoregentError('usage', `${record.table_name} has no column ${unknown}`, { where: '--file' });
  }
  const { rows } = await client.query(`select key <@ $2::jsonb as same from coregent.conflict_record where id = $1`, [
    record.id,
    file,
  ]);
  const has = table.key.filter((name) => Object.hasOwn(row, name));
  if (has.length > 0 && !rows[0].same) {
    throw new CoregentError('usage', `the file has another key than ${JSON.stringify(record.key)}`, {
      where: '--file',
      cure: 'Leave the key out of the file, or make it the same.',
    });
  }
}

/** A statement with its parameters in their places. */
function printed({ text, values }: Write): string {
  return text.replace(/\$(\d+)/g, (_, number) => {
    const value = values[Number(number) - 1];
    return value === null || value === undefined ? 'null' : literal(value);
  });
}
