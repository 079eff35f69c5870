import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LWW } from '../../src/model/rule.ts';
import type { Table } from '../../src/model/table.ts';
import { makeVersion, type Version } from '../../src/model/version.ts';
import { asTombstones, Batch, type Route } from '../../src/pipe/batch.ts';
import { emptyLocated, locate, parseRelation } from '../../src/wire/pgoutput.ts';
import { type Cell, describeTable, insert, int4, int8, ROWS, text } from '../property/encode.ts';
import { readRecord, routeTo, stagedOf, stagingOf } from '../property/staged.ts';

const column = (name: string, oid: number, type: string) => ({ name, oid, type, collation: '', identityAlways: false });

function tableWith(key: ReturnType<typeof column>, names: readonly string[]): Table {
  const columns = [key, ...names.map((name) => column(name, 25, 'text'))];
  return {
    oid: 1,
    schema: 'public',
    name: 'notes',
    columns,
    key: [key.name],
    keyEquals: ['='],
    exactKey: true,
    rule: LWW,
  };
}

const NOTES = tableWith(column('id', 23, 'integer'), ['a', 'b']);

/** A batch and the ways to put what a peer sends into it. */
function batchOf(table: Table = NOTES) {
  const batch = new Batch();
  const at = emptyLocated();
  const staging = stagingOf(table);
  const [rows, tombstones] = describeTable(table).map(
    (message) => routeTo(staging)(parseRelation(message, 1, message.length)) as Route,
  );
  const add = (route: Route, cells: readonly Cell[], update: boolean): void => {
    const message = insert(ROWS, cells);
    locate(message, 6, message.length, at);
    batch.add(route, message, at, update);
  };
  type Meta = { version: Version | number; parent: Version | number };
  const meta = ({ version, parent }: Meta) => [int8(version), int8(parent)];
  return {
    batch,
    insert: (cells: readonly Cell[], is: Meta) => add(rows!, [...cells, ...meta(is)], false),
    update: (cells: readonly Cell[], is: Meta) => add(rows!, [...cells, ...meta(is)], true),
    bury: (key: Buffer, is: Meta) => add(tombstones!, [key, ...meta(is)], false),
    staged: () => stagedOf(batch, table),
  };
}

const note = (id: number, a: string, b = 'b'): Buffer[] => [int4(id), text(a), text(b)];

describe('a batch', () => {
  it('D1: holds one write of a key that was written often: the last, with what the first replaced', () => {
    const { batch, update, staged } = batchOf();
    update(note(1, 'x'), { version: 11, parent: 10 });
    update(note(2, 'other'), { version: 12, parent: 2 });
    update(note(1, 'y'), { version: 13, parent: 11 });
    update(note(1, 'z'), { version: 14, parent: 13 });
    batch.commit(0n as never, 0);
    expect(staged()).toEqual([
      { kind: 'update', values: note(2, 'other'), version: 12n, parent: 2n, first: 2n },
      { kind: 'update', values: note(1, 'z'), version: 14n, parent: 13n, first: 10n },
    ]);
    expect(batch.rows).toBe(4);
    expect(batch.maxVersion).toBe(14n);
  });

  it('an update of a row that the batch brings is, in sum, an insert', () => {
    const { insert, update, staged } = batchOf();
    insert(note(1, 'x'), { version: 11, parent: 0 });
    update(note(1, 'y'), { version: 12, parent: 11 });
    expect(staged()).toEqual([{ kind: 'insert', values: note(1, 'y'), version: 12n, parent: 11n, first: 0n }]);
  });

  it('D2: an insert and its delete leave the tombstone alone', () => {
    const { insert, bury, staged } = batchOf();
    insert(note(1, 'x'), { version: 11, parent: 0 });
    bury(int4(1), { version: 12, parent: 11 });
    expect(staged()).toEqual([{ kind: 'tombstone', values: [int4(1)], version: 12n, parent: 11n, first: 0n }]);
  });

  it('A9: a delete and a later insert of one key are two registers; both stay', () => {
    const { insert, bury, staged } = batchOf();
    bury(int4(1), { version: 12, parent: 11 });
    insert(note(1, 'new'), { version: 13, parent: 12 });
    expect(staged()).toEqual([
      { kind: 'tombstone', values: [int4(1)], version: 12n, parent: 11n, first: 11n },
      { kind: 'insert', values: note(1, 'new'), version: 13n, parent: 12n, first: 11n },
    ]);
  });

  it('a second delete replaces the first and the row between them', () => {
    const { insert, bury, staged } = batchOf();
    bury(int4(1), { version: 12, parent: 11 });
    insert(note(1, 'new'), { version: 13, parent: 12 });
    bury(int4(1), { version: 14, parent: 13 });
    expect(staged()).toEqual([{ kind: 'tombstone', values: [int4(1)], version: 14n, parent: 13n, first: 11n }]);
  });

  it('C1: an update that leaves TOAST alone takes the value from the row that it replaced', () => {
    const { insert, update, staged } = batchOf();
    insert(note(1, 'x', 'long'), { version: 11, parent: 0 });
    update([int4(1), text('y'), 'unchanged'], { version: 12, parent: 11 });
    expect(staged()).toEqual([{ kind: 'insert', values: note(1, 'y', 'long'), version: 12n, parent: 11n, first: 0n }]);
  });

  it('C1: what no row of the batch holds stays unknown, and is not null', () => {
    const { update, staged } = batchOf();
    update([int4(1), text('y'), 'unchanged'], { version: 12, parent: 11 });
    update([int4(1), null, 'unchanged'], { version: 13, parent: 12 });
    expect(staged()).toEqual([
      { kind: 'update', values: [int4(1), null, undefined], version: 13n, parent: 12n, first: 11n },
    ]);
  });

  it('null stays null and empty stays empty, in both forms', () => {
    const { insert, update, staged } = batchOf();
    insert([int4(1), null, text('')], { version: 11, parent: 0 });
    update([int4(2), text(''), null], { version: 12, parent: 1 });
    expect(staged().map(({ values }) => values)).toEqual([
      [int4(1), null, text('')],
      [int4(2), text(''), null],
    ]);
  });

  it('keys of an insert group are told with version, parent and first', () => {
    const { batch, insert, update } = batchOf();
    insert(note(7, 'x'), { version: 11, parent: 5 });
    update(note(7, 'y'), { version: 12, parent: 11 });
    const { groups, staging } = batch.tables.get(NOTES.oid)!;
    const [key] = [...asTombstones(staging, groups[0]!).liveRows()];
    expect(readRecord(key!)).toEqual([
      { oid: 23, value: int4(7) },
      { oid: 20, value: int8(12) },
      { oid: 20, value: int8(11) },
      { oid: 20, value: int8(5) },
    ]);
  });

  it('keys of equal bytes are one key, all others are different keys', () => {
    const table = tableWith(column('key', 17, 'bytea'), ['a']);
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 9 }).map((value) => Buffer.from(value)),
      fc.integer().map((value) => int4(value)),
      fc.integer().map((value) => int8(value)),
    );
    fc.assert(
      fc.property(fc.array(bytes, { maxLength: 8 }), (keys) => {
        const { insert, staged } = batchOf(table);
        for (const [index, key] of keys.entries()) insert([key, text('a')], { version: index + 1, parent: 0 });
        const hex = (key: Buffer | null | undefined) => key!.toString('hex');
        expect(
          staged()
            .map(({ values }) => hex(values[0]))
            .sort(),
        ).toEqual([...new Set(keys.map(hex))].sort());
      }),
      { examples: [[[int4(1), int8(1)]]] },
    );
  });

  it('holds one write of a key however many sets of columns are unknown', () => {
    const names = Array.from({ length: 11 }, (_, index) => `c${index}`);
    const { update, staged } = batchOf(tableWith(column('id', 23, 'integer'), names));
    const sets = 1 << names.length;
    const cells = (set: number): Cell[] => names.map((_, bit) => (set & (1 << bit) ? 'unchanged' : text('v')));
    for (let set = 0; set < sets; set++) update([int4(set), ...cells(set)], { version: 2 * set + 2, parent: 1 });
    for (let set = 0; set < sets; set++)
      update([int4(set), ...cells(set)], { version: 2 * set + 3, parent: 2 * set + 2 });
    expect(staged()).toHaveLength(sets);
    for (const { values, version, first } of staged()) {
      expect(version).toBe(BigInt(2 * values[0]!.readInt32BE() + 3));
      expect(first).toBe(1n);
    }
  });
});

/** One write of region 1 as its stream brings it, and, before it, what region 1 applied of others (it is not in its stream). */
interface Write {
  readonly key: number;
  readonly do: 'put' | 'bury';
  /** Whether the update writes column b; if not, the peer does not send it. */
  readonly b: boolean;
  /** Whether another region's write of the key was applied at the origin before this one. */
  readonly foreign: boolean;
  readonly commits: boolean;
}

const write: fc.Arbitrary<Write> = fc.record({
  key: fc.integer({ min: 1, max: 2 }),
  do: fc.constantFrom('put', 'put', 'put', 'bury'),
  b: fc.boolean(),
  foreign: fc.nat({ max: 3 }).map((dice) => dice === 0),
  commits: fc.boolean(),
});

/** What the origin has of one key, and the whole images of all versions that it ever had. */
interface Origin {
  row: { version: Version; b: string } | undefined;
  tombstone: Version;
}

type Message =
  | { put: 'insert' | 'update'; id: number; version: Version; parent: Version; b: string | undefined }
  | { put: 'tombstone'; id: number; version: Version; parent: Version };

/** The messages of a history, transaction by transaction, and every version's true value of column b. */
function play(history: readonly Write[]) {
  const keys = new Map<number, Origin>();
  const images = new Map<Version, string>();
  const transactions: Message[][] = [[]];
  let clock = 0n;
  for (const { key, do: what, b, foreign, commits } of history) {
    const at = keys.get(key) ?? { row: undefined, tombstone: 0n };
    keys.set(key, at);
    const stamp = (region: number): Version => makeVersion(++clock, region);
    if (foreign) {
      const version = stamp(2);
      at.row = { version, b: `foreign ${clock}` };
      images.set(version, at.row.b);
    }
    const version = stamp(1);
    const open = transactions.at(-1)!;
    if (what === 'bury') {
      if (!at.row) continue;
      open.push({ put: 'tombstone', id: key, version, parent: at.row.version });
      at.row = undefined;
      at.tombstone = version;
    } else if (at.row) {
      const value = b ? `b ${clock}` : at.row.b;
      open.push({ put: 'update', id: key, version, parent: at.row.version, b: b ? value : undefined });
      at.row = { version, b: value };
      images.set(version, value);
    } else {
      const value = `b ${clock}`;
      open.push({ put: 'insert', id: key, version, parent: at.tombstone, b: value });
      at.row = { version, b: value };
      images.set(version, value);
    }
    if (commits) transactions.push([]);
  }
  return { transactions, images };
}

function fill(transactions: readonly (readonly Message[])[]) {
  const into = batchOf();
  for (const messages of transactions) {
    for (const message of messages) put(into, message);
    into.batch.commit(0n as never, 0);
  }
  return into;
}

function put(into: ReturnType<typeof batchOf>, message: Message): void {
  if (message.put === 'tombstone') {
    into.bury(int4(message.id), message);
    return;
  }
  const b = message.b === undefined ? 'unchanged' : text(message.b);
  into[message.put]([int4(message.id), text(`a of ${message.version}`), b], message);
}

const histories = fc.array(write, { maxLength: 30 });

describe('a batch, whatever a peer wrote', () => {
  it('holds the last row and the last tombstone of each key, and nothing that the last write replaced', () => {
    fc.assert(
      fc.property(histories, (history) => {
        const messages = play(history).transactions.flat();
        const last = new Map<string, Version>();
        for (const message of messages) {
          if (message.put === 'tombstone') last.delete(`row ${message.id}`);
          last.set(`${message.put === 'tombstone' ? 'tombstone' : 'row'} ${message.id}`, message.version);
        }
        const { batch, staged } = fill([messages]);
        const found = staged().map(({ kind, values, version }) => [
          `${kind === 'tombstone' ? 'tombstone' : 'row'} ${values[0]!.readInt32BE()}`,
          version,
        ]);
        expect(new Map(found as [string, Version][])).toEqual(last);
        expect(found).toHaveLength(last.size);
        expect(batch.rows).toBe(messages.length);
      }),
    );
  });

  it('INV-W: gives a row no value that its writer’s row did not have', () => {
    fc.assert(
      fc.property(histories, (history) => {
        const { transactions, images } = play(history);
        for (const { kind, values, version, parent, first } of fill(transactions).staged()) {
          if (kind === 'tombstone') continue;
          const b = images.get(version);
          expect(values[1]!.toString()).toBe(`a of ${version}`);
          // An unknown value is taken from the row here if that is the parent or the first: both must have had it.
          if (values[2]) expect(values[2].toString()).toBe(b);
          else expect([images.get(parent), images.get(first)]).toEqual([b, b]);
        }
      }),
      { numRuns: 1_000 },
    );
  });

  it('taken back in the middle of a transaction, is as if that had not begun', () => {
    fc.assert(
      fc.property(histories, (history) => {
        const { transactions } = play(history);
        const open = transactions.pop()!;
        const without = fill(transactions);
        const taken = fill(transactions);
        for (const message of open) put(taken, message);
        taken.batch.rollback();
        expect(taken.staged()).toEqual(without.staged());
        expect(taken.batch.transactions).toBe(transactions.length);
      }),
    );
  });

  it('counts first what the oldest of the collapsed writes replaced', () => {
    fc.assert(
      fc.property(
        histories.map((history) => history.map((each) => ({ ...each, foreign: false, b: true }))),
        (history) => {
          const { transactions } = play(history);
          const oldest = new Map<number, Version>();
          for (const { id, parent } of transactions.flat()) if (!oldest.has(id)) oldest.set(id, parent);
          for (const { values, first } of fill(transactions).staged()) {
            expect(first).toBe(oldest.get(values[0]!.readInt32BE()));
          }
        },
      ),
    );
  });
});
