import { CoregentError } from '../model/error.ts';
import { type LSN, LSN_ZERO, lsnOf } from '../model/lsn.ts';
import { regionOf } from '../model/version.ts';
import {
  emptyLocated,
  type Located,
  locate,
  MESSAGE,
  parseRelation,
  protocolTimeMs,
  type Relation,
  skipTuple,
  TUPLE,
  valueAt,
  violation,
} from '../wire/pgoutput.ts';
import { Batch, type Passing, type Route, textsOf } from './batch.ts';
import { type Commit, Streamed } from './streamed.ts';

/** What the decoder needs to know of the peer. */
export interface DecodeOptions {
  /** The region whose stream this is (1 to 127): rows of other regions are not taken from it. */
  readonly region: number;
  /** Transactions that end at or before this position were applied here already. */
  readonly progress: LSN;
  /** Where rows of a relation go, or why they are passed over; `undefined` for a relation that is of no interest here. */
  readonly route: (relation: Relation) => Route | Passing | undefined;
  /** Where the peer's WAL ended when that was last heard; positions far behind it are lies. */
  readonly walEnd?: () => LSN;
  /** Whether new rows of a transaction that is still running at the peer may be handed out while there is nothing else. */
  readonly ahead?: boolean;
  /** When the batch must be taken before more is decoded. */
  readonly limits: { readonly rows: number; readonly bytes: number };
}

/** More WAL than any server writes between two looks at where it ends. */
const FAR = 2n ** 40n;

/**
 * Turns a peer's logical replication messages into a batch of whole transactions.
 * Messages are walked in place; row values are copied once, from the socket's buffer into the batch.
 */
export class Decoder {
  readonly #options: DecodeOptions;
  readonly #routes = new Map<number, Route | undefined>();
  readonly #passing = new Map<number, Passing>();
  /** By table, the least version that was passed over; what is not below it needs no saying. */
  readonly #least = new Map<string, bigint>();
  readonly #at = emptyLocated();
  #batch = new Batch();
  #inTransaction = false;
  /** Where the open transaction is to be committed. */
  #final: LSN = LSN_ZERO;
  #skipping = false;
  /** Whether rows of the open transaction are in the batch, or were handed out in an incomplete one. */
  #openRows = 0;
  #spilled = false;
  /** As many row messages of the open transaction, to decode again when the batch is taken in the middle of it. */
  readonly #tail: { bytes: Buffer[]; start: number[]; end: number[] } = { bytes: [], start: [], end: [] };
  #position: LSN = LSN_ZERO;
  /** No position up to here is a lie. */
  #reach = 0n;
  #foreign = 0;
  /** Large transactions that the peer sends while they run, by their top transaction. */
  readonly #streams = new Map<number, Streamed>();
  /** The one whose messages come now. */
  #streaming: Streamed | undefined;
  /** The one that may go ahead of its commit. */
  #ahead: Streamed | undefined;
  /** One that is committed and handed out; the peer's next messages come behind it. */
  #committed: { readonly stream: Streamed; readonly endLsn: LSN } | undefined;
  /** What went ahead must be taken back before anything else is applied. */
  #afresh = false;

  constructor(options: DecodeOptions) {
    this.#options = options;
  }

  /** Everything before this position is either in a batch or of no interest here. Never inside a transaction. */
  get position(): LSN {
    return this.#position;
  }

  /** Rows left out because another region wrote them. */
  get foreignRows(): number {
    return this.#foreign;
  }

  /** Whether {@link take} would return something. */
  get ready(): boolean {
    return this.#batch.transactions > 0 || this.#overflows || this.#afresh || this.#streamReady;
  }

  get #streamReady(): boolean {
    if (this.#committed !== undefined) return this.#committed.stream.decoder.ready;
    return this.#ahead !== undefined && this.#ahead.waiting > 0 && this.#batch.rows === 0 && !this.#spilled;
  }

  /** Whether more may only be pushed after {@link take} and {@link resume}. */
  get full(): boolean {
    return this.#committed !== undefined || this.#overflows;
  }

  get #overflows(): boolean {
    return this.#batch.rows >= this.#options.limits.rows || this.#batch.bytes >= this.#options.limits.bytes;
  }

  /** Rows that wait here. */
  get rows(): number {
    return this.#batch.rows + (this.#committed?.stream.decoder.rows ?? this.#ahead?.waiting ?? 0);
  }

  /** Whether nothing waits here: no row, those of an open transaction included, no commit of what was taken, and nothing passed over. */
  get empty(): boolean {
    const { rows, transactions, passed } = this.#batch;
    return rows === 0 && transactions === 0 && passed.size === 0 && !this.#spilled && this.#committed === undefined;
  }

  /** Whether rows of the table are passed over as its last description stands. */
  passes(table: string): boolean {
    for (const passing of this.#passing.values()) if (passing.table === table) return true;
    return false;
  }

  /** The table is about to be joined: whatever is passed over from now on is said again. */
  forget(table: string): void {
    this.#least.delete(table);
  }

  /** The peer says that there is nothing for us before `lsn`. */
  keepalive(lsn: LSN): void {
    this.#checkEnd(lsn);
    if (!this.#inTransaction && lsn > this.#position) this.#position = lsn;
  }

  /** What is taken for applied is not asked for again: no word of the peer may move that out of its reach. */
  #checkEnd(lsn: LSN): void {
    if (lsn <= this.#reach) return;
    const walEnd = this.#options.walEnd?.();
    if (walEnd === undefined) return;
    this.#reach = walEnd + FAR;
    if (lsn > this.#reach) throw violation('a position far behind the end of its WAL');
  }

  #checkCommit(commitLsn: LSN, endLsn: LSN): void {
    if (endLsn < this.#position) throw violation('a transaction that ends before one that came earlier');
    if (endLsn <= commitLsn) throw violation('a transaction that ends before its commit');
    this.#checkEnd(endLsn);
  }

  /** Decodes one message that lies in `bytes` from `start` to `end`. Throws `peer_protocol`, `schema_differs`. */
  push(bytes: Buffer, start: number, end: number): void {
    try {
      this.#push(bytes, start, end);
    } catch (error) {
      if (error instanceof RangeError) throw violation('a message shorter than its content');
      throw error;
    }
  }

  /** Decodes on after {@link take}, where a large transaction filled the batch before it was decoded to its end. */
  resume(): void {
    this.#committed?.stream.resume();
    this.#finish();
  }

  /** What went ahead `patienceMs` ago and waits for its commit since then is taken back: it must not stand in anybody's way. */
  tire(patienceMs: number): void {
    if (this.#ahead?.wentAhead && performance.now() - this.#ahead.partAtMs > patienceMs) this.#takeBack(this.#ahead);
  }

  /** The transaction whose rows were pushed without a begin ends here. */
  end({ endLsn, committedAtMs }: Commit): void {
    this.#commit(endLsn, committedAtMs);
  }

  /** Gives back what streamed transactions hold. */
  close(): void {
    for (const stream of this.#streams.values()) stream.close();
    this.#streams.clear();
    this.#committed?.stream.close();
    this.#committed = undefined;
    this.#ahead = undefined;
  }

  #push(bytes: Buffer, start: number, end: number): void {
    if (this.#streaming !== undefined && bytes[start] !== MESSAGE.streamStop) {
      // Inside of a stream every message names its (sub)transaction ahead of its content.
      if (start + 5 > end) throw violation('a streamed message without its transaction');
      this.#streaming.append(bytes.readUInt32BE(start + 1), bytes[start]!, bytes, start + 5, end);
      return;
    }
    switch (bytes[start]) {
      case MESSAGE.insert:
      case MESSAGE.update:
        if (!this.#inTransaction) throw violation('a row outside of a transaction');
        if (!this.#skipping) this.#row(bytes, start, end);
        return;
      case MESSAGE.begin: {
        if (this.#inTransaction) throw violation('a transaction inside of a transaction');
        this.#final = lsnOf(bytes.readBigUInt64BE(start + 1));
        this.#inTransaction = true;
        // The commit record of a transaction lies before its end; progress is an end (so "before" is "applied").
        this.#skipping = this.#final < this.#options.progress;
        return;
      }
      case MESSAGE.commit: {
        if (!this.#inTransaction) throw violation('a commit without a transaction');
        this.#commit(lsnOf(bytes.readBigUInt64BE(start + 10)), protocolTimeMs(bytes, start + 18));
        return;
      }
      case MESSAGE.streamStart: {
        if (this.#inTransaction) throw violation('a stream inside of a transaction');
        const transaction = bytes.readUInt32BE(start + 1);
        let stream = this.#streams.get(transaction);
        if (stream === undefined) {
          stream = this.#makeStream(transaction);
          this.#streams.set(transaction, stream);
        }
        this.#streaming = stream;
        return;
      }
      case MESSAGE.streamStop:
        if (this.#streaming === undefined) throw violation('the end of a stream that it did not begin');
        this.#streaming = undefined;
        return;
      case MESSAGE.streamAbort: {
        const transaction = bytes.readUInt32BE(start + 1);
        const subtransaction = bytes.readUInt32BE(start + 5);
        const stream = this.#streams.get(transaction);
        if (transaction !== subtransaction) {
          stream?.abort(subtransaction);
        } else if (stream !== undefined) {
          if (stream.wentAhead) this.#takeBack(stream);
          this.#drop(transaction, stream);
        }
        return;
      }
      case MESSAGE.streamCommit:
        this.#streamCommit(bytes, start);
        return;
      case MESSAGE.relation: {
        const relation = parseRelation(bytes, start + 1, end);
        const route = this.#options.route(relation);
        if (route !== undefined && 'reason' in route) this.#learn(relation.id, undefined, route);
        else this.#learn(relation.id, route, undefined);
        return;
      }
      case MESSAGE.origin:
      case MESSAGE.type:
      case MESSAGE.logical:
      case MESSAGE.delete:
      case MESSAGE.truncate:
        return;
      default:
        throw violation(`a message of kind ${bytes[start]}`);
    }
  }

  /** From now on rows of the relation go this way, or are passed over, or are of no interest. */
  #learn(id: number, route: Route | undefined, passing: Passing | undefined): void {
    this.#routes.set(id, route);
    if (passing) this.#passing.set(id, passing);
    else this.#passing.delete(id);
  }

  #commit(endLsn: LSN, committedAtMs: number): void {
    this.#checkCommit(this.#final, endLsn);
    this.#inTransaction = false;
    if (this.#openRows > 0 || this.#spilled || this.#batch.passed.size > 0) {
      this.#batch.commit(endLsn, committedAtMs);
      this.#openRows = 0;
      this.#spilled = false;
    }
    this.#position = endLsn;
  }

  #makeStream(transaction: number): Streamed {
    const make = (): Decoder => {
      const decoder = new Decoder({ ...this.#options, progress: LSN_ZERO, ahead: false });
      decoder.#inTransaction = true;
      return decoder;
    };
    const ahead = this.#options.ahead === true && this.#ahead === undefined;
    const stream = new Streamed(transaction, make, { partRows: this.#options.limits.rows, ahead });
    if (ahead) this.#ahead = stream;
    return stream;
  }

  #drop(transaction: number, stream: Streamed): void {
    this.#streams.delete(transaction);
    if (this.#ahead === stream) this.#ahead = undefined;
    stream.close();
  }

  /** What the stream handed out ahead of its commit must not be committed. */
  #takeBack(stream: Streamed): void {
    stream.restart();
    this.#afresh = true;
    if (this.#ahead === stream) this.#ahead = undefined;
  }

  /** The transaction was committed: what of it was not handed out is decoded now, and nothing else until that is taken. */
  #streamCommit(bytes: Buffer, start: number): void {
    if (this.#inTransaction) throw violation('a stream’s commit inside of a transaction');
    const transaction = bytes.readUInt32BE(start + 1);
    const commitLsn = lsnOf(bytes.readBigUInt64BE(start + 6));
    const endLsn = lsnOf(bytes.readBigUInt64BE(start + 14));
    const committedAtMs = protocolTimeMs(bytes, start + 22);
    const stream = this.#streams.get(transaction);
    if (stream === undefined) throw violation('the commit of a stream that it did not send');
    this.#checkCommit(commitLsn, endLsn);
    const known = commitLsn < this.#options.progress;
    if (stream.wentAhead && (known || this.#batch.transactions > 0)) this.#takeBack(stream);
    // Another one that is ahead must not be committed with it.
    if (!known && this.#ahead !== stream && this.#ahead?.wentAhead) this.#takeBack(this.#ahead);
    if (known) {
      this.#drop(transaction, stream);
      this.#position = endLsn;
      return;
    }
    this.#streams.delete(transaction);
    if (this.#ahead === stream) this.#ahead = undefined;
    this.#committed = { stream, endLsn };
    stream.decoder.#final = commitLsn;
    stream.commit({ endLsn, committedAtMs });
    this.#finish();
  }

  /** Goes on behind a streamed transaction once everything of it was taken. What it learned of relations stays. */
  #finish(): void {
    if (!this.#committed?.stream.done) return;
    const { stream, endLsn } = this.#committed;
    this.#committed = undefined;
    this.#position = endLsn;
    const inner = stream.decoder;
    this.#foreign += inner.#foreign;
    for (const [id, route] of inner.#routes) this.#learn(id, route, inner.#passing.get(id));
    for (const [table, least] of inner.#least) this.#least.set(table, least);
    stream.close();
  }

  #row(bytes: Buffer, start: number, end: number): void {
    const id = bytes.readUInt32BE(start + 1);
    const route = this.#routes.get(id);
    if (route === undefined) {
      const passing = this.#passing.get(id);
      if (passing && !this.#precedes(passing)) this.#passOver(passing, bytes, start, end);
      if (this.#routes.has(id)) return;
      throw violation(`a row of the relation ${id}, which it did not describe`);
    }
    if (this.#precedes(route)) return;
    const isUpdate = bytes[start] === MESSAGE.update;
    let at = start + 5;
    let keyChanged = false;
    if (isUpdate && bytes[at] !== TUPLE.new) {
      keyChanged = bytes[at] === TUPLE.key;
      at = skipTuple(bytes, at + 1, end);
    }
    if (bytes[at] !== TUPLE.new) throw violation('a row without its new tuple');
    const located = this.#at;
    locate(bytes, at + 1, end, located);
    if (located.count !== route.columns) throw violation(`a tuple of ${located.count} columns for ${route.columns}`);
    if (located.length[route.version] !== 8 || located.length[route.parent] !== 8) {
      throw violation('a row without a version');
    }
    if (bytes[located.start[route.version]!]! > 127) throw violation('a negative version');
    // The lowest 7 bits of a version are the region that wrote it.
    const region = bytes[located.start[route.version]! + 7]! & 127;
    if (region !== this.#options.region) {
      this.#foreign++;
      return;
    }
    if (located.texts > 0 || route.texts !== undefined) checkTexts(route, located);
    for (const column of route.key) if (located.length[column]! < 0) throw violation('a row without its key');
    this.#batch.add(route, bytes, located, isUpdate && !(keyChanged && located.unchanged === 0));
    const row = this.#openRows++;
    this.#tail.bytes[row] = bytes;
    this.#tail.start[row] = start;
    this.#tail.end[row] = end;
  }

  /** Whether the transaction was committed before rows of the relation count. */
  #precedes({ begins }: Route | Passing): boolean {
    return begins !== undefined && this.#final < begins;
  }

  /** Remembers that a row was left out. Said too early, it only makes the join begin lower: that a batch ends here is no matter. */
  #passOver({ table, label, reason, version, told }: Passing, bytes: Buffer, start: number, end: number): void {
    let at = start + 5;
    if (bytes[start] === MESSAGE.update && bytes[at] !== TUPLE.new) at = skipTuple(bytes, at + 1, end);
    if (bytes[at] !== TUPLE.new) throw violation('a row without its new tuple');
    const value = valueAt(bytes, at + 1, end, version);
    // Without a version nothing can be said of it: everything must be joined.
    const found = value?.length === 8 ? value.readBigInt64BE(0) : 0n;
    if (found !== 0n && regionOf(found) !== this.#options.region) {
      this.#foreign++;
      return;
    }
    told?.();
    const least = this.#least.get(table);
    if (least !== undefined && found >= least) return;
    this.#least.set(table, found);
    this.#batch.passed.set(table, { label, reason, least: found });
  }

  /**
   * The batch so far. A transaction still open is left for the next batch, unless it alone fills this one:
   * then the batch is handed out incomplete, and the next one continues it. So it is with what goes ahead of its commit.
   */
  take(): Batch {
    const batch = this.#next();
    batch.afresh = this.#afresh;
    this.#afresh = false;
    return batch;
  }

  #next(): Batch {
    if (this.#batch.transactions > 0 || this.#overflows) {
      if (this.#ahead?.wentAhead) this.#takeBack(this.#ahead);
      return this.takePart();
    }
    if (this.#committed !== undefined) {
      const batch = this.#committed.stream.decoder.take();
      this.#finish();
      return batch;
    }
    return this.#ahead !== undefined && this.#streamReady ? this.#ahead.part() : new Batch();
  }

  /** What was decoded so far, of a transaction still open too. */
  takePart(): Batch {
    const batch = this.#batch;
    this.#batch = new Batch(batch);
    // What is passed over ahead of a commit counts with that commit.
    const ahead = batch.transactions === 0 && batch.passed.size > 0;
    const open = this.#openRows;
    this.#openRows = 0;
    // Forgotten here and not at each commit: an array that is emptied is made anew.
    const bytes = this.#tail.bytes.splice(0);
    if (open === 0 && !this.#spilled && !ahead) return batch;
    if (batch.transactions > 0 && open > 0) {
      batch.rollback();
      batch.rows -= open;
      const { start, end } = this.#tail;
      for (let row = 0; row < open; row++) this.#row(bytes[row]!, start[row]!, end[row]!);
      return batch;
    }
    batch.complete = false;
    this.#spilled = true;
    return batch;
  }
}

/** What comes as text is what is staged as text: the peer's version of a type may have no binary form where ours has one. */
function checkTexts({ texts = [] }: Route, at: Located): void {
  const expected = texts.filter((column) => at.length[column]! >= 0).length;
  if (at.texts === expected) return;
  throw new CoregentError(
    'schema_differs',
    'the peer sent a column as text that is binary here, or the other way round',
  );
}

/** What stands in the way of mapping a peer's relation onto staged columns; undefined when nothing does. */
export function missingColumns(relation: Relation, staged: readonly string[]): string | undefined {
  const there = new Set(relation.columns.map(({ name }) => name));
  const missing = staged.filter((name) => !there.has(name));
  const extra = [...there].filter((name) => !staged.includes(name));
  const what = [
    missing.length > 0 ? `the peer lacks ${missing.join(', ')}` : '',
    extra.length > 0 ? `this region lacks ${extra.join(', ')}` : '',
  ];
  return what.filter(Boolean).join('; ') || undefined;
}

/** Maps a peer's relation onto a table here; both have the same columns. */
export function makeRoute(
  relation: Relation,
  staging: Route['staging'],
  tombstone: boolean,
  names: { readonly staged: readonly string[]; readonly version: string; readonly parent: string },
): Route {
  const position = new Map(relation.columns.map((column, index) => [column.name, index]));
  const at = (name: string): number => position.get(name)!;
  return {
    staging,
    tombstone,
    source: Int32Array.from(names.staged, at),
    key: Int32Array.from(staging.table.key, at),
    columns: relation.columns.length,
    version: at(names.version),
    parent: at(names.parent),
    texts: textsOf(staging.table, (name) => position.get(name) ?? -1),
  };
}
