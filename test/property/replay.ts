import { tombstoneName } from '../../src/model/table.ts';
import type { Version } from '../../src/model/version.ts';
import type { Receipt } from '../../src/pg/receipt.ts';
import type { Store } from '../../src/pg/store.ts';
import type { Target } from '../../src/pg/target.ts';
import { type Row, UNKNOWN, visible } from '../../src/resolve/meaning.ts';
import { type Database, makeDatabase } from '../world/database.ts';
import { deliver, deliverJoin, fetchFrom, integerKey, type KeyBytes, numericKey } from './deliver.ts';
import {
  imageOf,
  type KeyedConflict,
  type Message,
  type Played,
  REGIONS,
  type Region,
  type Transaction,
  type Writing,
} from './history.ts';
import { type Applier, installRegion, openApplier } from './region.ts';

/** How a history is replayed on databases. */
export interface Manner extends Writing {
  readonly keys: keyof typeof TABLES;
  /** New rows added to a delivery, so that its inserts go by COPY. */
  readonly padding: number;
  /** Transactions come as streams, as large ones do. */
  readonly streamed: boolean;
}

const TABLES = { integer: { name: 'notes', keyBytes: integerKey }, numeric: { name: 'prices', keyBytes: numericKey } };

/** A database for each region, installed, with a connection that applies. */
export interface Bench extends AsyncDisposable {
  readonly appliers: ReadonlyMap<Region, Applier>;
}

export async function openBench(): Promise<Bench> {
  const databases: Database[] = [];
  const appliers = new Map<Region, Applier>();
  for (const region of REGIONS) {
    const database = await makeDatabase(region - 1);
    databases.push(database);
    for (const [type, { name }] of Object.entries(TABLES)) {
      await database.query(`create table ${name} (id ${type} primary key, a text, b text)`);
    }
    await installRegion(database.url, region);
    for (const peer of REGIONS) {
      await database.query(
        `insert into coregent.progress (slot, peer_id, system_identifier, timeline, lsn) values ($1, $2, '', 1, '0/0')`,
        [slotOf(peer), peer],
      );
    }
    appliers.set(region, await openApplier(database.url));
  }
  return {
    appliers,
    async [Symbol.asyncDispose]() {
      for (const applier of appliers.values()) await applier[Symbol.asyncDispose]();
      for (const database of databases) await database.drop();
    },
  };
}

const slotOf = (peer: Region): string => `from_${peer}`;

/** A table of one region's database. */
interface Place {
  readonly applier: Applier;
  readonly target: Target;
  readonly keyBytes: KeyBytes;
  readonly table: string;
  readonly tombs: string;
}

async function emptyPlace(bench: Bench, region: Region, { keys }: Manner): Promise<Place> {
  const applier = bench.appliers.get(region)!;
  const { name, keyBytes } = TABLES[keys];
  const target = applier.targets.get(`public.${name}`)!;
  const tombs = `coregent.${tombstoneName(target.staging.table)}`;
  await applier.client.query(
    `delete from public.${name}; delete from ${tombs}; delete from coregent.conflict_record;
    delete from coregent.parked; update coregent.progress set lsn = '0/0'`,
  );
  return { applier, target, keyBytes, table: `public.${name}`, tombs };
}

/** What a table and its tombstones hold, in comparable text by key. */
export type Content = Readonly<Record<string, string>>;

async function contentOf({ applier, table, tombs }: Place): Promise<Content> {
  const { rows } = await applier.client.query(
    `select 'row ' || trim_scale(id::numeric) as key, concat_ws(' ', row(a, b, id), _coregent_version, _coregent_parent) as value
      from ${table} where id < 1000
    union all select 'tombstone ' || trim_scale(id::numeric), concat_ws(' ', _coregent_version, _coregent_parent) from ${tombs}
    order by 1`,
  );
  return Object.fromEntries(rows.map(({ key, value }) => [key, value]));
}

async function conflictsOf({ applier, table }: Place): Promise<KeyedConflict[]> {
  const { rows } = await applier.client.query(
    `select kind, outcome, local_version::text as local, incoming_version::text as incoming, (key->>'id')::numeric::int as key
      from coregent.conflict_record where table_name = $1 order by id`,
    [table],
  );
  return rows.map(({ kind, outcome, local, incoming, key }) => ({
    kind,
    outcome,
    key,
    localVersion: BigInt(local),
    incomingVersion: BigInt(incoming),
  }));
}

/** The statements by which an application's write leaves what the message says. */
function localSql(message: Message, { table, tombs }: Place): string {
  const stamps = `${message.version}, ${message.parent}`;
  const columns = '_coregent_version = excluded._coregent_version, _coregent_parent = excluded._coregent_parent';
  if (message.kind === 'delete') {
    return `delete from ${table} where id = ${message.key};
      insert into ${tombs} values (${message.key}, ${stamps}) on conflict (id) do update set ${columns};`;
  }
  const { id, a, b } = imageOf(message.value);
  return `insert into ${table} values (${id}, '${a}', '${b}', ${stamps})
    on conflict (id) do update set id = excluded.id, a = excluded.a, b = excluded.b, ${columns};`;
}

/** One region's database after a history. */
export interface Replay {
  readonly receipts: readonly Receipt[];
  readonly content: Content;
  readonly conflicts: readonly KeyedConflict[];
  /** Hears every other region's stream once more: from the progress on, or as if there were none. Returns what is there then. */
  hearAgain(from: 'progress' | 'nothing'): Promise<Pick<Replay, 'content' | 'conflicts'>>;
}

/** Lets one region's database go through all that happened there, with local writes in between. */
export async function replay(bench: Bench, played: Played, region: Region, manner: Manner): Promise<Replay> {
  const place = await emptyPlace(bench, region, manner);
  const { applier, target, keyBytes, table } = place;
  const written = imagesOf(played);
  const fetch = fetchFrom((key, version) => written.get(`${key} ${version}`), keyBytes);
  const stores = new Map(REGIONS.map((peer) => [peer, applier.store({ slot: slotOf(peer), peerId: peer, fetch })]));
  const receipts: Receipt[] = [];
  const send = async (store: Store, transactions: readonly Transaction[], rows: number, progress: bigint) => {
    receipts.push(...(await deliver(transactions, { ...manner, store, target, keyBytes, rows, progress })));
  };
  const local = [...played.before.get(region)!.values()].map((row) => {
    const { id, a, b } = imageOf(row.value);
    return `insert into ${table} values (${id}, '${a}', '${b}');`;
  });
  const writeLocally = async () => {
    if (local.length > 0) await applier.client.query(local.splice(0).join('\n'));
  };
  for (const event of played.events.get(region)!) {
    if (event.do === 'write') {
      local.push(localSql(event.message, place));
      continue;
    }
    await writeLocally();
    if (event.do === 'join') {
      receipts.push(...(await deliverJoin(event.states, applier.store(), target, keyBytes)));
    } else {
      const { origin, index } = event.transactions[0]!;
      const store = stores.get(origin)!;
      // Each time a new connection, whose peer begins a little before what is applied, as after a crash.
      const again = played.streams.get(origin)!.slice(Math.max(0, index - 2), index);
      await send(store, [...again, ...event.transactions], event.rows, store.lsn);
    }
  }
  await writeLocally();
  const look = async () => ({ content: await contentOf(place), conflicts: await conflictsOf(place) });
  return {
    ...(await look()),
    receipts: [...receipts],
    async hearAgain(from) {
      for (const [origin, store] of stores) {
        const stream = played.streams.get(origin)!;
        if (origin === region || stream.length === 0) continue;
        if (from === 'progress') await send(store, stream, 5, store.lsn);
        else await send(applier.store({ fetch }), stream, 5, 0n);
      }
      return await look();
    },
  };
}

function imagesOf(played: Played): Map<string, Row & { version: Version }> {
  const rows = played.messages.flatMap((each) => (each.kind === 'delete' ? [] : [each]));
  return new Map(rows.map((row) => [`${row.key} ${row.version}`, row]));
}

/** Some transactions of one origin in the order of its stream, delivered as one or more batches. */
export interface Parcel {
  readonly transactions: readonly Transaction[];
  readonly rows: number;
}

/** Lets a region's database, which writes nothing itself, hear parcels one after the other. */
export async function listen(
  bench: Bench,
  played: Played,
  parcels: readonly Parcel[],
  region: Region,
  manner: Manner,
): Promise<Content> {
  const place = await emptyPlace(bench, region, manner);
  const { applier, target, keyBytes } = place;
  for (const rows of played.before.values()) {
    const states = new Map([...rows].map(([key, row]) => [key, { row, tombstone: undefined }]));
    await deliverJoin(states, applier.store(), target, keyBytes);
  }
  for (const { transactions, rows } of parcels) {
    const peer = played.finals.get(transactions[0]!.origin)!;
    const fetch = fetchFrom((key) => visible(peer.get(key) ?? UNKNOWN), keyBytes);
    await deliver(transactions, { ...manner, store: applier.store({ fetch }), target, keyBytes, rows });
  }
  return await contentOf(place);
}
