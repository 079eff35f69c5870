import type pg from 'pg';
import type { Write } from '../history.ts';
import { imageSql, keySql, type RegisterTable } from '../tables.ts';
import type { Settle, Work } from './writer.ts';

interface Before {
  readonly version: bigint;
  readonly n: number | undefined;
}

/** What a register transaction may be told. */
export interface RegisterOptions {
  /** A column whose value is incremented; the history keeps it before and after. */
  readonly counts?: string;
  /** Whether a long value is left alone. */
  readonly left?: boolean;
}

const tombstones = new Map<string, string>();

/**
 * Runs `body` between a look at rows and another, both under their locks, and gives what records the difference: by version, what
 * replaced what, and the image of each row as it is to be seen everywhere.
 * `keys` are all rows that the body may touch.
 */
export async function register(
  work: Work,
  table: RegisterTable,
  keys: readonly string[],
  body: () => Promise<void>,
  options: RegisterOptions = {},
): Promise<Settle | undefined> {
  const { client, history, region, index } = work;
  // A lock on a row that another writer deletes and inserts again finds neither: what it replaced would not be known.
  await client.query('select pg_advisory_xact_lock(hashtext($1), hashtext(key)) from unnest($2::text[]) key', [
    table.name,
    [...keys].sort(),
  ]);
  const buried = new Map([...(await readRows(client, table, keys))].map(([key, { version }]) => [key, version]));
  const before = await lockRows(client, table, keys, options.counts);
  await body();
  const after = await readRows(client, table, keys, options.counts);
  const writes: Write[] = [];
  const isOwn = (version: bigint): boolean => Number(version & 127n) === index + 1;
  for (const [key, row] of after) {
    const was = before.get(key);
    if (was?.version === row.version || buried.get(key) === row.version) continue;
    // What another region wrote may arrive in between.
    if (!isOwn(row.version)) continue;
    const known = buried.get(key);
    const saw = [was?.version, known, ...row.parents].filter((version) => version !== undefined);
    writes.push({
      table: table.name,
      key,
      region,
      version: row.version,
      saw,
      image: row.image,
      ...(row.image !== null && row.tombstone !== undefined && row.tombstone > (known ?? -1n) && isOwn(row.tombstone)
        ? { deleted: row.tombstone }
        : {}),
      left: options.left === true && was !== undefined && row.image !== null,
      ...(was?.n !== undefined && row.n !== undefined ? { step: { from: was.n, to: row.n } } : {}),
      verdict: 'unknown',
    });
  }
  if (writes.length === 0) return undefined;
  return (end) => {
    if (end === 'no') return;
    for (const write of writes) {
      write.verdict = end;
      history.record(write);
    }
  };
}

async function lockRows(
  client: pg.Client,
  table: RegisterTable,
  keys: readonly string[],
  counts: string | undefined,
): Promise<Map<string, Before>> {
  const { rows } = await client.query(
    `select ${keySql(table, 't')} as key, t._coregent_version as version, ${counts ? `t.${counts}` : 'null'} as n
      from ${table.name} t where ${keySql(table, 't')} = any ($1) order by 1 for update`,
    [keys],
  );
  return new Map(rows.map((row) => [row.key, { version: BigInt(row.version), n: numberOf(row.n) }]));
}

interface After {
  readonly version: bigint;
  /** Version of the tombstone, where one is beside a row. */
  readonly tombstone: bigint | undefined;
  /** Of the row and of its tombstone. */
  readonly parents: readonly bigint[];
  readonly image: string | null;
  readonly n: number | undefined;
}

async function readRows(
  client: pg.Client,
  table: RegisterTable,
  keys: readonly string[],
  counts?: string,
): Promise<Map<string, After>> {
  const buried = await tombstonesOf(client, table);
  const { rows } = await client.query(
    `select ${keySql(table, 'x')} as key, x._coregent_version as version, x._coregent_parent as parent, null as image, null as n
      from ${buried} x where ${keySql(table, 'x')} = any ($1)
    union all
    select ${keySql(table, 't')}, t._coregent_version, t._coregent_parent, ${imageSql(table, 't')}, ${counts ? `t.${counts}::text` : 'null'}
      from ${table.name} t where ${keySql(table, 't')} = any ($1)`,
    [keys],
  );
  const found = new Map<string, After>();
  for (const row of rows) {
    const version = BigInt(row.version);
    const other = found.get(row.key);
    const parents = [BigInt(row.parent), ...(other?.parents ?? [])];
    const one = { version, image: row.image, n: numberOf(row.n) };
    const newest = other && other.version > version ? other : one;
    found.set(row.key, { ...newest, parents, tombstone: row.image === null ? version : other?.tombstone });
  }
  return found;
}

function numberOf(value: unknown): number | undefined {
  return value === null || value === undefined ? undefined : Number(value);
}

/** The tombstones of a table: named alike in every region. */
export async function tombstonesOf(client: Pick<pg.Client, 'query'>, { name }: { name: string }): Promise<string> {
  const known = tombstones.get(name);
  if (known !== undefined) return known;
  const { rows } = await client.query(
    `select 'coregent.tomb_' || table_id as name from coregent.tables where schema_name = 'public' and table_name = $1`,
    [name],
  );
  if (!rows[0]) throw new Error(`${name} is not replicated`);
  tombstones.set(name, rows[0].name);
  return rows[0].name;
}
