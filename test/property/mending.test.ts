import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { tombstoneName } from '../../src/model/table.ts';
import { openRegions, type TestRegion, type TestRegions } from './link.ts';

/** Random histories of tables that unique and foreign keys tie together, in three regions, delivered in any order. */

/** Cases; thousands find what hundreds do not. */
const RUNS = Number(process.env.COREGENT_RUNS ?? 12);

const SCHEMA = `
  create table teams (id int primary key, name text unique, slot int);
  create unique index on teams (slot) where slot > 0;
  create table players (id int primary key, team int references teams on delete cascade,
    mentor int references players on delete set null, mail text unique, bench int);
  create table prizes (id int primary key, team int not null references teams, place int unique deferrable initially deferred);`;
const TABLES = ['teams', 'players', 'prizes'];
const ALL = TABLES.flatMap((name) => [`public.${name}`, `coregent.${tombstoneName({ schema: 'public', name })}`]);

let world: TestRegions;
beforeAll(async () => {
  world = await openRegions(SCHEMA, 3);
});
afterAll(() => world[Symbol.asyncDispose]());

const id = fc.integer({ min: 1, max: 6 });
const maybe = fc.option(fc.integer({ min: 1, max: 3 }), { nil: 'null' as const, freq: 6 });
const statement = fc.oneof(
  fc.tuple(id, maybe, maybe).map(([key, name, slot]) => `insert into teams values (${key}, ${name}, ${slot})`),
  fc
    .tuple(id, maybe, maybe, maybe)
    .map(([key, team, mentor, mail]) => `insert into players values (${key}, ${team}, ${mentor}, ${mail})`),
  fc.tuple(id, id, maybe).map(([key, team, place]) => `insert into prizes values (${key}, ${team}, ${place})`),
  fc.tuple(id, maybe).map(([key, name]) => `update teams set name = ${name} where id = ${key}`),
  fc.tuple(id, maybe).map(([key, team]) => `update players set team = ${team} where id = ${key}`),
  fc.tuple(id, maybe).map(([key, mail]) => `update players set mail = ${mail} where id = ${key}`),
  id.map((key) => `update players set bench = coalesce(bench, 0) + 1 where id = ${key}`),
  fc
    .tuple(id, id)
    .map(([a, b]) => `update prizes set place = case id when ${a} then ${b} else ${a} end where id in (${a}, ${b})`),
  fc.tuple(id, id).map(([key, team]) => `update prizes set team = ${team} where id = ${key}`),
  fc.tuple(fc.constantFrom(...TABLES), id).map(([table, key]) => `delete from ${table} where id = ${key}`),
  id.map((key) => `delete from teams where id = ${key}`),
);
const region = fc.nat({ max: 2 });
const link = fc.tuple(region, fc.integer({ min: 1, max: 2 })).map(([from, by]) => ({ from, to: (from + by) % 3 }));

type Step =
  | { readonly do: 'write'; readonly region: number; readonly statements: readonly string[] }
  | { readonly do: 'pull'; readonly from: number; readonly to: number; readonly rows: number }
  | { readonly do: 'mend'; readonly region: number; readonly away: readonly number[] };
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('write' as const),
      region,
      statements: fc.array(statement, { minLength: 1, maxLength: 3 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.tuple(link, fc.constantFrom(2, 10_000)).map(([of, rows]) => ({ do: 'pull' as const, ...of, rows })),
  },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant('mend' as const), region, away: fc.uniqueArray(region, { maxLength: 1 }) }),
  },
);

async function forgetEverything(): Promise<void> {
  await pullAll();
  const all = [...ALL, 'coregent.conflict_record', 'coregent.parked'];
  for (const { applier } of world.regions)
    await applier.client.query(all.map((each) => `delete from ${each};`).join(''));
}

async function pullAll(): Promise<void> {
  for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
}

/** Every row and tombstone, as text. */
async function contentOf(of: TestRegion): Promise<string[]> {
  const { rows } = await of.sql(
    ALL.map((table) => `select '${table} ' || to_jsonb(t)::text as line from ${table} t`).join(' union all '),
  );
  return rows.map(({ line }) => line).sort();
}

/** The versions that are shown, as `table key version`. */
async function writesOf(of: TestRegion): Promise<Set<string>> {
  const { rows } = await of.sql(
    TABLES.map(
      (table) => `select concat_ws(' ', 'public.${table}', id, _coregent_version) as write from ${table}`,
    ).join(' union all '),
  );
  return new Set(rows.map(({ write }) => write));
}

async function recordsOf(of: TestRegion): Promise<string[]> {
  const { rows } = await of.sql(
    `select concat_ws(' ', table_name, r.image ->> 'id', r.version) as write from coregent.conflict_record,
      lateral (values (local_row, local_version), (incoming_row, incoming_version)) as r (image, version)
      where r.image is not null`,
  );
  return rows.map(({ write }) => write);
}

/** Runs each statement; one that is refused is passed over. Returns the versions that came and went. */
async function write(of: TestRegion, statements: readonly string[]): Promise<{ came: string[]; went: string[] }> {
  const before = await writesOf(of);
  const body = statements.map(
    (each) => `begin ${each}; set constraints all immediate; exception when others then null; end;`,
  );
  await of.sql(`do $$ begin ${body.join(' ')} end $$`);
  const after = await writesOf(of);
  return { came: [...after].filter((each) => !before.has(each)), went: [...before].filter((each) => !after.has(each)) };
}

/** Rows that no foreign key, or more than one by a unique one, would let be, if they were written now. */
const BROKEN = `
  select 'team of player ' || p.id from players p where team is not null and not exists (select from teams t where t.id = p.team)
  union all select 'mentor of player ' || p.id from players p where mentor is not null and not exists (select from players t where t.id = p.mentor)
  union all select 'team of prize ' || p.id from prizes p where not exists (select from teams t where t.id = p.team)
  union all select 'name ' || name from teams group by name having count(*) > 1 and name is not null
  union all select 'slot ' || slot from teams where slot > 0 group by slot having count(*) > 1
  union all select 'mail ' || mail from players group by mail having count(*) > 1 and mail is not null
  union all select 'place ' || place from prizes group by place having count(*) > 1 and place is not null`;

it(
  'B1, B12: whatever regions break together, all end with the same rows that no key forbids, nothing parked, and no write is lost without a record',
  async () => {
    let mended = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 12, maxLength: 30, size: 'max' }), async (steps) => {
        await forgetEverything();
        const written = new Set<string>();
        const replaced = new Set<string>();
        const begun =
          'insert into teams select n from generate_series(1, 4) n; insert into players values (1, 1), (2, 1, 1)';
        for (const each of (await write(world.regions[0]!, begun.split('; '))).came) written.add(each);
        await pullAll();
        for (const next of steps) {
          const here = world.regions[next.do === 'pull' ? next.to : next.region]!;
          if (next.do === 'write') {
            const { came, went } = await write(here, next.statements);
            for (const each of came) written.add(each);
            for (const each of went) replaced.add(each);
          } else if (next.do === 'pull') {
            await here.pull(world.regions[next.from]!, next.rows);
          } else {
            const away = next.away.map((each) => world.regions[each]!).filter((each) => each !== here);
            await here.mend(world.regions, away);
          }
        }
        for (let round = 0; ; round++) {
          await pullAll();
          let did = false;
          for (const each of world.regions) did = (await each.mend(world.regions)) !== false || did;
          if (!did) break;
          expect(round).toBeLessThan(20);
        }
        const contents = await Promise.all(world.regions.map(contentOf));
        for (const content of contents) expect(content).toEqual(contents[0]);
        for (const each of world.regions) {
          expect(await each.value('select json_agg(p) from coregent.parked p')).toBe(null);
          expect(await each.value(`select string_agg(q.what, ', ') from (${BROKEN}) q (what)`)).toBe(null);
        }
        for (const each of world.regions) {
          mended += Number(await each.value(`select count(*) from coregent.conflict_record where rule <> 'lww'`));
        }
        const records = (await Promise.all(world.regions.map(recordsOf))).flat();
        const kept = new Set([...replaced, ...records, ...(await writesOf(world.regions[0]!))]);
        expect([...written].filter((each) => !kept.has(each))).toEqual([]);
      }),
      { numRuns: RUNS },
    );
    expect(mended).toBeGreaterThan(RUNS / 4);
  },
  Math.max(400_000, RUNS * 20_000),
);
