import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LSN_ZERO, lsnOf } from '../../src/model/lsn.ts';
import { makeVersion } from '../../src/model/version.ts';
import { Decoder } from '../../src/pipe/decode.ts';
import { Spool } from '../../src/pipe/spool.ts';
import { begin, commit, describeTable, insert, int4, int8, ROWS, text } from '../property/encode.ts';
import { NOTES, routeTo, stagedOf, stagingOf } from '../property/staged.ts';

const PEER = 3;

const row = (id: number): Buffer =>
  insert(ROWS, [int4(id), text(`row ${id}`), int8(makeVersion(BigInt(1_000 + id), PEER)), int8(-1)]);

/** A message as it comes inside of a stream: its (sub)transaction behind the type. */
function within(subtransaction: number, message: Buffer): Buffer {
  const xid = Buffer.alloc(4);
  xid.writeUInt32BE(subtransaction);
  return Buffer.concat([message.subarray(0, 1), xid, message.subarray(1)]);
}

function numbers(type: string, ...values: number[]): Buffer {
  const message = Buffer.alloc(1 + 4 * values.length);
  message.write(type, 0);
  for (const [index, value] of values.entries()) message.writeUInt32BE(value, 1 + 4 * index);
  return message;
}

const start = (transaction: number): Buffer => Buffer.concat([numbers('S', transaction), Buffer.from([1])]);
const stop = Buffer.from('E');
const abort = (transaction: number, subtransaction: number): Buffer => numbers('A', transaction, subtransaction);
function streamCommit(transaction: number, endLsn: bigint): Buffer {
  const tail = Buffer.alloc(25);
  tail.writeBigUInt64BE(endLsn - 8n, 1);
  tail.writeBigUInt64BE(endLsn, 9);
  return Buffer.concat([numbers('c', transaction), tail]);
}

function open(options: { rows?: number; progress?: bigint; ahead?: boolean } = {}) {
  const decoder = new Decoder({
    region: PEER,
    ahead: options.ahead ?? false,
    progress: options.progress === undefined ? LSN_ZERO : lsnOf(options.progress),
    route: routeTo(stagingOf(NOTES)),
    limits: { rows: options.rows ?? 1_000, bytes: 1_000_000 },
  });
  const push = (...messages: Buffer[]): void => {
    for (const message of messages) decoder.push(message, 0, message.length);
  };
  const ids: number[] = [];
  const batches: { rows: number; complete: boolean }[] = [];
  /** What a region does with batches: `ids` are what it committed. */
  let uncommitted: number[] = [];
  const takeAll = (): void => {
    while (decoder.ready) {
      const batch = decoder.take();
      batches.push({ rows: batch.rows, complete: batch.complete });
      if (batch.afresh) uncommitted = [];
      uncommitted.push(...stagedOf(batch, NOTES).map(({ values }) => values[0]!.readInt32BE()));
      if (batch.complete) ids.push(...uncommitted.splice(0));
      decoder.resume();
    }
  };
  return { decoder, push, takeAll, ids, batches };
}

const described = (transaction: number): Buffer[] =>
  describeTable(NOTES).map((message) => within(transaction, message));

describe('a transaction streamed while it runs', () => {
  it('keeps what relations look like when the part that told of them is rolled back', () => {
    const { push, takeAll, ids } = open();
    push(start(7), ...describeTable(NOTES).map((message) => within(8, message)), within(8, row(1)), stop);
    push(abort(7, 8), start(7), within(7, row(2)), stop, streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual([2]);
  });

  it('is nothing until its commit, then comes whole and in order', () => {
    const { decoder, push, takeAll, ids } = open();
    push(start(7), ...described(7), within(7, row(1)), stop);
    push(...describeTable(NOTES), begin(80n), row(50), commit(90n, 0));
    push(start(7), within(7, row(2)), stop);
    takeAll();
    expect(ids).toEqual([50]);
    push(streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual([50, 1, 2]);
    expect(decoder.position).toBe(100n);
    expect(decoder.empty).toBe(true);
  });

  it('comes without what was rolled back, to a savepoint or as a whole (D5, D6)', () => {
    const { push, takeAll, ids } = open();
    push(start(7), ...described(7), within(7, row(1)), within(8, row(2)), within(9, row(3)), within(7, row(4)), stop);
    push(abort(7, 8));
    push(start(20), within(20, row(99)), stop, abort(20, 20));
    push(streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual([1, 3, 4]);
    expect(() => push(streamCommit(20, 200n))).toThrow(/did not send/);
  });

  it('is handed out in bounded parts, of which only the last is complete', () => {
    const { decoder, push, takeAll, ids, batches } = open({ rows: 10 });
    push(start(7), ...described(7), ...Array.from({ length: 35 }, (_, index) => within(7, row(index))), stop);
    expect(decoder.full).toBe(false);
    push(streamCommit(7, 100n));
    expect(decoder.full).toBe(true);
    takeAll();
    expect(ids).toEqual(Array.from({ length: 35 }, (_, index) => index));
    expect(batches).toEqual([
      { rows: 10, complete: false },
      { rows: 10, complete: false },
      { rows: 10, complete: false },
      { rows: 5, complete: true },
    ]);
    expect(decoder.full).toBe(false);
  });

  it('is passed over when it was applied before', () => {
    const { decoder, push, takeAll, ids } = open({ progress: 100n });
    push(start(7), ...described(7), within(7, row(1)), stop, streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual([]);
    expect(decoder.position).toBe(100n);
  });
});

describe('new rows of a running transaction go ahead of its commit', () => {
  const rows = (transaction: number, from: number, to: number): Buffer[] =>
    Array.from({ length: to - from }, (_, index) => within(transaction, row(from + index)));
  const numbered = (from: number, to: number): number[] =>
    Array.from({ length: to - from }, (_, index) => from + index);

  it('in parts as large as a batch, and are committed with it', () => {
    const { decoder, push, takeAll, ids, batches } = open({ rows: 10, ahead: true });
    push(start(7), ...described(7), ...rows(7, 0, 12), stop);
    takeAll();
    expect(batches).toEqual([{ rows: 10, complete: false }]);
    push(start(7), ...rows(7, 12, 25), stop);
    takeAll();
    expect(batches.length).toBe(2);
    expect(ids).toEqual([]);
    push(streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual(numbered(0, 25));
    expect(batches.at(-1)).toEqual({ rows: 5, complete: true });
    expect(decoder.position).toBe(100n);
    expect(decoder.full).toBe(false);
    push(begin(180n), row(50), commit(190n, 0));
    takeAll();
    expect(ids.at(-1)).toBe(50);
  });

  it('are taken back when another transaction commits first, and come again behind it', () => {
    const { push, takeAll, ids } = open({ rows: 10, ahead: true });
    push(start(7), ...described(7), ...rows(7, 0, 12), stop);
    takeAll();
    push(...describeTable(NOTES), begin(80n), row(50), commit(90n, 0));
    takeAll();
    expect(ids).toEqual([50]);
    push(start(7), ...rows(7, 12, 40), stop);
    takeAll();
    push(streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual([50, ...numbered(0, 40)]);
  });

  it('are taken back when it is rolled back, or was applied before', () => {
    const { push, takeAll, ids, decoder } = open({ rows: 10, ahead: true, progress: 95n });
    push(start(7), ...described(7), ...rows(7, 0, 12), stop);
    takeAll();
    push(abort(7, 7));
    takeAll();
    push(start(8), ...described(8), ...rows(8, 0, 12), stop);
    takeAll();
    push(streamCommit(8, 90n));
    takeAll();
    expect(ids).toEqual([]);
    expect(decoder.position).toBe(90n);
    push(...describeTable(NOTES), begin(180n), row(50), commit(190n, 0));
    takeAll();
    expect(ids).toEqual([50]);
  });

  it('but nothing from a savepoint on, which may yet be rolled back', () => {
    const { push, takeAll, ids, batches } = open({ rows: 10, ahead: true });
    push(start(7), ...described(7), ...rows(7, 0, 5), ...rows(8, 5, 20), ...rows(7, 20, 30), stop);
    takeAll();
    expect(batches).toEqual([{ rows: 5, complete: false }]);
    push(abort(7, 8));
    push(streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual([...numbered(0, 5), ...numbered(20, 30)]);
  });

  it('and not for long when no more come', () => {
    const { decoder, push, takeAll, ids } = open({ rows: 10, ahead: true });
    push(start(7), ...described(7), ...rows(7, 0, 12), stop);
    takeAll();
    decoder.tire(60_000);
    expect(decoder.ready).toBe(false);
    decoder.tire(-1);
    expect(decoder.ready).toBe(true);
    takeAll();
    expect(decoder.ready).toBe(false);
    push(streamCommit(7, 100n));
    takeAll();
    expect(ids).toEqual(numbered(0, 12));
  });
});

describe('the spool', () => {
  it('gives every message back as it came, however large, in order, but for what was rolled back', () => {
    const message = fc.record({
      subtransaction: fc.integer({ min: 1, max: 4 }),
      size: fc.oneof(fc.integer({ min: 0, max: 200 }), fc.constantFrom(1 << 20, (1 << 20) - 9, 3_000_000)),
    });
    fc.assert(
      fc.property(fc.array(message, { maxLength: 60 }), fc.subarray([1, 2, 3, 4]), (messages, aborted) => {
        const spool = new Spool();
        try {
          const bodies = messages.map(({ size }, index) => Buffer.alloc(size, index));
          for (const [index, { subtransaction }] of messages.entries()) {
            spool.append(subtransaction, 0x49, bodies[index]!, 0, bodies[index]!.length);
          }
          for (const subtransaction of aborted) spool.abort(subtransaction);
          const kept = bodies.filter((_, index) => !aborted.includes(messages[index]!.subtransaction));
          const read = (): Buffer[] => {
            const got: Buffer[] = [];
            for (let next = spool.peek(); next; next = spool.peek()) {
              spool.take();
              got.push(Buffer.from(next.bytes.subarray(next.start, next.end)));
            }
            return got;
          };
          const got = read();
          expect(spool.waiting).toBe(0);
          spool.rewind();
          expect(Buffer.concat(read()).equals(Buffer.concat(got))).toBe(true);
          expect(got.length).toBe(kept.length);
          for (const [index, body] of kept.entries()) {
            expect(got[index]!.equals(Buffer.concat([Buffer.from('I'), body]))).toBe(true);
          }
        } finally {
          spool.close();
        }
      }),
      { numRuns: 30 },
    );
  });
});
