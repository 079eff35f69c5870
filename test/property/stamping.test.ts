import fc from 'fast-check';
import type pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { Secret } from '../../src/model/secret.ts';
import { deletesName, tombstoneName } from '../../src/model/table.ts';
import { makeVersion, microsOf, nextVersion, regionOf, type Version } from '../../src/model/version.ts';
import { connect } from '../../src/pg/connect.ts';
import { type Database, makeDatabase } from '../world/database.ts';
import { installRegion } from './region.ts';
import { attempt, key, SCHEMA, statement, TABLES } from './statements.ts';

/** This region; other regions' rows and tombstones are in its tables too, with versions of any time. */
const HERE = 5;
/** Cases; thousands find what hundreds do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 100);

let database: Database;
let client: pg.Client;

beforeAll(async () => {
  database = await makeDatabase(0);
  await database.query(SCHEMA);
  await installRegion(database.url, HERE);
  client = await connect(new Secret(database.url), 'here', { purpose: 'application' });
  await client.query('set search_path = public');
});

afterAll(async () => {
  await client.end();
  await database.drop();
});

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
}
interface Known {
  readonly row: (Stamp & { readonly text: string }) | undefined;
  readonly tombstone: Stamp | undefined;
}
type Snapshot = Map<string, Known>;

async function look(): Promise<Snapshot> {
  const { rows } = await client.query(
    TABLES.flatMap((table) => [
      `select '${table} ' || id as key, 'row' as what, _coregent_version::text as version, _coregent_parent::text as parent, t::text as text from ${table} t`,
      `select '${table} ' || id, 'tombstone', _coregent_version::text, _coregent_parent::text, null from ${tombs(table)}`,
    ]).join(' union all '),
  );
  const snapshot: Snapshot = new Map();
  for (const { key, what, version, parent, text } of rows) {
    const at = snapshot.get(key) ?? { row: undefined, tombstone: undefined };
    snapshot.set(key, { ...at, [what]: { version: BigInt(version), parent: BigInt(parent), text } });
  }
  return snapshot;
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
  }
}

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
          ? [`select nextval('${deletes(table)}')`, `insert into ${tombs(table)} values (${id}, ${version}, 0)`]
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

it('whatever an application does, versions of a key grow, are ours, name what they replaced, and outlive the row', async () => {
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
              const before = await look();
              const earliest = await now();
              await attempt(client, next.sql, depth !== 'none');
              const latest = await now();
              const after = await look();
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
    { numRuns: RUNS },
  );
  expect(met.rows).toBeGreaterThan(0);
  expect(met.tombstones).toBeGreaterThan(0);
});
