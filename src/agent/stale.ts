import type { Queryable } from '../pg/connect.ts';

/** A walsender whose client was silent for so long, in ms, has no client any more: agents report every 10 s at least. */
const SILENT_MS = 15_000;

/**
 * Finds and ends the walsender that still holds our slot at a peer although nobody is at its other end: the network broke
 * without a word, or the agent before us was stopped in the middle. PostgreSQL itself would wait for `wal_sender_timeout`,
 * a minute by default, and for ever where that is switched off.
 */
export class StaleWalsender {
  readonly #slot: string;
  /** That of our own last stream. */
  #own: string | undefined;
  /** The one that held the slot when we looked last, what it last heard, and since when that has not changed. */
  #seen: { readonly session: string; readonly heard: string; readonly sinceMs: number } | undefined;

  /** Whether whoever holds the slot is known to be gone: the agent that led before was put out. */
  #orphaned: boolean;

  constructor(slot: string, orphaned: boolean) {
    this.#slot = slot;
    this.#orphaned = orphaned;
  }

  /** Remembers the walsender that serves us. Call it while the stream runs. */
  async remember(control: Queryable): Promise<void> {
    this.#orphaned = false;
    this.#own = (await this.#holder(control))?.session;
  }

  /**
   * Ends the walsender that holds the slot if it is of our own last stream, or if its client stays silent over several calls,
   * and waits for its end. Returns whether it did.
   */
  async end(control: Queryable): Promise<boolean> {
    const holder = await this.#holder(control);
    if (!holder) return false;
    const { pid, session, heard } = holder;
    if (this.#seen?.session !== session || this.#seen.heard !== heard) {
      this.#seen = { session, heard, sinceMs: performance.now() };
    }
    const silentMs = performance.now() - this.#seen.sinceMs;
    if (!this.#orphaned && session !== this.#own && silentMs < SILENT_MS) return false;
    await control.query('select pg_terminate_backend($1, 5000)', [pid]);
    return true;
  }

  async #holder(control: Queryable): Promise<{ pid: number; session: string; heard: string } | undefined> {
    const { rows } = await control.query(
      `select r.pid, concat_ws(' ', r.pid, r.backend_start) as session, concat(r.reply_time) as heard
        from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid where s.slot_name = $1`,
      [this.#slot],
    );
    return rows[0];
  }
}
