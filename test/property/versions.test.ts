import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Rule } from '../../src/model/rule.ts';
import { tombstoneName } from '../../src/model/table.ts';
import type { Version } from '../../src/model/version.ts';
import type { Target } from '../../src/pg/target.ts';
import {
  type Conflict,
  conflicts,
  firstWrite,
  join,
  lastSibling,
  type Shows,
  type State,
  seenFrom,
  stateOf,
  UNKNOWN,
} from '../../src/resolve/versions.ts';
import { type Database, makeDatabase } from '../world/database.ts';
import { integerKey, type KeyBytes, numericKey } from './deliver.ts';
import {
  batchesOf,
  type Transaction as Collapsible,
  collapse,
  histories,
  imageOf,
  meetingOf,
  REGIONS,
  type Region,
  textOf,
} from './history.ts';
import { type Applier, installRegion, moduleRule, openApplier } from './region.ts';
import {
  deliver,
  deliverJoin,
  fetchFrom,
  type Message,
  type Played,
  play,
  type Stored,
  storedOf,
  type Transaction,
} from './versions.ts';

/** Cases of each property; thousands find what hundreds do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 15);
const TIMEOUT_MS = Math.max(240_000, RUNS * 2_000);

interface Kept {
  readonly name: string;
  readonly key: 'int' | 'numeric';
  readonly keyBytes: KeyBytes;
  readonly rule: Rule;
  readonly shows: Shows;
}

/** As the function `put_together` in the databases and the module `together`: of all versions something, of the last one the rest. */
const both: Shows = (versions) => {
  const last = imageOf(versions.at(-1)!.value);
  return { value: textOf({ ...last, a: versions.map(({ value }) => imageOf(value).a).join('-') }), version: undefined };
};

const KEPT: readonly Kept[] = [
  {
    ...{ name: 'firsts', key: 'numeric', keyBytes: numericKey },
    ...{ rule: { conflict: 'fww', columns: {} }, shows: firstWrite },
  },
  {
    ...{ name: 'carts', key: 'int', keyBytes: integerKey },
    ...{ rule: { conflict: 'siblings', columns: {} }, shows: lastSibling },
  },
  {
    ...{ name: 'sums', key: 'int', keyBytes: integerKey },
    ...{ rule: { conflict: 'custom', columns: {}, custom: 'public.put_together' }, shows: both },
  },
  {
    ...{ name: 'mixes', key: 'numeric', keyBytes: numericKey },
    ...{ rule: moduleRule('together'), shows: both },
  },
];

const databases: Database[] = [];
const appliers = new Map<Region, Applier>();

beforeAll(async () => {
  for (const region of REGIONS) {
    const database = await makeDatabase(region - 1);
    databases.push(database);
    for (const { name, key } of KEPT)
      await database.query(`create table ${name} (id ${key} primary key, a text, b text)`);
    await database.query(
      `create function put_together(versions sums[]) returns sums language plpgsql immutable set search_path = public as $$
      declare
        one sums := versions[array_upper(versions, 1)];
      begin
        one.a := (select string_agg(v.a, '-' order by v._coregent_version) from unnest(versions) v);
        return one;
      end $$`,
    );
    await installRegion(database.url, region, Object.fromEntries(KEPT.map(({ name, rule }) => [name, rule])));
    for (const peer of REGIONS) {
      await database.query(
        `insert into coregent.progress (slot, peer_id, system_identifier, timeline, lsn) values ($1, $2, '', 1, '0/0')`,
        [slotOf(peer), peer],
      );
    }
    appliers.set(region, await openApplier(database.url));
  }
});
afterAll(async () => {
  for (const applier of appliers.values()) await applier[Symbol.asyncDispose]();
  for (const database of databases) await database.drop();
});

const slotOf = (peer: Region): string => `from_${peer}`;

interface Place extends Kept {
  readonly applier: Applier;
  readonly target: Target;
  readonly table: string;
  readonly tombs: string;
}

async function emptyPlace(kept: Kept, region: Region): Promise<Place> {
  const applier = appliers.get(region)!;
  const table = `public.${kept.name}`;
  const target = applier.targets.get(table)!;
  const tombs = `coregent.${tombstoneName(target.staging.table)}`;
  await applier.client.query(
    `delete from ${table}; delete from ${tombs}; delete from coregent.conflict_record;
    delete from coregent.parked; update coregent.progress set lsn = '0/0'`,
  );
  return { ...kept, applier, target, table, tombs };
}

type Content = Readonly<Record<string, unknown>>;

async function contentOf({ applier, table, tombs }: Place): Promise<Content> {
  const { rows } = await applier.client.query(
    `select 'row ' || trim_scale(id::numeric) as key, row(a, b, id)::text as value, _coregent_version::text as v, _coregent_parent::text as p,
      _coregent_state::text as state from ${table} where id < 1000
    union all select 'tombstone ' || trim_scale(id::numeric), null, _coregent_version::text, _coregent_parent::text, _coregent_state::text from ${tombs}
    order by 1`,
  );
  return Object.fromEntries(
    rows.map(({ key, value, v, p, state }) => [key, { value, v, p, state: JSON.parse(state ?? 'null') }]),
  );
}

/** What the specification says that a region holds that knows this. */
function contentBy(states: ReadonlyMap<number, State>, shows: Shows): Content {
  const line = ({ version, parent, state, value }: Stored) => ({
    ...{ value: value ?? null, v: String(version), p: String(parent) },
    state,
  });
  const content: [string, unknown][] = [];
  for (const [key, state] of states) {
    const { row, tombstone } = storedOf(state, shows);
    if (row) content.push([`row ${key}`, line(row)]);
    if (tombstone) content.push([`tombstone ${key}`, line(tombstone)]);
  }
  return Object.fromEntries(content);
}

type Met = Conflict & { readonly key: number };
const lines = (all: readonly Met[]): string[] =>
  all
    .map(({ key, kind, localVersion, incomingVersion }) => `key ${key} ${kind} ${localVersion} ${incomingVersion}`)
    .sort();

async function conflictsOf({ applier, table }: Place): Promise<string[]> {
  const { rows } = await applier.client.query(
    `select kind, local_version::text as local, incoming_version::text as incoming, (key->>'id')::numeric::int as key
      from coregent.conflict_record where table_name = $1`,
    [table],
  );
  return lines(
    rows.map(({ kind, local, incoming, key }) => ({
      ...{ kind, key, localVersion: BigInt(local), incomingVersion: BigInt(incoming) },
    })),
  );
}

/** The conflicts that a region must record while it goes through its events. */
function expectedConflicts(played: Played, region: Region, streamed: boolean): string[] {
  const states = new Map<number, State>();
  for (const [key, value] of played.before.get(region)!) {
    states.set(key, stateOf({ kind: 'insert', version: 0n, parent: 0n, seen: seenFrom(0n, 0n), value }));
  }
  const found: Met[] = [];
  const known = (key: number): State => states.get(key) ?? UNKNOWN;
  const learn = (key: number, state: State): void => void states.set(key, join(known(key), state));
  const meet = (key: number, ...writes: (Message | Parameters<typeof stateOf>[0])[]): void => {
    for (const met of writes.flatMap((write) => conflicts(known(key), write))) {
      const named = meetingOf({ ...met, key });
      const twice = met.localVersion !== met.incomingVersion && found.some((each) => meetingOf(each) === named);
      if (!twice) found.push({ ...met, key });
    }
    for (const write of writes) learn(key, stateOf(write));
  };
  for (const event of played.events.get(region)!) {
    if (event.do === 'write') {
      states.set(event.key, event.state);
    } else if (event.do === 'join') {
      for (const [key, { buried }] of event.states) if (buried) meet(key, { kind: 'delete', ...buried });
      for (const [key, { versions }] of event.states) {
        meet(key, ...versions.map((each) => ({ kind: 'insert' as const, ...each })));
      }
    } else {
      const together = streamed ? event.transactions.map((each) => [each]) : [event.transactions];
      // Collapsed as those of the other rules are.
      const batches = together.flatMap((all) => batchesOf(all as unknown as Collapsible[], event.rows));
      for (const batch of batches) {
        for (const [key, left] of collapse(batch)) {
          const { tombstone, row } = left as { tombstone?: Message; row?: Message };
          // A deleter who has since updated the row that is here has taken the delete back: it meets nothing.
          if (tombstone && row && succeeds(row, known(key))) learn(key, stateOf(tombstone));
          else if (tombstone) meet(key, tombstone);
          if (row) meet(key, row);
        }
      }
    }
  }
  return lines(found);
}

/** Whether the update plainly follows the one version that is here. */
function succeeds(write: Message, { versions }: State): boolean {
  const [here] = versions;
  if (write.kind !== 'update' || !here || versions.length > 1 || here.version >= write.version) return false;
  const followed = [write.first, write.parent].includes(here.version);
  return write.leavesB ? followed : followed || (here.version & 127n) === (write.version & 127n);
}

interface Manner {
  readonly spellings: boolean;
  readonly leavesOut: boolean;
  readonly padding: number;
  readonly streamed: boolean;
}
const manners = (spellings: boolean): fc.Arbitrary<Manner> =>
  fc.record({
    spellings: fc.constant(spellings),
    leavesOut: fc.boolean(),
    padding: fc.constantFrom(0, 0, 45),
    streamed: fc.boolean(),
  });

const imagesOf = (played: Played): Map<string, Stored> =>
  new Map(
    played.messages.flatMap((each) =>
      each.kind === 'delete'
        ? []
        : [[`${each.key} ${each.version}`, storedOf(stateOf(each), lastSibling).row!] as const],
    ),
  );

/** Writes what a local write leaves of a key. */
function localSql(key: number, state: State, { table, tombs, shows }: Place): string {
  const { row, tombstone } = storedOf(state, shows);
  const stamp = ({ version, parent, state: more }: Stored): string =>
    `${version}, ${parent}, ${more === null ? 'null' : `'${JSON.stringify(more)}'`}`;
  const columns = '_coregent_version, _coregent_parent, _coregent_state';
  const statements = [`delete from ${table} where id = ${key}`, `delete from ${tombs} where id = ${key}`];
  if (row) {
    const { id, a, b } = imageOf(row.value!);
    statements.push(`insert into ${table} (id, a, b, ${columns}) values (${id}, '${a}', '${b}', ${stamp(row)})`);
  }
  if (tombstone) statements.push(`insert into ${tombs} (id, ${columns}) values (${key}, ${stamp(tombstone)})`);
  return `${statements.join(';')};`;
}

async function replay(kept: Kept, played: Played, region: Region, manner: Manner) {
  const place = await emptyPlace(kept, region);
  const { applier, target, keyBytes, table, shows } = place;
  const written = imagesOf(played);
  const fetch = fetchFrom((key, version) => written.get(`${key} ${version}`), keyBytes);
  const stores = new Map(REGIONS.map((peer) => [peer, applier.store({ slot: slotOf(peer), peerId: peer, fetch })]));
  const receipts = [];
  const local = [...played.before.get(region)!.values()].map((value) => {
    const { id, a, b } = imageOf(value);
    return `insert into ${table} values (${id}, '${a}', '${b}');`;
  });
  const writeLocally = async () => {
    if (local.length > 0) await applier.client.query(local.splice(0).join('\n'));
  };
  for (const event of played.events.get(region)!) {
    if (event.do === 'write') {
      local.push(localSql(event.key, event.state, place));
      continue;
    }
    await writeLocally();
    if (event.do === 'join') {
      await deliverJoin(event.states, { store: applier.store(), target, keyBytes, shows });
    } else {
      const { origin } = event.transactions[0]!;
      const store = stores.get(origin)!;
      const { rows } = event;
      receipts.push(
        ...(await deliver(event.transactions, { ...manner, store, target, keyBytes, rows, progress: store.lsn })),
      );
    }
  }
  await writeLocally();
  const content = await contentOf(place);
  const recorded = await conflictsOf(place);
  // Hears everything once more, as if it had no progress.
  for (const [origin, stream] of played.streams) {
    if (origin === region || stream.length === 0) continue;
    await deliver(stream, { ...manner, store: applier.store({ fetch }), target, keyBytes, rows: 5 });
  }
  return { content, recorded, receipts, again: await contentOf(place) };
}

describe.each(KEPT)('$rule.conflict in three regions', (kept) => {
  it(
    'INV-C, INV-X: each in its own order, ends as the specification says, with its conflicts, and learns nothing from hearing all again',
    async () => {
      let merged = 0;
      await fc.assert(
        fc.asyncProperty(histories, manners(kept.key === 'numeric'), async (history, manner) => {
          const played = play(history, manner, kept.shows);
          const expected = contentBy(played.finals.get(1)!, kept.shows);
          const replays = await Promise.all(REGIONS.map((region) => replay(kept, played, region, manner)));
          for (const [index, { content, recorded, receipts, again }] of replays.entries()) {
            expect(content).toEqual(expected);
            expect(receipts.every(({ parked }) => parked === 0)).toBe(true);
            // Equal keys of several spellings are collapsed by the database, and what meets what depends on it.
            if (!manner.spellings) {
              expect(recorded).toEqual(expectedConflicts(played, REGIONS[index]!, manner.streamed));
            }
            expect(again).toEqual(content);
          }
          for (const [, state] of played.finals.get(1)!) if (state.versions.length > 1) merged++;
        }),
        { numRuns: RUNS },
      );
      expect(merged).toBeGreaterThan(RUNS / 10);
      // Such histories meet every kind of conflict.
      const met = fc.sample(fc.tuple(histories, manners(false)), 500).flatMap(([history, manner]) => {
        const played = play(history, manner, kept.shows);
        return REGIONS.flatMap((region) => expectedConflicts(played, region, manner.streamed));
      });
      expect(new Set(met.map((line) => line.split(' ')[2])).size).toBe(4);
    },
    TIMEOUT_MS,
  );

  const shuffles = fc.array(
    fc.record({ parcel: fc.nat({ max: 9 }), again: fc.nat({ max: 9 }), rows: fc.constantFrom(1, 2, 4, 1_000) }),
    { minLength: 5, maxLength: 12 },
  );

  it(
    'INV-C: a region that only listens ends so too, in any order of transactions, twice, and in any batches',
    async () => {
      await fc.assert(
        fc.asyncProperty(
          histories,
          fc.tuple(shuffles, shuffles, shuffles),
          manners(kept.key === 'numeric'),
          async (history, shuffled, manner) => {
            const played = play(history, manner, kept.shows);
            const expected = contentBy(played.finals.get(1)!, kept.shows);
            const contents = await Promise.all(
              REGIONS.map((region, index) => listen(kept, played, region, shuffled[index]!, manner)),
            );
            for (const content of contents) expect(content).toEqual(expected);
          },
        ),
        { numRuns: RUNS },
      );
    },
    TIMEOUT_MS,
  );
});

async function listen(
  kept: Kept,
  played: Played,
  region: Region,
  shuffle: readonly { parcel: number; again: number; rows: number }[],
  manner: Manner,
): Promise<Content> {
  const place = await emptyPlace(kept, region);
  const { applier, target, keyBytes, shows } = place;
  for (const rows of played.before.values()) {
    const states = new Map(
      [...rows].map(([key, value]) => [
        key,
        stateOf({ kind: 'insert', version: 0n as Version, parent: 0n, seen: seenFrom(0n, 0n), value }),
      ]),
    );
    await deliverJoin(states, { store: applier.store(), target, keyBytes, shows });
  }
  const parcels = new Map<string, Transaction[]>();
  let turn = 0;
  for (const [origin, stream] of played.streams) {
    for (const transaction of stream) {
      const { parcel, again } = shuffle[turn++ % shuffle.length]!;
      for (const number of new Set([parcel, again])) {
        const name = `${number} ${origin}`;
        parcels.set(name, [...(parcels.get(name) ?? []), transaction]);
      }
    }
  }
  const sorted = [...parcels].sort(([a], [b]) => (a < b ? -1 : 1));
  for (const [index, [, transactions]] of sorted.entries()) {
    const peer = played.finals.get(transactions[0]!.origin)!;
    const fetch = fetchFrom((key) => storedOf(peer.get(key) ?? UNKNOWN, shows).row, keyBytes);
    const { rows } = shuffle[index % shuffle.length]!;
    await deliver(transactions, { ...manner, store: applier.store({ fetch }), target, keyBytes, rows });
  }
  return await contentOf(place);
}
