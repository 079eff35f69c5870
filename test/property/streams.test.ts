import fc from 'fast-check';
import { expect, it } from 'vitest';
import { LSN_ZERO } from '../../src/model/lsn.ts';
import { makeVersion } from '../../src/model/version.ts';
import { Decoder } from '../../src/pipe/decode.ts';
import { MESSAGE } from '../../src/wire/pgoutput.ts';
import { begin, commit, describeTable, insert, int4, int8, ROWS, relation, text } from './encode.ts';
import { NOTES, routeTo, stagedOf, stagingOf } from './staged.ts';

/** Cases; thousands find what hundreds do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 300);
const PEER = 3;
/** A table of the same name that lacks a column: its rows are passed over. */
const PAUSED = 9;

/** What a peer sends next. Streams are numbered from 1. */
type Sent =
  | { readonly do: 'plain'; readonly rows: number; readonly paused: number }
  | {
      readonly do: 'chunk';
      readonly stream: number;
      readonly rows: number;
      readonly paused: number;
      readonly savepoint: number;
    }
  | { readonly do: 'rollback'; readonly stream: number; readonly savepoint: number }
  | { readonly do: 'end'; readonly stream: number; readonly commits: boolean };
/** What the agent does between two messages. */
type Turn = { readonly sent: Sent; readonly takes: number; readonly tires: boolean };

const stream = fc.integer({ min: 1, max: 3 });
const few = fc.constantFrom(0, 0, 0, 1, 2);
const sent: fc.Arbitrary<Sent> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constant('plain' as const), rows: fc.integer({ min: 0, max: 9 }), paused: few }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('chunk' as const),
      stream,
      rows: fc.integer({ min: 0, max: 12 }),
      paused: few,
      savepoint: few,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('rollback' as const), stream, savepoint: fc.integer({ min: 1, max: 2 }) }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('end' as const), stream, commits: fc.boolean() }) },
);
const turns: fc.Arbitrary<Turn[]> = fc.array(
  fc.record({ sent, takes: fc.integer({ min: 0, max: 4 }), tires: fc.nat({ max: 9 }).map((dice) => dice === 0) }),
  { minLength: 1, maxLength: 40, size: 'max' },
);

const xid = (value: number): Buffer => int4(value);
const within = (transaction: number, message: Buffer): Buffer =>
  Buffer.concat([message.subarray(0, 1), xid(transaction), message.subarray(1)]);
const byte = (value: number): Buffer => Buffer.from([value]);

const row = (id: number): Buffer =>
  insert(ROWS, [int4(id), text('x'), int8(makeVersion(BigInt(1_000 + id), PEER)), int8(-1)]);
const pausedRow = (id: number): Buffer =>
  insert(PAUSED, [int4(id), int8(makeVersion(BigInt(1_000 + id), PEER)), int8(-1)]);
const DESCRIBED = [
  ...describeTable(NOTES),
  relation(PAUSED, 'public', 'notes', ['id', '_coregent_version', '_coregent_parent']),
];

/** A peer: what it sends, and what it committed. */
class Sender {
  readonly committed: { readonly rows: number[]; readonly paused: number[] }[] = [];
  readonly #streams = new Map<
    number,
    { top: number; inside: number[]; rows: { id: number; savepoint: number; paused: boolean }[] }
  >();
  #ids = 0;
  #lsn = 0;
  #xid = 10;

  messages(step: Sent): Buffer[] {
    if (step.do === 'plain') {
      const rows = this.#numbers(step.rows);
      const paused = this.#numbers(step.paused);
      this.committed.push({ rows, paused });
      const end = this.#end();
      return [begin(end - 10n), ...DESCRIBED, ...paused.map(pausedRow), ...rows.map(row), commit(end)];
    }
    const known = this.#streams.get(step.stream);
    if (step.do === 'chunk') {
      const top = ++this.#xid;
      const open = known ?? { top, inside: [top, ++this.#xid, ++this.#xid], rows: [] };
      this.#streams.set(step.stream, open);
      const inside = open.inside[step.savepoint]!;
      const add = (count: number, paused: boolean): number[] => {
        const ids = this.#numbers(count);
        open.rows.push(...ids.map((id) => ({ id, savepoint: step.savepoint, paused })));
        return ids;
      };
      const messages = [...DESCRIBED, ...add(step.paused, true).map(pausedRow), ...add(step.rows, false).map(row)];
      return [
        Buffer.concat([byte(MESSAGE.streamStart), xid(open.top), byte(known ? 0 : 1)]),
        ...messages.map((message) => within(inside, message)),
        byte(MESSAGE.streamStop),
      ];
    }
    if (!known) return [];
    if (step.do === 'rollback') {
      known.rows = known.rows.filter(({ savepoint }) => savepoint !== step.savepoint);
      const inside = known.inside[step.savepoint]!;
      // What follows is another subtransaction.
      known.inside[step.savepoint] = ++this.#xid;
      return [Buffer.concat([byte(MESSAGE.streamAbort), xid(known.top), xid(inside)])];
    }
    this.#streams.delete(step.stream);
    if (!step.commits) return [Buffer.concat([byte(MESSAGE.streamAbort), xid(known.top), xid(known.top)])];
    const ids = (paused: boolean): number[] => known.rows.filter((each) => each.paused === paused).map(({ id }) => id);
    this.committed.push({ rows: ids(false), paused: ids(true) });
    const end = this.#end();
    return [Buffer.concat([byte(MESSAGE.streamCommit), xid(known.top), byte(0), int8(end - 10n), int8(end), int8(0)])];
  }

  #numbers(count: number): number[] {
    return Array.from({ length: count }, () => ++this.#ids);
  }

  #end(): bigint {
    this.#lsn += 100;
    return BigInt(this.#lsn);
  }
}

/** A region that applies batches, as the store does: rows that it committed, and the least version of rows that it owes. */
class Receiver {
  readonly commits: number[][] = [];
  owes: bigint | undefined;
  #rows: number[] = [];
  #owes: bigint | undefined;
  #open = false;

  apply(batch: ReturnType<Decoder['take']>): void {
    if (batch.afresh) {
      this.#rows = [];
      this.#owes = undefined;
      this.#open = false;
    }
    if (batch.rows === 0 && batch.passed.size === 0 && batch.transactions === 0 && !this.#open) return;
    this.#open = !batch.complete;
    this.#rows.push(...stagedOf(batch, NOTES).map(({ values }) => values[0]!.readInt32BE()));
    for (const { least } of batch.passed.values()) {
      if (this.#owes === undefined || least < this.#owes) this.#owes = least;
    }
    if (!batch.complete) return;
    this.commits.push(this.#rows);
    if (this.#owes !== undefined && (this.owes === undefined || this.#owes < this.owes)) this.owes = this.#owes;
    this.#rows = [];
    this.#owes = undefined;
  }
}

/** Found once: rows of one that is ahead were committed with another, and what was passed over ahead was forgotten. */
const chunk = (stream: number, rows: number, paused: number): Sent => ({
  do: 'chunk',
  stream,
  rows,
  paused,
  savepoint: 0,
});
const once = (...sent: readonly Sent[]): Turn[] => sent.map((each) => ({ sent: each, takes: 1, tires: false }));
const examples: [Turn[], number][] = [
  [once(chunk(1, 1, 0), chunk(2, 1, 0), { do: 'end', stream: 1, commits: true }), 1],
  [once(chunk(1, 1, 0), chunk(2, 1, 0), { do: 'end', stream: 2, commits: true }), 1],
  [once(chunk(1, 0, 1), chunk(2, 0, 0), { do: 'end', stream: 1, commits: true }), 1],
];

it(
  'INV-A, D4: whatever is streamed, rolled back and taken when, regions commit whole transactions in order, and owe all that they passed over',
  () => {
    let wentAhead = 0;
    fc.assert(
      fc.property(turns, fc.constantFrom(1, 3, 5, 1_000), (given, rows) => {
        const decoder = new Decoder({
          region: PEER,
          ahead: true,
          progress: LSN_ZERO,
          route: routeTo(stagingOf(NOTES)),
          limits: { rows, bytes: 1_000_000 },
        });
        const sender = new Sender();
        const receiver = new Receiver();
        const take = (): void => {
          const batch = decoder.take();
          if (!batch.complete && batch.rows > 0) wentAhead++;
          decoder.resume();
          receiver.apply(batch);
        };
        try {
          for (const { sent: step, takes, tires } of given) {
            for (const message of sender.messages(step)) {
              decoder.push(message, 0, message.length);
              while (decoder.full) take();
            }
            if (tires) decoder.tire(-1);
            for (let turn = 0; turn < takes && decoder.ready; turn++) take();
          }
          while (decoder.ready) take();
        } finally {
          decoder.close();
        }
        const whole = sender.committed.flatMap((each) => each.rows);
        expect(receiver.commits.flat()).toEqual(whole);
        const ends = new Set([0]);
        for (const each of sender.committed) ends.add((ends.size > 0 ? Math.max(...ends) : 0) + each.rows.length);
        let at = 0;
        for (const each of receiver.commits) {
          at += each.length;
          expect(ends.has(at), `a commit behind ${at} rows of ${whole.length}, which ends no transaction`).toBe(true);
        }
        const passed = sender.committed.flatMap((each) => each.paused);
        // Said too early, it only makes the join begin lower.
        const least = makeVersion(BigInt(1_000 + Math.min(...(passed.length > 0 ? passed : [0]))), PEER);
        if (passed.length > 0) expect(receiver.owes !== undefined && receiver.owes <= least, 'owes it all').toBe(true);
      }),
      { numRuns: RUNS, examples },
    );
    expect(wentAhead).toBeGreaterThan(0);
  },
  Math.max(60_000, RUNS * 100),
);
