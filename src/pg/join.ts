import type pg from 'pg';
import { to as copyTo } from 'pg-copy-streams';
import { CoregentError, classify } from '../model/error.ts';
import { PARENT, type Table, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import type { Version } from '../model/version.ts';
import { pause } from '../pause.ts';
import { Batch, type Route, textsOf } from '../pipe/batch.ts';
import { ident, literal, qualified } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';
import { emptyLocated } from '../wire/pgoutput.ts';
import { leaveOutKnown } from './known.ts';
import type { Receipt } from './receipt.ts';
import type { Store } from './store.ts';
import type { Target } from './target.ts';

/** Rows and bytes of one local transaction of a join. */
const BATCH_ROWS = 20_000;
const BATCH_BYTES = 16 * 1024 * 1024;
const HEADER_BYTES = 19;

/** Bad luck (a deadlock, a lock timeout) may strike so many times; parked rows are tried again so many times behind the last batch. */
const TRIES = 20;
const RETRY_MS = 100;

/** What is to be joined, and who is told. */
export interface JoinOptions {
  readonly onRows?: (rows: number) => void;
  /** Keys as JSON objects: these and no others. */
  readonly only?: readonly unknown[];
  /** Rows and tombstones of this version and later. */
  readonly from?: Version;
  /** Waits until a batch may become visible. */
  readonly ready?: (batch: Batch) => Promise<void>;
  /** Where the peer has them, as SQL, if not in the tables themselves. */
  readonly source?: { readonly rows: string; readonly tombstones: string };
  /** The connection that applies, where most rows are likely to be there already: these are left out. */
  readonly known?: pg.Client;
}

/** What joining a table's rows did. */
export interface Joined {
  readonly rows: number;
  readonly conflicts: number;
}

/**
 * Copies a peer's rows and tombstones of one table through the same join that applies its stream.
 * Idempotent, and safe while writes and agents go on, as long as the peer's slot was made before:
 * what commits later arrives by the slot, and what arrives twice changes nothing.
 */
export async function joinTable(
  peer: pg.Client,
  store: Store,
  target: Target,
  { onRows = () => {}, only, from: least, ready, source, known }: JoinOptions = {},
): Promise<Joined> {
  let rows = 0;
  let conflicts = 0;
  const settle = async (): Promise<void> => {
    conflicts += (await store.tryParked()).conflicts.length;
  };
  for (const tombstone of [true, false]) {
    const { table } = target.staging;
    const columns = tombstone ? target.compiled.tombstoneColumns : target.compiled.rowColumns;
    const from = tombstone
      ? (source?.tombstones ?? qualified('coregent', tombstoneName(table)))
      : (source?.rows ?? qualified(table.schema, table.name));
    const some = [
      ...(only ? [keyIn(table, only)] : []),
      ...(least === undefined ? [] : [`t.${ident(VERSION)} >= ${least}`]),
    ];
    const where = some.length > 0 ? ` where ${some.join(' and ')}` : '';
    const route = straightRoute(target, tombstone, columns);
    let batch = new Batch();
    const take = async (): Promise<void> => {
      if (batch.rows === 0) return;
      if (known) await patiently(() => leaveOutKnown(known, target, batch));
      await ready?.(batch);
      conflicts += (await applyPatiently(store, batch)).conflicts.length;
      await settle();
      rows += batch.rows;
      onRows(batch.rows);
      batch = new Batch();
    };
    for await (const tuple of copyOut(
      peer,
      `copy (select ${columns.map((name) => outOf(table, name)).join(', ')} from ${from} t${where}) to stdout (format binary)`,
    )) {
      batch.add(route, tuple.bytes, tuple.at, false);
      if (batch.rows < BATCH_ROWS && batch.bytes < BATCH_BYTES) continue;
      await take();
    }
    await take();
  }
  const { table } = target.staging;
  for (let tries = 0; store.owesTries && tries < TRIES; tries++) {
    if (store.inDoubt.get(table.oid)) await pause(RETRY_MS);
    await settle();
  }
  if (store.inDoubt.has(table.oid)) {
    const cause = store.inDoubt.get(table.oid);
    throw new CoregentError('apply_interrupted', `rows that crossed a delete cannot be removed: ${cause?.message}`, {
      where: tableLabel(table),
      cure: 'Mend what stands in the way, such as a trigger of the table, and join it again.',
      cause,
    });
  }
  return { rows, conflicts };
}

/** A column as it is read from a peer: without a binary form, as text. */
export function outOf(table: Table, column: string): string {
  const { asText } = table.columns.find(({ name }) => name === column) ?? {};
  return `t.${ident(column)}${asText ? '::text' : ''}`;
}

/** Applies; a batch with a row at fault goes once more, each row by itself, so that only that one is parked. */
async function applyPatiently(store: Store, batch: Batch): Promise<Receipt> {
  try {
    return await patiently(() => store.apply(batch));
  } catch (error) {
    if (classify(error).code !== 'apply_failed') throw error;
    store.isolateFaults(true);
    return await patiently(() => store.apply(batch));
  } finally {
    store.isolateFaults(false);
  }
}

/** What only bad luck stopped (a deadlock, a lock timeout) is tried again. */
async function patiently<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (classify(error).code !== 'apply_interrupted' || attempt === TRIES) throw error;
      await pause(RETRY_MS);
    }
  }
}

/** A condition on the alias `t`: its key is one of these JSON objects. */
export function keyIn(table: Table, keys: readonly unknown[]): string {
  const typed = `jsonb_populate_recordset(null::${qualified('coregent', tombstoneName(table))}, ${literal(JSON.stringify(keys))}::jsonb)`;
  return `exists (select from ${typed} k where ${sameKey(table, 't', 'k')})`;
}

/** A route for tuples that come in staged order. */
function straightRoute({ staging }: Target, tombstone: boolean, columns: readonly string[]): Route {
  return {
    staging,
    tombstone,
    source: Int32Array.from(columns, (_, index) => index),
    key: Int32Array.from(staging.table.key, (name) => columns.indexOf(name)),
    columns: columns.length,
    version: columns.indexOf(VERSION),
    parent: columns.indexOf(PARENT),
    texts: textsOf(staging.table, (name) => columns.indexOf(name)),
  };
}

/** The tuples of a binary `COPY … TO STDOUT`; each is valid until the next. */
async function* copyOut(
  client: pg.Client,
  sql: string,
): AsyncGenerator<{ bytes: Buffer; at: ReturnType<typeof emptyLocated> }> {
  const at = emptyLocated();
  let bytes: Buffer = Buffer.alloc(0);
  let pos = 0;
  let begun = false;
  for await (const chunk of client.query(copyTo(sql)) as AsyncIterable<Buffer>) {
    bytes = pos === bytes.length ? chunk : Buffer.concat([bytes.subarray(pos), chunk]);
    pos = 0;
    if (!begun) {
      if (bytes.length < HEADER_BYTES) continue;
      pos = HEADER_BYTES + bytes.readInt32BE(HEADER_BYTES - 4);
      begun = true;
    }
    for (;;) {
      const end = locateCopied(bytes, pos, at);
      if (end === undefined) break;
      if (at.count < 0) return;
      yield { bytes, at };
      pos = end;
    }
  }
  throw new CoregentError('peer_protocol', 'the copy ended without its trailer');
}

/** Finds the columns of a COPY tuple; undefined when it is not whole yet; a count of -1 is the trailer. */
function locateCopied(bytes: Buffer, start: number, at: ReturnType<typeof emptyLocated>): number | undefined {
  if (start + 2 > bytes.length) return undefined;
  const count = bytes.readInt16BE(start);
  at.count = count;
  at.unchanged = 0;
  let pos = start + 2;
  for (let column = 0; column < count; column++) {
    if (pos + 4 > bytes.length) return undefined;
    const length = bytes.readInt32BE(pos);
    pos += 4;
    at.start[column] = pos;
    at.length[column] = length;
    if (length > 0) pos += length;
    if (pos > bytes.length) return undefined;
  }
  return pos;
}
