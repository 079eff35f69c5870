import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CoregentError } from '../../src/model/error.ts';
import { LSN_ZERO, lsnOf } from '../../src/model/lsn.ts';
import { makeVersion, type Version } from '../../src/model/version.ts';
import type { Batch } from '../../src/pipe/batch.ts';
import { Decoder } from '../../src/pipe/decode.ts';
import {
  begin,
  commit,
  describeTable,
  insert,
  int4,
  int8,
  ROWS,
  relation,
  TOMBSTONES,
  text,
  update,
} from '../property/encode.ts';
import { NOTES, routeTo, stagedOf, stagingOf } from '../property/staged.ts';

const PEER = 3;
const mine = (micros: number): Version => makeVersion(BigInt(micros), PEER);
const row = (id: number, micros: number, region = PEER): Buffer =>
  insert(ROWS, [int4(id), text(`v${micros}`), int8(makeVersion(BigInt(micros), region)), int8(0)]);

function decoderOf(options: { progress?: bigint; rows?: number; bytes?: number } = {}) {
  const decoder = new Decoder({
    region: PEER,
    progress: lsnOf(options.progress ?? 0n),
    route: routeTo(stagingOf(NOTES)),
    limits: { rows: options.rows ?? 1_000, bytes: options.bytes ?? 1_000_000 },
  });
  const push = (...messages: Buffer[]): void => {
    for (const message of messages) decoder.push(message, 0, message.length);
  };
  return { decoder, push, describe: () => push(...describeTable(NOTES)) };
}

const ids = (batch: Batch): number[] => stagedOf(batch, NOTES).map(({ values }) => values[0]!.readInt32BE());

function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof CoregentError) return error.code;
    throw error;
  }
  return 'no error';
}

describe('the decoder', () => {
  it('makes whole transactions into a batch, with where and when the last one ended', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    expect(decoder.empty).toBe(true);
    push(begin(90n), row(1, 1), row(2, 2));
    expect(decoder.ready).toBe(false);
    push(commit(100n, 1_700_000_000_000), begin(190n), row(3, 3), commit(200n, 1_700_000_000_123));
    expect(decoder.ready).toBe(true);
    const batch = decoder.take();
    expect(ids(batch)).toEqual([1, 2, 3]);
    expect(batch).toMatchObject({ complete: true, transactions: 2, endLsn: 200n, committedAtMs: 1_700_000_000_123 });
    expect(decoder.position).toBe(200n);
    expect(decoder.empty).toBe(true);
  });

  it('maps columns by name, whatever order the peer has them in', () => {
    const { decoder, push } = decoderOf();
    push(relation(ROWS, 'public', 'notes', ['_coregent_parent', 'a', '_coregent_version', 'id']));
    push(begin(90n), insert(ROWS, [int8(5), null, int8(mine(7)), int4(1)]), commit(100n));
    expect(stagedOf(decoder.take(), NOTES)).toEqual([
      { kind: 'insert', values: [int4(1), null], version: mine(7), parent: 5n, first: 5n },
    ]);
  });

  it('takes tombstones as tombstones, and a changed key as a new row', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    push(
      begin(90n),
      insert(TOMBSTONES, [int4(1), int8(mine(8)), int8(mine(1))]),
      update(ROWS, [int4(2), text('moved'), int8(mine(9)), int8(0)], {
        mark: 'key',
        cells: [int4(1), null, null, null],
      }),
      commit(100n),
    );
    expect(stagedOf(decoder.take(), NOTES).map(({ kind, values }) => [kind, values[0]])).toEqual([
      ['tombstone', int4(1)],
      ['insert', int4(2)],
    ]);
  });

  it('reads the new row behind a whole old one (REPLICA IDENTITY FULL)', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    const cells = (a: string, micros: number) => [int4(1), text(a), int8(mine(micros)), int8(mine(micros - 1))];
    push(begin(90n), update(ROWS, cells('new', 9), { mark: 'old', cells: cells('old', 8) }), commit(100n));
    expect(stagedOf(decoder.take(), NOTES)).toEqual([
      { kind: 'update', values: [int4(1), text('new')], version: mine(9), parent: mine(8), first: mine(8) },
    ]);
  });

  it('D13: skips what ends at or before the progress, and nothing behind it', () => {
    const { decoder, push, describe } = decoderOf({ progress: 200n });
    describe();
    push(begin(90n), row(1, 1), commit(100n));
    push(begin(190n), row(2, 2), commit(200n));
    expect(decoder.ready).toBe(false);
    // A commit record may begin exactly where progress ends.
    push(begin(200n), row(3, 3), commit(210n));
    expect(ids(decoder.take())).toEqual([3]);
  });

  it('leaves out rows of other regions, and counts them', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    push(begin(90n), row(1, 1, 1), row(2, 2, 2), commit(100n));
    expect(decoder.ready).toBe(false);
    expect(decoder.foreignRows).toBe(2);
    expect(decoder.position).toBe(100n);
    push(begin(190n), row(3, 3, 1), row(4, 4), commit(200n));
    expect(ids(decoder.take())).toEqual([4]);
    expect(decoder.foreignRows).toBe(3);
  });

  it('leaves out rows that were there before replication: they travel by the join', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    push(begin(90n), insert(ROWS, [int4(1), null, int8(0), int8(0)]), commit(100n));
    expect(decoder.ready).toBe(false);
  });

  it('ignores relations that are not replicated here, and messages that say nothing of rows', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    push(relation(9, 'public', 'elsewhere', ['id']));
    push(begin(90n), insert(9, [int4(1)]), row(1, 1));
    for (const kind of 'OYMDT') push(Buffer.from(`${kind}anything`));
    push(commit(100n));
    expect(ids(decoder.take())).toEqual([1]);
  });

  it('D12: moves its position on with keepalives, but never inside a transaction and never back', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    decoder.keepalive(lsnOf(50n));
    expect(decoder.position).toBe(50n);
    decoder.keepalive(lsnOf(40n));
    expect(decoder.position).toBe(50n);
    push(begin(90n), row(1, 1));
    decoder.keepalive(lsnOf(95n));
    expect(decoder.position).toBe(50n);
    push(commit(100n));
    expect(decoder.position).toBe(100n);
  });

  it('taken in the middle of a transaction, gives the whole ones and decodes the open one again', () => {
    const { decoder, push, describe } = decoderOf();
    describe();
    push(begin(90n), row(1, 1), commit(100n));
    push(begin(190n), row(1, 2), row(2, 3));
    const first = decoder.take();
    expect(stagedOf(first, NOTES)).toMatchObject([{ values: [int4(1), text('v1')], version: mine(1) }]);
    expect(first).toMatchObject({ complete: true, transactions: 1, endLsn: 100n, rows: 1 });
    expect(decoder.ready).toBe(false);
    expect(decoder.empty).toBe(false);
    push(row(3, 4), commit(200n));
    const second = decoder.take();
    expect(ids(second)).toEqual([1, 2, 3]);
    expect(second).toMatchObject({ complete: true, transactions: 1, endLsn: 200n, rows: 3 });
  });

  it('D4: hands a transaction larger than the bound out in parts; the last part completes it', () => {
    const { decoder, push, describe } = decoderOf({ rows: 2 });
    describe();
    push(begin(90n), row(1, 1), row(2, 2));
    expect(decoder.full).toBe(true);
    const first = decoder.take();
    expect(first).toMatchObject({ complete: false, transactions: 0, endLsn: undefined });
    expect(ids(first)).toEqual([1, 2]);
    expect(decoder.empty).toBe(false);
    push(row(3, 3), commit(100n));
    const second = decoder.take();
    expect(second).toMatchObject({ complete: true, transactions: 1, endLsn: 100n });
    expect(ids(second)).toEqual([3]);
    expect(decoder.empty).toBe(true);
  });

  it('D4: completes a handed out transaction though its commit brings no further row', () => {
    const { decoder, push, describe } = decoderOf({ rows: 1 });
    describe();
    push(begin(90n), row(1, 1));
    expect(decoder.take().complete).toBe(false);
    push(commit(100n));
    expect(decoder.ready).toBe(true);
    // Else a keepalive would confirm the transaction before its commit is applied: INV-A, nothing that was confirmed is lost.
    expect(decoder.empty).toBe(false);
    expect(decoder.take()).toMatchObject({ complete: true, transactions: 1, endLsn: 100n, rows: 0 });
    expect(decoder.empty).toBe(true);
  });

  it('C14: is full by bytes too', () => {
    const { decoder, push, describe } = decoderOf({ bytes: 64 });
    describe();
    push(begin(90n), insert(ROWS, [int4(1), Buffer.alloc(100), int8(mine(1)), int8(0)]));
    expect(decoder.full).toBe(true);
    expect(decoder.take().complete).toBe(false);
  });

  it('counts transactions, ends and rows the same however often the batch is taken', () => {
    const transaction = fc.array(
      fc.record({ id: fc.integer({ min: 1, max: 4 }), region: fc.constantFrom(PEER, PEER, PEER, 1) }),
      { maxLength: 5 },
    );
    const taking = fc.array(fc.boolean(), { minLength: 1, maxLength: 7 });
    fc.assert(
      fc.property(
        fc.array(transaction, { maxLength: 8 }),
        taking,
        fc.integer({ min: 1, max: 6 }),
        (transactions, takes, rows) => {
          const { decoder, push, describe } = decoderOf({ rows });
          describe();
          let clock = 0;
          let turn = 0;
          let [lsn, last] = [0n, 0n];
          const batches: Batch[] = [];
          const take = (): void => {
            if (decoder.full || (decoder.ready && takes[turn++ % takes.length])) batches.push(decoder.take());
          };
          const latest = new Map<number, Version>();
          for (const writes of transactions) {
            push(begin(lsn + 5n));
            for (const { id, region } of writes) {
              push(row(id, ++clock, region));
              if (region === PEER) latest.set(id, mine(clock));
              take();
            }
            lsn += 10n;
            push(commit(lsn));
            if (writes.some(({ region }) => region === PEER)) last = lsn;
            take();
          }
          if (decoder.ready) batches.push(decoder.take());
          const own = transactions.map((writes) => writes.filter(({ region }) => region === PEER));
          const sum = (of: (batch: Batch) => number) => batches.reduce((total, batch) => total + of(batch), 0);
          expect(sum((batch) => batch.rows)).toBe(own.flat().length);
          expect(sum((batch) => batch.transactions)).toBe(own.filter((writes) => writes.length > 0).length);
          expect(batches.findLast((batch) => batch.endLsn !== undefined)?.endLsn ?? 0n).toBe(last);
          expect(batches.at(-1)?.complete ?? true).toBe(true);
          const applied = new Map<number, Version>();
          for (const { values, version } of batches.flatMap((batch) => stagedOf(batch, NOTES))) {
            const id = values[0]!.readInt32BE();
            expect(version > (applied.get(id) ?? 0n)).toBe(true);
            applied.set(id, version);
          }
          expect(applied).toEqual(latest);
        },
      ),
    );
  });
});

describe('a peer that does not speak the protocol', () => {
  it.each([
    ['a row outside of a transaction', [row(1, 1)]],
    ['a transaction inside of a transaction', [begin(90n), begin(91n)]],
    ['a commit without a transaction', [commit(100n)]],
    ['a transaction that ends before an earlier one', [begin(90n), commit(100n), begin(80n), commit(90n)]],
    ['a relation that it did not describe', [begin(90n), insert(77, [int4(1)])]],
    ['an unknown kind of message', [Buffer.from('?')]],
    ['an empty message', [Buffer.alloc(0)]],
    ['a row without a version', [begin(90n), insert(ROWS, [int4(1), null, null, int8(0)])]],
    ['a row without a parent', [begin(90n), insert(ROWS, [int4(1), null, int8(mine(1)), null])]],
    ['a row without its key', [begin(90n), insert(ROWS, [null, null, int8(mine(1)), int8(0)])]],
    ['an update without its new row', [begin(90n), update(ROWS, []).fill(0x4b, 5, 6)]],
    ['a tuple of fewer columns than its relation', [begin(90n), row(1, 1), insert(ROWS, [int4(2), null])]],
    [
      'a tuple of more columns than its relation',
      [begin(90n), insert(ROWS, [int4(2), null, int8(mine(1)), int8(0), null])],
    ],
    ['a cut row', [begin(90n), row(1, 1).subarray(0, -3)]],
    ['a cut begin', [begin(90n).subarray(0, 5)]],
    ['a cut commit', [begin(90n), commit(100n).subarray(0, 12)]],
    ['a cut relation', [describeTable(NOTES)[0]!.subarray(0, -3)]],
  ])('is told so: %s', (_what, messages) => {
    const { push, describe } = decoderOf();
    describe();
    expect(codeOf(() => push(...messages))).toBe('peer_protocol');
  });

  it('schema_differs: a column comes as text whose type has a binary form here', () => {
    const { push, describe } = decoderOf();
    describe();
    push(begin(90n));
    const text = Buffer.from(row(1, 1)).fill('t', 8, 9);
    expect(codeOf(() => push(text))).toBe('schema_differs');
  });

  it('gets no other error than peer_protocol or schema_differs, whatever bytes it sends', () => {
    const good = [
      ...describeTable(NOTES),
      begin(90n),
      row(1, 1),
      update(ROWS, [int4(1), 'unchanged', int8(mine(2)), int8(0)]),
    ];
    const change = fc.record({
      message: fc.nat({ max: good.length - 1 }),
      at: fc.nat({ max: 60 }),
      byte: fc.nat({ max: 255 }),
      cut: fc.nat({ max: 60 }),
    });
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), fc.uint8Array(), (changes, noise) => {
        const messages = [...good.map((message) => Buffer.from(message)), Buffer.from(noise)];
        for (const { message, at, byte, cut } of changes) {
          const bytes = messages[message]!;
          if (at < bytes.length) bytes[at] = byte;
          else messages[message] = bytes.subarray(0, cut);
        }
        // Each message lies between others in one chunk, as from a socket: it must not be read past its end.
        const { decoder } = decoderOf();
        const code = codeOf(() => {
          for (const message of messages) {
            const chunk = Buffer.concat([Buffer.alloc(3, 0xff), message, Buffer.alloc(64, 0x62)]);
            decoder.push(chunk, 3, 3 + message.length);
          }
        });
        expect(['peer_protocol', 'schema_differs', 'no error']).toContain(code);
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('a table that differs at the peer', () => {
  const names = ['id', 'a', '_coregent_version', '_coregent_parent', 'b'];
  const wide = (id: number, micros: number, region = PEER): Buffer =>
    insert(ROWS, [int4(id), null, int8(makeVersion(BigInt(micros), region)), int8(0), text('b')]);

  it('is passed over, from its least version on, and the batch moves progress past it', () => {
    const { decoder, push } = decoderOf();
    push(relation(ROWS, 'public', 'notes', names));
    push(begin(90n), wide(1, 50), wide(2, 40), commit(100n), begin(110n), wide(3, 60), commit(120n));
    expect(decoder.empty).toBe(false);
    expect(decoder.passes('notes')).toBe(true);
    const batch = decoder.take();
    expect(batch).toMatchObject({ rows: 0, transactions: 2, endLsn: 120n });
    expect([...batch.passed]).toEqual([['notes', { label: 'notes', reason: 'this region lacks b', least: mine(40) }]]);
  });

  it('is said once: what is later needs no saying, until it is about to be joined', () => {
    const { decoder, push } = decoderOf();
    push(relation(ROWS, 'public', 'notes', names));
    push(begin(90n), wide(1, 50), commit(100n));
    decoder.take();
    push(begin(110n), wide(1, 60), commit(120n));
    expect(decoder.ready).toBe(false);
    expect(decoder.position).toBe(120n);
    decoder.forget('notes');
    push(begin(130n), wide(1, 70), commit(140n));
    expect(decoder.take().passed.get('notes')).toMatchObject({ least: mine(70) });
  });

  it('is none of this peer’s business where another region wrote the row', () => {
    const { decoder, push } = decoderOf();
    push(relation(ROWS, 'public', 'notes', names));
    push(begin(90n), wide(1, 50, 2), commit(100n));
    expect(decoder.ready).toBe(false);
    expect(decoder.foreignRows).toBe(1);
  });

  it('goes on when the peer describes it alike, and rows of other tables never stopped', () => {
    const { decoder, push, describe } = decoderOf();
    push(relation(ROWS, 'public', 'notes', names.slice(1)));
    push(begin(90n), insert(ROWS, [null, int8(mine(5)), int8(0), null]), commit(100n));
    describe();
    push(begin(110n), row(7, 6), commit(120n));
    expect(decoder.passes('notes')).toBe(false);
    const batch = decoder.take();
    expect(ids(batch)).toEqual([7]);
    expect(batch.passed.get('notes')?.reason).toBe('the peer lacks id; this region lacks b');
  });
});

it('starts before all positions', () => {
  expect(decoderOf().decoder.position).toBe(LSN_ZERO);
});
