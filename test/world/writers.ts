import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import type { Cluster } from './cluster.ts';
import { seeded, within } from './random.ts';

/** The tables that writers write. */
export const WRITERS_TABLES = `
  create table entries (id bigint primary key, grp text not null, members int not null, note text not null);
  create table counters (id int primary key, n bigint not null);
  create table contested (id int primary key, value text not null);`;

/** Rows that were inserted in one transaction and leave in one: every snapshot shows all of them or none. */
export interface Group {
  readonly members: number;
  /** `maybe`: the connection was lost before the answer. */
  inserted: 'yes' | 'maybe';
  deleted: 'no' | 'maybe' | 'yes';
}

/** An acknowledged write of a row that all regions write. */
export interface ContestedWrite {
  readonly region: string;
  readonly key: number;
  readonly version: bigint;
  readonly parent: bigint;
  /** Unique among all writes; null deletes the row. */
  readonly value: string | null;
}

/** What the writers did, as they saw it. */
export interface History {
  readonly groups: Map<string, Group>;
  /** Increments by counter: every counter has one region that writes it. */
  readonly counters: Map<number, { acknowledged: number; unknown: number }>;
  readonly contested: ContestedWrite[];
  /** Contested writes without an answer, so far or because the connection was lost. */
  readonly unanswered: Set<{ readonly key: number; readonly value: string | null }>;
  /** Answers that no write should ever get. */
  readonly faults: unknown[];
}

/** Writers in several regions; they write until they are stopped. */
export interface Writers {
  readonly history: History;
  /** Lets every write end. */
  stop(): Promise<void>;
}

export interface WriterOptions {
  readonly seed: number;
  /** Each pauses up to so long between two writes, at random, so that applying keeps up on a small machine. */
  readonly pauseMs?: number;
  readonly perRegion?: number;
  /** Whether a lost connection is part of the plan: what was under way is unknown, and the writer connects again. */
  readonly crashes?: boolean;
}

/** Some rows are written all the time, by all regions at once; most now and then, so that regions see each other's writes. */
const HOT = 10;
const CONTESTED = 300;
const COUNTERS = 4;
/** Every so many groups one is large enough to be applied by COPY. */
const LARGE_EVERY = 25;

/** Starts writers in every region: groups of rows in and out, counters of the region's own, and rows that all contest. */
export async function startWriters(cluster: Cluster, options: WriterOptions): Promise<Writers> {
  const { seed, pauseMs = 8, perRegion = 2, crashes = false } = options;
  const history: History = {
    groups: new Map(),
    counters: new Map(),
    contested: [],
    unanswered: new Set(),
    faults: [],
  };
  const stopping = new AbortController();
  const random = seeded(seed);
  const running: Promise<void>[] = [];
  for (const [index, region] of cluster.regions.entries()) {
    for (let counter = 0; counter < COUNTERS; counter++) {
      const id = index * 100 + counter;
      await cluster.query(region, 'insert into counters values ($1, 0)', [id]);
      history.counters.set(id, { acknowledged: 0, unknown: 0 });
    }
    for (let number = 0; number < perRegion; number++) {
      const writer = new Writer({ history, random: seeded(random() * 2 ** 32), region, index, number });
      running.push(writer.run(cluster.url(region), stopping.signal, pauseMs, crashes));
    }
  }
  return {
    history,
    stop: async () => {
      stopping.abort();
      await Promise.all(running);
    },
  };
}

class Writer {
  readonly #history: History;
  readonly #random: () => number;
  readonly #region: string;
  readonly #index: number;
  readonly #name: string;
  /** Groups of this writer that may be deleted. */
  readonly #own: string[] = [];
  #client: pg.Client | undefined;
  #sequence = 0;

  constructor(of: { history: History; random: () => number; region: string; index: number; number: number }) {
    this.#history = of.history;
    this.#random = of.random;
    this.#region = of.region;
    this.#index = of.index * 10 + of.number;
    this.#name = `${of.region}/${of.number}`;
  }

  async run(url: string, stopping: AbortSignal, pauseMs: number, crashes: boolean): Promise<void> {
    while (!stopping.aborted) {
      try {
        this.#client ??= await connect(url);
        await this.#write();
      } catch (error) {
        const lost =
          this.#client === undefined || !(error instanceof pg.DatabaseError) || /^57P0/.test(error.code ?? '');
        if (!crashes || !lost) {
          this.#history.faults.push(error);
          break;
        }
        await this.#client?.end().catch(() => {});
        this.#client = undefined;
      }
      await sleep(within(this.#random, 0, pauseMs));
    }
    await this.#client?.end().catch(() => {});
  }

  async #write(): Promise<void> {
    const dice = this.#random();
    if (dice < 0.35) await this.#insertGroup();
    else if (dice < 0.45) await this.#deleteGroup();
    else if (dice < 0.7) await this.#increment();
    else await this.#contest();
  }

  async #query(text: string, values?: unknown[]): Promise<pg.QueryResult> {
    return await this.#client!.query(text, values);
  }

  async #insertGroup(): Promise<void> {
    const sequence = ++this.#sequence;
    const members = sequence % LARGE_EVERY === 0 ? within(this.#random, 50, 200) : within(this.#random, 1, 5);
    const name = `${this.#name}/${sequence}`;
    const group: Group = { members, inserted: 'maybe', deleted: 'no' };
    this.#history.groups.set(name, group);
    const first = (this.#index * 1_000_000 + sequence) * 1_000;
    await this.#query(
      `insert into entries select $1::bigint + n, $2, $3, repeat($2, 3) from generate_series(1, $3::int) n`,
      [first, name, members],
    );
    group.inserted = 'yes';
    this.#own.push(name);
  }

  async #deleteGroup(): Promise<void> {
    if (this.#own.length === 0) return;
    const [name] = this.#own.splice(within(this.#random, 0, this.#own.length - 1), 1);
    const group = this.#history.groups.get(name!)!;
    group.deleted = 'maybe';
    const first = (this.#index * 1_000_000 + Number(name!.split('/')[2])) * 1_000;
    const { rowCount } = await this.#query('delete from entries where id > $1 and id <= $1 + 1000', [first]);
    group.deleted = 'yes';
    if (rowCount !== group.members) {
      throw new Error(`${name} had ${rowCount} rows in its own region, not ${group.members}`);
    }
  }

  async #increment(): Promise<void> {
    const id = Math.floor(this.#index / 10) * 100 + within(this.#random, 0, COUNTERS - 1);
    const counter = this.#history.counters.get(id)!;
    counter.unknown++;
    const { rowCount } = await this.#query('update counters set n = n + 1 where id = $1', [id]);
    if (rowCount !== 1) throw new Error(`counter ${id} is gone in its own region`);
    counter.unknown--;
    counter.acknowledged++;
  }

  async #contest(): Promise<void> {
    const key = within(this.#random, 1, this.#random() < 0.2 ? HOT : CONTESTED);
    const value = this.#random() < 0.2 ? null : `${this.#name}/${++this.#sequence}`;
    const { contested, unanswered } = this.#history;
    const write = { key, value };
    unanswered.add(write);
    if (value === null) {
      const tombstones = await this.#tombstones();
      // One transaction; the delete's version is what its tombstone says.
      const results = (await this.#client!.query(
        `delete from contested where id = ${key};
         select _coregent_version as version, _coregent_parent as parent from ${tombstones} where id = ${key}`,
      )) as unknown as pg.QueryResult[];
      if (results[0]!.rowCount === 1)
        contested.push({ ...stampOf(results[1]!), region: this.#region, key, value: null });
      unanswered.delete(write);
      return;
    }
    const result = await this.#query(
      `insert into contested values ($1, $2) on conflict (id) do update set value = excluded.value
        returning _coregent_version as version, _coregent_parent as parent`,
      [key, value],
    );
    unanswered.delete(write);
    contested.push({ ...stampOf(result), region: this.#region, key, value });
  }

  #tombstoneTable: string | undefined;

  async #tombstones(): Promise<string> {
    this.#tombstoneTable ??= (
      await this.#query(
        `select 'coregent.tomb_' || table_id as name from coregent.tables where table_name = 'contested'`,
      )
    ).rows[0].name as string;
    return this.#tombstoneTable;
  }
}

function stampOf({ rows }: pg.QueryResult): { version: bigint; parent: bigint } {
  return { version: BigInt(rows[0].version), parent: BigInt(rows[0].parent) };
}

async function connect(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  client.on('error', () => {});
  await client.connect();
  return client;
}
