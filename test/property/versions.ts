import { lsnOf } from '../../src/model/lsn.ts';
import { PARENT, STATE, type Table, tombstoneName, VERSION } from '../../src/model/table.ts';
import { nextVersion, type Version } from '../../src/model/version.ts';
import type { Receipt } from '../../src/pg/receipt.ts';
import { router } from '../../src/pg/route.ts';
import type { Store } from '../../src/pg/store.ts';
import type { FetchRows, Target } from '../../src/pg/target.ts';
import { Batch, type Route } from '../../src/pipe/batch.ts';
import { Decoder } from '../../src/pipe/decode.ts';
import {
  type Burial,
  floors,
  join,
  replaced,
  type Shows,
  type State,
  seenAfter,
  seenFrom,
  stamps,
  stateOf,
  UNKNOWN,
  type Write,
} from '../../src/resolve/versions.ts';
import { emptyLocated, locate, parseRelation } from '../../src/wire/pgoutput.ts';
import { Tuples } from '../../src/wire/tuples.ts';
import type { KeyBytes } from './deliver.ts';
import {
  begin,
  type Cell,
  commit,
  insert,
  int4,
  int8,
  ROWS,
  relation,
  streamed,
  TOMBSTONES,
  text,
  update,
} from './encode.ts';
import { type History, imageOf, REGIONS, type Region, type Step, textOf, type Writing } from './history.ts';
import { applyPatiently } from './region.ts';
import { readRecord } from './staged.ts';

/** The histories of `history.ts`, played by the rules that keep versions side by side, and sent to databases. */

/** A write as it travels. `first`: what the first of several collapsed writes replaced. */
export type Message = Write & {
  readonly key: number;
  readonly first: Version;
  readonly leavesB: boolean;
  readonly rekeyed: boolean;
};

export interface Transaction {
  readonly origin: Region;
  readonly index: number;
  readonly messages: readonly Message[];
}

export type States = ReadonlyMap<number, State>;

/** What happens to one region's database, in order; a write leaves this state of its key. */
export type Event =
  | { readonly do: 'write'; readonly key: number; readonly state: State }
  | { readonly do: 'receive'; readonly transactions: readonly Transaction[]; readonly rows: number }
  | { readonly do: 'join'; readonly states: States };

export interface Played {
  readonly before: ReadonlyMap<Region, ReadonlyMap<number, string>>;
  readonly events: ReadonlyMap<Region, readonly Event[]>;
  readonly streams: ReadonlyMap<Region, readonly Transaction[]>;
  readonly finals: ReadonlyMap<Region, States>;
  readonly messages: readonly Message[];
}

/** Plays a history to the end, when every region has heard everything. */
export function play(history: History, writing: Writing, shows: Shows): Played {
  const perRegion = <T>(make: () => T): Map<Region, T> => new Map(REGIONS.map((region) => [region, make()]));
  const before = perRegion(() => new Map<number, string>());
  const states = perRegion(() => new Map<number, State>());
  const events = perRegion<Event[]>(() => []);
  const streams = perRegion<Transaction[]>(() => []);
  const open = perRegion<Message[]>(() => []);
  const received = new Map<string, number>();
  const messages: Message[] = [];
  let steps = 0;

  const known = (region: Region, key: number): State => states.get(region)!.get(key) ?? UNKNOWN;
  const learn = (region: Region, key: number, state: State): void => {
    states.get(region)!.set(key, join(known(region, key), state));
  };
  const write = (region: Region, message: Message): void => {
    learn(region, message.key, stateOf(message));
    events.get(region)!.push({ do: 'write', key: message.key, state: known(region, message.key) });
    open.get(region)!.push(message);
    messages.push(message);
  };
  const commitOpen = (origin: Region): void => {
    const all = open.get(origin)!;
    if (all.length === 0) return;
    const stream = streams.get(origin)!;
    stream.push({ origin, index: stream.length, messages: all });
    open.set(origin, []);
  };
  const shownValue = (state: State): string =>
    state.versions.length > 1 ? shows(state.versions).value : state.versions[0]!.value;

  const local = (step: Extract<Step, { region: Region }>): void => {
    const { region, key } = step;
    const now = BigInt(steps + step.clock);
    const state = known(region, key);
    const there = stamps(state) !== undefined;
    const spelled = (of: number): string => (writing.spellings && step.spelling ? `${of}.0` : String(of));
    const stamped = (of: State, version: Version, parent: Version) => ({
      ...{ version, parent, first: parent },
      seen: seenAfter(of, version),
    });
    if (step.do === 'put') {
      const version = nextVersion(now, region, ...floors(state));
      const was = there ? imageOf(shownValue(state)) : undefined;
      const id = spelled(key);
      write(region, {
        kind: there ? 'update' : 'insert',
        key,
        ...stamped(state, version, replaced(state, shows)),
        value: textOf({ id, a: `w${steps}`, b: was && !step.b ? was.b : `b${steps}` }),
        leavesB: writing.leavesOut && there && !step.b,
        rekeyed: was !== undefined && was.id !== id,
      });
    } else if (there) {
      const target = (key % 3) + 1;
      const other = known(region, target);
      if (step.do === 'rekey' && stamps(other)) return;
      const version = nextVersion(now, region, ...floors(state));
      const { a, b } = imageOf(shownValue(state));
      const gone = stamped(state, version, replaced(state, shows));
      write(region, { kind: 'delete', key, ...gone, leavesB: false, rekeyed: false });
      if (step.do === 'rekey') {
        const next = nextVersion(now, region, version, ...floors(other));
        write(region, {
          kind: 'update',
          key: target,
          ...stamped(other, next, other.buried?.version ?? -1n),
          value: textOf({ id: spelled(target), a, b: step.b ? `b${steps}` : b }),
          leavesB: writing.leavesOut && !step.b,
          rekeyed: true,
        });
      }
    }
    if (step.commits) commitOpen(region);
  };
  const sync = (from: Region, to: Region, count: number, rows: number): void => {
    commitOpen(to);
    const link = `${from} ${to}`;
    const at = received.get(link) ?? 0;
    const transactions = streams.get(from)!.slice(at, at + count);
    if (transactions.length === 0) return;
    received.set(link, at + transactions.length);
    for (const each of transactions.flatMap((transaction) => transaction.messages)) learn(to, each.key, stateOf(each));
    events.get(to)!.push({ do: 'receive', transactions, rows });
  };
  const copy = (from: Region, to: Region): void => {
    commitOpen(from);
    commitOpen(to);
    const copied = new Map(states.get(from)!);
    for (const [key, state] of copied) learn(to, key, state);
    events.get(to)!.push({ do: 'join', states: copied });
  };

  for (const [region, key, a] of history.before) {
    const value = textOf({ id: String(key), a, b: 'before' });
    before.get(region)!.set(key, value);
    learn(region, key, stateOf({ kind: 'insert', version: 0n, parent: 0n, seen: seenFrom(0n, 0n), value }));
  }
  for (const step of history.steps) {
    steps++;
    if (step.do === 'join') copy(step.from, step.to);
    else if (step.do === 'sync') sync(step.from, step.to, step.transactions, step.rows);
    else local(step);
  }
  for (const each of REGIONS) commitOpen(each);
  for (const from of REGIONS) {
    for (const to of REGIONS) {
      if (from === to) continue;
      if (history.before.length > 0) copy(from, to);
      for (let left = streams.get(from)!.length; left > 0; left -= 3) sync(from, to, 3, 1_000);
    }
  }
  for (const from of REGIONS) {
    for (const to of REGIONS) if (from !== to) sync(from, to, Number.MAX_SAFE_INTEGER, 1_000);
  }
  return { before, events, streams, messages, finals: states };
}

/** A row or a tombstone as it is stored. */
export interface Stored {
  readonly version: Version;
  readonly parent: Version;
  readonly state: unknown;
  /** Of a row. */
  readonly value?: string;
}

// The versions of a played history are small: exact as numbers.
const json = (seen: ReadonlyMap<number, Version>): Record<string, number> =>
  Object.fromEntries([...seen].map(([region, version]) => [region, Number(version)]));

/** What is written besides version and parent of one write: what it had seen, where these do not tell. */
function stateOfWrite({ version, parent, seen }: Burial): { seen: Record<string, number> } | null {
  const told = seenFrom(version, parent);
  const same = told.size === seen.size && [...told].every(([region, each]) => seen.get(region) === each);
  return same ? null : { seen: json(seen) };
}

/** What a table and its tombstones hold of a key. */
export function storedOf(state: State, shows: Shows): { row: Stored | undefined; tombstone: Stored | undefined } {
  const { versions, buried } = state;
  const tombstone = buried && { version: buried.version, parent: buried.parent, state: stateOfWrite(buried) };
  const [only] = versions;
  if (versions.length < 2) return { row: only && { ...stored(only), value: only.value }, tombstone };
  const set = versions.map((each) => ({
    v: Number(each.version),
    p: Number(each.parent),
    row: imageOf(each.value),
    ...stateOfWrite(each),
  }));
  return { row: { ...stamps(state)!, state: { set }, value: shows(versions).value }, tombstone };
}

const stored = (burial: Burial): Stored => ({
  version: burial.version,
  parent: burial.parent,
  state: stateOfWrite(burial),
});

/** A `jsonb` as it is sent: its version, then its text. */
const jsonb = (value: unknown): Cell => (value === null ? null : text(`\x01${JSON.stringify(value)}`));

const rowCells = ({ version, parent, state, value }: Stored, keyBytes: KeyBytes, leavesB = false): Cell[] => {
  const { id, a, b } = imageOf(value!);
  return [keyBytes(id), text(a), leavesB ? 'unchanged' : text(b), jsonb(state), int8(version), int8(parent)];
};
const tombstoneCells = ({ version, parent, state }: Stored, key: Buffer): Cell[] => [
  key,
  jsonb(state),
  int8(version),
  int8(parent),
];

/** The Relation messages of a table with a state, and of its tombstones. */
function describe(table: Table): Buffer[] {
  const names = table.columns.map(({ name }) => name);
  return [
    relation(ROWS, table.schema, table.name, [...names, VERSION, PARENT]),
    relation(TOMBSTONES, 'coregent', tombstoneName(table), [...table.key, STATE, VERSION, PARENT]),
  ];
}

/** How a stream reaches a region: see `Delivery` in `deliver.ts`. */
export interface Delivery {
  readonly store: Store;
  readonly target: Target;
  readonly keyBytes: KeyBytes;
  readonly rows: number;
  readonly padding: number;
  readonly streamed: boolean;
  readonly progress?: bigint;
}

const endOf = ({ index }: Transaction): bigint => BigInt(index + 1) * 100n;
let padded = 0;

/** Sends transactions of one region through Decoder, Batch and Store. */
export async function deliver(transactions: readonly Transaction[], delivery: Delivery): Promise<Receipt[]> {
  const { store, target, rows, keyBytes, progress = 0n } = delivery;
  const origin = transactions[0]!.origin;
  const route = router([target]);
  const decoder = new Decoder({
    region: origin,
    progress: lsnOf(progress),
    route,
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
  const described = describe(target.staging.table);
  for (const message of described) await push(message);
  for (const [index, transaction] of transactions.entries()) {
    const messages = transaction.messages.map((message) => encode(message, keyBytes));
    for (let more = index === 0 && rows > delivery.padding ? delivery.padding : 0; more > 0; more--) {
      const id = String(1_000 + (padded++ % 8_000));
      const stamp = { version: nextVersion(0n, origin), parent: 0n, state: null };
      messages.push(insert(ROWS, rowCells({ ...stamp, value: textOf({ id, a: 'padding', b: 'padding' }) }, keyBytes)));
    }
    const end = endOf(transaction);
    const sent = delivery.streamed
      ? streamed(7, messages, [...described, ...[...messages].reverse()], end)
      : [begin(end - 10n), ...messages, commit(end)];
    for (const message of sent) await push(message);
  }
  while (decoder.ready) await take();
  return receipts;
}

function encode(message: Message, keyBytes: KeyBytes): Buffer {
  const row = stored(message);
  if (message.kind === 'delete') return insert(TOMBSTONES, tombstoneCells(row, keyBytes(String(message.key))));
  const cells = rowCells({ ...row, value: message.value }, keyBytes, message.leavesB);
  if (message.kind === 'insert') return insert(ROWS, cells);
  const old = { mark: 'key' as const, cells: [keyBytes('9999'), null, null, null, null, null] };
  return message.rekeyed ? update(ROWS, cells, old) : update(ROWS, cells);
}

/** Copies what a region knows, as a join does: first the tombstones, then the rows. */
export async function deliverJoin(
  states: States,
  { store, target, keyBytes, shows }: Pick<Delivery, 'store' | 'target' | 'keyBytes'> & { readonly shows: Shows },
): Promise<void> {
  const route = router([target]);
  const routes = describe(target.staging.table).map(
    (message) => route(parseRelation(message, 1, message.length)) as Route,
  );
  const all = [...states].map(([key, state]) => ({ key, ...storedOf(state, shows) }));
  const copied: [Route, Cell[][]][] = [
    [
      routes[1]!,
      all.flatMap(({ key, tombstone }) => (tombstone ? [tombstoneCells(tombstone, keyBytes(String(key)))] : [])),
    ],
    [routes[0]!, all.flatMap(({ row }) => (row ? [rowCells(row, keyBytes)] : []))],
  ];
  for (const [to, rows] of copied) {
    const batch = new Batch();
    const at = emptyLocated();
    for (const cells of rows) {
      const message = insert(ROWS, cells);
      locate(message, 6, message.length, at);
      batch.add(to, message, at, false);
    }
    if (batch.rows > 0) await applyPatiently(store, batch);
  }
}

/** Reads the rows that a region asks for out of memory. */
export function fetchFrom(
  current: (key: number, version: Version) => Stored | undefined,
  keyBytes: KeyBytes,
): FetchRows {
  return async ({ staging }, keys) => {
    const tuples = new Tuples();
    for (const record of keys.liveRows()) {
      const columns = readRecord(record).map(({ value }) => value);
      const [id, version, first] = [columns[0]!, columns.at(-3)!, columns.at(-1)!];
      const asked = version.readBigInt64BE();
      const row = current(id.length === 4 ? id.readInt32BE() : id.readInt16BE(8), asked);
      if (!row) continue;
      const values = [
        ...rowCells(row, keyBytes),
        row.version === asked ? first : int8(row.parent),
      ] as (Buffer | null)[];
      const oids = [...staging.rowOids, 20];
      const body = Buffer.concat([
        int4(values.length),
        ...values.flatMap((value, index) => [
          int4(oids[index]!),
          int4(value === null ? -1 : value.length),
          ...(value === null ? [] : [value]),
        ]),
      ]);
      const element = Buffer.concat([int4(body.length), body]);
      tuples.reserve(element.length).set(element, tuples.length);
      tuples.endRow(tuples.length + element.length);
    }
    return tuples;
  };
}
