import type { Server } from '#coregent/demo/postgres.js';
import type { Processes } from './proc.ts';
import { DATABASE } from './server.ts';
import { eastUrl, Pair, type Side } from './side.ts';

const EAST_TO_WEST = 'bench_east_west';
const WEST_TO_EAST = 'bench_west_east';

/**
 * PostgreSQL's own logical replication, set up both ways as for two writable servers (`origin = none`).
 * Only the way from east to west runs; the other keeps its slot, as Coregent's does.
 */
export class NativeSide implements Side {
  readonly name = 'native';
  readonly pair: Pair;
  readonly #streaming: string;

  private constructor(pair: Pair, streaming: string) {
    this.pair = pair;
    this.#streaming = streaming;
  }

  static async start(streaming: string): Promise<NativeSide> {
    return new NativeSide(await Pair.start('native'), streaming);
  }

  async prepare(schema: readonly string[]): Promise<void> {
    const { pair } = this;
    await this.#leave();
    await pair.recreate(schema);
    for (const client of [pair.eastClient, pair.westClient]) {
      await client.query('create publication bench for tables in schema public');
    }
    await pair.westClient.query(this.#subscription(EAST_TO_WEST, pair.east));
    await pair.eastClient.query(this.#subscription(WEST_TO_EAST, pair.west));
  }

  #subscription(name: string, from: Server): string {
    return `create subscription ${name} connection '${from.url(DATABASE)}' publication bench
      with (copy_data = false, enabled = false, origin = none, binary = true, streaming = ${this.#streaming})`;
  }

  /** A subscription must be dropped before its database can be. */
  async #leave(): Promise<void> {
    for (const client of [this.pair.eastClient, this.pair.westClient]) {
      if (!client) continue;
      const { rows } = await client.query('select subname from pg_subscription');
      for (const { subname } of rows) {
        await client.query(`alter subscription ${subname} disable`);
        await client.query(`alter subscription ${subname} set (slot_name = none)`);
        await client.query(`drop subscription ${subname}`);
      }
    }
  }

  async start(port = this.pair.east.port): Promise<void> {
    await this.pair.westClient.query(`alter subscription ${EAST_TO_WEST} connection '${eastUrl(this.pair, port)}'`);
    await this.pair.westClient.query(`alter subscription ${EAST_TO_WEST} enable`);
    await this.pair.streaming(EAST_TO_WEST);
  }

  async stop(): Promise<void> {
    await this.pair.westClient.query(`alter subscription ${EAST_TO_WEST} disable`);
    await this.pair.idle(EAST_TO_WEST);
  }

  async processes(): Promise<Processes> {
    const walsender = await this.pair.streaming(EAST_TO_WEST);
    const { rows } = await this.pair.westClient.query(
      'select pid from pg_stat_subscription where subname = $1 and pid is not null',
      [EAST_TO_WEST],
    );
    return new Map([
      ['walsender', [walsender]],
      ['apply', rows.map((row) => row.pid as number)],
    ]);
  }

  async close(): Promise<void> {
    await this.pair.close();
  }
}
