import fc from 'fast-check';
import { nextVersion, type Version } from '../../src/model/version.ts';
import {
  type Conflict,
  conflict,
  hadSeen,
  join,
  type Row,
  type State,
  stateOf,
  UNKNOWN,
  visible,
  type Write,
} from '../../src/resolve/meaning.ts';

/**
 * Random histories of three regions, played in memory: who wrote what having seen what, and what each region then knows.
 * Versions and parents are made as the triggers make them (`stamping.test.ts` holds the triggers to that).
 */

export const REGIONS = [1, 2, 3] as const;
export type Region = (typeof REGIONS)[number];

/** The parent of a write that replaced none; 0 is the version of rows that were there before replication. */
export const NO_PARENT: Version = -1n;

/** What happens in a history, chosen by fast-check. */
export type Step =
  | {
      readonly do: 'put' | 'delete' | 'rekey';
      readonly region: Region;
      readonly key: number;
      /** How far the region's clock is ahead; small, so that clocks step back and readings meet. */
      readonly clock: number;
      /** Whether an update writes column b; if not, the peer does not send it when values are long. */
      readonly b: boolean;
      /** A key may be written in two ways where equal keys have other bytes. */
      readonly spelling: boolean;
      readonly commits: boolean;
    }
  | {
      readonly do: 'sync';
      readonly from: Region;
      readonly to: Region;
      readonly transactions: number;
      readonly rows: number;
    }
  | { readonly do: 'join'; readonly from: Region; readonly to: Region };

const region = fc.constantFrom(...REGIONS);
const key = fc.integer({ min: 1, max: 3 });
const pair = fc
  .tuple(region, fc.integer({ min: 1, max: 2 }))
  .map(([from, by]) => ({ from, to: (((from - 1 + by) % 3) + 1) as Region }));

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 10,
    arbitrary: fc.record({
      do: fc.constantFrom('put', 'put', 'put', 'put', 'delete', 'delete', 'rekey'),
      region,
      key,
      clock: fc.nat({ max: 8 }),
      b: fc.boolean(),
      spelling: fc.boolean(),
      commits: fc.nat({ max: 2 }).map((dice) => dice > 0),
    }),
  },
  {
    weight: 6,
    arbitrary: fc
      .tuple(pair, fc.integer({ min: 1, max: 4 }), fc.constantFrom(1, 2, 3, 1_000))
      .map(([between, transactions, rows]) => ({ do: 'sync' as const, ...between, transactions, rows })),
  },
  { weight: 1, arbitrary: pair.map((between) => ({ do: 'join' as const, ...between })) },
);

/** Rows that were there before replication: by region and key, a value of few. */
const before = fc.uniqueArray(fc.tuple(region, key, fc.constantFrom('x', 'y', 'z')), {
  maxLength: 4,
  selector: ([at, of]) => `${at} ${of}`,
});

export const histories = fc.record({ before, steps: fc.array(step, { minLength: 1, maxLength: 40, size: 'max' }) });
export type History = { before: [Region, number, string][]; steps: Step[] };

/** The values of one row as text; `id` as it is spelled. */
export interface Image {
  readonly id: string;
  readonly a: string;
  readonly b: string;
}

/** A row's text as PostgreSQL prints it; the values need no quotes. */
export const textOf = ({ id, a, b }: Image): string => `(${a},${b},${id})`;

export function imageOf(value: string): Image {
  const [a, b, id] = value.slice(1, -1).split(',');
  return { id: id!, a: a!, b: b! };
}

/** A write as it travels. */
export type Message = Write & {
  readonly key: number;
  /** Whether the peer leaves column b out. */
  readonly leavesB: boolean;
  /** Whether the message tells of an old key. */
  readonly rekeyed: boolean;
};

/** One origin transaction; the position in its region's stream is `index`. */
export interface Transaction {
  readonly origin: Region;
  readonly index: number;
  readonly messages: readonly Message[];
}

export type States = ReadonlyMap<number, State>;

/** What happens to one region's database, in order. */
export type Event =
  | { readonly do: 'write'; readonly message: Message }
  | { readonly do: 'receive'; readonly transactions: readonly Transaction[]; readonly rows: number }
  | { readonly do: 'join'; readonly states: States };

/** A history that was played. */
export interface Played {
  /** Each region's rows before replication. */
  readonly before: ReadonlyMap<Region, ReadonlyMap<number, Row>>;
  readonly events: ReadonlyMap<Region, readonly Event[]>;
  readonly streams: ReadonlyMap<Region, readonly Transaction[]>;
  /** What each region knows at the end, when everything was delivered. */
  readonly finals: ReadonlyMap<Region, States>;
  /** All writes, those of before included. */
  readonly messages: readonly Message[];
}

/** How rows are written. */
export interface Writing {
  /** Equal keys are written in two ways. */
  readonly spellings: boolean;
  /** Values are long: peers leave them out of updates that did not touch them. */
  readonly leavesOut: boolean;
}

class Play {
  readonly before = new Map<Region, Map<number, Row>>();
  readonly states = new Map<Region, Map<number, State>>();
  readonly events = new Map<Region, Event[]>();
  readonly streams = new Map<Region, Transaction[]>();
  readonly messages: Message[] = [];
  readonly #open = new Map<Region, Message[]>();
  readonly #received = new Map<string, number>();
  readonly #writing: Writing;
  #steps = 0;

  constructor(writing: Writing) {
    this.#writing = writing;
    for (const each of REGIONS) {
      this.before.set(each, new Map());
      this.states.set(each, new Map());
      this.events.set(each, []);
      this.streams.set(each, []);
      this.#open.set(each, []);
    }
  }

  existed([region, key, a]: [Region, number, string]): void {
    const row = { version: 0n, parent: 0n, value: textOf({ id: String(key), a, b: 'before' }) };
    this.before.get(region)!.set(key, row);
    this.states.get(region)!.set(key, { row, tombstone: undefined });
    this.messages.push({ kind: 'insert', key, first: 0n, leavesB: false, rekeyed: false, ...row });
  }

  step(step: Step): void {
    this.#steps++;
    if (step.do === 'join') this.join(step.from, step.to);
    else if (step.do === 'sync') this.sync(step.from, step.to, step.transactions, step.rows);
    else this.#local(step);
  }

  #local(step: Extract<Step, { region: Region }>): void {
    const { region, key } = step;
    const now = BigInt(this.#steps + step.clock);
    const state = this.#known(region, key);
    const row = visible(state);
    const spelled = (of: number): string => (this.#writing.spellings && step.spelling ? `${of}.0` : String(of));
    if (step.do === 'put') {
      const a = `w${this.#steps}`;
      const parent = row ? row.version : (state.tombstone?.version ?? NO_PARENT);
      const b = row && !step.b ? imageOf(row.value).b : `b${this.#steps}`;
      const id = spelled(key);
      const rekeyed = row !== undefined && imageOf(row.value).id !== id;
      const kind = row ? 'update' : 'insert';
      const version = nextVersion(now, region, parent);
      this.#write(region, {
        kind,
        key,
        version,
        parent,
        first: parent,
        value: textOf({ id, a, b }),
        leavesB: this.#writing.leavesOut && row !== undefined && !step.b,
        rekeyed,
      });
    } else if (row) {
      const stamped = nextVersion(now, region, row.version);
      const seen = state.tombstone ? nextVersion(now, region, state.tombstone.version) : 0n;
      const target = (key % 3) + 1;
      const there = this.#known(region, target);
      if (step.do === 'rekey' && visible(there)) return;
      const version = stamped > seen ? stamped : seen;
      this.#write(region, {
        kind: 'delete',
        key,
        version,
        parent: row.version,
        first: row.version,
        leavesB: false,
        rekeyed: false,
      });
      if (step.do === 'rekey') {
        const parent = there.tombstone?.version ?? NO_PARENT;
        const next = nextVersion(now, region, stamped, parent);
        const { a, b } = imageOf(row.value);
        const value = textOf({ id: spelled(target), a, b: step.b ? `b${this.#steps}` : b });
        this.#write(region, {
          kind: 'update',
          key: target,
          version: next,
          parent,
          first: parent,
          value,
          leavesB: this.#writing.leavesOut && !step.b,
          rekeyed: true,
        });
      }
    }
    if (step.commits) this.#commit(region);
  }

  #known(region: Region, key: number): State {
    return this.states.get(region)!.get(key) ?? UNKNOWN;
  }

  #learn(region: Region, key: number, state: State): void {
    this.states.get(region)!.set(key, join(this.#known(region, key), state));
  }

  #write(region: Region, message: Message): void {
    this.#learn(region, message.key, stateOf(message));
    this.events.get(region)!.push({ do: 'write', message });
    this.#open.get(region)!.push(message);
    this.messages.push(message);
  }

  #commit(origin: Region): void {
    const messages = this.#open.get(origin)!;
    if (messages.length === 0) return;
    const stream = this.streams.get(origin)!;
    stream.push({ origin, index: stream.length, messages });
    this.#open.set(origin, []);
  }

  /** Delivers the next transactions of one region to another; a region has no open transaction while it applies. */
  sync(from: Region, to: Region, count: number, rows: number): void {
    this.#commit(to);
    const link = `${from} ${to}`;
    const received = this.#received.get(link) ?? 0;
    const transactions = this.streams.get(from)!.slice(received, received + count);
    if (transactions.length === 0) return;
    this.#received.set(link, received + transactions.length);
    for (const { messages } of transactions) for (const each of messages) this.#learn(to, each.key, stateOf(each));
    this.events.get(to)!.push({ do: 'receive', transactions, rows });
  }

  /** Copies what one region has committed to another, as a join does. */
  join(from: Region, to: Region): void {
    this.#commit(from);
    this.#commit(to);
    const states = new Map([...this.states.get(from)!].map(([key, state]) => [key, { ...state, row: visible(state) }]));
    for (const [key, state] of states) this.#learn(to, key, state);
    this.events.get(to)!.push({ do: 'join', states });
  }

  /** Delivers all that is left, so that every region knows everything. */
  finish(): void {
    for (const each of REGIONS) this.#commit(each);
    for (const from of REGIONS) {
      for (const to of REGIONS) {
        if (from === to) continue;
        if ([...this.before.values()].some((rows) => rows.size > 0)) this.join(from, to);
        for (let left = this.streams.get(from)!.length; left > 0; left -= 3) this.sync(from, to, 3, 1_000);
      }
    }
    for (const from of REGIONS) {
      for (const to of REGIONS) if (from !== to) this.sync(from, to, Number.MAX_SAFE_INTEGER, 1_000);
    }
  }
}

/** Plays a history to the end. */
export function play(history: History, writing: Writing): Played {
  const game = new Play(writing);
  for (const each of history.before) game.existed(each);
  for (const each of history.steps) game.step(each);
  game.finish();
  const { before, events, streams, messages } = game;
  return { before, events, streams, messages, finals: game.states };
}

/** A batch as it is applied: one row and one tombstone of a key at most. Parts of a transaction that is too large are batches. */
export function batchesOf<M>(transactions: readonly { readonly messages: readonly M[] }[], rows: number): M[][] {
  const batches: M[][] = [];
  let whole: M[] = [];
  for (const { messages } of transactions) {
    let open: M[] = [];
    for (const message of messages) {
      open.push(message);
      while (whole.length + open.length >= rows && whole.length + open.length > 0) {
        if (whole.length > 0) {
          batches.push(whole);
          whole = [];
        } else {
          batches.push(open);
          open = [];
        }
      }
    }
    whole.push(...open);
    if (whole.length >= rows) {
      batches.push(whole);
      whole = [];
    }
  }
  if (whole.length > 0) batches.push(whole);
  return batches;
}

/** What is left of a batch's writes of one key: the last row, the last tombstone; `first` is what the oldest replaced. */
export function collapse(messages: readonly Message[]): Map<number, { tombstone?: Message; row?: Message }> {
  const keys = new Map<number, { first: Version; last: Message; tombstone?: Message; row?: Message }>();
  for (const last of messages) {
    const at = keys.get(last.key);
    // What a write leaves out is what its parent had: of an earlier write that is not the parent nothing is known.
    const linked = at !== undefined && (!last.leavesB || at.last.version === last.parent);
    const first = linked ? at.first : last.parent;
    if (last.kind === 'delete') {
      keys.set(last.key, { first, last, tombstone: { ...last, first } });
    } else {
      const leavesB = last.leavesB && (!linked || (at.row?.leavesB ?? true));
      const insert =
        last.kind === 'insert' || (last.rekeyed && !last.leavesB) || (!leavesB && at?.row?.kind === 'insert');
      keys.set(last.key, { ...at, first, last, row: { ...last, kind: insert ? 'insert' : 'update', first, leavesB } });
    }
  }
  return keys;
}

export type KeyedConflict = Conflict & { readonly key: number };

/** What two meetings have alike that are one, whichever write came second. */
export function meetingOf({ key, localVersion, incomingVersion }: Omit<KeyedConflict, 'kind' | 'outcome'>): string {
  const [less, greater] =
    localVersion < incomingVersion ? [localVersion, incomingVersion] : [incomingVersion, localVersion];
  return `${key} ${less} ${greater}`;
}

/** The conflicts that a region's database must record while it goes through its events. A streamed transaction shares no batch with another. */
export function expectedConflicts(
  played: Played,
  region: Region,
  { streamed }: { readonly streamed: boolean },
): KeyedConflict[] {
  const states = new Map<number, State>();
  for (const [key, row] of played.before.get(region)!) states.set(key, { row, tombstone: undefined });
  const found: KeyedConflict[] = [];
  const learn = (key: number, write: Write): void => {
    states.set(key, join(states.get(key) ?? UNKNOWN, stateOf(write)));
  };
  const meet = (key: number, write: Write | undefined): void => {
    if (!write) return;
    const state = states.get(key) ?? UNKNOWN;
    const met = conflict(state, write);
    // What meets the same write again is recorded once; rows older than replication have no versions to tell them by.
    const named = met && meetingOf({ ...met, key });
    const twice = met?.localVersion !== met?.incomingVersion && found.some((each) => meetingOf(each) === named);
    if (met && !twice) found.push({ ...met, key });
    learn(key, write);
  };
  for (const event of played.events.get(region)!) {
    if (event.do === 'write') {
      learn(event.message.key, event.message);
    } else if (event.do === 'join') {
      for (const [key, { tombstone }] of event.states) {
        if (tombstone) meet(key, { kind: 'delete', ...tombstone, first: tombstone.parent });
      }
      for (const [key, { row }] of event.states) if (row) meet(key, { kind: 'insert', ...row, first: row.parent });
    } else {
      const together = streamed ? event.transactions.map((each) => [each]) : [event.transactions];
      for (const batch of together.flatMap((transactions) => batchesOf(transactions, event.rows))) {
        for (const [key, { tombstone, row }] of collapse(batch)) {
          const here = visible(states.get(key) ?? UNKNOWN);
          // A deleter who has since updated the row that is here has taken the delete back: it meets nothing.
          if (tombstone && row && here && succeeds(row, here)) learn(key, tombstone);
          else meet(key, tombstone);
          meet(key, row);
        }
      }
    }
  }
  return found;
}

/** Whether the update plainly follows the row that is here. What leaves a value out must know whose value it left. */
function succeeds(update: Message, here: Row): boolean {
  if (update.kind !== 'update' || here.version >= update.version) return false;
  return update.leavesB ? [update.first, update.parent].includes(here.version) : hadSeen(update, here);
}
