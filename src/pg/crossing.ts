import type { Tuples } from '../wire/tuples.ts';
import type { Step, StepResult } from './script.ts';
import { arrayOf } from './steps.ts';
import type { Target } from './target.ts';

/** Runs steps in order; rejects at the first error. */
type Run = (steps: readonly Step[]) => Promise<readonly StepResult[]>;

interface Unsure {
  readonly target: Target;
  readonly kind: 'inserted' | 'buried';
  /** Tombstone records of the keys, made when needed; undefined for a part of a large transaction. */
  readonly keys: (() => Tuples) | undefined;
}

/**
 * Keys of a transaction that may have crossed another one of the same keys unseen: a row on its way in and its tombstone,
 * each committed without sight of the other (write skew). Whichever commits second sees both, so each looks again
 * behind its commit. A look that is never reached (a kill, a lost connection) is made up by {@link removeBuried}.
 */
export class Crossing {
  #unsure: Unsure[] = [];

  /** Rows were inserted, or deletes did not find their row. Without `keys` the whole table is looked at. */
  note(kind: Unsure['kind'], target: Target, keys: (() => Tuples) | undefined): void {
    this.#unsure.push({ target, kind, keys });
  }

  clear(): void {
    this.#unsure = [];
  }

  #tables(): Target[] {
    return [...new Set(this.#unsure.map(({ target }) => target))];
  }

  /** To run right behind the commit: whether the tables have tombstones at all. */
  questions(): Step[] {
    return this.#tables().map(({ compiled }) => ({ text: compiled.anyTombstone }));
  }

  /** Settles what crossed, given the answers to {@link questions}; returns the conflicts recorded. */
  async settle(answers: readonly StepResult[], run: Run): Promise<StepResult[]> {
    const targets = this.#tables().filter((_, index) => answers[index]!.rows[0]![0] === 't');
    const unsure = this.#unsure.filter(({ target }) => targets.includes(target));
    this.#unsure = [];
    const recorded: StepResult[] = [];
    for (const target of targets) {
      const mine = unsure.filter((each) => each.target === target);
      if (mine.some(({ keys }) => keys === undefined)) await run([{ text: target.compiled.removeAllBuried }]);
      for (const { kind, keys } of mine) {
        const records = keys?.();
        if (records && records.live > 0) recorded.push(await settleKeys(target, kind, records, run));
      }
    }
    return recorded;
  }
}

async function settleKeys(target: Target, kind: Unsure['kind'], records: Tuples, run: Run): Promise<StepResult> {
  const { compiled } = target;
  const values = [arrayOf(target.tombstoneTypeOid, records)];
  const [record, remove] =
    kind === 'inserted'
      ? [compiled.recordCrossedInserts, compiled.removeBuried]
      : [compiled.recordCrossedDeletes, compiled.deleteOlder];
  const results = await run([
    { text: 'begin' },
    { text: record, values },
    { text: remove, values },
    { text: 'commit' },
  ]);
  return results[1]!;
}

/** Removes every row that is older than its tombstone. One look per table where there are no tombstones. */
export async function removeBuried(targets: Iterable<Target>, run: Run): Promise<void> {
  for (const { compiled } of targets) {
    const [any] = await run([{ text: compiled.anyTombstone }]);
    if (any!.rows[0]![0] === 't') await run([{ text: compiled.removeAllBuried }]);
  }
}
