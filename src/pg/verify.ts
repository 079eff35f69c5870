import type { Config } from '../config.ts';
import { parseExact } from '../model/json.ts';
import { LSN_ZERO } from '../model/lsn.ts';
import { familyOf } from '../model/rule.ts';
import { OURS, PARENT, STATE, type Table, tableId, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import { Modules } from '../modules.ts';
import { ident, literal, qualified } from '../quote.ts';
import { joinVectors, NOTHING_SEEN, type Vector } from '../resolve/vector.ts';
import { barrier } from './barrier.ts';
import { readTables } from './catalog.ts';
import { connect } from './connect.ts';
import { decidersOf } from './deciders.ts';
import { parentsFirst, readForeignKeys } from './foreign.ts';
import { joinTable, keyIn } from './join.ts';
import { readOrphans } from './orphans.ts';
import { readPaused, sayPaused } from './paused.ts';
import type { OpenRegion } from './setup.ts';
import { Store } from './store.ts';
import { prepareTargets } from './target.ts';

/** What one region has under a key. */
export interface Seen {
  /** Null when there is no row. */
  readonly version: string | null;
  readonly hash: string | null;
  /** The application's columns. */
  readonly row: Readonly<Record<string, unknown>> | null;
  /** What the table's rule keeps beside them; null where it keeps nothing. */
  readonly state: unknown;
}

/** A key under which regions differ although each has applied all that the others had written. */
export interface Difference {
  readonly table: string;
  /** The key's columns, each as text. */
  readonly key: Readonly<Record<string, string>>;
  /** In the order of the regions. */
  readonly regions: readonly Seen[];
}

/** The comparison of one table. */
export interface TableVerdict {
  readonly table: string;
  /** Rows per region when they were counted, in the order of the regions. */
  readonly rows: readonly number[];
  readonly differences: readonly Difference[];
  /** Rows that were written anew each time they were looked at, and were never behind. */
  readonly moving: number;
  /** Why the table pauses between which regions; then its rows are not compared. */
  readonly paused: readonly string[];
}

/** Rows are compared in so many groups, by hash of the key; only groups that differ are looked at row by row. */
const BUCKETS = 4096;
/** How often a row that goes on changing is looked at again. */
const ROUNDS = 5;
const KEYS_PER_QUERY = 2_000;

/**
 * Compares the regions' rows of one table while writes go on: digests first, then the rows of groups whose digests differ.
 * A row differs only if a region does not have it although it has confirmed everything written before the row was seen
 * (`barrier`), so writes under way are never taken for differences. Throws `peer_behind` when a region does not follow.
 */
export async function verifyTable(config: Config, open: readonly OpenRegion[], table: Table): Promise<TableVerdict> {
  const paused = await pausedIn(config, open, table);
  if (paused.length > 0) return { table: tableLabel(table), rows: [], differences: [], moving: 0, paused };
  const digests = await Promise.all(open.map(({ client }) => digest(client, table)));
  const rows = digests.map((each) => [...each.values()].reduce((sum, { count }) => sum + count, 0));
  const buckets: number[] = [];
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    const first = digests[0]!.get(bucket)?.digest;
    if (digests.some((each) => each.get(bucket)?.digest !== first)) buckets.push(bucket);
  }
  const verdict = { table: tableLabel(table), rows };
  if (buckets.length === 0) return { ...verdict, differences: [], moving: 0, paused: [] };

  let suspects = await suspectsIn(open, table, buckets);
  const differences: Difference[] = [];
  for (let round = 0; suspects.length > 0 && round < ROUNDS; round++) {
    await barrier(config, open);
    const now = await look(
      open,
      table,
      suspects.map(({ key }) => key),
    );
    const next: Suspect[] = [];
    for (const [index, before] of suspects.entries()) {
      const regions = now[index]!;
      if (regions.every(({ hash }) => hash === regions[0]!.hash)) continue;
      // Everyone has confirmed what was there before: whoever still does not know it, or knows the same in other bytes, differs.
      const behind = regions.some(({ knows }) => !includes(knows, before.known));
      const known = regions.map(({ knows }) => knows).reduce(joinVectors);
      const twins = regions.every(({ knows }) => includes(knows, known));
      if (behind || twins) {
        const seen = regions.map(({ version, hash, row, state }) => ({ version, hash, row, state }));
        differences.push({ table: verdict.table, key: before.key, regions: seen });
      } else next.push({ key: before.key, known });
    }
    suspects = next;
  }
  return { ...verdict, differences, moving: suspects.length, paused: [] };
}

/** What stands between regions and their comparison: rows of the table are passed over, or being joined. */
async function pausedIn(config: Config, open: readonly OpenRegion[], table: Table): Promise<string[]> {
  const found: string[] = [];
  for (const { region, client } of open) {
    for (const paused of await readPaused(client, config, region, tableId(table))) {
      found.push(sayPaused(region.name, paused));
    }
  }
  return found;
}

/** Joins the rows that differ from every region into every other. The rows' own rule decides, as it does for the stream. */
export async function repair(
  config: Config,
  open: readonly OpenRegion[],
  differences: readonly Difference[],
): Promise<void> {
  const modules = new Modules(config.path);
  for (const to of open) {
    const apply = await connect(to.region.url, to.region.name, { purpose: 'repair', applies: true });
    try {
      const tables = await readTables(apply, to.region.name);
      const targets = await prepareTargets(apply, tables);
      const foreign = await readForeignKeys(apply, tables);
      const store = new Store({
        client: apply,
        targets,
        lsn: LSN_ZERO,
        fetch: () => Promise.reject(new Error('copied rows are whole')),
        foreign,
        orphans: await readOrphans(apply, tables, foreign),
        deciders: decidersOf(modules),
      });
      for (const target of parentsFirst(targets, foreign)) {
        const keys = differences
          .filter(({ table }) => table === tableLabel(target.staging.table))
          .map(({ key }) => key);
        for (const from of open) {
          if (from === to) continue;
          for (const some of chunks(keys)) await joinTable(from.client, store, target, { only: some });
        }
      }
    } finally {
      await apply.end().catch(() => {});
      await modules.close();
    }
  }
}

interface Suspect {
  readonly key: Readonly<Record<string, string>>;
  /** What any region knew of the key when it was looked at. */
  readonly known: Vector;
}

/** What one region has, and which writes of the key it knows. */
interface Look extends Seen {
  readonly knows: Vector;
}

/** The writes that a row or a tombstone stands for, as JSON: its version, and all before it; or by region, where the rule goes by that. */
function knows(table: Table): string {
  const version = `t.${ident(VERSION)}`;
  if (familyOf(table.rule) !== 'versions') return `json_build_object('0', ${version})::text`;
  return `coregent.row_seen(${version}, t.${ident(PARENT)}, t.${ident(STATE)})::text`;
}

function includes(known: Vector, other: Vector): boolean {
  return [...other].every(([region, version]) => (known.get(region) ?? -1n) >= version);
}

function readVector(json: string): Vector {
  const read = parseExact(json) as Record<string, number | bigint | string>;
  return new Map(Object.entries(read).map(([region, version]) => [Number(region), BigInt(version)]));
}

/** A text of the row that is the same in every region: columns by name, values as text in the C collation. */
function image(table: Table): string {
  const names = [...table.columns.map((column) => column.name).sort(), VERSION];
  return `hashtextextended(row(${names.map((name) => `t.${ident(name)}`).join(', ')})::text collate "C", 0)`;
}

function bucketOf(table: Table): string {
  return `(hashtextextended(row(${table.key.map((name) => `t.${ident(name)}`).join(', ')})::text collate "C", 1) & ${BUCKETS - 1})::int`;
}

/** The key as a JSON object of texts: numbers of any size stay exact. */
function keyJson(table: Table): string {
  return `jsonb_build_object(${table.key.map((name) => `${literal(name)}, t.${ident(name)}::text`).join(', ')})`;
}

async function digest(
  client: OpenRegion['client'],
  table: Table,
): Promise<Map<number, { count: number; digest: string }>> {
  const { rows } = await client.query(
    `select ${bucketOf(table)} as bucket, count(*)::float8 as count, bit_xor(${image(table)})::text as digest
      from ${qualified(table.schema, table.name)} t group by 1`,
  );
  return new Map(rows.map((row) => [row.bucket, { count: row.count, digest: `${row.count} ${row.digest}` }]));
}

async function suspectsIn(open: readonly OpenRegion[], table: Table, buckets: readonly number[]): Promise<Suspect[]> {
  const perRegion = await Promise.all(
    open.map(async ({ client }) => {
      const { rows } = await client.query(
        `select ${keyJson(table)} as key, ${knows(table)} as knows, ${image(table)}::text as hash
          from ${qualified(table.schema, table.name)} t where ${bucketOf(table)} = any ($1)`,
        [buckets],
      );
      return new Map(rows.map((row) => [JSON.stringify(row.key), row]));
    }),
  );
  const suspects: Suspect[] = [];
  for (const text of new Set(perRegion.flatMap((each) => [...each.keys()]))) {
    const found = perRegion.map((each) => each.get(text));
    if (found.every((row) => row?.hash === found[0]?.hash)) continue;
    suspects.push({
      key: JSON.parse(text),
      known: found.map((row) => (row ? readVector(row.knows) : NOTHING_SEEN)).reduce(joinVectors),
    });
  }
  return suspects;
}

/** What every region has now under these keys: per key, in the order of the regions. A deleted row has its tombstone's version. */
async function look(open: readonly OpenRegion[], table: Table, keys: readonly Suspect['key'][]): Promise<Look[][]> {
  const perRegion = await Promise.all(
    open.map(async ({ client }) => {
      const found = new Map<string, Look>();
      for (const some of chunks(keys)) {
        const tombs = qualified('coregent', tombstoneName(table));
        const { rows } = await client.query(
          `select ${keyJson(table)} as key, t.${ident(VERSION)}::text as version, ${knows(table)} as knows, null as hash, null as row, null as state from ${tombs} t where ${keyIn(table, some)}
          union all
          select ${keyJson(table)}, t.${ident(VERSION)}::text, ${knows(table)}, ${image(table)}::text, to_jsonb(t.*) - array[${OURS.map(literal).join(', ')}], to_jsonb(t.*) -> ${literal(STATE)} from ${qualified(table.schema, table.name)} t where ${keyIn(table, some)}`,
        );
        // Rows come behind tombstones and take their place: a row that is there is newer than its tombstone.
        for (const { key, knows, ...seen } of rows) {
          const at = JSON.stringify(key);
          found.set(at, { ...seen, knows: joinVectors(found.get(at)?.knows ?? NOTHING_SEEN, readVector(knows)) });
        }
      }
      return found;
    }),
  );
  return keys.map((key) =>
    perRegion.map(
      (each) =>
        each.get(JSON.stringify(key)) ?? { version: null, hash: null, row: null, state: null, knows: NOTHING_SEEN },
    ),
  );
}

function* chunks<T>(items: readonly T[]): Generator<readonly T[]> {
  for (let at = 0; at < items.length; at += KEYS_PER_QUERY) yield items.slice(at, at + KEYS_PER_QUERY);
}
