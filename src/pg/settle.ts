import type pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { familyOf } from '../model/rule.ts';
import { type Column, OURS, PARENT, type Table, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
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
  /** Whether it shows one of several versions that are kept side by side. */
  readonly several: boolean;
  /** What the conflict left is not there any more. */
  readonly changed: Change | undefined;
}

/** What came between a conflict and now. */
interface Change {
  /** For people. */
  readonly how: string;
  /** The columns whose values are others; undefined where the row came or went. */
  readonly columns: readonly string[] | undefined;
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
    `select ${imageJson(table, 't')} as row, ${told('t')}, t.${ident(PARENT)} = -2 as merged from ${qualified(table.schema, table.name)} t where ${where}${lock ? ' for update' : ''}`,
  );
  const { rows: buried } = await client.query(
    `select null::jsonb as row, ${told('t')}, false as merged from ${qualified('coregent', tombstoneName(table))} t where ${where}`,
  );
  const { merged, ...now } = rows[0] ?? buried[0] ?? { row: null, version: null, origin: null, at: null };
  const several = merged === true && familyOf(table.rule) === 'versions';
  return { table, ...now, several, changed: await changeSince(client, record, table, now) };
}

async function changeSince(
  client: pg.Client,
  record: ConflictRecord,
  table: Table,
  now: Pick<RowNow, 'row' | 'version' | 'origin' | 'at'>,
): Promise<Change | undefined> {
  const later = BigInt(record.local_version) > BigInt(record.incoming_version) ? 'local' : 'incoming';
  const left = winnerOf(record) ?? later;
  const row = rowOf(record, left, table);
  const by = `by ${now.origin ?? 'nobody known'}${now.at === null ? '' : ` at ${now.at}`}`;
  const whole = (how: string): Change => ({ how, columns: undefined });
  if (row === null) return now.row === null ? undefined : whole(`it was deleted, and is there again, written ${by}`);
  if (now.row === null) return whole(`it was deleted ${by}`);
  if (now.version === record[`${left}_version`]) return undefined;
  const { rows } = await client.query(
    `select c.name, n.value as now from unnest($2::text[]) as c (name), lateral (select left(($3::jsonb -> c.name)::text, 60)) n (value)
      where (select ${left}_row -> c.name from coregent.conflicts where id = $1) is distinct from $3::jsonb -> c.name`,
    [record.id, columnsOf(table).map(({ name }) => name), await imageText(client, record, table)],
  );
  // A version of its own with the same values: a row that was merged, or written again.
  if (rows.length === 0) return undefined;
  return {
    how: `it was written ${by}: ${rows.map((each) => `${each.name} is ${each.now}`).join(', ')}`,
    columns: rows.map(({ name }) => name),
  };
}

/** A side's row under the record's key. Of two rows that claim one unique value, only one has that key. */
function rowOf(record: ConflictRecord, side: Side, { key }: Table): Readonly<Record<string, unknown>> | null {
  const row = record[`${side}_row`];
  if (record.rule !== UNIQUE || row === null) return row;
  return key.every((name) => JSON.stringify(row[name]) === JSON.stringify(record.key[name])) ? row : null;
}

/** What is recorded as the rule where two rows claim one unique value. */
const UNIQUE = 'unique';

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
    if (concerns(now, options.choice) && !options.force) {
      throw new CoregentError('refused', `the row changed since the conflict: ${now.changed!.how}`, {
        where: `${region.name}: ${record.table_name} ${JSON.stringify(record.key)}`,
        cure: 'Look at it with `coregent conflicts show`; --force writes it all the same.',
      });
    }
    const write = await writeOf(client, record, now, options.choice);
    const rival = write && options.force ? await rivalOf(client, record, now.table) : undefined;
    const writes = [rival, write].filter((each) => each !== undefined);
    // What the application's triggers call must be found as when the application writes.
    const path = `select set_config('search_path', reset_val, true) from pg_settings where name = 'search_path'`;
    let version: string | null = null;
    if (write && !options.dryRun) {
      await client.query(path);
      for (const each of writes) version = await run(client, each, record);
      version ??= await buriedAt(client, record, now.table);
    }
    const note = noteOf(record, options, version);
    if (!options.dryRun) await client.query(note.text, [...note.values]);
    await client.query(options.dryRun ? 'rollback' : 'commit');
    const sql = ['begin', ...writes.map(printed), printed(note), 'commit'];
    return { record, key: found[0].key, sql, written: write !== undefined, version };
  } catch (error) {
    await client.query('rollback').catch(() => {});
    throw error;
  }
}

/** Whether what changed since would be overwritten. */
function concerns({ table, changed }: RowNow, choice: Choice): boolean {
  if (!changed?.columns) return changed !== undefined;
  const written = (name: string): boolean => {
    if ('merge' in choice) return choice.merge.has(name);
    if ('file' in choice) return Object.hasOwn(JSON.parse(choice.file), name);
    return !Object.hasOwn(table.rule.columns, name);
  };
  return changed.columns.some(written);
}

/** Runs a write of one row; gives its version, null for a delete. Throws `refused`, with the server's reason, where the table does not take it. */
async function run(client: pg.Client, { text, values }: Write, record: ConflictRecord): Promise<string | null> {
  const where = `${record.region}: ${record.table_name} ${JSON.stringify(record.key)}`;
  try {
    const { rows, rowCount } = await client.query(text, [...values]);
    if (rowCount === 1) return rows[0]?.version ?? null;
  } catch (thrown) {
    const error = classify(thrown, where);
    if (error.code !== 'apply_failed') throw error;
    const unique =
      record.rule === UNIQUE ? '--force deletes the row that has the value, if it is as it was; or choose' : 'Choose';
    throw new CoregentError('refused', error.message, {
      where,
      cause: thrown,
      cure: `${unique} other values with --file.`,
    });
  }
  throw new CoregentError('refused', 'a trigger or a rule of the table let the row not be written', {
    where,
    cure: 'Run the SQL that --dry-run prints, and see what the table makes of it.',
  });
}

/** Where one of two rows that claim a unique value is chosen against the other: the delete of the other, if that is as it was. */
async function rivalOf(client: pg.Client, record: ConflictRecord, table: Table): Promise<Write | undefined> {
  const winner = winnerOf(record);
  const row = winner && record[`${winner}_row`];
  if (record.rule !== UNIQUE || !row || rowOf(record, winner, table)) return undefined;
  const target = qualified(table.schema, table.name);
  const key = Object.fromEntries(table.key.map((name) => [name, row[name]]));
  const version = record[`${winner}_version`];
  const { rows } = await client.query(
    `select from ${target} t where ${keyIn(table, [key])} and t.${ident(VERSION)} = $1 for update`,
    [version],
  );
  if (rows.length === 0) return undefined;
  const where = await whereOf(client, JSON.stringify(key), table, version);
  return { text: `delete from ${target} t\nwhere ${where.text}`, values: where.values };
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
  { table, row, version, several }: RowNow,
  choice: Choice,
): Promise<Write | undefined> {
  const side = sideOf(record, choice);
  const key = JSON.stringify(record.key);
  const target = qualified(table.schema, table.name);
  const stamped = ident(VERSION);
  if (side !== undefined && rowOf(record, side, table) === null) {
    if (row === null) return undefined;
    const { text, values } = await whereOf(client, key, table, version!);
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
  // What both sides added to a counter or a set is in it already: neither side's value is the other one of two.
  const joined = side === undefined ? {} : table.rule.columns;
  const differing = wanted.filter(({ name, given, now, wanted: to }) => {
    return (
      given &&
      !Object.hasOwn(joined, name) &&
      now !== to &&
      !table.key.includes(name) &&
      !types.get(name)!.identityAlways
    );
  });
  // Even if nothing differs, a write says that of several versions this one is meant.
  if (differing.length === 0 && several) differing.push(...wanted.filter(({ name }) => name === table.key[0]));
  if (differing.length === 0) return undefined;
  const where = await whereOf(client, key, table, version!, differing.length);
  const set = differing.map(({ name }, index) => `${ident(name)} = $${index + 1}::${types.get(name)!.type}`);
  return {
    text: `update ${target} t\nset ${set.join(', ')}\nwhere ${where.text}\nreturning t.${stamped}::text as version`,
    values: [...differing.map((value) => value.wanted), ...where.values],
  };
}

/** The row's key and version, as a condition: what was printed and run later must not overwrite what came between. */
async function whereOf(client: pg.Client, key: string, table: Table, version: string, from = 0): Promise<Write> {
  const { rows } = await client.query(
    `select ${table.key.map((name) => `k.${ident(name)}::text`).join(', ')}
      from jsonb_populate_record(null::${qualified('coregent', tombstoneName(table))}, $1::jsonb) k`,
    [key],
  );
  const types = new Map(table.columns.map((column) => [column.name, column.type]));
  const same = table.key.map((name, index) => {
    return `t.${ident(name)} ${table.keyEquals[index]} $${from + index + 1}::${types.get(name)}`;
  });
  return {
    text: `${same.join(' and ')} and t.${ident(VERSION)} = $${from + table.key.length + 1}::int8`,
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
  // Where there is no row, single columns need a whole one.
  const whole = (['incoming', 'local'] as const).find((each) => rowOf(record, each, table));
  const parts = [row === null && side === undefined && whole ? `${whole}_row` : 'key'];
  if (side !== undefined) parts.push(`${side}_row`);
  if ('file' in choice) parts.push('$2::jsonb');
  for (const [name, from] of 'merge' in choice ? choice.merge : []) {
    parts.push(`jsonb_build_object(${literal(name)}, ${from}_row -> ${literal(name)})`);
  }
  const source = `select ${parts.join(' || ')} as row from coregent.conflicts where id = $1`;
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
