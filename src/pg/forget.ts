import type pg from 'pg';
import type { Config } from '../config.ts';

/** So many records go in one statement, and so many statements run in one round, at most: 1 million records. */
const AT_A_TIME = 5_000;
const TIMES = 200;
/** What a record takes beside its key and rows, in bytes: about. */
const REST_BYTES = 250;
const BYTES = `(coalesce(pg_column_size(local_row), 0) + coalesce(pg_column_size(incoming_row), 0) + pg_column_size(key) + ${REST_BYTES})::int8`;

/** How many records a round has forgotten, and why. */
export interface Forgotten {
  readonly byAge: number;
  readonly byNumber: number;
  readonly bySize: number;
}

/** Keeps the conflict record of one region within its bounds. Remembers what it measured, so that a quiet round costs next to nothing. */
export class Forgetting {
  readonly #bounds: Config['conflicts'];
  /** All records up to `id` take so many bytes; undefined while that was never worth measuring. */
  #measured: { id: string; bytes: number } | undefined;

  constructor(bounds: Config['conflicts']) {
    this.#bounds = bounds;
  }

  /**
   * One round: removes records that are older than `conflicts.retention`, and the oldest beyond `conflicts.limit` and
   * `conflicts.max_size`. Writes nothing when there are none. What is left over goes with the next round.
   */
  async round(client: pg.Client): Promise<Forgotten> {
    let left = TIMES;
    const remove = async (where: string, value: unknown, order: string): Promise<number> => {
      let removed = 0;
      while (left > 0) {
        left--;
        const { rowCount } = await client.query(
          `delete from coregent.conflict_record where id = any (array(
            select id from coregent.conflict_record where ${where} order by ${order} limit ${AT_A_TIME}))`,
          [value],
        );
        removed += rowCount ?? 0;
        if ((rowCount ?? 0) < AT_A_TIME) break;
      }
      return removed;
    };
    const byAge = await remove(
      `recorded_at < clock_timestamp() - $1::float8 * interval '1 ms'`,
      this.#bounds.retentionMs,
      'recorded_at',
    );
    const tooMany = await this.#beyondNumber(client);
    const byNumber = tooMany === null ? 0 : await remove('id <= $1::int8', tooMany, 'id');
    const tooLarge = await this.#beyondSize(client);
    const bySize = tooLarge === null ? 0 : await remove('id <= $1::int8', tooLarge, 'id');
    return { byAge, byNumber, bySize };
  }

  /** The newest record beyond the number; null without one. */
  async #beyondNumber(client: pg.Client): Promise<string | null> {
    // Ids are never fewer than records: mostly their span alone says that there is room.
    const { rows } = await client.query(
      `select case when max(id) - min(id) >= $1::int8
        then (select id from coregent.conflict_record order by id desc offset $1::int8 limit 1) end::text as id
      from coregent.conflict_record`,
      [this.#bounds.limit],
    );
    return rows[0].id;
  }

  /** The newest record beyond the size; null without one. The file of the table is no measure: it does not shrink. */
  async #beyondSize(client: pg.Client): Promise<string | null> {
    const { maxBytes } = this.#bounds;
    const { rows: file } = await client.query(
      `select pg_total_relation_size('coregent.conflict_record') > $1::int8 as may`,
      [maxBytes],
    );
    if (!file[0].may) return null;
    if (this.#measured) {
      const { rows: more } = await client.query(
        `select coalesce(max(id), $1::int8)::text as id, coalesce(sum(${BYTES}), 0)::float8 as bytes
          from coregent.conflict_record where id > $1::int8`,
        [this.#measured.id],
      );
      this.#measured = { id: more[0].id, bytes: this.#measured.bytes + more[0].bytes };
      if (this.#measured.bytes <= maxBytes) return null;
    }
    const { rows } = await client.query(
      `select max(id)::text as newest, coalesce(sum(bytes) filter (where so_far <= $1::int8), 0)::float8 as bytes,
        (max(id) filter (where so_far > $1::int8))::text as beyond
      from (select id, bytes, sum(bytes) over (order by id desc) as so_far
        from (select id, ${BYTES} as bytes from coregent.conflict_record) r) r`,
      [maxBytes],
    );
    this.#measured = { id: rows[0].newest ?? '0', bytes: rows[0].bytes };
    return rows[0].beyond;
  }
}
