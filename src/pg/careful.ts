import { CoregentError } from '../model/error.ts';
import { familyOf } from '../model/rule.ts';
import type { Tuples } from '../wire/tuples.ts';
import type { Step, StepResult } from './script.ts';
import { arrayOf, type GroupKind, keysOf, versionsOf } from './steps.ts';
import type { Target } from './target.ts';

/** What the careful way needs of the store. */
export interface CarefulWays {
  must(steps: readonly Step[]): Promise<readonly StepResult[]>;
  /** Sends these ahead of the next steps. */
  queue(steps: readonly Step[]): void;
  /** Counts the conflicts that a step recorded. */
  count(recorded: StepResult): void;
  /** Remembers keys that may have crossed another transaction. */
  note(kind: 'inserted' | 'buried', target: Target, keys: () => Tuples): void;
  /** Rows whose writer did not send every value, whole. */
  complete(target: Target, group: GroupKind, records: Tuples): Promise<Tuples>;
  /** Makes what rows under these keys, given as tombstones, show of several versions; undefined: all rows. */
  make(target: Target, keys: Tuples | undefined): Promise<void>;
}

/** Rows that came and went beneath a statement are tried again so often. */
const ROUNDS = 3;

/** The exact way: settles every row of the group under its lock and records each conflict. `settled`: rows that the clean way did. */
export async function settleCarefully(
  ways: CarefulWays,
  target: Target,
  group: GroupKind,
  records: Tuples,
  settled: number,
): Promise<void> {
  const { compiled, staging } = target;
  if (group.kind === 'tombstone') {
    const values = [arrayOf(target.tombstoneTypeOid, records)];
    const bury: Step[] = [
      { text: compiled.recordDeletes, values },
      { text: compiled.deleteOlder, values },
    ];
    const [recorded] = await withinTime(target, records.live, ways, () => ways.must(bury));
    ways.count(recorded!);
    ways.note('buried', target, () => records);
    await ways.make(target, records);
    return;
  }
  const partial = group.unknown.length > 0;
  const full = partial ? await ways.complete(target, group, records) : records;
  if (full.live === 0) return;
  const keys = (): Tuples => keysOf(staging, full);
  const values = [arrayOf(target.rowTypeOid, full)];
  const asked = partial ? versionsOf(target, group, records) : null;
  const kind = group.kind === 'insert' ? 'insert_exists' : 'update_origin_differs';
  const joinRows = { text: compiled.joinRows, values: [...values, kind, asked] };
  const insertAbsent = { text: compiled.insertAbsent, values };
  const unresolved = { text: compiled.unresolved, values };
  await withinTime(target, full.live, ways, async () => {
    const [joined] = await ways.must([joinRows]);
    ways.count(joined!);
    // A row that was here is as it should be, and stays so until the commit. One that was not may be deleted, or on its way.
    const met = Number(joined!.rows.find(([none]) => none === null)![4]);
    const done = met + (partial ? 0 : settled) === full.live;
    // Versions that are kept side by side may have missed a delete that takes some of them.
    if (!done || familyOf(staging.table.rule) === 'versions') ways.note('inserted', target, keys);
    if (done) return;
    let results = await ways.must([
      { text: compiled.recordBuried, values: [...values, asked] },
      insertAbsent,
      unresolved,
    ]);
    ways.count(results[0]!);
    const left = (): boolean => results.at(-1)!.rows[0]![0] !== '0';
    for (let round = 0; left() && round < ROUNDS; round++) {
      results = await ways.must([joinRows, insertAbsent, unresolved]);
      ways.count(results[0]!);
    }
    // What is left violates another constraint; the plain upsert says which.
    if (left()) await ways.must([{ text: compiled.force, values }]);
  });
  if (compiled.making) await ways.make(target, keys());
}

/**
 * A statement that calls a function of the application's may take so long, in ms, and so much more for each row. Alone a row has longer:
 * on a busy machine anything may take a second.
 */
const CALL_MS = 1_000;
const CALL_ROW_MS = 1;
const CALL_ALONE_MS = 5_000;
/** A lock that takes longer is no fault of the function: the batch is tried again. */
const CALL_LOCK_MS = 800;

/**
 * Does the work with a time limit where its statements call a function of the application's, which may never return.
 * Throws `apply_failed` where it is overrun: rows are then tried in ever smaller groups, and one that alone takes too long is parked.
 */
export async function withinTime<T>(
  { compiled }: Target,
  rows: number,
  { queue }: Pick<CarefulWays, 'queue'>,
  work: () => Promise<T>,
): Promise<T> {
  if (compiled.calls === undefined) return await work();
  const limitMs = rows > 1 ? CALL_MS + CALL_ROW_MS * rows : CALL_ALONE_MS;
  queue([timeouts(CALL_LOCK_MS, limitMs)]);
  try {
    const done = await work();
    queue([timeouts(0, 0)]);
    return done;
  } catch (error) {
    if (!isCancelled(error)) throw error;
    const what = `${compiled.calls} took longer than ${limitMs} ms`;
    throw new CoregentError('apply_failed', what, { cause: (error as CoregentError).cause });
  }
}

function timeouts(lockMs: number, statementMs: number): Step {
  const text = `select set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true)`;
  return { text, values: [String(lockMs), String(statementMs)] };
}

function isCancelled(error: unknown): boolean {
  return error instanceof CoregentError && (error.cause as { code?: string } | undefined)?.code === '57014';
}
