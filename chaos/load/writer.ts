import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { within } from '../../test/world/random.ts';
import type { History } from '../history.ts';
import type { ChildTable } from '../tables.ts';

/** How a transaction ended: `no`: certainly not committed. */
export type End = 'ok' | 'unknown' | 'no';
/** Told once how the transaction ended. */
export type Settle = (end: End) => void;

/** What a kind of transaction works with. */
export interface Work {
  readonly client: pg.Client;
  readonly random: () => number;
  readonly history: History;
  readonly region: string;
  /** The other regions. */
  readonly others: readonly string[];
  /** The region's place, from 0. */
  readonly index: number;
  /** Unique among all writers of a run. */
  readonly writer: number;
  /** PostgreSQL's major version. */
  readonly major: number;
  /** A new number, unique for this writer. */
  next(): number;
  /** What writers of a region remember of each other. */
  readonly shared: Shared;
}

/** What the writers of one region share. */
export interface Shared {
  /** Groups by table that may be deleted. */
  readonly alive: Record<'entries' | 'bulk' | 'parents', string[]>;
  nextGroup: number;
  nextId: number;
  /** Ids of rows by table that refer to others and, as far as is known here, are there. */
  readonly children: Record<ChildTable, number[]>;
  nextChild: number;
}

/** A kind of transaction. */
export interface Kind {
  readonly name: string;
  /** How often it is chosen, compared with others. */
  readonly weight: number;
  /** Only these regions, by place; all if left out. */
  readonly regions?: readonly number[];
  /** Least major version of PostgreSQL. */
  readonly since?: number;
  /**
   * The transaction, without its begin and commit; resolves with what to do when its end is known. Undefined: nothing to do, roll back.
   * With `alone` it is one statement that commits by itself, and calls `settle` with `unknown` ahead of it.
   */
  readonly run: (work: Work) => Promise<Settle | undefined>;
  readonly alone?: boolean;
  /** Further SQLSTATEs that it may end with. */
  readonly mayEndWith?: readonly string[];
}

/** SQLSTATEs that any transaction may end with: conflicts among sessions, cancelled, too many connections. */
const MAY_END_WITH = new Set(['40001', '40P01', '55P03', '57014', '53300', '23505']);

/** Of a writer's session; times in ms. */
export const SETTINGS = { lock_timeout: 4_000, statement_timeout: 20_000, application_name: 'chaos load' };

/** One connection that writes until it is stopped, and connects again whenever it loses its server. */
export class Writer {
  readonly #url: string;
  readonly #work: Omit<Work, 'client' | 'next'>;
  readonly #kinds: readonly Kind[];
  readonly #weights: number;
  #client: pg.Client | undefined;
  #sequence = 0;

  constructor(url: string, work: Omit<Work, 'client' | 'next'>, kinds: readonly Kind[]) {
    this.#url = url;
    this.#work = work;
    this.#kinds = kinds.filter(
      ({ regions, since }) => (regions?.includes(work.index) ?? true) && work.major >= (since ?? 0),
    );
    this.#weights = this.#kinds.reduce((sum, { weight }) => sum + weight, 0);
  }

  async run(stopping: AbortSignal, pauseMs: number): Promise<void> {
    while (!stopping.aborted) {
      try {
        this.#client ??= await connect(this.#url);
      } catch {
        await sleep(100);
        continue;
      }
      const kind = this.#choose();
      await this.#transaction(kind, this.#client);
      await sleep(within(this.#work.random, 0, pauseMs));
    }
    await this.#client?.end().catch(() => {});
  }

  #choose(): Kind {
    let at = this.#work.random() * this.#weights;
    for (const kind of this.#kinds) {
      at -= kind.weight;
      if (at < 0) return kind;
    }
    return this.#kinds[0]!;
  }

  async #transaction(kind: Kind, client: pg.Client): Promise<void> {
    const { history, region } = this.#work;
    const work: Work = { ...this.#work, client, next: () => ++this.#sequence };
    let settle: Settle | undefined;
    try {
      if (!kind.alone) await client.query('begin');
      settle = await kind.run(work);
      if (!kind.alone && settle === undefined) await client.query('rollback');
    } catch (error) {
      await this.#failed(kind, error);
      return;
    }
    if (settle === undefined) return;
    try {
      if (!kind.alone) {
        const { command } = await client.query('commit');
        if (command !== 'COMMIT') throw new Error(`${kind.name}: the commit answered ${command}`);
      }
      settle('ok');
      history.answered(region, kind.name);
    } catch (error) {
      const lost = isLost(error);
      settle(lost ? 'unknown' : 'no');
      if (lost) history.unknown++;
      await this.#failed(kind, error);
    }
  }

  async #failed(kind: Kind, error: unknown): Promise<void> {
    const { history, region } = this.#work;
    if (isLost(error)) {
      this.#client?.end().catch(() => {});
      this.#client = undefined;
      return;
    }
    const { code, message } = error as pg.DatabaseError;
    if (code !== undefined && (MAY_END_WITH.has(code) || kind.mayEndWith?.includes(code))) {
      history.refused.set(code, (history.refused.get(code) ?? 0) + 1);
    } else {
      history.faults.push(`${kind.name} in ${region}: ${code} ${message}`);
    }
    await this.#client?.query('rollback').catch(() => {});
  }
}

/** Whether the connection is gone: nobody will tell how its transaction ended. */
export function isLost(error: unknown): boolean {
  if (!(error instanceof pg.DatabaseError)) return true;
  return /^(57P0|08)/.test(error.code ?? '') || error.severity === 'FATAL' || error.severity === 'PANIC';
}

async function connect(url: string): Promise<pg.Client> {
  const client = new pg.Client({
    connectionString: url,
    connectionTimeoutMillis: 5_000,
    query_timeout: 40_000,
    ...SETTINGS,
  });
  client.on('error', () => {});
  try {
    await client.connect();
    return client;
  } catch (error) {
    client.end().catch(() => {});
    throw error;
  }
}
