import type pg from 'pg';
import type { Server } from '#coregent/demo/postgres.js';
import type { Processes } from './proc.ts';
import { DATABASE, open, recreateDatabase, startServer, waitFor } from './server.ts';

export type SideName = 'coregent' | 'native';

/** Two servers between which rows flow from east to west, over this or that replication. */
export interface Side {
  readonly name: SideName;
  readonly pair: Pair;
  /** New databases with the tables of `schema` in both, replication set up and stopped. */
  prepare(schema: readonly string[]): Promise<void>;
  /** Starts what applies in the west; it reaches the east by `port`. Resolves as soon as the stream has begun. */
  start(port?: number): Promise<void>;
  stop(): Promise<void>;
  /** The processes that replicate, by role; only while it runs. */
  processes(): Promise<Processes>;
  close(): Promise<void>;
}

/** Where a pair's measured database in the east is reached by another port: that of a proxy. */
export function eastUrl(pair: Pair, port: number): string {
  const url = new URL(pair.east.url(DATABASE));
  url.port = String(port);
  return url.href;
}

/** Both servers of a side and a connection to the measured database in each. */
export class Pair {
  readonly east: Server;
  readonly west: Server;
  #eastClient: pg.Client | undefined;
  #westClient: pg.Client | undefined;
  #marks = 0;

  private constructor(east: Server, west: Server) {
    this.east = east;
    this.west = west;
  }

  static async start(name: string): Promise<Pair> {
    const [east, west] = await Promise.all([startServer(`${name}-east`), startServer(`${name}-west`)]);
    return new Pair(east, west);
  }

  /** Connection to the measured database where rows are written. */
  get eastClient(): pg.Client {
    return this.#eastClient!;
  }

  /** Connection to the measured database where rows arrive. */
  get westClient(): pg.Client {
    return this.#westClient!;
  }

  /** New databases with these tables, and the table that marks are written to. */
  async recreate(schema: readonly string[]): Promise<void> {
    await Promise.all([this.#eastClient?.end(), this.#westClient?.end()]);
    await Promise.all([recreateDatabase(this.east), recreateDatabase(this.west)]);
    this.#eastClient = await open(this.east);
    this.#westClient = await open(this.west);
    for (const client of [this.eastClient, this.westClient]) {
      for (const statement of ['create table mark (id int8 primary key)', ...schema]) await client.query(statement);
    }
  }

  /** Writes a mark behind all that the east has committed. */
  async mark(): Promise<number> {
    const id = ++this.#marks;
    await this.eastClient.query('insert into mark values ($1)', [id]);
    return id;
  }

  /** Waits until the west shows the mark, and so all that was committed before it. */
  async arrived(mark: number): Promise<void> {
    const query = { name: 'mark', text: 'select 1 from mark where id = $1', values: [mark] };
    await waitFor('rows to arrive', async () => (await this.westClient.query(query)).rows.length > 0);
  }

  /** Puts a checkpoint behind us, so that none falls into the measurement. */
  async checkpoint(): Promise<void> {
    await Promise.all([this.eastClient.query('checkpoint'), this.westClient.query('checkpoint')]);
  }

  /** Waits until a walsender serves the slot in the east; gives its process number. */
  async streaming(slot: string): Promise<number> {
    const query = {
      name: 'slot',
      text: 'select active_pid from pg_replication_slots where slot_name = $1',
      values: [slot],
    };
    return await waitFor(
      `the stream of ${slot}`,
      async () => (await this.eastClient.query(query)).rows[0]?.active_pid,
      {
        everyMs: 2,
        timeoutMs: 60_000,
      },
    );
  }

  /** Waits until no walsender serves the slot. */
  async idle(slot: string): Promise<void> {
    await waitFor(`the end of the stream of ${slot}`, async () => {
      const { rows } = await this.eastClient.query(
        'select 1 from pg_replication_slots where slot_name = $1 and active',
        [slot],
      );
      return rows.length === 0;
    });
  }

  /** Throws when a table's rows differ; `columns` are the application's. */
  async compare(table: string, columns: string): Promise<void> {
    const text = `select count(*)::int as rows, coalesce(sum(hashtextextended(row(${columns})::text, 0)), 0)::text as hash from ${table}`;
    const [east, west] = await Promise.all(
      [this.eastClient, this.westClient].map(async (client) => (await client.query(text)).rows[0]),
    );
    if (east.rows !== west.rows || east.hash !== west.hash) {
      throw new Error(`${table} differs: ${east.rows} rows in the east, ${west.rows} in the west`);
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.#eastClient?.end(), this.#westClient?.end()]);
    await Promise.all([this.east.remove(), this.west.remove()]);
  }
}
