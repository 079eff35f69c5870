import fc from 'fast-check';
import pg from 'pg';
import { lsnOf } from '../../src/model/lsn.ts';
import type { Rule } from '../../src/model/rule.ts';
import { STATE, tombstoneName } from '../../src/model/table.ts';
import type { Version } from '../../src/model/version.ts';
import { makeFetch } from '../../src/pg/fetch.ts';
import { joinTable } from '../../src/pg/join.ts';
import { router } from '../../src/pg/route.ts';
import type { Store } from '../../src/pg/store.ts';
import type { Target } from '../../src/pg/target.ts';
import { Decoder } from '../../src/pipe/decode.ts';
import {
  deleted,
  inserted,
  join,
  plainRow,
  type Row,
  type Shape,
  type State,
  stateOf,
  storedState,
  type Tombstone,
  UNKNOWN,
  updated,
  type Values,
  valuesOf,
  visible,
  type Write,
} from '../../src/resolve/registers.ts';
import { documentOf, editText } from '../../src/text.ts';
import { type Database, makeDatabase } from '../world/database.ts';
import { docChanges, parseDoc } from './documents.ts';
import { begin, type Cell, commit, insert, ROWS, relation, TOMBSTONES, update } from './encode.ts';
import { meetingOf, REGIONS, type Region } from './history.ts';
import { type Applier, applyPatiently, installRegion, openApplier } from './region.ts';

/**
 * Histories of three regions whose writes are real: SQL of an application, stamped by the triggers, sent as protocol messages, applied by
 * the store. Beside each database goes what `resolve/registers.ts` says of it.
 */

const COLUMNS = 'id, a, b, n, tags, doc, high, low, body';
const PARTS = {
  ...{ counters: ['n'], sets: ['tags'], maps: ['doc'], maxima: ['high'], minima: ['low'] },
  texts: ['body'],
};
const RULES = { n: 'counter', tags: 'set', doc: 'map', high: 'max', low: 'min', body: 'text' } as const;

/** Tables that mix rules, by name. */
export const TABLES: Readonly<
  Record<string, { readonly rule: Rule; readonly shape: Shape; readonly key: string; readonly more: string }>
> = {
  posts: { rule: { conflict: 'lww', columns: RULES }, shape: { registers: ['*'], ...PARTS }, key: 'int', more: '' },
  prices: {
    rule: { conflict: 'lww', columns: RULES },
    shape: { registers: ['*'], ...PARTS },
    key: 'numeric',
    more: '',
  },
  profiles: {
    rule: { conflict: 'columns', columns: RULES },
    shape: { registers: ['a', 'b'], ...PARTS },
    key: 'int',
    more: '',
  },
  pairs: {
    rule: { conflict: 'columns', columns: RULES },
    shape: { registers: ['a', 'b'], groups: [['a', 'b']], ...PARTS },
    key: 'int',
    more: ", check (a <> 'never' or b <> 'never')",
  },
};

/** What an application changes in a row; what is left out stays. */
export interface Change {
  readonly a?: string | undefined;
  readonly b?: string | undefined;
  readonly n?: number | undefined;
  readonly add?: string | undefined;
  readonly remove?: string | undefined;
  /** What `doc` becomes, as SQL. */
  readonly doc?: string | undefined;
  readonly high?: number | undefined;
  readonly low?: number | undefined;
  /** Put into the document; `null`: no document any more, `new`: another one, which has nothing of what was read. */
  readonly edit?: string | undefined;
}

export type Step =
  | {
      readonly do: 'put';
      readonly region: Region;
      readonly key: number;
      readonly change: Change;
      readonly commits: boolean;
      readonly leavesOut: boolean;
    }
  | { readonly do: 'delete'; readonly region: Region; readonly key: number; readonly commits: boolean }
  | {
      readonly do: 'sync';
      readonly from: Region;
      readonly to: Region;
      readonly transactions: number;
      readonly rows: number;
    }
  | { readonly do: 'join'; readonly from: Region; readonly to: Region };

const region = fc.constantFrom(...REGIONS);
const key = fc.constantFrom(1, 1, 2);
const some = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: undefined });
const word = fc.constantFrom('x', 'y', 'z');
const change: fc.Arbitrary<Change> = fc.record({
  a: some(word),
  b: some(word),
  n: some(fc.integer({ min: -3, max: 5 })),
  add: some(word),
  remove: some(word),
  doc: some(docChanges),
  high: some(fc.nat({ max: 9 })),
  low: some(fc.nat({ max: 9 })),
  edit: some(fc.constantFrom('u', 'v', 'w', 'null', 'new')),
});
const pair = fc
  .tuple(region, fc.integer({ min: 1, max: 2 }))
  .map(([from, by]) => ({ from, to: (((from - 1 + by) % 3) + 1) as Region }));
const commits = fc.nat({ max: 3 }).map((dice) => dice > 0);

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 10,
    arbitrary: fc.record({ do: fc.constant('put' as const), region, key, change, commits, leavesOut: fc.boolean() }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('delete' as const), region, key, commits }) },
  {
    weight: 7,
    arbitrary: fc
      .tuple(pair, fc.integer({ min: 1, max: 3 }), fc.constantFrom(1, 2, 1_000))
      .map(([between, transactions, rows]) => ({ do: 'sync' as const, ...between, transactions, rows })),
  },
  { weight: 1, arbitrary: pair.map((between) => ({ do: 'join' as const, ...between })) },
);

/** Rows that were there before replication: by region and key, with a change of what all begin with. */
const before = fc.uniqueArray(fc.tuple(region, key, change), { maxLength: 2, selector: ([at, of]) => `${at} ${of}` });
export const histories = fc.record({ before, steps: fc.array(step, { minLength: 1, maxLength: 24, size: 'max' }) });
export interface History {
  readonly before: readonly (readonly [Region, number, Change])[];
  readonly steps: readonly Step[];
}

export type Keyed = Write & { readonly key: number; readonly sent: Buffer };
export interface Transaction {
  readonly origin: Region;
  readonly index: number;
  readonly messages: readonly Keyed[];
}

export interface Bench extends AsyncDisposable {
  readonly regions: ReadonlyMap<
    Region,
    { readonly applier: Applier; readonly app: pg.Client; readonly database: Database }
  >;
}

/** A database for each region, with every table. */
export async function openBench(): Promise<Bench> {
  const regions = new Map<Region, { applier: Applier; app: pg.Client; database: Database }>();
  const rules = Object.fromEntries(Object.entries(TABLES).map(([name, { rule }]) => [name, rule]));
  for (const each of REGIONS) {
    const database = await makeDatabase(each - 1);
    for (const [name, { key, more }] of Object.entries(TABLES)) {
      await database.query(
        `create table ${name} (id ${key} primary key, a text, b text, n int not null, tags text[], doc jsonb, high int, low int, body bytea${more})`,
      );
    }
    await installRegion(database.url, each, rules);
    const app = new pg.Client({ connectionString: database.url });
    await app.connect();
    regions.set(each, { applier: await openApplier(database.url), app, database });
  }
  return {
    regions,
    async [Symbol.asyncDispose]() {
      for (const { applier, app, database } of regions.values()) {
        await applier[Symbol.asyncDispose]();
        await app.end();
        await database.drop();
      }
    },
  };
}

/** What a document begins with, as SQL. */
const DOC = `'{"a": 1, "b": {"a": 1.0, "c": {}}}'::jsonb`;
const BEGIN = { a: 'p', b: 'q', n: 0, tags: [] as string[], high: 0, low: 9, body: null as Uint8Array | null };

/** One region of a history that is being played. */
class Place {
  readonly states = new Map<number, State>();
  readonly stream: Transaction[] = [];
  readonly open: Keyed[] = [];
  /** Conflicts that the specification says are recorded here. */
  readonly expected: string[] = [];
  readonly #met = new Set<string>();
  readonly region: Region;
  readonly applier: Applier;
  readonly app: pg.Client;
  readonly target: Target;
  readonly table: string;
  readonly tombs: string;
  readonly shape: Shape;

  constructor(bench: Bench, region: Region, table: string) {
    const { applier, app } = bench.regions.get(region)!;
    this.region = region;
    this.applier = applier;
    this.app = app;
    this.table = `public.${table}`;
    this.target = applier.targets.get(this.table)!;
    this.tombs = `coregent.${tombstoneName({ schema: 'public', name: table })}`;
    this.shape = TABLES[table]!.shape;
  }

  async empty(): Promise<void> {
    await this.applier.client.query(
      `delete from ${this.table}; delete from ${this.tombs}; delete from coregent.conflict_record; delete from coregent.parked`,
    );
  }

  known(key: number): State {
    return this.states.get(key) ?? UNKNOWN;
  }

  learn(key: number, state: State): void {
    this.states.set(key, join(this.shape, this.known(key), state));
  }

  /** The columns of a row as the specification knows them. */
  valuesOf({ id, a, b, n, tags, doc_text, high, low, body }: Record<string, unknown>): Values {
    const whole = this.target.staging.table.exactKey ? `(${a},${b})` : `(${id},${a},${b})`;
    return {
      registers: this.shape.registers[0] === '*' ? { '*': whole } : { a: String(a), b: String(b) },
      counters: { n: BigInt(n as number) },
      sets: { tags: tags as string[] },
      maps: { doc: parseDoc(doc_text as string | null) },
      bounds: { high: BigInt(high as number), low: BigInt(low as number) },
      texts: { body: body === null ? null : Buffer.from(body as Uint8Array).toString('base64') },
    };
  }

  async read(key: number): Promise<Record<string, unknown> | undefined> {
    const { rows } = await this.app.query(`select *, doc::text as doc_text from ${this.table} where id = $1`, [key]);
    return rows[0];
  }

  /** What a row was before replication. */
  async existed(key: number, change: Change): Promise<void> {
    const row = changed(BEGIN, change);
    await this.applier.client.query(
      `insert into ${this.table} (${COLUMNS}) values ($1, $2, $3, $4, array(select distinct unnest($5::text[]) order by 1), ${docFrom(change)}, $6, $7, $8)`,
      [key, row.a, row.b, row.n, row.tags, row.high, row.low, row.body],
    );
    const found = (await this.read(key))!;
    this.learn(key, { row: plainRow(this.shape, this.valuesOf(found), 0n, 0n), tombstone: undefined });
  }

  /** A write of this region's application; the specification is told what the triggers stamped. */
  async write(step: Extract<Step, { region: Region }>): Promise<void> {
    const { key } = step;
    const state = this.known(key);
    const old = visible(state);
    if (step.do === 'put') {
      const { change } = step;
      if (old) {
        const set = [
          change.a && `a = '${change.a}'`,
          change.b && `b = '${change.b}'`,
          change.n && `n = n + ${change.n}`,
          change.doc && `doc = ${change.doc}`,
          change.high !== undefined && `high = ${change.high}`,
          change.low !== undefined && `low = ${change.low}`,
          change.edit && 'body = $1',
          (change.add ?? change.remove) &&
            `tags = array_remove(tags || ${change.add ? `array['${change.add}']` : "'{}'::text[]"}, '${change.remove ?? ''}')`,
        ].filter(Boolean);
        const values = change.edit ? [edited((await this.read(key))!.body as Buffer | null, change.edit)] : [];
        await this.app.query(
          `update ${this.table} set ${set.length > 0 ? set.join(', ') : 'a = a'} where id = ${key}`,
          values,
        );
      } else {
        const row = changed(BEGIN, change);
        await this.app.query(
          `insert into ${this.table} (${COLUMNS}) values ($1, $2, $3, $4, $5, ${docFrom(change)}, $6, $7, $8)`,
          [key, ...[row.a, row.b, row.n, row.tags, row.high, row.low, row.body]],
        );
      }
      const found = (await this.read(key))!;
      const version = BigInt(found._coregent_version as string);
      // What the application meant: of bounds what it said, of sets the elements, of the rest what is there now.
      const values = old ? this.meant(old, found, change) : this.valuesOf(found);
      const row = old
        ? updated(this.shape, old, values, version)
        : inserted(this.shape, values, version, { buried: state.tombstone?.version });
      const leavesOut = step.leavesOut && old !== undefined && !change.a;
      this.#wrote({ kind: 'row', row }, key, await this.#sent(key, old !== undefined, leavesOut));
    } else if (old) {
      await this.app.query(`delete from ${this.table} where id = ${key}`);
      const { rows } = await this.app.query(
        `select _coregent_version::text as version from ${this.tombs} where id = ${key}`,
      );
      const tombstone = deleted(old, BigInt(rows[0].version), state.tombstone);
      this.#wrote({ kind: 'delete', tombstone }, key, await this.#sentTombstone(key));
    }
    if (step.commits) this.commit();
  }

  meant(old: Row, found: Record<string, unknown>, change: Change): Values {
    const before = valuesOf(this.shape, old);
    const tags = [...before.sets.tags!, ...(change.add ? [change.add] : [])].filter((each) => each !== change.remove);
    const said = (name: 'high' | 'low'): bigint => BigInt(change[name] ?? before.bounds[name]!);
    return {
      ...this.valuesOf(found),
      counters: { n: before.counters.n! + BigInt(change.n ?? 0) },
      sets: { tags },
      bounds: { high: said('high'), low: said('low') },
    };
  }

  #wrote(write: Write, key: number, sent: Buffer): void {
    this.learn(key, stateOf(write));
    this.open.push({ ...write, key, sent });
  }

  commit(): void {
    if (this.open.length === 0) return;
    this.stream.push({ origin: this.region, index: this.stream.length, messages: this.open.splice(0) });
  }

  async #cells(from: string, columns: readonly string[], key: number): Promise<Cell[]> {
    const { rows } = await this.app.query(
      `select record_send(r) as bytes from (select ${columns.join(', ')} from ${from} where id = ${key}) r`,
    );
    const bytes = rows[0].bytes as Buffer;
    let at = 4;
    return columns.map((): Cell => {
      const length = bytes.readInt32BE(at + 4);
      at += 8 + Math.max(0, length);
      return length < 0 ? null : bytes.subarray(at - length, at);
    });
  }

  async #sent(key: number, isUpdate: boolean, leavesOut: boolean): Promise<Buffer> {
    const { rowColumns } = this.target.compiled;
    const cells = await this.#cells(this.table, rowColumns, key);
    if (leavesOut) cells[rowColumns.indexOf('a')] = 'unchanged';
    return isUpdate ? update(ROWS, cells) : insert(ROWS, cells);
  }

  async #sentTombstone(key: number): Promise<Buffer> {
    return insert(TOMBSTONES, await this.#cells(this.tombs, this.target.compiled.tombstoneColumns, key));
  }

  describe(): Buffer[] {
    const { compiled, staging } = this.target;
    const { schema, name } = staging.table;
    return [
      relation(ROWS, schema, name, compiled.rowColumns),
      relation(TOMBSTONES, 'coregent', tombstoneName(staging.table), compiled.tombstoneColumns),
    ];
  }

  store(from?: Place): Store {
    return this.applier.store(from ? { fetch: makeFetch(() => from.app, 'peer') } : {});
  }

  async receive(transactions: readonly Transaction[], rows: number, from: Place): Promise<void> {
    const decoder = new Decoder({
      region: from.region,
      progress: lsnOf(0n),
      route: router([this.target]),
      limits: { rows, bytes: Number.MAX_SAFE_INTEGER },
    });
    const store = this.store(from);
    const take = async (): Promise<void> => {
      await applyPatiently(store, decoder.take());
      decoder.resume();
    };
    const push = async (message: Buffer): Promise<void> => {
      decoder.push(message, 0, message.length);
      while (decoder.full) await take();
    };
    for (const message of this.describe()) await push(message);
    for (const { messages, index } of transactions) {
      const end = BigInt(index + 1) * 100n;
      for (const message of [begin(end - 10n), ...messages.map(({ sent }) => sent), commit(end)]) await push(message);
    }
    while (decoder.ready) await take();
  }

  async copyFrom(other: Place): Promise<void> {
    await joinTable(other.app, this.store(), this.target);
  }

  /** A write that arrives, by the specification. */
  meet(
    key: number,
    write: Write,
    met: { kind: string; outcome: string; localVersion: Version; incomingVersion: Version } | undefined,
  ): void {
    if (met) {
      const name = meetingOf({ key, ...met });
      if (!this.#met.has(name) || met.localVersion === met.incomingVersion) {
        this.expected.push(
          `key ${key}, ${met.kind}, ${met.outcome}, local ${met.localVersion}, incoming ${met.incomingVersion}`,
        );
      }
      this.#met.add(name);
    }
    this.learn(key, stateOf(write));
  }

  /** What the database holds. */
  async content(): Promise<Record<string, unknown>> {
    const { rows } = await this.applier.client.query(
      `select *, doc::text as doc_text, ${STATE}::text as stored from ${this.table}`,
    );
    const { rows: tombs } = await this.applier.client.query(`select * from ${this.tombs}`);
    return Object.fromEntries([
      ...rows.map((row) => [
        `row ${Number(row.id)}`,
        plain([
          row._coregent_version,
          row._coregent_parent,
          row.stored === null ? undefined : numbers(row.stored),
          this.valuesOf(row),
        ]),
      ]),
      ...tombs.map((row) => [`tombstone ${Number(row.id)}`, plain([row._coregent_version, row._coregent_parent])]),
    ]);
  }

  async conflicts(): Promise<string[]> {
    const { rows } = await this.applier.client.query(
      `select (key->>'id')::numeric::int as key, case when kind in ('insert_exists', 'update_origin_differs') then 'row' else kind end as kind,
        outcome, local_version::text as local, incoming_version::text as incoming from coregent.conflict_record where table_name = $1`,
      [this.table],
    );
    return rows.map(
      (row) => `key ${row.key}, ${row.kind}, ${row.outcome}, local ${row.local}, incoming ${row.incoming}`,
    );
  }
}

/** What a table and its tombstones hold by the specification. */
export function contentBy(shape: Shape, states: ReadonlyMap<number, State>): Record<string, unknown> {
  const content: Record<string, unknown> = {};
  for (const [key, state] of states) {
    const row = visible(state);
    if (row) {
      const stored = storedState(shape, row);
      content[`row ${key}`] = plain([
        row.version,
        row.parent,
        stored === undefined ? undefined : stored,
        valuesOf(shape, row),
      ]);
    }
    const tombstone: Tombstone | undefined = state.tombstone;
    if (tombstone) content[`tombstone ${key}`] = plain([tombstone.version, tombstone.parent]);
  }
  return content;
}

/** What an application makes of the document that it read. */
function edited(body: Buffer | null, edit: string): Uint8Array | null {
  if (edit === 'null') return null;
  return edit === 'new' ? documentOf(edit) : editText(body, [{ at: 0, insert: edit }]);
}

function changed(row: typeof BEGIN, { a, b, n, add, remove, high, low, edit }: Change): typeof BEGIN {
  return {
    a: a ?? row.a,
    b: b ?? row.b,
    n: row.n + (n ?? 0),
    tags: [...row.tags, ...(add ? [add] : [])].filter((each) => each !== remove),
    high: high ?? row.high,
    low: low ?? row.low,
    body: edit ? documentOf(edit) : row.body,
  };
}

/** The document of an insert, as SQL. */
function docFrom({ doc }: Change): string {
  return doc === undefined ? DOC : `(select ${doc} from (select ${DOC} as doc) d)`;
}

/** Everything that is a number as text, so that both sides can be compared. */
function plain(value: unknown): unknown {
  return JSON.parse(
    JSON.stringify(value, (_, each) => {
      if (each instanceof Map) return Object.fromEntries(each);
      return typeof each === 'bigint' || typeof each === 'number' ? String(each) : each;
    }),
  );
}

/** A jsonb of versions as text, read without a loss. */
function numbers(text: unknown): unknown {
  return JSON.parse(String(text).replace(/([[:,]\s*)(-?\d+)/g, '$1"$2"'));
}

export { Place };
