import { tableLabel } from '../model/table.ts';
import type { Tuples } from '../wire/tuples.ts';
import { type CarefulWays, withinTime } from './careful.ts';
import type { Step, StepResult } from './script.ts';
import { arrayOf } from './steps.ts';
import type { Target } from './target.ts';

type Ways = Pick<CarefulWays, 'must' | 'queue' | 'make'>;

/** A look at a whole table may take as long as one at so many rows. */
const ALL_ROWS = 60_000;

interface Unsure {
  readonly target: Target;
  readonly kind: 'inserted' | 'buried';
  /** Tombstone records of the keys, made when needed; undefined for a part of a large transaction. */
  readonly keys: (() => Tuples) | undefined;
}

/** A table whose rows that crossed a delete cannot be removed for now, and why. */
export interface FailedLook {
  readonly table: string;
  readonly message: string;
}

/**
 * Keys of a transaction that may have crossed another one of the same keys unseen: a row on its way in and its tombstone,
 * each committed without sight of the other (write skew). Whichever commits second sees both, so each looks again
 * behind its commit. Until it has, its tables are in doubt; so is at first every table that is not known to be settled, since
 * a look may never have been reached (a kill, a lost connection). {@link look} makes it up.
 */
export class Crossing {
  readonly #targets: ReadonlyMap<number, Target>;
  readonly #settled: Set<number>;
  #unsure: Unsure[] = [];
  readonly #inDoubt: Map<number, Error | undefined>;
  /** Tables that only the last commit brought into doubt. */
  readonly #sent = new Set<number>();

  /** `settled`: tables, by OID, without a crossing that waits for its look; kept up to date, for whoever comes next. */
  constructor(targets: ReadonlyMap<number, Target>, settled: Set<number>) {
    this.#targets = targets;
    this.#settled = settled;
    this.#inDoubt = new Map([...targets.keys()].filter((oid) => !settled.has(oid)).map((oid) => [oid, undefined]));
  }

  /** Tables, by OID, that {@link look} is due for, with what the last one failed with, if there was one. */
  get inDoubt(): ReadonlyMap<number, Error | undefined> {
    return this.#inDoubt;
  }

  /** Rows were inserted, or deletes did not find their row. Without `keys` the whole table is looked at. */
  note(kind: Unsure['kind'], target: Target, keys: (() => Tuples) | undefined): void {
    this.#unsure.push({ target, kind, keys });
  }

  /** A commit is about to be sent: whatever happens from here on, what it may cross is in doubt until it is settled. */
  committing(): void {
    for (const { staging } of this.#tables()) {
      const { oid } = staging.table;
      if (this.#inDoubt.has(oid)) continue;
      this.#settled.delete(oid);
      this.#inDoubt.set(oid, undefined);
      this.#sent.add(oid);
    }
  }

  /** The server said that nothing was committed. */
  refused(): void {
    this.#trust(this.#sent);
    this.#sent.clear();
  }

  /** The transaction is over, or nobody knows: what was sent stays in doubt. */
  clear(): void {
    this.#unsure = [];
    this.#sent.clear();
  }

  #trust(oids: Iterable<number>): void {
    for (const oid of oids) {
      this.#inDoubt.delete(oid);
      this.#settled.add(oid);
    }
  }

  #tables(): Target[] {
    return [...new Set(this.#unsure.map(({ target }) => target))];
  }

  /** To run right behind the commit: whether the tables have tombstones at all. */
  questions(): Step[] {
    return this.#tables().map(({ compiled }) => ({ text: compiled.anyTombstone }));
  }

  /** Settles what crossed, given the answers to {@link questions}; returns the conflicts recorded. */
  async settle(answers: readonly StepResult[], ways: Ways): Promise<StepResult[]> {
    const targets = this.#tables().filter((_, index) => answers[index]!.rows[0]![0] === 't');
    const unsure = this.#unsure.filter(({ target }) => targets.includes(target));
    this.#unsure = [];
    const recorded: StepResult[] = [];
    for (const target of targets) {
      const mine = unsure.filter((each) => each.target === target);
      if (mine.some(({ keys }) => keys === undefined)) await removeAll(target, ways);
      for (const { kind, keys } of mine) {
        const records = keys?.();
        if (records && records.live > 0) recorded.push(await settleKeys(target, kind, records, ways));
      }
    }
    this.#trust(this.#sent);
    this.#sent.clear();
    return recorded;
  }

  /**
   * Removes every row that is older than its tombstone from the tables in doubt. Where there are no tombstones that is one question.
   * Gives the tables where that fails and had not failed before; they stay in doubt, and hold up no other.
   */
  async look(ways: Ways): Promise<FailedLook[]> {
    const failed: FailedLook[] = [];
    for (const [oid, before] of [...this.#inDoubt]) {
      const target = this.#targets.get(oid)!;
      const { compiled, staging } = target;
      try {
        const [any] = await ways.must([{ text: compiled.anyTombstone }]);
        if (any!.rows[0]![0] === 't') await removeAll(target, ways);
        this.#trust([oid]);
      } catch (error) {
        this.#inDoubt.set(oid, error as Error);
        if (!before) failed.push({ table: tableLabel(staging.table), message: (error as Error).message });
      }
    }
    return failed;
  }
}

async function settleKeys(target: Target, kind: Unsure['kind'], records: Tuples, ways: Ways): Promise<StepResult> {
  const { compiled } = target;
  const values = [arrayOf(target.tombstoneTypeOid, records)];
  const [record, remove] =
    kind === 'inserted'
      ? [compiled.recordCrossedInserts, compiled.removeBuried]
      : [compiled.recordCrossedDeletes, compiled.deleteOlder];
  const steps: readonly Step[] = [{ text: 'begin' }, { text: record, values }, { text: remove, values }];
  if (!showsMade(target)) return (await ways.must([...steps, { text: 'commit' }]))[1]!;
  return (await making(target, ways, records, steps))[1]!;
}

/** Removes every row that is older than its tombstone. */
async function removeAll(target: Target, ways: Ways): Promise<void> {
  const remove = { text: target.compiled.removeAllBuried };
  if (showsMade(target)) await making(target, ways, undefined, [{ text: 'begin' }, remove]);
  else await ways.must([remove]);
}

/** What is left of a row's versions may have to be made anew. */
function showsMade({ compiled }: Target): boolean {
  return compiled.making !== undefined || compiled.calls !== undefined;
}

/** Runs a transaction that ends with making; rolled back, it is done again by a later look. */
async function making(
  target: Target,
  ways: Ways,
  keys: Tuples | undefined,
  [begin, ...steps]: readonly Step[],
): Promise<readonly StepResult[]> {
  try {
    const begun = await ways.must([begin!]);
    const results = await withinTime(target, keys?.live ?? ALL_ROWS, ways, () => ways.must(steps));
    await ways.make(target, keys);
    await ways.must([{ text: 'commit' }]);
    return [...begun, ...results];
  } catch (error) {
    await ways.must([{ text: 'rollback' }]);
    throw error;
  }
}
