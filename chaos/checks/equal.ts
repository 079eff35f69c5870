import { tombstonesOf } from '../load/register.ts';
import { ANSWERS_BY, type RegisterTable, VERSIONED } from '../tables.ts';
import type { Asked, Verdict } from './verdict.ts';

/** Differences that are told of each table. */
const SHOWN = 5;

/** Tables of schema `public` that are replicated, with their key's columns. */
async function tablesOf({ query }: Asked): Promise<{ name: string; key: readonly string[] }[]> {
  const { rows } = await query(
    `select t.table_name as name, (select array_agg(a.attname::text order by a.attname)
        from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
        where i.indrelid = format('%I.%I', t.schema_name, t.table_name)::regclass and i.indisprimary) as key
      from coregent.tables t where t.schema_name = 'public' order by 1`,
  );
  return rows as { name: string; key: string[] }[];
}

/** By key, the rest of the row as text; columns by name, so that their order does not count. */
async function imagesOf({ query }: Asked, table: string): Promise<Map<string, number>> {
  const { rows: columns } = await query(
    `select string_agg(format('t.%I', attname), ', ' order by attname) as list from pg_attribute
      where attrelid = $1::regclass and attnum > 0 and not attisdropped`,
    [table],
  );
  const { rows } = await query(
    `select case when length(image) > 200 then left(image, 160) || ' … ' || md5(image) else image end as image, count(*)::int as times
      from (select row(${columns[0].list})::text collate "C" as image from ${table} t) x group by 1`,
  );
  return new Map(rows.map(({ image, times }) => [image, times]));
}

async function digestOf({ query }: Asked, table: string): Promise<{ digest: string; rows: number }> {
  const { rows: columns } = await query(
    `select string_agg(format('t.%I', attname), ', ' order by attname) as list from pg_attribute
      where attrelid = $1::regclass and attnum > 0 and not attisdropped`,
    [table],
  );
  const { rows } = await query(
    `select count(*)::int as rows, coalesce(md5(string_agg(digest, '' order by digest)), '') as digest
      from (select md5(row(${columns[0].list})::text) collate "C" as digest from ${table} t) x`,
  );
  return rows[0];
}

async function tombstonesIn({ query }: Asked, table: RegisterTable | { name: string; key: readonly string[] }) {
  const key = `row(${table.key.map((name) => `x.${name}`).join(', ')})::text`;
  const buried = await tombstonesOf({ query } as never, table);
  const { rows } = await query(`select ${key} as key, x._coregent_version as version from ${buried} x`);
  return new Map(rows.map((row) => [row.key as string, BigInt(row.version)]));
}

/**
 * INV-C: all regions have the same rows, column by column, versions and parents included, and no tombstone of any region forbids a row of
 * any other. Tombstones of a key that several regions keep are the same; if none was forgotten, all regions keep all of them.
 */
export async function checkEqual(
  regions: readonly Asked[],
  options: { readonly tombstonesStay: boolean; readonly answersBy?: typeof ANSWERS_BY },
): Promise<Verdict> {
  const { tombstonesStay, answersBy = ANSWERS_BY } = options;
  const violations: string[] = [];
  let rows = 0;
  let tombstones = 0;
  const tables = await tablesOf(regions[0]!);
  for (const table of tables) {
    const digests = await Promise.all(regions.map((region) => digestOf(region, table.name)));
    rows += digests[0]!.rows;
    if (!(table.name in answersBy)) violations.push(`${table.name}: no law answers for what is written to it`);
    if (digests.some(({ digest }) => digest !== digests[0]!.digest)) {
      violations.push(...(await differences(regions, table.name)));
    }
    const buried = await Promise.all(regions.map((region) => tombstonesIn(region, table)));
    tombstones += buried.reduce((sum, { size }) => sum + size, 0);
    violations.push(...tombstonesDiffer(regions, table.name, buried, tombstonesStay));
    // Of several versions one may be older than a delete that had not seen it.
    if (!(table.name in VERSIONED)) violations.push(...(await rowsThatShouldBeGone(regions, table, buried)));
  }
  return {
    name: 'INV-C',
    law: 'all regions have the same rows and compatible tombstones',
    cases: { tables: tables.length, rows, tombstones },
    violations,
  };
}

async function differences(regions: readonly Asked[], table: string): Promise<string[]> {
  const images = await Promise.all(regions.map((region) => imagesOf(region, table)));
  const all = new Set(images.flatMap((each) => [...each.keys()]));
  const odd = [...all].filter((image) => images.some((each) => each.get(image) !== images[0]!.get(image))).sort();
  return [
    `${table}: ${odd.length} rows are not alike in all regions`,
    ...odd.slice(0, SHOWN).map((image) => {
      const where = regions.filter((_, index) => images[index]!.has(image)).map(({ name }) => name);
      return `  ${table}: only in ${where.join(', ')}: ${image}`;
    }),
  ];
}

function tombstonesDiffer(
  regions: readonly Asked[],
  table: string,
  buried: readonly ReadonlyMap<string, bigint>[],
  stay: boolean,
): string[] {
  const found: string[] = [];
  for (const key of new Set(buried.flatMap((each) => [...each.keys()]))) {
    const versions = buried.map((each) => each.get(key));
    const known = new Set(versions.filter((version) => version !== undefined));
    if (known.size === 1 && (!stay || !versions.includes(undefined))) continue;
    const each = regions.map(({ name }, index) => `${name} ${versions[index] ?? 'none'}`);
    found.push(`${table} ${key}: tombstones differ: ${each.join(', ')}`);
  }
  return found.slice(0, SHOWN);
}

async function rowsThatShouldBeGone(
  regions: readonly Asked[],
  table: { name: string; key: readonly string[] },
  buried: readonly ReadonlyMap<string, bigint>[],
): Promise<string[]> {
  const newest = new Map<string, bigint>();
  for (const each of buried) {
    for (const [key, version] of each) if (version > (newest.get(key) ?? -1n)) newest.set(key, version);
  }
  if (newest.size === 0) return [];
  const found: string[] = [];
  const key = `row(${table.key.map((name) => `t.${name}`).join(', ')})::text`;
  for (const { name, query } of regions) {
    const { rows } = await query(
      `select k.key, t._coregent_version as version, k.version as buried from ${table.name} t
        join unnest($1::text[], $2::int8[]) k (key, version) on ${key} = k.key where t._coregent_version <= k.version`,
      [[...newest.keys()], [...newest.values()].map(String)],
    );
    for (const row of rows)
      found.push(`${name}: ${table.name} ${row.key} (${row.version}) was deleted at ${row.buried}`);
  }
  return found.slice(0, SHOWN);
}
