import pg from 'pg';
import { laterLsn, parseLsn } from '../../src/model/lsn.ts';
import { makeFetch } from '../../src/pg/fetch.ts';
import { joinTable } from '../../src/pg/join.ts';
import { ANY_TO_MEND, mendRegion } from '../../src/pg/mend.ts';
import type { Receipt } from '../../src/pg/receipt.ts';
import { router } from '../../src/pg/route.ts';
import type { Store } from '../../src/pg/store.ts';
import { Decoder } from '../../src/pipe/decode.ts';
import { type Database, makeDatabase } from '../world/database.ts';
import { until } from '../world/until.ts';
import { type Applier, applyPatiently, installRegion, isRowFault, openApplier, type Rules, tryAll } from './region.ts';

/**
 * Real regions without agents: what one region's WAL says, as pgoutput writes it, goes through Decoder, Batch and Store of
 * another when the test says so. Nothing is under way by itself, so a test decides who sees what when.
 */
export interface TestRegion {
  readonly id: number;
  readonly database: Database;
  readonly applier: Applier;
  /** Whether its server says on demand where decoding may begin: PostgreSQL 16 and later. */
  readonly snapshots: boolean;
  /** Where its WAL stood behind the last statements that it was told to run. */
  written: string;
  /** Runs statements as an application; several at once are one transaction. */
  sql(text: string): Promise<pg.QueryResult>;
  /** One value of the first row, as text. */
  value(text: string): Promise<string | null>;
  /** Applies what `from` wrote since the last time; a batch holds at most `rows`. */
  pull(from: TestRegion, rows?: number): Promise<Pulled>;
  /** Joins a table's rows and tombstones of another region, as `coregent apply` does. */
  join(from: TestRegion, table: string): Promise<void>;
  /** Mends what regions broke together, with the others in reach but for those `away`. Returns whether anything was done; 'cut' where its connection was, after `cutAt` queries. */
  mend(all: readonly TestRegion[], away?: readonly TestRegion[], cutAt?: number): Promise<boolean | 'cut'>;
  /** Recorded conflicts as `kind outcome`, oldest first. */
  conflicts(): Promise<string[]>;
}

/** What applying a stream did. */
export interface Pulled {
  readonly receipts: readonly Receipt[];
  /** Rows of other regions in the stream, which were left out. */
  readonly foreign: number;
}

/** Regions with the same tables, each on a server of its own as far as there are servers. */
export interface TestRegions extends AsyncDisposable {
  readonly regions: readonly TestRegion[];
}

/** Makes `count` regions with ids from 1 on; `seed` fills them, each with its id as `$region`, before they are installed. */
export async function openRegions(schema: string, count = 2, rules: Rules = {}): Promise<TestRegions> {
  const regions: TestRegion[] = [];
  for (let id = 1; id <= count; id++) regions.push(await openRegion(schema, id, rules));
  for (const from of regions) {
    for (const to of regions) {
      if (from === to) continue;
      await from.database.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [slotOf(from, to)]);
      await to.database.query(
        `insert into coregent.progress (slot, peer_id, system_identifier, timeline, lsn) values ($1, $2, '', 1, '0/0')`,
        [slotOf(from, to), from.id],
      );
    }
  }
  return {
    regions,
    async [Symbol.asyncDispose]() {
      for (const { applier, database } of regions) {
        await applier[Symbol.asyncDispose]();
        await database.drop();
      }
    },
  };
}

/** The slot by which one region follows another. */
export const slotOf = (from: TestRegion, to: TestRegion): string => `${from.database.name}_${to.id}`;

async function openRegion(schema: string, id: number, rules: Rules): Promise<TestRegion> {
  const database = await makeDatabase((id - 1) % 3);
  await database.query(schema);
  await installRegion(database.url, id, rules);
  const applier = await openApplier(database.url);
  const server = await database.query(`select current_setting('server_version_num')::int as version`);
  const stores = new Map<TestRegion, Store>();
  let joins = 0;
  /** Where the WAL of each other region stood when it was pulled last. */
  const heard = new Map<number, string>();
  const region: TestRegion = {
    id,
    database,
    applier,
    snapshots: server.rows[0].version >= 160_000,
    written: '0/0',
    async sql(text) {
      const result = await database.query(text);
      region.written = (await region.value('select pg_current_wal_insert_lsn()'))!;
      return result;
    },
    async value(text) {
      const { rows } = await database.query(text);
      const [value] = Object.values(rows[0] ?? {});
      return value === null || value === undefined ? null : String(value);
    },
    async pull(from, rows = 10_000) {
      let store = stores.get(from);
      if (!store) {
        const fetch = makeFetch(() => from.applier.client, 'there');
        store = applier.store({ slot: slotOf(from, region), peerId: from.id, fetch });
        stores.set(from, store);
      }
      heard.set(from.id, from.written);
      return await pull(from, region, store, rows);
    },
    async join(from, table) {
      // As after a lost slot, leaving out what is here already, and as `apply` does, in turn: both do the same.
      const known = joins++ % 2 === 0 ? applier.client : undefined;
      const target = applier.targets.get(`public.${table}`)!;
      await joinTable(from.applier.client, applier.store(), target, known && { known });
    },
    async mend(all, away = [], cutAt = Number.POSITIVE_INFINITY) {
      // As the agent does, which looks for that first.
      if ((await region.value(`select ${ANY_TO_MEND}`)) === 'false') return false;
      const others = all.filter((each) => each !== region);
      const client = await openSession(region);
      await client.query(`set search_path = pg_catalog, pg_temp`);
      const isCut = cutAfter(client, cutAt);
      try {
        const { conflicts, wrote, failed } = await mendRegion(client, {
          region: id,
          name: 'here',
          neighbours: {
            ids: others.map((each) => each.id),
            heard: async (peer) => {
              const applied = await region.value(`select lsn::text from coregent.progress where peer_id = ${peer}`);
              return laterLsn(parseLsn(applied!), parseLsn(heard.get(peer) ?? '0/0'));
            },
            ask: async (peer, text, values) => {
              const asked = others.find((each) => each.id === peer)!;
              // The server is shared: what others wrote since is none of this.
              if (text.includes('pg_current_wal_insert_lsn') && !away.includes(asked)) return [{ lsn: asked.written }];
              return away.includes(asked) ? undefined : (await asked.database.query(text, values)).rows;
            },
          },
        });
        if (failed.length > 0) throw new Error(failed.map(({ table, message }) => `${table}: ${message}`).join('; '));
        for (const store of stores.values()) {
          store.tryAgain();
          await tryAll(store);
        }
        region.written = (await region.value('select pg_current_wal_insert_lsn()'))!;
        return wrote || conflicts.length > 0;
      } catch (error) {
        if (!isCut()) throw error;
        const pid = (client as unknown as { processID: number }).processID;
        // What it held is free only then.
        const gone = async () =>
          (await region.value(`select count(*) from pg_stat_activity where pid = ${pid}`)) === '0';
        await until(gone, { what: 'the session that was cut off to end' });
        return 'cut';
      } finally {
        await client[Symbol.asyncDispose]();
      }
    },
    async conflicts() {
      const { rows } = await database.query('select kind, outcome from coregent.conflict_record order by id');
      return rows.map(({ kind, outcome }) => `${kind} ${outcome}`);
    },
  };
  return region;
}

/** Cuts the connection off instead of sending it one more query after so many; tells whether it did. */
function cutAfter(client: pg.Client, queries: number): () => boolean {
  let left = queries;
  const send = client.query.bind(client) as (...query: unknown[]) => unknown;
  const { stream } = (client as unknown as { connection: { stream: { destroy(): void } } }).connection;
  client.query = ((...query: unknown[]) => {
    if (left-- <= 0) stream.destroy();
    return send(...query);
  }) as typeof client.query;
  return () => left < 0;
}

/** Applies what `from` wrote since the last time by a store of `to`. */
export async function pull(from: TestRegion, to: TestRegion, store: Store, rows = 10_000): Promise<Pulled> {
  // Only what is flushed is decoded, and what applies commits asynchronously: a commit that waits flushes all before it.
  await from.database.query(`select pg_logical_emit_message(true, 'flush', '')`);
  // Else each look would begin far back, in what other tests have written to the server.
  if (from.snapshots) await from.database.query('select pg_log_standby_snapshot()');
  const { rows: messages } = await from.database.query(
    `select data from pg_logical_slot_get_binary_changes($1, null, null, 'proto_version', '1', 'publication_names', 'coregent', 'binary', 'true')`,
    [slotOf(from, to)],
  );
  const stream = (messages as { data: Buffer }[]).map(({ data }) => data);
  try {
    return await feed(stream, from, to, store, rows);
  } catch (error) {
    if (!isRowFault(error)) throw error;
    // A part of a large transaction: as an agent that connects anew, from the progress on, with faults isolated.
    store.isolateFaults(true);
    return await feed(stream, from, to, store, rows).finally(() => store.isolateFaults(false));
  }
}

async function feed(stream: readonly Buffer[], from: TestRegion, to: TestRegion, store: Store, rows: number) {
  const decoder = new Decoder({
    region: from.id,
    progress: store.lsn,
    route: router([...to.applier.targets.values()]),
    limits: { rows, bytes: Number.MAX_SAFE_INTEGER },
  });
  const receipts: Receipt[] = [];
  for (const message of stream) {
    decoder.push(message, 0, message.length);
    while (decoder.full) receipts.push(await applyPatiently(store, decoder.take()));
  }
  while (decoder.ready) receipts.push(await applyPatiently(store, decoder.take()));
  return { receipts, foreign: decoder.foreignRows };
}

/** Another session of a region, to hold locks in. */
export async function openSession(region: TestRegion): Promise<pg.Client & AsyncDisposable> {
  const client = new pg.Client({ connectionString: region.database.url });
  client.on('error', () => {});
  await client.connect();
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() });
}

/** Whether a backend of the region waits for a lock now. */
export async function isBlocked(region: TestRegion): Promise<boolean> {
  return (
    (await region.value(
      `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
    )) !== '0'
  );
}
