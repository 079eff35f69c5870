import fc from 'fast-check';
import type pg from 'pg';
import { expect, it, onTestFinished } from 'vitest';
import { parseExact } from '../../src/model/json.ts';
import { LWW, type Rule } from '../../src/model/rule.ts';
import { Secret } from '../../src/model/secret.ts';
import { deletesName, tombstoneName } from '../../src/model/table.ts';
import { makeVersion, microsOf, nextVersion, regionOf, type Version } from '../../src/model/version.ts';
import { connect } from '../../src/pg/connect.ts';
import { joinVectors, NOTHING_SEEN, type Vector, withWrite } from '../../src/resolve/vector.ts';
import { type Database, makeDatabase } from '../world/database.ts';
import { installRegion } from './region.ts';
import { attempt, key, SCHEMA, statement, TABLES } from './statements.ts';

/** This region; other regions' rows and tombstones are in its tables too, with versions of any time. */
const HERE = 5;
/** Cases; thousands find what hundreds do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 100);

let database: Database;
let client: pg.Client;

/** Every table under this rule. */
async function open(rule: Rule): Promise<void> {
  database = await makeDatabase(0);
  await database.query(SCHEMA);
  await installRegion(database.url, HERE, Object.fromEntries(TABLES.map((table) => [table, rule])));
  client = await connect(new Secret(database.url), 'here', { purpose: 'application' });
  await client.query('set search_path = public');
}

async function close(): Promise<void> {
  await client.end();
  await database.drop();
}

const deletes = (table: string): string => `coregent.${deletesName({ schema: 'public', name: table })}`;
const tombs = (table: string): string => `coregent.${tombstoneName({ schema: 'public', name: table })}`;

/** What another region may have left here before: rows and tombstones of any age, of the future too. */
const micros = fc.oneof(fc.constant(1n), fc.bigInt({ min: 10n ** 16n, max: 10n ** 16n + 5n }));
const left = fc.record({
  table: fc.constantFrom(...TABLES),
  id: key,
  kind: fc.constantFrom('before', 'row', 'tombstone', 'both'),
  version: fc.tuple(micros, fc.constantFrom(HERE, 2, 127)).map(([at, region]) => makeVersion(at, region)),
});

type Turn = { readonly sql: string } | 'begin' | 'commit' | 'rollback' | 'savepoint' | 'rollback to savepoint';
const turn: fc.Arbitrary<Turn> = fc.oneof(
  { weight: 5, arbitrary: statement.map((text) => ({ sql: text })) },
  {
    weight: 2,
    arbitrary: fc.constantFrom('begin', 'commit', 'rollback', 'savepoint', 'rollback to savepoint'),
  },
);

interface Stamp {
  readonly version: Version;
  readonly parent: Version;
  /** By region, what its author had seen, where the rule keeps that. */
  readonly seen: Vector | undefined;
}
interface Known {
  readonly row: (Stamp & { readonly text: string }) | undefined;
  readonly tombstone: Stamp | undefined;
}
type Snapshot = Map<string, Known>;

async function look(contexts: boolean): Promise<Snapshot> {
  const seen = contexts ? 'coregent.row_seen(_coregent_version, _coregent_parent, _coregent_state)::text' : 'null';
  const { rows } = await client.query(
    TABLES.flatMap((table) => [
      `select '${table} ' || id as key, 'row' as what, _coregent_version::text as version, _coregent_parent::text as parent, ${seen} as seen, t::text as text from ${table} t`,
      `select '${table} ' || id, 'tombstone', _coregent_version::text, _coregent_parent::text, ${seen}, null from ${tombs(table)}`,
    ]).join(' union all '),
  );
  const snapshot: Snapshot = new Map();
  for (const { key, what, version, parent, seen: context, text } of rows) {
    const at = snapshot.get(key) ?? { row: undefined, tombstone: undefined };
    const vector = context === null ? undefined : vectorOf(context);
    snapshot.set(key, { ...at, [what]: { version: BigInt(version), parent: BigInt(parent), seen: vector, text } });
  }
  return snapshot;
}

function vectorOf(json: string): Vector {
  const entries = Object.entries(parseExact(json) as Record<string, string | number>);
  return new Map(entries.map(([region, version]) => [Number(region), BigInt(version)]));
}

async function now(): Promise<bigint> {
  const { rows } = await client.query(`select (date_part('epoch', clock_timestamp()) * 1000000)::int8::text as micros`);
  return BigInt(rows[0].micros);
}

/** The laws of one statement, key by key. */
function check(before: Snapshot, after: Snapshot, earliest: bigint, latest: bigint): void {
  const known = [...before.values(), ...after.values()].flatMap(({ row, tombstone }) => [row, tombstone]);
  const next = new Set(known.map((stamp) => nextVersion(0n, HERE, stamp?.version ?? 0n)));
  for (const id of new Set([...before.keys(), ...after.keys()])) {
    const was = before.get(id) ?? { row: undefined, tombstone: undefined };
    const is = after.get(id) ?? { row: undefined, tombstone: undefined };
    const seen = [was.row, was.tombstone].filter((each) => each !== undefined).map(({ version }) => version);
    const fresh = (stamp: Stamp, further: readonly Version[] = []): void => {
      expect(regionOf(stamp.version), `${id}: the region that wrote`).toBe(HERE);
      for (const version of [...seen, ...further]) expect(stamp.version > version, `${id}: versions grow`).toBe(true);
      const inTime = microsOf(stamp.version) >= earliest && microsOf(stamp.version) <= latest;
      expect(inTime || next.has(stamp.version), `${id}: by the clock, or next to what was seen`).toBe(true);
    };
    const buriedNow = is.tombstone && is.tombstone.version !== was.tombstone?.version;
    if (buriedNow) fresh(is.tombstone, was.row ? [] : [is.tombstone.parent]);
    else expect(is.tombstone, `${id}: a tombstone stays`).toEqual(was.tombstone);
    if (was.row && !is.row) {
      expect(is.tombstone!.version > was.row.version, `${id}: what vanished is buried`).toBe(true);
      expect(is.tombstone!.parent, `${id}: a delete replaces the row`).toBe(was.row.version);
    }
    if (!is.row || is.row.text === was.row?.text) continue;
    const replaced = buriedNow || !was.row ? (is.tombstone?.version ?? -1n) : was.row.version;
    fresh(is.row, buriedNow ? [is.tombstone!.version] : []);
    expect(is.row.parent, `${id}: the parent is what was replaced`).toBe(replaced);
    if (is.tombstone) expect(is.row.version > is.tombstone.version, `${id}: a live row is newer`).toBe(true);
    if (is.row.seen) {
      const all = [was.row, was.tombstone, buriedNow ? is.tombstone : undefined].flatMap((each) => each?.seen ?? []);
      const context = withWrite(all.reduce(joinVectors, NOTHING_SEEN), is.row.version);
      expect(lined(is.row.seen), `${id}: it has seen what was here, itself, and nothing else`).toEqual(lined(context));
    }
  }
}

const lined = (vector: Vector): string[] => [...vector].map(([region, version]) => `${region} ${version}`).sort();

async function prepare(leftovers: readonly { table: string; id: number; kind: string; version: Version }[]) {
  const rows = new Map(leftovers.map((each) => [`${each.table} ${each.id}`, each]));
  await client.query(
    [
      'begin',
      `set local session_replication_role = replica`,
      ...TABLES.flatMap((table) => [`delete from ${table}`, `delete from ${tombs(table)}`]),
      ...[...rows.values()].flatMap(({ table, id, kind, version }) => {
        const buried = kind === 'tombstone' || kind === 'both';
        const burying = buried
          ? [
              `select nextval('${deletes(table)}')`,
              `insert into ${tombs(table)} (id, _coregent_version, _coregent_parent) values (${id}, ${version}, 0)`,
            ]
          : [];
        if (kind === 'tombstone') return burying;
        const stamp = kind === 'before' ? 0n : buried ? version + 128n : version;
        return [
          ...burying,
          `insert into ${table} (id, _coregent_version, _coregent_parent) values (${id}, ${stamp}, ${stamp && 1n})`,
        ];
      }),
      'commit',
    ].join(';'),
  );
}

it.each([
  ['whole rows', LWW, RUNS],
  ['versions side by side', { conflict: 'siblings', columns: {} } as const, Math.ceil(RUNS / 3)],
])(
  'whatever an application does, versions of a key grow, are ours, name what they replaced, and outlive the row: %s',
  async (_, rule, runs) => {
    await open(rule);
    onTestFinished(close);
    const contexts = rule !== LWW;
    const met = { rows: 0, tombstones: 0 };
    await fc.assert(
      fc.asyncProperty(
        fc.array(left, { maxLength: 6 }),
        fc.array(turn, { minLength: 1, maxLength: 25, size: 'max' }),
        async (leftovers, turns) => {
          await prepare(leftovers);
          let depth: 'none' | 'transaction' | 'savepoint' = 'none';
          try {
            for (const next of turns) {
              if (typeof next !== 'string') {
                const before = await look(contexts);
                const earliest = await now();
                await attempt(client, next.sql, depth !== 'none');
                const latest = await now();
                const after = await look(contexts);
                check(before, after, earliest, latest);
                for (const { row, tombstone } of after.values()) {
                  met.rows += Number(row !== undefined);
                  met.tombstones += Number(tombstone !== undefined);
                }
              } else if (next === 'begin') {
                if (depth === 'none') await client.query('begin');
                if (depth === 'none') depth = 'transaction';
              } else if (next === 'savepoint') {
                if (depth !== 'none') await client.query('savepoint mine');
                if (depth !== 'none') depth = 'savepoint';
              } else if (next === 'rollback to savepoint') {
                if (depth === 'savepoint') await client.query('rollback to savepoint mine');
              } else {
                if (depth !== 'none') await client.query(next);
                depth = 'none';
              }
            }
          } finally {
            if (depth !== 'none') await client.query('rollback');
          }
        },
      ),
      { numRuns: runs },
    );
    expect(met.rows).toBeGreaterThan(0);
    expect(met.tombstones).toBeGreaterThan(0);
  },
);
