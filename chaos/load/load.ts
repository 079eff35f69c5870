import { seeded } from '../../test/world/random.ts';
import { History } from '../history.ts';
import type { Options } from '../options.ts';
import { HITS, imageSql, keySql, LEDGER, type RegisterTable } from '../tables.ts';
import type { World } from '../world.ts';
import { FAMILIES } from './families.ts';
import { GROUPS } from './groups.ts';
import { COUNTERS, counterId, NUMBERS, PAIRS } from './numbers.ts';
import { LEDGER_ROWS, OWNED } from './owned.ts';
import { PARTITIONED, REGISTERS } from './registers.ts';
import { KEPT_ROWS, RULES } from './rules.ts';
import { NAMED_VALUES } from './values.ts';
import { TYPES } from './wide.ts';
import { type Kind, type Shared, Writer } from './writer.ts';

/** A running load. */
export interface Load {
  readonly history: History;
  /** What the servers take beside the replicated tables: silent only where the server or the machine is. */
  readonly beats: History;
  /** Lets every transaction end. */
  stop(): Promise<void>;
}

/** One row that nobody replicates. */
const BEAT: Kind = {
  name: 'beat',
  weight: 1,
  run: async ({ client }) => {
    await client.query('update beside.beat set n = n + 1');
    return () => {};
  },
};

/** Rows that must be there before anybody writes: each region brings its own, and waits for nobody. */
export async function seedRows(world: World, history: History): Promise<void> {
  for (const [index, region] of world.regions.entries()) {
    await region.query('create schema beside create table beat (n int)');
    await region.query('insert into beside.beat values (0)');
    for (let counter = 0; counter < COUNTERS; counter++) {
      await region.query('insert into counters values ($1, 0)', [counterId(index, counter)]);
      history.counters.set(counterId(index, counter), { ok: 0, unknown: 0 });
    }
    await region.query(
      `insert into pairs select $1::int * 100 + s, p, 'begin' from generate_series(1, $2::int) s, generate_series(1, $3::int) p`,
      [index, PAIRS.sets, PAIRS.parts],
    );
    const ledger = 'insert into ledger as t select $1::int * 1000 + n, $2, $3::int from generate_series(1, $4::int) n';
    await seed(history, region, LEDGER, ledger, [index, region.name, LEDGER_ROWS.each, LEDGER_ROWS.perRegion]);
  }
  const [first] = world.regions;
  await first!.query('insert into posts (id) select generate_series(1, $1::int)', [KEPT_ROWS]);
  await first!.query('insert into notes (id) select generate_series(1, $1::int)', [KEPT_ROWS]);
  await first!.query('insert into profiles (id) select generate_series(1, $1::int)', [KEPT_ROWS]);
  await seed(history, first!, HITS, `insert into hits as t select n, 0, 'begin' from generate_series(1, 12) n`);
}

/** Inserts rows, whose table is `t`, and remembers who wrote them. */
async function seed(
  history: History,
  { name, query }: World['regions'][number],
  table: RegisterTable,
  insert: string,
  values: unknown[] = [],
): Promise<void> {
  const { rows } = await query(
    `${insert} returning ${keySql(table, 't')} as key, t._coregent_version as version, ${imageSql(table, 't')} as image`,
    values,
  );
  for (const { key, version, image } of rows) {
    const write = { table: table.name, key, region: name, version: BigInt(version), saw: [], image };
    history.record({ ...write, left: false, verdict: 'ok' });
  }
}

/** Starts writers in every region. */
export function startLoad(world: World, options: Options, history: History): Load {
  const random = seeded(options.seed);
  const stopping = new AbortController();
  const kinds = [...GROUPS, ...NUMBERS, ...REGISTERS, ...TYPES, ...RULES, ...NAMED_VALUES, ...OWNED, ...FAMILIES];
  if (options.extras.includes('partitions')) kinds.push(PARTITIONED);
  const beats = new History();
  const running = world.regions.flatMap((region, index) => {
    const shared: Shared = {
      alive: { entries: [], bulk: [], parents: [] },
      nextGroup: 0,
      nextId: 0,
      children: { players: [], coaches: [], fees: [], logins: [] },
      nextChild: 0,
    };
    const { url, name, major } = region;
    const others = world.regions.map(({ name }) => name).filter((other) => other !== name);
    const start = (number: number, to: History, kinds: readonly Kind[]): Promise<void> => {
      const writer = index * 100 + number;
      const seed = random() * 2 ** 32;
      const work = { random: seeded(seed), history: to, region: name, others, index, writer, major, shared };
      return new Writer(url, work, kinds).run(stopping.signal, options.pauseMs);
    };
    return [
      ...Array.from({ length: options.writers }, (_, number) => start(number, history, kinds)),
      start(options.writers, beats, [BEAT]),
    ];
  });
  return {
    history,
    beats,
    stop: async () => {
      stopping.abort();
      await Promise.all(running);
    },
  };
}
