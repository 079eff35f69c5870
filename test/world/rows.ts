import type pg from 'pg';

/** Runs one statement somewhere. */
export type Query = (text: string, values?: unknown[]) => Promise<pg.QueryResult>;

/** A region that can be asked. */
export interface Named {
  readonly region: string;
  readonly query: Query;
}

/** Rows that are printed of those that differ. */
const SHOWN = 10;

/**
 * Whether every region has the same rows in every replicated table, versions and parents included; `undefined` when so, else
 * a text that shows rows that differ. Written without Coregent's own comparison, so that neither hides the other's fault.
 */
export async function differences(regions: readonly Named[]): Promise<string | undefined> {
  const [first] = regions;
  const { rows: tables } = await first!.query(
    `select format('%I.%I', schema_name, table_name) as name, 'coregent.tomb_' || table_id as tombstones
      from coregent.tables order by 1`,
  );
  const found: string[] = [];
  for (const { name, tombstones } of tables) {
    const digests = await Promise.all(regions.map(({ query }) => digest(query, name)));
    if (digests.every((each) => each === digests[0])) continue;
    const rows = await Promise.all(regions.map(async ({ query }) => new Set(await images(query, name))));
    const odd = [...new Set(rows.flatMap((each) => [...each]))].filter((row) => !rows.every((each) => each.has(row)));
    found.push(`${name}: ${odd.length} row images are not in every region`);
    for (const row of odd.sort().slice(0, SHOWN)) {
      const where = regions.filter((_, index) => rows[index]!.has(row)).map(({ region }) => region);
      found.push(`  only in ${where.join(', ')}: ${row}`);
    }
    for (const { region, query } of regions) {
      for (const row of await buried(query, name, tombstones)) found.push(`  ${region} should have deleted: ${row}`);
    }
  }
  return found.length === 0 ? undefined : found.join('\n');
}

async function digest(query: Query, table: string): Promise<string> {
  const { rows } = await query(
    `select count(*) || ' ' || coalesce(md5(string_agg(image, E'\\n' order by image)), '') as digest from (${await imageSql(query, table)}) x`,
  );
  return rows[0].digest;
}

async function images(query: Query, table: string): Promise<string[]> {
  return (await query(await imageSql(query, table))).rows.map(({ image }) => image);
}

/** Columns by name, as text: the same in every region, whatever the order of the columns there. */
async function imageSql(query: Query, table: string): Promise<string> {
  const { rows } = await query(
    `select string_agg(format('t.%I', attname), ', ' order by attname) as columns
      from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped`,
    [table],
  );
  return `select row(${rows[0].columns})::text collate "C" as image from ${table} t`;
}

/** Rows that are there although a newer tombstone of their key is there too. */
async function buried(query: Query, table: string, tombstones: string): Promise<string[]> {
  const { rows } = await query(
    `select string_agg(format('t.%1$I = x.%1$I', a.attname), ' and ') as same
      from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
      where i.indrelid = $1::regclass and i.indisprimary`,
    [table],
  );
  const found = await query(
    `select row(t)::text || ', deleted by ' || x._coregent_version as image from ${table} t join ${tombstones} x on ${rows[0].same}
      where t._coregent_version < x._coregent_version limit ${SHOWN}`,
  );
  return found.rows.map(({ image }) => image);
}
