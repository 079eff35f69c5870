import fc from 'fast-check';
import type pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { tombstoneName } from '../../src/model/table.ts';
import { openRegions, openSession, type TestRegion, type TestRegions } from './link.ts';
import { attempt, SCHEMA, statement, TABLES } from './statements.ts';

/** Cases; thousands find what hundreds do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 30);

const SEATS = `create table seats (id int primary key, pos int unique, big text); alter table seats alter column big set storage external`;

let world: TestRegions;
/** The same tables, of which some keep versions side by side. */
let beside: TestRegions;
const sessions = new Map<TestRegion, pg.Client>();

beforeAll(async () => {
  world = await openRegions(`${SCHEMA}; ${SEATS}`, 3);
  const siblings = { conflict: 'siblings', columns: {} } as const;
  const rules = { items: { conflict: 'fww', columns: {} }, owners: siblings, things: siblings } as const;
  beside = await openRegions(`${SCHEMA}; ${SEATS}`, 3, rules);
  for (const region of [...world.regions, ...beside.regions]) sessions.set(region, await openSession(region));
});

afterAll(async () => {
  for (const session of sessions.values()) await session.end();
  await world[Symbol.asyncDispose]();
  await beside[Symbol.asyncDispose]();
});

const between = fc
  .tuple(fc.nat({ max: 2 }), fc.integer({ min: 1, max: 2 }))
  .map(([from, by]) => ({ from, to: (from + by) % 3 }));

type Step =
  | { readonly do: 'write'; readonly region: number; readonly statements: readonly string[] }
  | { readonly do: 'pull'; readonly from: number; readonly to: number; readonly rows: number }
  | { readonly do: 'join'; readonly from: number; readonly to: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('write' as const),
      region: fc.nat({ max: 2 }),
      statements: fc.array(statement, { minLength: 1, maxLength: 3 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc
      .tuple(between, fc.constantFrom(1, 3, 10_000))
      .map(([link, rows]) => ({ do: 'pull' as const, ...link, rows })),
  },
  { weight: 1, arbitrary: between.map((link) => ({ do: 'join' as const, ...link })) },
);

const tombs = [...TABLES, 'seats'].map((name) => `coregent.${tombstoneName({ schema: 'public', name })}`);
const PUBLIC = [...TABLES, 'seats'].map((name) => `public.${name}`);

async function forgetEverything(world: TestRegions): Promise<void> {
  for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
  const all = [...PUBLIC, ...tombs, 'coregent.conflict_record', 'coregent.parked'];
  // As if nothing had ever been: a session that applies leaves no tombstones.
  for (const { applier } of world.regions)
    await applier.client.query(all.map((each) => `delete from ${each};`).join(''));
}

/** Every row and tombstone, as text. */
async function contentOf(region: TestRegion): Promise<string[]> {
  const { rows } = await region.sql(
    [...PUBLIC, ...tombs]
      .map(
        (table) =>
          `select '${table} ' || regexp_replace(to_jsonb(t)::text, '(.)\\1{99,}', '\\1…') as line from ${table} t`,
      )
      .join(' union all '),
  );
  return rows.map(({ line }) => line).sort();
}

/** The versions that each row shows or keeps, as `table key version`. */
async function writesOf(region: TestRegion): Promise<Set<string>> {
  const { rows } = await region.sql(
    PUBLIC.map(
      (table) => `select concat_ws(' ', '${table}', id, coalesce(s ->> 'v', _coregent_version::text)) as write
        from ${table} t left join jsonb_array_elements(to_jsonb(t) -> '_coregent_state' -> 'set') s on true`,
    ).join(' union all '),
  );
  return new Set(rows.map(({ write }) => write));
}

async function recordsOf(region: TestRegion): Promise<string[]> {
  const { rows } = await region.sql(
    `select concat_ws(' ', table_name, key ->> 'id', v) as write from coregent.conflict_record, unnest(array[local_version, incoming_version]) v`,
  );
  return rows.map(({ write }) => write);
}

async function write(region: TestRegion, statements: readonly string[]): Promise<void> {
  const session = sessions.get(region)!;
  await session.query('begin');
  for (const each of statements) await attempt(session, each, true);
  await session.query('commit');
}

it.each([
  ['whole rows', () => world, RUNS],
  ['versions side by side', () => beside, Math.ceil(RUNS / 3)],
] as const)(
  'whatever applications do in three regions, all end with the same rows, and no write is lost without a record: %s',
  async (_, regions, runs) => {
    const world = regions();
    let recorded = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 25, size: 'max' }), async (steps) => {
        await forgetEverything(world);
        const written = new Set<string>();
        const replaced = new Set<string>();
        for (const next of steps) {
          if (next.do === 'write') {
            const region = world.regions[next.region]!;
            const before = await writesOf(region);
            await write(region, next.statements);
            const after = await writesOf(region);
            for (const each of after) if (!before.has(each)) written.add(each);
            for (const each of before) if (!after.has(each)) replaced.add(each);
          } else {
            const [from, to] = [world.regions[next.from]!, world.regions[next.to]!];
            if (next.do === 'pull') await to.pull(from, next.rows);
            else for (const table of TABLES) await to.join(from, table);
          }
        }
        for (let did = true; did; ) {
          for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
          did = false;
          for (const each of world.regions) did = (await each.mend(world.regions)) !== false || did;
        }
        const contents = await Promise.all(world.regions.map(contentOf));
        for (const content of contents) expect(content).toEqual(contents[0]);
        const records = (await Promise.all(world.regions.map(recordsOf))).flat();
        recorded += records.length;
        const kept = new Set([...replaced, ...records, ...(await writesOf(world.regions[0]!))]);
        expect([...written].filter((each) => !kept.has(each))).toEqual([]);
        for (const region of world.regions)
          expect(await region.value('select count(*) from coregent.parked')).toBe('0');
      }),
      { numRuns: runs },
    );
    expect(recorded).toBeGreaterThan(runs);
  },
  Math.max(400_000, RUNS * 3_000),
);

const seat = fc.integer({ min: 1, max: 5 });
const letter = fc.constantFrom('a', 'b', 'c');

/** One transaction over rows whose unique values change places in every way; each leaves a long value alone or not. */
const moves = fc.array(
  fc.oneof(
    fc.tuple(seat, seat).map(
      ([a, b]) => `update seats set pos = -pos where id in (${a}, ${b}); update seats set pos = case id when ${a}
      then (select -pos from seats where id = ${b} and pos < 0) else (select -pos from seats where id = ${a} and pos < 0) end
      where id in (${a}, ${b}) and pos < 0 and ${a} <> ${b}`,
    ),
    seat.map((id) => `delete from seats where id = ${id}`),
    fc
      .tuple(seat, letter)
      .map(([id, of]) => `insert into seats select ${id}, coalesce(max(pos), 0) + 1, repeat('${of}', 3000) from seats`),
    fc.tuple(seat, seat).map(([id, pos]) => `insert into seats values (${id}, ${pos}, null)`),
    fc.tuple(seat, letter).map(([id, of]) => `update seats set big = repeat('${of}', 3000) where id = ${id}`),
    fc.constant('update seats set pos = pos + 10'),
    fc.constant('update seats set pos = (select max(pos) from seats) + 1 - pos + 100'),
    fc.tuple(seat, seat).map(([id, to]) => `update seats set id = ${to} where id = ${id}`),
  ),
  { minLength: 1, maxLength: 4 },
);

/** Found once: the row of key 4 is fetched as it will be at the end of the next transaction, and stands in the way of its first part. */
const fetchedAhead = [
  [
    `insert into seats select 1, 1, repeat('a', 3000)`,
    'update seats set id = 4 where id = 1',
    'update seats set id = 1 where id = 1',
  ],
  [
    'insert into seats values (2, 2, null)',
    'update seats set pos = -pos where id in (2, 4)',
    'update seats set pos = case id when 2 then 1 else 2 end where id in (2, 4)',
  ],
];

/** Found once: the row of key 1 is fetched as the next transaction leaves it, and is parked until that one makes room. */
const parkedAhead = [
  ['insert into seats values (2, 1, null)', 'update seats set pos = 101'],
  [`insert into seats select 3, 102, repeat('a', 3000)`, 'update seats set id = 1 where id = 3'],
  ['update seats set pos = -pos', 'update seats set pos = case id when 1 then 101 else 102 end'],
];

it(
  'B4, B5: whatever unique values do in one region, another follows, in any batches',
  async () => {
    const [tokyo, frankfurt] = world.regions as [TestRegion, TestRegion];
    const rounds = fc.array(fc.tuple(fc.array(moves, { minLength: 1, maxLength: 4 }), fc.constantFrom(2, 10_000)), {
      minLength: 1,
      maxLength: 6,
    });
    await fc.assert(
      fc.asyncProperty(rounds, async (given) => {
        await forgetEverything(world);
        for (const [transactions, rows] of given) {
          for (const statements of transactions) await write(tokyo, statements);
          await frankfurt.pull(tokyo, rows);
          expect(await contentOf(frankfurt)).toEqual(await contentOf(tokyo));
        }
        expect(await frankfurt.value('select count(*) from coregent.parked')).toBe('0');
        expect(await recordsOf(frankfurt)).toEqual([]);
      }),
      { numRuns: RUNS, examples: [[[[fetchedAhead, 2]]], [[[parkedAhead, 2]]]] },
    );
  },
  Math.max(400_000, RUNS * 3_000),
);

it('B5: rows that come ahead of what another region did to make room for them take their places once that is there', async () => {
  await forgetEverything(world);
  const [tokyo, frankfurt, virginia] = world.regions as [TestRegion, TestRegion, TestRegion];
  const parked = (): Promise<string | null> => virginia.value('select count(*) from coregent.parked');
  await write(tokyo, ['insert into seats values (1, 1), (2, 2), (3, 3), (4, 4)']);
  for (const region of [frankfurt, virginia]) await region.pull(tokyo);

  await write(frankfurt, ['update seats set pos = 40 where id = 4']);
  await tokyo.pull(frankfurt);
  await write(tokyo, ['update seats set pos = 4 where id = 3']);
  await virginia.pull(tokyo);
  expect(await parked()).toBe('1');
  await virginia.pull(frankfurt);
  expect(await parked()).toBe('0');
  expect(await contentOf(virginia)).toEqual(await contentOf(tokyo));

  // A ring: none of the three fits by itself.
  await frankfurt.pull(tokyo);
  await write(frankfurt, ['update seats set pos = 30 where id = 3']);
  await tokyo.pull(frankfurt);
  await write(tokyo, ['update seats set pos = 4 where id = 1', 'update seats set pos = 1 where id = 2']);
  await frankfurt.pull(tokyo);
  await write(frankfurt, ['update seats set pos = 2 where id = 3']);
  await virginia.pull(tokyo);
  expect(await parked()).toBe('2');
  await virginia.pull(frankfurt);
  expect(await parked()).toBe('0');
  expect(await contentOf(virginia)).toEqual(await contentOf(frankfurt));
  expect(await recordsOf(virginia)).toEqual([]);
});
