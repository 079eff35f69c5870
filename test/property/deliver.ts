import { lsnOf } from '../../src/model/lsn.ts';
import { makeVersion, type Version } from '../../src/model/version.ts';
import type { Receipt } from '../../src/pg/receipt.ts';
import { router } from '../../src/pg/route.ts';
import type { Store } from '../../src/pg/store.ts';
import type { FetchRows, Target } from '../../src/pg/target.ts';
import { Batch, type Route } from '../../src/pipe/batch.ts';
import { Decoder } from '../../src/pipe/decode.ts';
import { emptyLocated, locate, parseRelation } from '../../src/wire/pgoutput.ts';
import { Tuples } from '../../src/wire/tuples.ts';
import {
  begin,
  type Cell,
  commit,
  describeTable,
  insert,
  int4,
  int8,
  ROWS,
  streamed,
  TOMBSTONES,
  text,
  update,
} from './encode.ts';
import { imageOf, type Message, type States, type Transaction } from './history.ts';
import { applyPatiently } from './region.ts';
import { readRecord } from './staged.ts';

/** How the keys of a table are written: as `integer`, or as `numeric`, whose equal values have several spellings. */
export type KeyBytes = (id: string) => Buffer;

export const integerKey: KeyBytes = (id) => int4(Number(id));

/** A small positive integer as `numeric_send` writes it: digits, weight, sign, scale, digits to the base 10000. */
export const numericKey: KeyBytes = (id) => {
  const scale = id.includes('.') ? id.length - id.indexOf('.') - 1 : 0;
  return Buffer.concat([1, 0, 0, scale, Number.parseInt(id, 10)].map((part) => int4(part).subarray(2)));
};

/** How a stream reaches a region. */
export interface Delivery {
  readonly store: Store;
  readonly target: Target;
  readonly keyBytes: KeyBytes;
  /** Rows at which a batch is taken, finished or not. */
  readonly rows: number;
  /** Adds so many new rows to the first transaction if the batch takes them, so that its inserts go by COPY. */
  readonly padding: number;
  /** Sends each transaction as if it were a large one: as a stream, with a part that is rolled back. */
  readonly streamed: boolean;
  /** Transactions that ended here are skipped; default: all are applied, whatever was. */
  readonly progress?: bigint;
}

/** Where a transaction ends in its region's WAL. */
export const endOf = (transaction: Transaction): bigint => BigInt(transaction.index + 1) * 100n;

let padded = 0;

/** Sends transactions of one region through Decoder, Batch and Store, as a connection of its own would. */
export async function deliver(transactions: readonly Transaction[], delivery: Delivery): Promise<Receipt[]> {
  const { store, target, rows, progress = 0n } = delivery;
  const [origin] = transactions.map((each) => each.origin);
  const decoder = new Decoder({
    region: origin!,
    progress: lsnOf(progress),
    route: router([target]),
    limits: { rows, bytes: Number.MAX_SAFE_INTEGER },
  });
  const receipts: Receipt[] = [];
  const take = async (): Promise<void> => {
    receipts.push(await applyPatiently(store, decoder.take()));
    decoder.resume();
  };
  const push = async (message: Buffer): Promise<void> => {
    decoder.push(message, 0, message.length);
    while (decoder.full) await take();
  };
  for (const message of describeTable(target.staging.table)) await push(message);
  for (const [index, transaction] of transactions.entries()) {
    const messages = transaction.messages.map((message) => encode(message, delivery));
    const more = index === 0 && rows > delivery.padding ? delivery.padding : 0;
    for (let row = 0; row < more; row++) messages.push(padding(origin!, delivery));
    const end = endOf(transaction);
    const sent = delivery.streamed
      ? // Every streamed transaction describes its relations anew, and once: here in the part that is rolled back.
        streamed(7, messages, [...describeTable(target.staging.table), ...[...messages].reverse()], end)
      : [begin(end - 10n), ...messages, commit(end)];
    for (const message of sent) await push(message);
  }
  while (decoder.ready) await take();
  return receipts;
}

function padding(region: number, { keyBytes }: Delivery): Buffer {
  const id = keyBytes(String(1_000 + (padded++ % 8_000)));
  return insert(ROWS, [id, text('padding'), text('padding'), int8(makeVersion(1n, region)), int8(0)]);
}

function encode(message: Message, { keyBytes }: Delivery): Buffer {
  const stamps = [int8(message.version), int8(message.parent)];
  if (message.kind === 'delete') return insert(TOMBSTONES, [keyBytes(String(message.key)), ...stamps]);
  const { id, a, b } = imageOf(message.value);
  const cells: Cell[] = [keyBytes(id), text(a), message.leavesB ? 'unchanged' : text(b), ...stamps];
  if (message.kind === 'insert') return insert(ROWS, cells);
  const old = { mark: 'key' as const, cells: [keyBytes('9999'), null, null, null, null] };
  return message.rekeyed ? update(ROWS, cells, old) : update(ROWS, cells);
}

/** Copies what a region knows, as a join does: first the tombstones, then the rows. */
export async function deliverJoin(
  states: States,
  store: Store,
  target: Target,
  keyBytes: KeyBytes,
): Promise<Receipt[]> {
  const route = router([target]);
  const routes = describeTable(target.staging.table).map(
    (message) => route(parseRelation(message, 1, message.length)) as Route,
  );
  const receipts: Receipt[] = [];
  const copied: [Route, Cell[][]][] = [
    [
      routes[1]!,
      [...states].flatMap(([key, { tombstone }]) => (tombstone ? [[keyBytes(String(key)), ...stamps(tombstone)]] : [])),
    ],
    [routes[0]!, [...states].flatMap(([, { row }]) => (row ? [rowCells(row, keyBytes)] : []))],
  ];
  for (const [route, rows] of copied) {
    const batch = new Batch();
    const at = emptyLocated();
    for (const cells of rows) {
      const message = insert(ROWS, cells);
      locate(message, 6, message.length, at);
      batch.add(route, message, at, false);
    }
    if (batch.rows > 0) receipts.push(await applyPatiently(store, batch));
  }
  return receipts;
}

type Stamps = { readonly version: Version; readonly parent: Version };
const stamps = ({ version, parent }: Stamps): Buffer[] => [int8(version), int8(parent)];

function rowCells(row: Stamps & { readonly value: string }, keyBytes: KeyBytes): Buffer[] {
  const { id, a, b } = imageOf(row.value);
  return [keyBytes(id), text(a), text(b), ...stamps(row)];
}

/** Reads the rows that a region asks for out of memory: `current` gives the peer's row of a key, at least as new as `version`. */
export function fetchFrom(
  current: (key: number, version: Version) => (Stamps & { readonly value: string }) | undefined,
  keyBytes: KeyBytes,
): FetchRows {
  return async ({ staging }, keys) => {
    const tuples = new Tuples();
    for (const record of keys.liveRows()) {
      const [id, version, , first] = readRecord(record).map((column) => column.value!);
      const asked = version!.readBigInt64BE();
      const row = current(id!.length === 4 ? id!.readInt32BE() : id!.readInt16BE(8), asked);
      if (!row) continue;
      const values = [...rowCells(row, keyBytes), row.version === asked ? first! : int8(row.parent)];
      const oids = [...staging.rowOids, 20];
      const body = Buffer.concat([
        int4(values.length),
        ...values.flatMap((value, index) => [int4(oids[index]!), int4(value.length), value]),
      ]);
      const element = Buffer.concat([int4(body.length), body]);
      tuples.reserve(element.length).set(element, tuples.length);
      tuples.endRow(tuples.length + element.length);
    }
    return tuples;
  };
}
