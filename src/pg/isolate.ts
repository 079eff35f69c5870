import { CoregentError } from '../model/error.ts';
import { tableLabel } from '../model/table.ts';
import { asRecords, type TableBatch } from '../pipe/batch.ts';
import type { Tuples } from '../wire/tuples.ts';
import type { Arranged, ForeignKeys } from './foreign.ts';
import { type Blocked, Held, type Place } from './held.ts';
import { ORPHANING } from './orphans.ts';
import type { Step, StepResult } from './script.ts';
import { fits, shapeOf } from './shape.ts';
import {
  type GroupKind,
  isForeignViolation,
  isUniqueViolation,
  keyOf,
  keysOf,
  RETRIED,
  tuplesOf,
  versionOf,
} from './steps.ts';
import type { FetchRows, Target } from './target.ts';

/** What the store does with rows. Rejections with `apply_failed` are a row's fault. */
export interface Ways {
  must(steps: readonly Step[]): Promise<readonly StepResult[]>;
  /** A row, in `record` form, was inserted behind its batch. */
  inserted(target: Target, row: Buffer): void;
  /** Commits. */
  commit(): Promise<void>;
  /** Sends these ahead of the next steps, so that they cost no round trip of their own. */
  queue(steps: readonly Step[]): void;
  settle(target: Target, group: GroupKind, records: Tuples): Promise<void>;
  /** Lets unique values change places between rows of one table. */
  vacate(target: Target, places: readonly Place[]): Promise<void>;
  readonly fetch: FetchRows;
  /** Remembers what was counted so far; call the result to go back to it. */
  mark(): () => void;
}

/** Among at most so many rows that block each other, the one at fault is looked for by leaving each out in turn. */
const LEAVE_OUT_ROWS = 50;
/** Rows that wait for each other are tried again so often at most while any of them succeeds. */
const ROUNDS = 8;
/** Parked rows that are tried again at a time. */
const ADOPTED_ROWS = 50;

const WHOLE: GroupKind = { kind: 'update', unknown: [] };
/** Makes deferred foreign keys speak up now, so that a savepoint can catch it. */
const CHECK: readonly Step[] = [{ text: 'set constraints all immediate' }, { text: 'set constraints all deferred' }];
/** Whether any row is parked that may find its place by itself, as SQL. */
const RETRY = `operation <> '${ORPHANING}' and sqlstate in (${RETRIED})`;
export const ANY_PARKED = `exists (select from coregent.parked where ${RETRY})`;
const WAITING = `from coregent.parked
  where ${RETRY} and table_name in (select jsonb_array_elements_text($1::jsonb))`;
/** Parked rows of some tables that another row may make room for, or stands for, from behind a given one on; not those that another session tries. */
const SOME_WAITING = `select id, table_name, operation, encode(row_bytes, 'hex'), columns ${WAITING}
  order by id <= $2::int8, id limit $3::int4 for update skip locked`;

/** Finds the rows of a batch that cannot be applied and parks them, so that all others are. Inside of a local transaction. */
export class Isolation {
  readonly #ways: Ways;
  readonly #peerId: number;
  readonly #targets: ReadonlyMap<number, Target>;
  readonly #foreign: ForeignKeys | undefined;
  readonly #arranged: (tables: Iterable<TableBatch>) => readonly Arranged[];
  readonly #held = new Held();
  #parked = 0;
  /** The parked row that was tried last. */
  #tried = '0';
  /** Parked rows that were tried, none of which found its place, since {@link adopt} began afresh. */
  #triedInVain = 0;

  constructor(options: {
    ways: Ways;
    peerId: number;
    targets: ReadonlyMap<number, Target>;
    foreign: ForeignKeys | undefined;
    arranged: (tables: Iterable<TableBatch>) => readonly Arranged[];
  }) {
    this.#ways = options.ways;
    this.#peerId = options.peerId;
    this.#targets = options.targets;
    this.#foreign = options.foreign;
    this.#arranged = options.arranged;
  }

  /** Rows parked since the last call, less those that found their place after all. */
  takeParked(): number {
    const parked = this.#parked;
    this.#parked = 0;
    return parked;
  }

  /**
   * Each group under a savepoint, halved until the row at fault stands alone. Such rows wait for the end of their transaction,
   * a part of which this may be (`ends`); what then still finds no place is parked.
   */
  async apply(tables: Iterable<TableBatch>, ends: boolean): Promise<void> {
    const places = this.#arranged(tables).map(({ table, group }) => {
      const target = this.#targets.get(table.staging.table.oid)!;
      return [...asRecords(table.staging, group).liveRows()].map((row) => ({ target, group, row }));
    });
    for (const rows of this.#held.replace(places)) await this.#isolate(rows);
    if (ends || this.#held.full) await this.#settleHeld();
  }

  /** The local transaction was rolled back. */
  rolledBack(): void {
    this.#held.clear();
    this.#parked = 0;
  }

  async #settleHeld(): Promise<void> {
    const waits = ({ failure: { cause } }: Blocked): boolean =>
      isUniqueViolation(cause) || (this.#foreign !== undefined && isForeignViolation(cause));
    const held = this.#held.take();
    const left = await this.#tryAgain(held.filter(waits));
    const lost = [
      ...held.filter((each) => !waits(each)),
      ...left.filter(({ failure }) => !isUniqueViolation(failure.cause)),
    ];
    for (const target of new Set(left.map((each) => each.target))) {
      const mine = left.filter((each) => each.target === target && isUniqueViolation(each.failure.cause));
      lost.push(...(await this.#placeTogether(target, mine)));
    }
    for (const target of new Set(lost.map((each) => each.target))) {
      await this.#park(
        target,
        lost.filter((each) => each.target === target),
      );
    }
  }

  async #isolate(rows: readonly Place[]): Promise<void> {
    const [first] = rows;
    if (!first) return;
    const { target, group } = first;
    const records = tuplesOf(rows.map(({ row }) => row));
    const failure = await this.#attempt(() => this.#ways.settle(target, group, records));
    if (!failure) return;
    if (rows.length > 1) {
      if (isUniqueViolation(failure.cause) && !(await this.#attempt(() => this.#ways.vacate(target, rows)))) return;
      const half = rows.length >> 1;
      await this.#isolate(rows.slice(0, half));
      await this.#isolate(rows.slice(half));
    } else {
      this.#held.add({ ...first, failure });
    }
  }

  /** Rows that wait for others of their transaction: all at once, for rings, then one by one as long as that helps any. */
  async #tryAgain(places: readonly Place[]): Promise<readonly Blocked[]> {
    let left: readonly Blocked[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const trying = round === 0 ? places : left;
      if (trying.length === 0) break;
      const together = async (): Promise<void> => {
        for (const { target, group, row } of trying) await this.#ways.settle(target, group, tuplesOf([row]));
      };
      if (trying.length > 1 && !(await this.#attempt(together))) return [];
      const still: Blocked[] = [];
      for (const each of trying) {
        const failure = await this.#attempt(() => this.#ways.settle(each.target, each.group, tuplesOf([each.row])));
        if (failure) still.push({ ...each, failure });
      }
      left = still;
      if (still.length === trying.length) break;
    }
    return left;
  }

  /** Rows that only stand in each other's way take their places together; returns what is then still in the way. */
  async #placeTogether(target: Target, blocked: readonly Blocked[]): Promise<readonly Blocked[]> {
    if (blocked.length === 0) return [];
    if (!(await this.#attempt(() => this.#ways.vacate(target, blocked)))) return [];
    if (blocked.length > LEAVE_OUT_ROWS) {
      const half = blocked.length >> 1;
      const left = await this.#placeTogether(target, blocked.slice(0, half));
      return [...left, ...(await this.#placeTogether(target, blocked.slice(half)))];
    }
    for (const one of blocked) {
      const others = blocked.filter((each) => each !== one);
      if (others.length > 0 && !(await this.#attempt(() => this.#ways.vacate(target, others)))) return [one];
    }
    return blocked;
  }

  /** Does the work under a savepoint; a row's fault undoes it and is returned, anything else is thrown. */
  async #attempt(work: () => Promise<void>): Promise<CoregentError | undefined> {
    const { must, queue, mark } = this.#ways;
    const undo = mark();
    queue([{ text: 'savepoint isolated' }]);
    try {
      await work();
      await must([...(this.#foreign ? CHECK : []), { text: 'release savepoint isolated' }]);
      return undefined;
    } catch (error) {
      if (!(error instanceof CoregentError) || error.code !== 'apply_failed') throw error;
      undo();
      queue([{ text: 'rollback to savepoint isolated' }, { text: 'release savepoint isolated' }]);
      return error;
    }
  }

  /** Parks rows of one table: whole, since they are tried again without their peer. */
  async #park(target: Target, blocked: readonly Blocked[]): Promise<void> {
    const steps = blocked.filter(({ group }) => group.unknown.length === 0).map((each) => this.#parking(each));
    const partial = blocked.filter(({ group }) => group.unknown.length > 0);
    if (partial.length > 0) {
      const keys = keysOf(target.staging, tuplesOf(partial.map(({ row }) => row)));
      const failures = new Map(partial.map((each) => [keyOf(target, each.group, each.row), each]));
      // One that is gone at the peer too is of no interest: its tombstone is on its way.
      for (const row of (await this.#ways.fetch(target, keys)).liveRows()) {
        const asked = failures.get(keyOf(target, WHOLE, row)) ?? partial[0]!;
        steps.push(this.#parking({ ...asked, row }));
      }
    }
    for (const step of steps) this.#parked += (await this.#ways.must([step]))[0]!.count;
  }

  #parking({ target, group, row, failure }: Blocked): Step {
    const sqlstate = (failure.cause as { code?: string } | undefined)?.code ?? null;
    return {
      text: `insert into coregent.parked (peer_id, table_name, operation, version, row_bytes, sqlstate, reason, columns)
        values ($1::int2, $2, $3, $4::int8, $5::bytea, $6, $7, $8::jsonb) on conflict do nothing`,
      values: [
        String(this.#peerId),
        tableLabel(target.staging.table),
        group.kind,
        String(versionOf(target, group, row)),
        [row],
        sqlstate,
        failure.message,
        shapeOf(target, group.kind),
      ],
    };
  }

  /**
   * Some of the rows parked, by any peer, for want of another row or of room are tried again: due once their table has changed, or one
   * that foreign keys tie to it. `oids`: the tables that did; `afresh`: since the last call. In a local transaction of its own, behind
   * the commit: whichever of two commits second sees both. Returns whether all had their turn, and none found its place.
   */
  async adopt(oids: Iterable<number>, afresh: boolean): Promise<boolean> {
    const { must, queue, commit, mark } = this.#ways;
    const labels =
      this.#foreign?.near(oids) ?? [...oids].map((oid) => tableLabel(this.#targets.get(oid)!.staging.table));
    if (afresh) this.#triedInVain = 0;
    const undo = mark();
    try {
      const results = await must([
        { text: 'begin' },
        { text: `set constraints all ${this.#foreign ? 'deferred' : 'immediate'}` },
        { text: `select count(*) ${WAITING}`, values: [JSON.stringify(labels)] },
        { text: SOME_WAITING, values: [JSON.stringify(labels), this.#tried, String(ADOPTED_ROWS)] },
      ]);
      const [count, some] = results.slice(-2).map(({ rows }) => rows);
      const adopted = await this.#adoptAny(some!);
      const ids = `{${adopted.join(',')}}`;
      queue([{ text: 'delete from coregent.parked where id = any ($1::int8[])', values: [ids] }]);
      await commit();
      this.#parked -= adopted.length;
      this.#tried = some!.at(-1)?.[0] ?? '0';
      this.#triedInVain = adopted.length > 0 ? 0 : this.#triedInVain + some!.length;
      return this.#triedInVain >= Number(count![0]![0]) - adopted.length;
    } catch (error) {
      undo();
      throw error;
    }
  }

  /** Returns the ids of rows that found their place. */
  async #adoptAny(rows: readonly (readonly (string | null)[])[]): Promise<readonly string[]> {
    const byLabel = new Map([...this.#targets.values()].map((target) => [tableLabel(target.staging.table), target]));
    const waiting = rows.flatMap(([id, label, kind, hex, columns]) => {
      const target = byLabel.get(label!);
      const group: GroupKind = { kind: kind as GroupKind['kind'], unknown: [] };
      const known = target && fits(target, { kind: group.kind, columns: JSON.parse(columns!) });
      return known ? [{ id: id!, target, group, row: Buffer.from(hex!, 'hex') }] : [];
    });
    const left = await this.#tryAgain(waiting);
    const still = new Set(left.map(({ row }) => row));
    for (const target of new Set(left.map((each) => each.target))) {
      const ring = left.filter((each) => each.target === target && isUniqueViolation(each.failure.cause));
      if (ring.length < 2 || (await this.#attempt(() => this.#ways.vacate(target, ring)))) continue;
      for (const { row } of ring) still.delete(row);
    }
    const adopted = waiting.filter(({ row }) => !still.has(row));
    for (const { target, group, row } of adopted) if (group.kind === 'insert') this.#ways.inserted(target, row);
    return adopted.map(({ id }) => id);
  }
}
