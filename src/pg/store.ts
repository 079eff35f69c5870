import type pg from 'pg';
import { CoregentError } from '../model/error.ts';
import { type LSN, parseLsn } from '../model/lsn.ts';
import { asRecords, asTombstones, type Batch, type Group, type TableBatch } from '../pipe/batch.ts';
import { copyStream, type Tuples } from '../wire/tuples.ts';
import { type CarefulWays, settleCarefully, withinTime } from './careful.ts';
import { Crossing, type FailedLook } from './crossing.ts';
import { arrange, type ForeignKeys } from './foreign.ts';
import type { Place } from './held.ts';
import { ANY_PARKED, Isolation } from './isolate.ts';
import { type Deciders, makeRows } from './make.ts';
import type { Orphans } from './orphans.ts';
import { passSteps } from './paused.ts';
import { moveProgress, type ProgressKey } from './progress.ts';
import type { Receipt, RecordedConflict, Settled } from './receipt.ts';
import { runScript, runWithin, type ScriptResult, type Step, type StepResult } from './script.ts';
import { Shortcuts } from './shortcuts.ts';
import {
  applyError,
  arrayOf,
  cleanStep,
  type GroupKind,
  inOrder,
  keysOf,
  tuplesOf,
  versionOf,
  wholeStep,
} from './steps.ts';
import type { FetchRows, Target } from './target.ts';

/** Inserts of at least this many rows go by COPY straight into the table, tombstones without a look whether there is one. */
const COPY_ROWS = 40;
/** Batches of at most so many rows are applied and committed in one round trip. */
const AT_ONCE_ROWS = 200;
const AT_ONCE = 'at once';

/** Rows of a batch that are to be settled. */
interface Unsettled {
  readonly target: Target;
  readonly group: GroupKind;
  readonly records: Tuples;
}

/** What a clean statement was expected to do. */
interface Expectation extends Unsettled {
  readonly step: number;
}

/**
 * Applies batches of one peer in this region: stage, resolve and commit of the pipe, in one local transaction per batch.
 * Not for concurrent use; a failed call leaves the connection without an open transaction.
 */
export class Store {
  readonly #client: pg.Client;
  readonly #targets: ReadonlyMap<number, Target>;
  readonly #progress: ProgressKey | undefined;
  readonly #fetch: FetchRows;
  readonly #foreign: ForeignKeys | undefined;
  readonly #orphans: Orphans | undefined;
  #lsn: LSN;
  /** Inside a local transaction that an incomplete batch began. */
  #open = false;
  /** The local transaction holds one batch, so that its rows are at hand when it is committed. */
  #whole = true;
  /** After a fault: every row on its own terms. */
  #isolate = false;
  /** Steps to send ahead of the next ones, so that they cost no round trip of their own. */
  #queued: Step[] = [];
  #conflicts: RecordedConflict[] = [];
  readonly #crossing: Crossing;
  /** Tables, by OID, that changed since parked rows were tried again. At first all. */
  readonly #untried: Set<number>;
  /** A table changed since the last try. */
  #afresh = true;
  /** Tables, by OID, that the transaction has rows of. */
  readonly #touched = new Set<number>();
  readonly #isolation: Isolation;
  readonly #ways: CarefulWays;
  readonly #shortcuts = new Shortcuts((steps) => this.#run(steps));
  readonly #script: typeof runScript;

  constructor(options: {
    client: pg.Client;
    targets: readonly Target[];
    /** Without: a joining copy, which keeps no progress. */
    progress?: ProgressKey;
    lsn: LSN;
    fetch: FetchRows;
    /** Where foreign keys fire. */
    foreign?: ForeignKeys | undefined;
    /** Where they don't. */
    orphans?: Orphans | undefined;
    /** Carries out rules that are modules; without, rows that one would make are refused. */
    deciders?: Deciders | undefined;
    /** What the store of the session before knew to be settled: see {@link Crossing}. Without: nothing is. */
    settled?: Set<number>;
    /** Works inside of a transaction of the caller's. */
    within?: boolean;
  }) {
    this.#client = options.client;
    this.#script = options.within ? runWithin : runScript;
    this.#targets = new Map(options.targets.map((target) => [target.staging.table.oid, target]));
    this.#progress = options.progress;
    this.#lsn = options.lsn;
    this.#fetch = options.fetch;
    this.#foreign = options.foreign;
    this.#orphans = options.orphans;
    this.#crossing = new Crossing(this.#targets, options.settled ?? new Set());
    this.#untried = new Set(this.#targets.keys());
    const { deciders } = options;
    const must: CarefulWays['must'] = (steps) => this.#must(steps);
    this.#ways = {
      must,
      queue: (steps) => this.#queued.push(...steps),
      count: (recorded) => this.#count(recorded),
      note: (kind, target, keys) => this.#note(kind, target, keys),
      complete: (target, group, records) => this.#complete(target, group, records),
      make: (target, keys) => makeRows(target, { keys, must, deciders }),
    };
    this.#isolation = new Isolation({
      ways: {
        must,
        inserted: (target, row) => this.#note('inserted', target, () => keysOf(target.staging, tuplesOf([row]))),
        commit: async () => {
          const { error } = await this.#runCommit([{ text: 'commit' }]);
          if (error) throw applyError(error);
        },
        queue: this.#ways.queue,
        settle: (target, group, records) => this.#settle(target, group, records),
        vacate: (target, places) => this.#vacate(target, places),
        fetch: this.#fetch,
        mark: () => {
          const conflicts = this.#conflicts.length;
          return () => {
            this.#conflicts.length = conflicts;
          };
        },
      },
      peerId: this.#progress?.peerId ?? 0,
      targets: this.#targets,
      foreign: this.#foreign,
      arranged: (tables) => arrange(tables, this.#foreign, this.#orphans),
    });
  }

  /** The peer's position that is applied here. */
  get lsn(): LSN {
    return this.#lsn;
  }

  /** Whether a local transaction is open, begun by an incomplete batch. */
  get open(): boolean {
    return this.#open;
  }

  /** From now on rows that fail are parked one by one instead of failing their batch. */
  isolateFaults(isolate: boolean): void {
    this.#isolate = isolate;
  }

  /**
   * Applies a batch and, if it is complete, commits it together with the progress.
   * Behind it {@link tryParked} is due.
   * Throws `apply_interrupted` (retry), `apply_failed` (retry with faults isolated), `progress_fenced`, or a lost connection.
   */
  async apply(batch: Batch): Promise<Receipt> {
    this.#conflicts = [];
    this.#isolation.takeParked();
    try {
      if (batch.afresh && this.#open) await this.#rollback();
      if (batch.rows === 0 && batch.passed.size === 0 && batch.transactions === 0 && !this.#open) {
        return { localLsn: undefined, conflicts: [], parked: 0, rows: 0 };
      }
      this.#whole = batch.complete && !this.#open;
      for (const table of batch.tables.values()) {
        const target = this.#target(table);
        this.#touched.add(target.staging.table.oid);
        for (const group of table.groups) {
          if (group.kind === 'insert') this.#note('inserted', target, () => asTombstones(target.staging, group));
        }
      }
      const small = batch.complete && batch.rows <= AT_ONCE_ROWS && !this.#open && !this.#isolate;
      if (small && this.#shortcuts.may(AT_ONCE)) {
        const localLsn = await this.#applyAtOnce(batch);
        if (localLsn !== undefined) return this.#receipt(batch, localLsn);
      }
      if (!this.#open) this.#queued = this.#begin();
      this.#queued.push(...this.#passSteps(batch));
      this.#open = true;
      if (this.#isolate) await this.#isolation.apply(batch.tables.values(), batch.complete);
      else if (this.#foreign || this.#orphans?.anyIn(batch.tables.values())) await this.#applyInOrder(batch);
      else await this.#applyClean(batch);
      let localLsn: LSN | undefined;
      if (batch.complete) localLsn = await this.#commit(batch);
      return this.#receipt(batch, localLsn);
    } catch (error) {
      await this.#rollback().catch(() => {});
      throw error;
    }
  }

  async #rollback(): Promise<void> {
    this.#open = false;
    this.#queued = [];
    this.#crossing.clear();
    this.#touched.clear();
    this.#isolation.rolledBack();
    await this.#must([{ text: 'rollback' }]);
  }

  #receipt(batch: Batch, localLsn: LSN | undefined): Receipt {
    return { localLsn, conflicts: this.#conflicts, parked: this.#isolation.takeParked(), rows: batch.rows };
  }

  #begin(): Step[] {
    const begin = { text: 'begin' };
    if (this.#foreign) return [begin, { text: 'set constraints all deferred' }];
    // What would fail at the commit, and not say whose fault it is, fails at the row.
    return this.#isolate ? [begin, { text: 'set constraints all immediate' }] : [begin];
  }

  /**
   * A small batch in one round trip, its commit included; undefined, and nothing done, when a row was no plain successor
   * or anything else went wrong: the other ways then find out what.
   */
  async #applyAtOnce(batch: Batch): Promise<LSN | undefined> {
    const steps = [...this.#begin(), ...this.#passSteps(batch)];
    for (const { table, group } of arrange(batch.tables.values(), this.#foreign, this.#orphans)) {
      if (group.tuples.live === 0) continue;
      const target = this.#target(table);
      const records = asRecords(table.staging, group);
      steps.push(...(this.#orphans?.ahead(target, group, records) ?? []), wholeStep(target, group, records));
    }
    const commit = this.#commitSteps(batch);
    const { results, error } = await this.#runCommit([...steps, ...commit]);
    if (error) {
      await this.#must([{ text: 'rollback' }]);
      this.#shortcuts.failed(AT_ONCE);
      return undefined;
    }
    this.#shortcuts.worked(AT_ONCE);
    return this.#committed(batch, results);
  }

  #passSteps(batch: Batch): Step[] {
    return this.#progress ? passSteps(this.#progress.slot, batch.passed) : [];
  }

  #note(kind: 'inserted' | 'buried', target: Target, keys: () => Tuples): void {
    this.#crossing.note(kind, target, this.#whole ? keys : undefined);
  }

  /** The commit is done: where the local WAL stood then. Looks once more at what may have crossed another transaction. */
  async #committed(batch: Batch, results: readonly StepResult[]): Promise<LSN> {
    const behind = 2 + this.#crossing.questions().length;
    const [committed, standing, ...answers] = results.slice(results.length - behind);
    const [position, parked] = standing?.rows[0] ?? [];
    if (committed!.command !== 'COMMIT') throw new CoregentError('apply_interrupted', 'the commit became a rollback');
    this.#open = false;
    for (const oid of this.#touched) this.#untried.add(oid);
    this.#touched.clear();
    this.#afresh = true;
    if (parked !== 't') this.#untried.clear();
    if (batch.endLsn !== undefined) this.#lsn = batch.endLsn;
    await this.#orLater(() => this.#settleCrossing(answers));
    return parseLsn(position!);
  }

  /** Tables, by OID, in which rows may have crossed a delete; with why the last look failed, if it did. */
  get inDoubt(): ReadonlyMap<number, Error | undefined> {
    return this.#crossing.inDoubt;
  }

  /** Whether {@link tryParked} is due: while a table is in doubt, or rows are parked that had no turn since their tables changed. */
  get owesTries(): boolean {
    return (this.inDoubt.size > 0 || this.#untried.size > 0) && !this.#open;
  }

  /** Other rows were written or removed here: parked ones are due again. */
  tryAgain(): void {
    for (const oid of this.#targets.keys()) this.#untried.add(oid);
    this.#afresh = true;
  }

  /** Tries some of the parked rows again that may find their place now. What fails is tried by the next call. Throws a lost connection. */
  async tryParked(): Promise<Settled> {
    this.#conflicts = [];
    let failedLooks: FailedLook[] = [];
    if (this.owesTries) {
      await this.#orLater(async () => {
        if (this.inDoubt.size > 0) {
          for (const oid of this.inDoubt.keys()) this.#untried.add(oid);
          this.#afresh = true;
          failedLooks = await this.#crossing.look(this.#ways);
        }
        if (this.#untried.size === 0) return;
        const afresh = this.#afresh;
        this.#afresh = false;
        this.#whole = true;
        if (await this.#isolation.adopt(this.#untried, afresh)) this.#untried.clear();
        const questions = this.#crossing.questions();
        if (questions.length > 0) await this.#settleCrossing(await this.#must(questions));
      });
    }
    return { conflicts: this.#conflicts, parked: this.#isolation.takeParked(), failedLooks };
  }

  /**
   * What was committed stands whatever fails behind it: then {@link tryParked} begins with a look at what is in doubt.
   * Throws only a lost connection.
   */
  async #orLater(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch {
      this.#queued = [];
      this.#crossing.clear();
      await this.#must([{ text: 'rollback' }]);
      this.#afresh = true;
    }
  }

  async #settleCrossing(answers: readonly StepResult[]): Promise<void> {
    for (const recorded of await this.#crossing.settle(answers, this.#ways)) this.#count(recorded);
  }

  #commitSteps(batch: Batch): Step[] {
    const steps: Step[] = [{ text: 'commit' }, { text: `select pg_current_wal_insert_lsn()::text, ${ANY_PARKED}` }];
    steps.push(...this.#crossing.questions());
    if (this.#progress && batch.endLsn !== undefined) {
      steps.unshift(moveProgress(this.#progress, { from: this.#lsn, to: batch.endLsn }, batch));
    }
    return steps;
  }

  async #commit(batch: Batch): Promise<LSN> {
    const { results, error } = await this.#runCommit(this.#commitSteps(batch));
    if (error) {
      if ((error as { code?: string }).code !== '22012') throw applyError(error);
      throw new CoregentError('progress_fenced', 'progress is not where this agent left it', {
        where: this.#progress?.slot ?? '',
      });
    }
    return this.#committed(batch, results);
  }

  async #run(steps: readonly Step[]): Promise<ScriptResult> {
    const queued = this.#queued;
    this.#queued = [];
    const { results, error } = await this.#script(this.#client, [...queued, ...steps]);
    return { results: results.slice(queued.length), error };
  }

  /** Runs steps with a commit among them. */
  async #runCommit(steps: readonly Step[]): Promise<ScriptResult> {
    this.#crossing.committing();
    const script = await this.#run(steps);
    if (script.error && !script.results.some(({ command }) => command === 'COMMIT')) this.#crossing.refused();
    return script;
  }

  async #must(steps: readonly Step[]): Promise<readonly StepResult[]> {
    const { results, error } = await this.#run(steps);
    if (error) throw applyError(error);
    return results;
  }

  #count({ rows }: StepResult): void {
    for (const [kind, outcome, equal, table, times = '1'] of rows) {
      if (kind === null) continue;
      const conflict = { table: table!, kind: kind!, outcome: outcome!, equalVersions: equal === 't' };
      for (let n = Number(times); n > 0; n--) this.#conflicts.push(conflict);
    }
  }

  #target(table: TableBatch): Target {
    return this.#targets.get(table.staging.table.oid)!;
  }

  /** The fast way: everything in one round trip, in the hope that no row meets a conflict. */
  async #applyClean(batch: Batch): Promise<void> {
    const steps: Step[] = [];
    const expected: Expectation[] = [];
    const copies: { target: Target; group: Group }[] = [];
    const contested: Unsettled[] = [];
    for (const table of batch.tables.values()) {
      const target = this.#target(table);
      for (const group of inOrder(table.groups)) {
        if (group.tuples.live === 0) continue;
        if (this.#mayCopy(target, group)) {
          copies.push({ target, group });
          continue;
        }
        const records = asRecords(table.staging, group);
        if (isWholeUpdate(group) && !this.#shortcuts.may(following(target))) {
          contested.push({ target, group, records });
          continue;
        }
        if (group.kind === 'tombstone' && records.live >= COPY_ROWS && this.#shortcuts.may(burying(target))) {
          await this.#buryNew(target, group, records);
          continue;
        }
        expected.push({ target, group, records, step: steps.length });
        steps.push(cleanStep(target, group, records));
      }
    }
    if (steps.length > 0) {
      const results = await this.#must(steps);
      for (const each of expected) await this.#settleRest(each, results[each.step]!.count);
    }
    for (const { target, group, records } of contested) await settleCarefully(this.#ways, target, group, records, 0);
    for (const { target, group } of copies) await this.#copyIn(target, group);
  }

  /** One group after the other, parents and children each in their time. */
  async #applyInOrder(batch: Batch): Promise<void> {
    for (const { table, group } of arrange(batch.tables.values(), this.#foreign, this.#orphans)) {
      if (group.tuples.live === 0) continue;
      const target = this.#target(table);
      if (this.#mayCopy(target, group)) {
        await this.#copyIn(target, group);
      } else {
        await this.#settle(target, group, asRecords(table.staging, group));
      }
    }
  }

  async #settle(target: Target, group: GroupKind, records: Tuples): Promise<void> {
    this.#queued.push(...(this.#orphans?.ahead(target, group, records) ?? []));
    if (isWholeUpdate(group) && !this.#shortcuts.may(following(target))) {
      await settleCarefully(this.#ways, target, group, records, 0);
      return;
    }
    const [clean] = await this.#must([cleanStep(target, group, records)]);
    await this.#settleRest({ target, group, records }, clean!.count);
  }

  /** Behind the clean way, which did `count` rows. */
  async #settleRest({ target, group, records }: Unsettled, count: number): Promise<void> {
    if (isWholeUpdate(group)) this.#shortcuts.note(following(target), count * 2 >= records.live);
    if (count !== records.live) await settleCarefully(this.#ways, target, group, records, count);
  }

  #mayCopy(target: Target, { kind, tuples }: Group): boolean {
    const fits = kind === 'insert' && tuples.live >= COPY_ROWS && target.compiled.copyIn !== undefined;
    return fits && this.#shortcuts.may(copying(target));
  }

  /** Few keys are deleted twice: tombstones go in without a look for an older one. */
  async #buryNew(target: Target, group: Group, records: Tuples): Promise<void> {
    const values = [arrayOf(target.tombstoneTypeOid, records)];
    const done = await this.#shortcuts.attempt(burying(target), [{ text: target.compiled.deleteNew, values }]);
    if (!done) await this.#settle(target, group, records);
    else await this.#settleRest({ target, group, records }, done[0]!.count);
  }

  /** New rows go straight into the table. */
  async #copyIn(target: Target, group: Group): Promise<void> {
    const { compiled, staging } = target;
    const done = await this.#shortcuts.attempt(copying(target), [
      { text: compiled.copyIn!, copy: copyStream(group.tuples.bytes()) },
      { text: compiled.anyTombstone },
    ]);
    if (!done) {
      await this.#settle(target, group, asRecords(staging, group));
    } else if (done[1]!.rows[0]![0] === 't') {
      const keys = asTombstones(staging, group);
      const parameter = arrayOf(target.tombstoneTypeOid, keys);
      const remove = [compiled.recordRevived, compiled.removeBuried].map((text) => ({ text, values: [parameter] }));
      const [revived] = await withinTime(target, keys.live, this.#ways, () => this.#must(remove));
      this.#count(revived!);
      await this.#ways.make(target, keys);
    }
  }

  /** Rows whose writer did not send every value, as the peer has them now: whole, and at least as new. */
  async #complete(target: Target, group: GroupKind, records: Tuples): Promise<Tuples> {
    const { staging, compiled } = target;
    const values = [arrayOf(target.rowTypeOid, records)];
    // Once more the clean way: the row that an update replaced may have come behind it, under another spelling of its key.
    const [, strangers] = await this.#must([cleanStep(target, group, records), { text: compiled.strangers, values }]);
    if (Number(strangers!.rows[0]![0]) === 0) return tuplesOf([]);
    return this.#fetch(target, keysOf(staging, records));
  }

  /** Lets unique values change places between rows: takes the older rows away, then writes the new ones, all at once. */
  async #vacate(target: Target, places: readonly Place[]): Promise<void> {
    // Not even for a moment: their children would go with them.
    if (this.#foreign?.acts(target.staging.table.oid)) {
      throw new CoregentError('apply_failed', 'rows that others refer to cannot change places where foreign keys fire');
    }
    const rows = places.filter(({ group }) => group.unknown.length === 0).map(({ row }) => row);
    const partial = places.filter(({ group }) => group.unknown.length > 0).map(({ row }) => row);
    if (partial.length > 0) {
      const whole = await this.#fetch(target, keysOf(target.staging, tuplesOf(partial)));
      rows.push(...whole.liveRows());
    }
    const records = tuplesOf(rows);
    const values = [arrayOf(target.rowTypeOid, records)];
    const asked = `{${places.map(({ group, row }) => versionOf(target, group, row)).join(',')}}`;
    const steps = [
      { text: target.compiled.recordBuried, values: [...values, asked] },
      { text: target.compiled.recordRows, values: [...values, 'update_origin_differs', asked] },
      { text: target.compiled.vacate, values },
    ];
    const [buried, recorded] = await withinTime(target, records.live, this.#ways, () => this.#must(steps));
    this.#count(buried!);
    this.#count(recorded!);
    const keys = (): Tuples => keysOf(target.staging, records);
    this.#note('inserted', target, keys);
    if (target.compiled.making) await this.#ways.make(target, keys());
  }
}

const copying = ({ staging }: Target): string => `copy into ${staging.table.oid}`;
/** Where most updates met others last time, the next ones do without the clean way, which would find out the same. */
const following = ({ staging }: Target): string => `follow in ${staging.table.oid}`;
const isWholeUpdate = ({ kind, unknown }: GroupKind): boolean => kind === 'update' && unknown.length === 0;
const burying = ({ staging }: Target): string => `bury in ${staging.table.oid}`;
