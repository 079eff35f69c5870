import { type LSN, parseLsn } from '../model/lsn.ts';

/** What a region can learn of the others. */
export interface Neighbours {
  /** The other regions' ids. */
  readonly ids: readonly number[];
  /** How far this region has applied the WAL of another. */
  heard(id: number): Promise<LSN>;
  /** Asks another region's database; undefined where that cannot be reached now. */
  ask(id: number, text: string, values?: unknown[]): Promise<readonly Record<string, unknown>[] | undefined>;
}

/**
 * What this region must have heard before it may say that the writers of two rows had not seen each other's: all that they had heard.
 * Streams of different regions are not ordered with each other, so a row may come ahead of what its writer had seen.
 * Asked once per region, so made anew for each look.
 */
export class Hearsay {
  readonly #neighbours: Neighbours;
  readonly #ends = new Map<number, Promise<LSN | undefined>>();
  readonly #progress = new Map<number, Promise<ReadonlyMap<number, LSN> | undefined>>();

  constructor(neighbours: Neighbours) {
    this.#neighbours = neighbours;
  }

  /** Whether the region answers. One that is no member any more does not. */
  async reaches(id: number): Promise<boolean> {
    return this.#neighbours.ids.includes(id) && (await this.#progressOf(id)) !== undefined;
  }

  /**
   * Whether this region has heard all that the writer had: as far as the writer says by itself, or else whatever the others have written
   * by now, which is at least as much. A region that can say neither keeps it open.
   */
  async knowsAllOf(writer: number): Promise<boolean> {
    const { ids, heard } = this.#neighbours;
    if (!ids.includes(writer)) return true;
    const theirs = await this.#progressOf(writer);
    for (const id of ids) {
      if (id === writer) continue;
      const said = theirs?.get(id);
      if (theirs && (said === undefined || (await heard(id)) >= said)) continue;
      const end = await this.#endOf(id);
      if (end === undefined || (await heard(id)) < end) return false;
    }
    return true;
  }

  #progressOf(id: number): Promise<ReadonlyMap<number, LSN> | undefined> {
    return remembered(this.#progress, id, async () => {
      const rows = await this.#neighbours.ask(id, 'select peer_id, lsn::text as lsn from coregent.progress');
      return rows && new Map(rows.map(({ peer_id, lsn }) => [Number(peer_id), parseLsn(String(lsn))]));
    });
  }

  #endOf(id: number): Promise<LSN | undefined> {
    return remembered(this.#ends, id, async () => {
      const rows = await this.#neighbours.ask(id, 'select pg_current_wal_insert_lsn()::text as lsn');
      return rows?.[0] && parseLsn(String(rows[0].lsn));
    });
  }
}

function remembered<T>(known: Map<number, Promise<T>>, id: number, find: () => Promise<T>): Promise<T> {
  const found = known.get(id) ?? find();
  known.set(id, found);
  return found;
}
