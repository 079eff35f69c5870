import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { deletesName, tombstoneName } from '../../src/model/table.ts';
import { makeVersion, regionOf } from '../../src/model/version.ts';
import { until } from '../world/until.ts';
import { isBlocked, openRegions, openSession, type TestRegion, type TestRegions } from './link.ts';

/** Cases by their names in the literature of multi-leader replication, on real regions whose streams flow when a test says so. */

const SCHEMA = `
  create table notes (id int primary key, v text, big text);
  alter table notes alter column big set storage external;
  create table seats (id int primary key, pos int unique, big text);
  alter table seats alter column big set storage external;
  create table odd (stamped int, x text, s int, t int, u int, outcome text, local_version text, local_row text,
    incoming_row text, met text, old text, new text, excluded text, buried text, gone text, primary key (stamped, x));
  create table carts (id int primary key, v text)`;

/** A value that PostgreSQL keeps out of line, so that updates that do not touch it do not send it. */
const long = (letter: string): string => `repeat('${letter}', 4000)`;
const NOTES = `select coalesce(string_agg(concat_ws(' ', id, v, left(big, 1)), ', ' order by id), '') from notes`;
const SEATS = `select coalesce(string_agg(concat_ws(' ', id, pos, left(big, 1)), ', ' order by id), '') from seats`;

const tombs = (table: string): string => `coregent.${tombstoneName({ schema: 'public', name: table })}`;
const ALL = ['notes', 'seats', 'odd', 'carts'].flatMap((table) => [`public.${table}`, tombs(table)]);

let world: TestRegions;
let tokyo: TestRegion;
let frankfurt: TestRegion;
let virginia: TestRegion;

beforeAll(async () => {
  world = await openRegions(SCHEMA, 3, { carts: { conflict: 'siblings', columns: {} } });
  [tokyo, frankfurt, virginia] = world.regions as [TestRegion, TestRegion, TestRegion];
});
afterAll(() => world[Symbol.asyncDispose]());

beforeEach(async () => {
  for (const to of world.regions) for (const from of world.regions) if (from !== to) await to.pull(from);
  // As if nothing had ever been: a session that applies stamps nothing and leaves no tombstones.
  const clear = [...ALL, 'coregent.conflict_record', 'coregent.parked'].map((table) => `delete from ${table};`);
  for (const { applier } of world.regions) await applier.client.query(clear.join('\n'));
});

/** Exchanges everything, and expects the same rows and tombstones everywhere. */
async function settle(...regions: TestRegion[]): Promise<void> {
  for (const to of regions) for (const from of regions) if (from !== to) await to.pull(from);
  const contents = await Promise.all(regions.map(contentOf));
  for (const content of contents) expect(content).toEqual(contents[0]);
}

async function contentOf(region: TestRegion): Promise<string[]> {
  const { rows } = await region.sql(
    ALL.map(
      (table) =>
        `select '${table} ' || regexp_replace(to_jsonb(whole)::text, '(.)\\1{99,}', '\\1…') as line from ${table} whole`,
    ).join(' union all '),
  );
  return rows.map(({ line }) => line).sort();
}

const versionOf = async (region: TestRegion, id = 1, table = 'notes'): Promise<bigint> =>
  BigInt((await region.value(`select _coregent_version from ${table} where id = ${id}`))!);

/** Writes as another session that replicates would, with these stamps. */
const asReplica = (region: TestRegion, sql: string) =>
  region.applier.client.query(sql.replaceAll('notes', 'public.notes'));

describe('versions', () => {
  it('T6: a row that another region wrote gets the next version of this region, and never version + 1', async () => {
    const theirs = makeVersion(10n ** 16n, 3);
    await asReplica(tokyo, `insert into notes values (1, 'x', null, ${theirs}, 0)`);
    await tokyo.sql(`update notes set v = 'y'`);
    expect(await versionOf(tokyo)).toBe(makeVersion(10n ** 16n + 1n, 1));
  });

  it('F5: however often one row is written within one tick, the region’s bits stay its own', async () => {
    await asReplica(tokyo, `insert into notes values (1, 'x', null, ${makeVersion(10n ** 16n, 127)}, 0)`);
    await tokyo.sql(`do $$ begin for i in 1..300 loop update notes set v = i; end loop; end $$`);
    expect(await versionOf(tokyo)).toBe(makeVersion(10n ** 16n + 300n, 1));
  });

  it('A19: rows of before replication are replaced by who saw them, and in conflict with who did not', async () => {
    for (const region of [tokyo, frankfurt]) await asReplica(region, `insert into notes values (1, 'old')`);
    await tokyo.sql(`update notes set v = 'new'`);
    await frankfurt.pull(tokyo);
    expect(await frankfurt.value(NOTES)).toBe('1 new');
    expect(await frankfurt.conflicts()).toEqual([]);
    await asReplica(frankfurt, `insert into notes values (2, 'old')`);
    await tokyo.sql(`insert into notes values (2, 'unseen')`);
    await tokyo.join(frankfurt, 'notes');
    await frankfurt.pull(tokyo);
    expect(await frankfurt.conflicts()).toEqual(['insert_exists apply']);
    expect(await tokyo.conflicts()).toEqual(['insert_exists keep']);
    await settle(tokyo, frankfurt);
  });

  it('A7: equal versions of different rows pick one winner everywhere, and are recorded', async () => {
    const version = makeVersion(10n ** 15n, 1);
    await asReplica(tokyo, `insert into notes values (1, 'apple', null, ${version}, -1)`);
    await asReplica(frankfurt, `insert into notes values (1, 'pear', null, ${version}, -1)`);
    await tokyo.join(frankfurt, 'notes');
    await frankfurt.join(tokyo, 'notes');
    expect([await tokyo.value(NOTES), await frankfurt.value(NOTES)]).toEqual(['1 pear', '1 pear']);
    expect(await tokyo.conflicts()).toEqual(['insert_exists apply']);
  });

  it('A7: a row and a tombstone of one version are dead in every order', async () => {
    const version = makeVersion(10n ** 15n, 1);
    await asReplica(tokyo, `insert into notes values (1, 'x', null, ${version}, -1)`);
    await asReplica(frankfurt, `insert into ${tombs('notes')} values (1, ${version}, 0)`);
    await tokyo.join(frankfurt, 'notes');
    await frankfurt.join(tokyo, 'notes');
    expect([await tokyo.value(NOTES), await frankfurt.value(NOTES)]).toEqual(['', '']);
  });
});

describe('deletes', () => {
  it.each([
    ['the update is later: the row lives', 'delete', 'update'],
    ['the delete is later: the row dies', 'update', 'delete'],
  ])('A5: an update and a delete unseen by each other, %s everywhere, and both know', async (_what, first, second) => {
    await tokyo.sql(`insert into notes values (1, 'x')`);
    await settle(tokyo, frankfurt);
    const write = { update: `update notes set v = 'y'`, delete: 'delete from notes' } as Record<string, string>;
    await tokyo.sql(write[first]!);
    await frankfurt.sql(write[second]!);
    await settle(tokyo, frankfurt);
    expect(await tokyo.value(NOTES)).toBe(second === 'update' ? '1 y' : '');
    const met = [...(await tokyo.conflicts()), ...(await frankfurt.conflicts())].sort();
    expect(met).toEqual(
      second === 'update'
        ? ['delete_origin_differs keep', 'update_missing apply']
        : ['delete_origin_differs apply', 'update_missing keep'],
    );
  });

  it.each([
    ['statements of one transaction', `begin; delete from notes; insert into notes values (1, 'new'); commit`],
    ['one statement', `with gone as (delete from notes returning id) insert into notes select id, 'new' from gone`],
  ])('A9: a delete and an insert of one key in %s leave the new row and its tombstone', async (_what, sql) => {
    await tokyo.sql(`insert into notes values (1, 'old')`);
    await settle(tokyo, frankfurt);
    await tokyo.sql(sql);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('1 new');
    expect(await frankfurt.conflicts()).toEqual([]);
  });

  it('D2: what one transaction inserts and deletes is gone, and what it deletes and inserts is there', async () => {
    await tokyo.sql(`begin; insert into notes values (1, 'ghost'); delete from notes; commit`);
    await tokyo.sql(
      `begin; insert into notes values (2, 'x'); delete from notes; insert into notes values (2, 'y'); commit`,
    );
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('2 y');
    expect(await frankfurt.value(`select count(*) from ${tombs('notes')}`)).toBe('2');
  });

  it('D9: TRUNCATE deletes the rows that were there, and no row that another region adds unseen', async () => {
    await tokyo.sql(`insert into notes values (1, 'x'), (2, 'x')`);
    await settle(tokyo, frankfurt);
    await frankfurt.sql(`insert into notes values (3, 'unseen'); update notes set v = 'unseen' where id = 2`);
    await tokyo.sql('truncate notes');
    await settle(tokyo, frankfurt);
    expect(await tokyo.value(NOTES)).toBe('3 unseen');
    expect((await frankfurt.conflicts()).concat(await tokyo.conflicts()).sort()).toEqual([
      'delete_origin_differs apply',
      'update_missing keep',
    ]);
  });

  it('B9: a changed key travels as the delete of the old one and the insert of the new', async () => {
    await tokyo.sql(`insert into notes values (1, 'x', ${long('a')})`);
    await settle(tokyo, frankfurt);
    await tokyo.sql('update notes set id = 7');
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('7 x a');
    expect(await frankfurt.value(`select string_agg(id::text, ',') from ${tombs('notes')}`)).toBe('1');
    expect(await frankfurt.conflicts()).toEqual([]);
  });
});

describe('values that an update left alone', () => {
  it('C1: are those of the row that it replaced, whatever came between in one batch', async () => {
    await tokyo.sql(`insert into notes values (1, 'x', ${long('a')})`);
    await settle(tokyo, frankfurt, virginia);
    await tokyo.sql(`update notes set v = 'y'`);
    await settle(tokyo, frankfurt);
    await tokyo.sql(`update notes set big = ${long('b')}`);
    await frankfurt.pull(tokyo);
    await frankfurt.sql(`update notes set big = ${long('c')}`);
    await tokyo.pull(frankfurt);
    await tokyo.sql(`update notes set v = 'z'`);
    // Virginia hears all that Tokyo wrote at once, and of Frankfurt nothing yet.
    await virginia.pull(tokyo);
    expect(await virginia.value(NOTES)).toBe('1 z c');
    await settle(tokyo, frankfurt, virginia);
  });

  it('C1: are filled from the same batch, or from the row here', async () => {
    await tokyo.sql(`insert into notes values (1, 'x', ${long('a')})`);
    await tokyo.sql(`update notes set v = 'y'`);
    await frankfurt.pull(tokyo);
    await tokyo.sql(`update notes set v = 'z'`);
    await frankfurt.pull(tokyo);
    expect(await frankfurt.value(NOTES)).toBe('1 z a');
    await settle(tokyo, frankfurt);
  });

  it('C1: of a row that was overwritten here unseen are not mixed into it', async () => {
    await tokyo.sql(`insert into notes values (1, 'x', ${long('a')})`);
    await settle(tokyo, frankfurt);
    await frankfurt.sql(`update notes set v = 'theirs', big = ${long('b')}`);
    await tokyo.sql(`update notes set v = 'ours'`);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('1 ours a');
    expect(await frankfurt.conflicts()).toEqual(['update_origin_differs apply']);
  });

  it('C2: of a row that is not here are fetched from the peer', async () => {
    await tokyo.sql(`insert into notes values (1, 'x', ${long('a')})`);
    await settle(tokyo, frankfurt);
    await frankfurt.sql('delete from notes');
    await tokyo.sql(`update notes set v = 'later'`);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('1 later a');
    expect(await frankfurt.conflicts()).toEqual(['update_missing apply']);
  });

  it('C2: of a row that is gone at the peer too are of no interest: its tombstone is on its way', async () => {
    await tokyo.sql(`insert into notes values (1, 'x', ${long('a')})`);
    await settle(tokyo, frankfurt);
    await asReplica(frankfurt, 'delete from notes');
    await tokyo.sql(`update notes set v = 'y'`);
    await tokyo.sql('delete from notes');
    await frankfurt.pull(tokyo, 1);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('');
  });

  it('C2: a row that had to be fetched still counts as seen what the first of its writes replaced', async () => {
    await tokyo.sql(`insert into notes values (1, 'x', ${long('a')}), (2, 'x', null)`);
    await settle(tokyo, frankfurt, virginia);
    await frankfurt.sql('delete from notes where id = 2');
    await settle(tokyo, frankfurt, virginia);
    // A changed key arrives where Frankfurt's delete had been seen, without the value that nobody touched.
    await tokyo.sql(`begin; update notes set id = 2 where id = 1; update notes set v = 'y'; commit`);
    await virginia.pull(tokyo);
    expect(await virginia.value(NOTES)).toBe('2 y a');
    expect(await virginia.conflicts()).toEqual([]);
  });
});

describe('unique values', () => {
  beforeEach(async () => {
    await tokyo.sql(`insert into seats values (3, 3, ${long('c')}), (2, 2, ${long('b')}), (1, 1, ${long('a')})`);
    await settle(tokyo, frankfurt);
  });

  const parked = async (region: TestRegion) => await region.value('select count(*) from coregent.parked');

  it('B4: change places within one transaction', async () => {
    await tokyo.sql(
      `begin; update seats set pos = 0 where id = 1; update seats set pos = 1 where id = 2; update seats set pos = 2 where id = 1; commit`,
    );
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(SEATS)).toBe('1 2 a, 2 1 b, 3 3 c');
    expect([await parked(frankfurt), await frankfurt.conflicts()]).toEqual(['0', []]);
  });

  it('B4: change places though only one of the rows sends its long value', async () => {
    await tokyo.sql(
      `begin; update seats set pos = 0 where id = 1; update seats set pos = 1, big = ${long('z')} where id = 2; update seats set pos = 2 where id = 1; commit`,
    );
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(SEATS)).toBe('1 2 a, 2 1 z, 3 3 c');
    expect(await parked(frankfurt)).toBe('0');
  });

  it('B4: change places though another row of the batch cannot be applied', async () => {
    await frankfurt.database.query('alter table seats add constraint never check (pos <> 7)');
    await tokyo.sql(
      `begin; update seats set pos = 0, big = '' where id = 1; update seats set pos = 1, big = '' where id = 3;
        update seats set pos = 3 where id = 1; update seats set pos = 7, big = '' where id = 2; commit`,
    );
    await frankfurt.pull(tokyo);
    await frankfurt.database.query('alter table seats drop constraint never');
    expect(await frankfurt.value(SEATS)).toBe('1 3 , 2 2 b, 3 1 ');
    expect(await parked(frankfurt)).toBe('1');
  });

  it('B4: have changed places at the peer when its rows are joined', async () => {
    await asReplica(frankfurt, 'update public.seats set pos = -pos');
    await asReplica(frankfurt, 'update public.seats set pos = 4 + pos, _coregent_version = _coregent_version + 128');
    await tokyo.join(frankfurt, 'seats');
    expect(await tokyo.value(SEATS)).toBe('1 3 a, 2 2 b, 3 1 c');
  });

  it('B4: change places, and what a newer delete keeps out of the same batch is recorded', async () => {
    await tokyo.sql(
      `begin; update seats set pos = 0 where id = 1; update seats set pos = 1 where id = 2; update seats set pos = 2 where id = 1;
        update seats set pos = 9 where id = 3; commit`,
    );
    await frankfurt.sql('delete from seats where id = 3');
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(SEATS)).toBe('1 2 a, 2 1 b');
    expect(await parked(frankfurt)).toBe('0');
    // Where it is recorded depends on whether the row could still be read whole from Tokyo; it is recorded somewhere.
    const recorded = [...(await tokyo.conflicts()), ...(await frankfurt.conflicts())];
    expect(recorded.length).toBeGreaterThan(0);
    expect(['update_missing keep', 'delete_origin_differs apply']).toEqual(expect.arrayContaining(recorded));
  });

  it('B4: change places in a transaction that is taken in parts, with a row that was fetched as it is at the end', async () => {
    await tokyo.sql('update seats set id = 4 where id = 1');
    await tokyo.sql(
      `begin; insert into seats values (9, 9, null); update seats set pos = 0 where id = 4;
        update seats set pos = 1 where id = 9; update seats set pos = 9 where id = 4; commit`,
    );
    await frankfurt.pull(tokyo, 2);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(SEATS)).toBe('2 2 b, 3 3 c, 4 9 a, 9 1');
    expect([await parked(frankfurt), await frankfurt.conflicts()]).toEqual(['0', []]);
  });

  it('B4: a write that stands for one that found no place had seen what that one had', async () => {
    await settle(tokyo, frankfurt, virginia);
    await virginia.sql(`update seats set big = '' where id = 2`);
    await settle(tokyo, frankfurt, virginia);
    await tokyo.sql('update seats set id = 4 where id = 1');
    await tokyo.sql(
      `begin; update seats set pos = 0 where id = 4; update seats set pos = 9 where id = 2;
        update seats set pos = 20 where id = 2; update seats set pos = 9 where id = 4; commit`,
    );
    await frankfurt.pull(tokyo, 2);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(SEATS)).toBe('2 20 , 3 3 c, 4 9 a');
    expect([await parked(frankfurt), await frankfurt.conflicts()]).toEqual(['0', []]);
  });

  it('B1: what finds no place at the end of a transaction in parts is parked once, whole, and the rest is there', async () => {
    await asReplica(frankfurt, `insert into public.seats values (7, 100, '')`);
    await tokyo.sql(
      `begin; update seats set pos = 0 where id = 1; update seats set pos = 30 where id = 3; update seats set pos = 100 where id = 1;
        update seats set pos = 20 where id = 2; insert into seats values (5, 2, null); commit`,
    );
    const { receipts } = await frankfurt.pull(tokyo, 2);
    expect(receipts.map((each) => each.parked)).toEqual([0, 0, 1]);
    expect(await frankfurt.value(SEATS)).toBe('1 0 a, 2 20 b, 3 30 c, 5 2, 7 100 ');
    expect(await frankfurt.value('select octet_length(row_bytes) > 4000 from coregent.parked')).toBe('true');
  });

  it('B5: move along a chain within one statement', async () => {
    await tokyo.sql('update seats set pos = pos + 1');
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(SEATS)).toBe('1 2 a, 2 3 b, 3 4 c');
    expect(await parked(frankfurt)).toBe('0');
  });

  it('D3: that a delete or an update frees may be taken in the same batch', async () => {
    await tokyo.sql(`delete from seats where id = 1; insert into seats values (4, 1, null)`);
    await tokyo.sql(`update seats set pos = 20 where id = 2; insert into seats values (5, 2, null)`);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(SEATS)).toBe('2 20 b, 3 3 c, 4 1, 5 2');
    expect(await parked(frankfurt)).toBe('0');
  });

  it('B5: of many parked rows each has its turn, though nearly all stay parked', async () => {
    await frankfurt.sql('insert into seats select 1000 + n, 100 + n from generate_series(1, 120) n');
    await tokyo.sql('insert into seats select 2000 + n, 100 + n from generate_series(1, 120) n');
    await frankfurt.pull(tokyo);
    expect(await parked(frankfurt)).toBe('120');
    // Room for the last one, and a batch that has nothing to do with it.
    await frankfurt.sql('delete from seats where id = 1120');
    await tokyo.sql('insert into seats values (5000, 5000)');
    await frankfurt.pull(tokyo);
    expect(await parked(frankfurt)).toBe('119');
    expect(await frankfurt.value('select id from seats where pos = 220')).toBe('2120');
  });

  it('B4: a conflict of another row of the batch is recorded once', async () => {
    await frankfurt.sql(`update seats set big = 'kept' where id = 3`);
    await tokyo.sql(`insert into seats values (10, 10, ''), (11, 11, '')`);
    await frankfurt.pull(tokyo);
    const later = makeVersion(10n ** 16n, 2);
    await asReplica(
      frankfurt,
      `update public.seats set _coregent_version = ${later}, _coregent_parent = -1 where id = 10`,
    );
    await tokyo.sql(
      `begin; delete from seats where id = 10; insert into seats values (10, 12, ''); delete from seats where id = 11;
        insert into seats values (11, 13, ''); insert into seats values (14, 11, ''); commit`,
    );
    await frankfurt.pull(tokyo);
    const { rows } = await frankfurt.sql(
      'select key, kind, count(*)::int as times from coregent.conflict_record group by 1, 2 having count(*) > 1',
    );
    expect(rows).toEqual([]);
  });
});

describe('transactions', () => {
  it('D1: a key written often in a transaction is one row, without a conflict', async () => {
    await tokyo.sql(`insert into notes values (1, 'x')`);
    await settle(tokyo, frankfurt);
    await tokyo.sql(`begin; update notes set v = 'a'; update notes set v = 'b'; update notes set v = 'c'; commit`);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('1 c');
    expect(await frankfurt.conflicts()).toEqual([]);
  });

  it('D5: what was rolled back never travels', async () => {
    await tokyo.sql(`begin; insert into notes values (1, 'rolled back'); rollback`);
    const { receipts } = await frankfurt.pull(tokyo);
    expect(receipts).toEqual([]);
  });

  it('D6: of savepoints only what was kept travels, of more than 64 too', async () => {
    const parts = Array.from(
      { length: 100 },
      (_, id) => `savepoint s; insert into notes values (${id}, 'x'); ${id % 2 ? 'rollback to s' : 'release s'};`,
    );
    await tokyo.sql(`begin; ${parts.join(' ')} commit`);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value('select concat(count(*), min(id % 2), max(id % 2)) from notes')).toBe('5000');
  });

  it.each([
    ['COPY', `copy notes (id, v) from program 'printf "1\\tnew\\n2\\tnew\\n"'`],
    [
      'MERGE',
      `merge into notes t using (values (1), (2)) s (id) on t.id = s.id
        when matched then update set v = 'new' when not matched then insert values (s.id, 'new')`,
    ],
    ['ON CONFLICT', `insert into notes values (1, 'new'), (2, 'new') on conflict (id) do update set v = excluded.v`],
  ])('D10: %s stamps each row once', async (what, sql) => {
    if (what !== 'COPY') await tokyo.sql(`insert into notes values (1, 'old')`);
    await settle(tokyo, frankfurt);
    const before = what === 'COPY' ? -1n : await versionOf(tokyo);
    await tokyo.sql(sql);
    await settle(tokyo, frankfurt);
    expect(await frankfurt.value(NOTES)).toBe('1 new, 2 new');
    expect(await frankfurt.conflicts()).toEqual([]);
    expect(await tokyo.value('select _coregent_parent from notes where id = 1')).toBe(String(before));
    expect(regionOf(await versionOf(tokyo))).toBe(tokyo.id);
  });

  it('G1: what was applied is never sent on as one’s own, round a ring of three', async () => {
    await tokyo.sql(`insert into notes values (1, 'x'); delete from notes; insert into notes values (2, 'y')`);
    await settle(tokyo, frankfurt, virginia);
    await tokyo.sql(`update notes set v = 'z'`);
    await settle(tokyo, frankfurt, virginia);
    let foreign = 0;
    for (const to of world.regions) {
      for (const from of world.regions) {
        if (from === to) continue;
        const pulled = await to.pull(from);
        expect(pulled.receipts).toEqual([]);
        foreign += pulled.foreign;
      }
    }
    // They did come round, and were known by their versions.
    expect(foreign).toBeGreaterThan(0);
    expect(await virginia.conflicts()).toEqual([]);
  });
});

it('H10: columns may have any name, those of our own statements too', async () => {
  await tokyo.sql(`insert into odd (stamped, x, s) values (1, 'a', 0), (2, 'a', 0), (3, 'a', 0), (4, 'a', 0)`);
  await settle(tokyo, frankfurt);
  await tokyo.sql(`update odd set s = 1, outcome = 'tokyo', t = 1`);
  await frankfurt.sql(
    `update odd set s = 2, outcome = 'frankfurt' where stamped < 3; delete from odd where stamped = 2`,
  );
  await frankfurt.sql(`delete from odd where stamped = 3; update odd set stamped = 7 where stamped = 4`);
  await settle(tokyo, frankfurt);
  expect(await tokyo.value('select string_agg(concat_ws($$ $$, stamped, s), $$, $$ order by stamped) from odd')).toBe(
    '1 2, 7 0',
  );
  expect(await tokyo.value('select count(*) from coregent.parked')).toBe('0');
  expect(
    await frankfurt.value(`select incoming_row ->> 'outcome' from coregent.conflict_record order by id limit 1`),
  ).toBe('tokyo');
  await tokyo.sql('truncate odd');
  await settle(tokyo, frankfurt);
  expect(await frankfurt.value('select count(*) from odd')).toBe('0');
});

describe('a local writer that slips in', () => {
  it.each([
    ['an update', `update notes set v = 'ours'`, `update notes set v = 'theirs'`],
    ['an update over a delete', `update notes set v = 'ours'`, 'delete from notes'],
    ['a delete', 'delete from notes', `update notes set v = 'theirs'`],
  ])('D16: %s that an apply had to wait for stays, being newer', async (_what, ours, theirs) => {
    await tokyo.sql(`insert into notes values (1, 'x')`);
    await settle(tokyo, frankfurt);
    await tokyo.sql(theirs);
    await using session = await openSession(frankfurt);
    await session.query('begin');
    await session.query(ours);
    const applying = frankfurt.pull(tokyo);
    await until(() => isBlocked(frankfurt), { what: 'the apply to wait for the writer' });
    await session.query('commit');
    await applying;
    await settle(tokyo, frankfurt);
    expect(await tokyo.value(NOTES)).toBe(ours.startsWith('update') ? '1 ours' : '');
    expect(await frankfurt.conflicts()).toHaveLength(1);
  });

  it('D17: an insert of the same key that an apply had to wait for stays, being newer', async () => {
    await tokyo.sql(`insert into notes values (1, 'theirs')`);
    await using session = await openSession(frankfurt);
    await session.query('begin');
    await session.query(`insert into notes values (1, 'ours')`);
    const applying = frankfurt.pull(tokyo);
    await until(() => isBlocked(frankfurt), { what: 'the apply to wait for the writer' });
    await session.query('commit');
    await applying;
    await settle(tokyo, frankfurt);
    expect(await tokyo.value(NOTES)).toBe('1 ours');
    expect(await frankfurt.conflicts()).toEqual(['insert_exists keep']);
  });

  it('D17: an insert under way, unseen, when a delete arrives stays if it is newer; else it goes when tombstones are reaped', async () => {
    for (const [id, older] of [
      [1, true],
      [2, false],
    ] as const) {
      await tokyo.sql(`insert into notes values (${id}, 'theirs')`);
      await settle(tokyo, frankfurt);
      await asReplica(frankfurt, `delete from notes where id = ${id}`);
      if (older) await tokyo.sql(`delete from notes where id = ${id}`);
      await using session = await openSession(frankfurt);
      await session.query('begin');
      await session.query(`insert into notes values (${id}, 'ours')`);
      if (!older) await tokyo.sql(`delete from notes where id = ${id}`);
      const applying = frankfurt.pull(tokyo);
      await until(async () => (await frankfurt.value(`select count(*) from ${tombs('notes')}`)) === String(id), {
        what: 'the tombstone to be there',
      });
      await session.query('commit');
      await applying;
      await frankfurt.applier.client.query(frankfurt.applier.targets.get('public.notes')!.compiled.removeAllBuried);
      await settle(tokyo, frankfurt);
      expect(await tokyo.value(`select count(*) from notes where id = ${id}`)).toBe(older ? '1' : '0');
    }
  });
});

describe('a clock that stepped back', () => {
  const ahead = makeVersion(10n ** 16n, 1);

  it.each([
    ['an insert', `insert into notes values (1, 'y')`],
    ['a change of key', `update notes set id = 1, v = 'y' where id = 2`],
  ])(
    '%s that waits for the delete of its key is newer than that delete, or is told to try again',
    async (_what, sql) => {
      await asReplica(tokyo, `insert into notes values (1, 'x', null, ${ahead}, -1)`);
      await tokyo.sql(`insert into notes values (2, 'x')`);
      await settle(tokyo, frankfurt);
      await using deleting = await openSession(tokyo);
      await using writing = await openSession(tokyo);
      await deleting.query('begin');
      await deleting.query('delete from notes where id = 1');
      const written = writing.query(sql).catch((error: { code?: string }) => error);
      await until(() => isBlocked(tokyo), { what: 'the writer to wait for the delete' });
      await deleting.query('commit');
      const outcome = await written;
      // It was stamped before it could see the delete. Tried again, it is the newer one.
      if ('code' in outcome) {
        expect(outcome.code).toBe('40001');
        await writing.query(sql);
      }
      expect((await versionOf(tokyo)) > ahead + 128n).toBe(true);
      await settle(tokyo, frankfurt);
      expect(await frankfurt.value('select v from notes where id = 1')).toBe('y');
    },
  );
});

it('D9: what a TRUNCATE with an old snapshot did not see is buried too', async () => {
  await using session = await openSession(tokyo);
  await session.query('begin isolation level repeatable read');
  await session.query('select 1 from notes');
  await tokyo.sql(`insert into notes values (1, 'x')`);
  await frankfurt.pull(tokyo);
  // To refuse is right too: nothing vanished then.
  await session.query('truncate notes').catch(() => {});
  await session.query('commit');
  await settle(tokyo, frankfurt);
});

describe('the conflict record', () => {
  it.each(['notes', 'carts'])(
    'INV-X: two writes that meet again the other way round are one conflict (%s)',
    async (table) => {
      await tokyo.sql(`insert into ${table} (id, v) values (1, 'both'), (2, 'both')`);
      await settle(tokyo, frankfurt, virginia);
      await tokyo.sql(`update ${table} set v = 'tokyo' where id = 1`);
      await frankfurt.sql(`update ${table} set v = 'frankfurt'`);
      await tokyo.sql(`delete from ${table} where id = 2`);
      await virginia.pull(tokyo);
      await virginia.pull(frankfurt);
      const records = await virginia.conflicts();
      expect(records).toHaveLength(2);
      // Copied after they were streamed: now what came second is here, and what came first comes again.
      for (const from of [tokyo, frankfurt, tokyo, frankfurt]) await virginia.join(from, table);
      expect(await virginia.conflicts()).toEqual(records);
      await settle(tokyo, frankfurt, virginia);
    },
  );

  it.each(['notes', 'carts'])(
    'INV-X: an insert after a delete that its region has forgotten meets none where it is remembered (%s)',
    async (table) => {
      await tokyo.sql(`insert into ${table} (id, v) values (1, 'first'), (2, 'first')`);
      await settle(tokyo, frankfurt, virginia);
      await frankfurt.sql(`delete from ${table}`);
      await settle(tokyo, frankfurt, virginia);
      // As a region reaps what all have confirmed.
      const deletes = `coregent.${deletesName({ schema: 'public', name: table })}`;
      await tokyo.sql(
        `select setval('${deletes}', max(_coregent_version)) from ${tombs(table)}; delete from ${tombs(table)}`,
      );
      await tokyo.sql(`insert into ${table} (id, v) values (1, 'again')`);
      await tokyo.sql(
        `insert into ${table} (id, v) values (2, 'again'); update ${table} set v = 'and later' where id = 2`,
      );
      await virginia.pull(tokyo);
      await frankfurt.pull(tokyo, 1);
      for (const region of [virginia, frankfurt]) {
        expect(await region.conflicts()).toEqual([]);
        expect(await region.value(`select string_agg(v, ', ' order by id) from ${table}`)).toBe('again, and later');
      }
      // One that it has not heard of is met.
      await virginia.sql(`insert into ${table} (id, v) values (3, 'here'); delete from ${table} where id = 3`);
      await tokyo.sql(`insert into ${table} (id, v) values (3, 'there')`);
      await virginia.pull(tokyo);
      expect(await virginia.conflicts()).toEqual(['update_missing apply']);
    },
  );
});
