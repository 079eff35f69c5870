import type { CoregentError } from '../model/error.ts';
import { type GroupKind, keyOf } from './steps.ts';
import type { Target } from './target.ts';

/** A row of a batch and the group that it came in. */
export interface Place {
  readonly target: Target;
  readonly group: GroupKind;
  /** In `record` form. */
  readonly row: Buffer;
}

/** One that could not be applied by itself. */
export interface Blocked extends Place {
  readonly failure: CoregentError;
}

/** So much is held at most, whatever the size of the transaction. */
const HELD_ROWS = 5_000;
const HELD_BYTES = 16 * 2 ** 20;

/**
 * Rows of a transaction that could not be applied where they came: a later part of it may make room for them, or replace them.
 * Holds the last one of each key.
 */
export class Held {
  #rows = new Map<string, Blocked>();
  #bytes = 0;

  /** No more can be held: what is here has to be settled as if the transaction ended now. */
  get full(): boolean {
    return this.#rows.size >= HELD_ROWS || this.#bytes >= HELD_BYTES;
  }

  add(blocked: Blocked): void {
    this.#drop(slotOf(blocked));
    // A copy: a view would keep the whole batch in memory.
    this.#rows.set(slotOf(blocked), { ...blocked, row: Buffer.from(blocked.row) });
    this.#bytes += blocked.row.length;
  }

  /** Later writes of the transaction replace what is held of their keys, and stand for it: what it had seen, they have seen. */
  replace(later: readonly Place[][]): readonly Place[][] {
    if (this.#rows.size === 0) return later;
    const standing = later.map((places) => places.map((place) => this.#standingFor(place)));
    for (const place of later.flat()) {
      this.#drop(slotOf(place, false));
      if (place.group.kind === 'tombstone') this.#drop(slotOf(place));
    }
    return standing;
  }

  #standingFor(place: Place): Place {
    const replaced = this.#rows.get(slotOf(place, false)) ?? this.#rows.get(slotOf(place, true));
    if (!replaced) return place;
    const row = Buffer.from(place.row);
    // The last column: the version that the first of the writes replaced.
    replaced.row.copy(row, row.length - 8, replaced.row.length - 8);
    return { ...place, row };
  }

  #drop(slot: string): void {
    this.#bytes -= this.#rows.get(slot)?.row.length ?? 0;
    this.#rows.delete(slot);
  }

  /** Hands all of them over. */
  take(): Blocked[] {
    const taken = [...this.#rows.values()];
    this.clear();
    return taken;
  }

  clear(): void {
    this.#rows.clear();
    this.#bytes = 0;
  }
}

/** A row and a tombstone of one key are two. */
function slotOf({ target, group, row }: Place, tombstone = group.kind === 'tombstone'): string {
  return `${target.staging.table.oid} ${tombstone} ${keyOf(target, group, row)}`;
}
