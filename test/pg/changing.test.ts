import { expect, test } from 'vitest';
import { changeRules } from '../../src/pg/change.ts';
import { closeRegions, makePlan, openRegions } from '../../src/pg/setup.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const TABLES = `
  create table likes (id int primary key, n int not null, note text);
  create table carts (id int primary key, items text);
  create table drafts (id int primary key, items text);
  create table profiles (id int primary key, a text, b text);
  create table firsts (id int primary key, items text);
  create table posts (id int primary key, tags text[] not null default '{}', title text);
  create table users (id int primary key, home_region text not null, name text);`;

const BEFORE = {
  'public.*': {},
  'public.drafts': { conflict: 'siblings' },
  'public.profiles': { conflict: 'columns' },
  'public.firsts': { conflict: 'fww' },
  'public.posts': { conflict: 'columns' },
};
const AFTER = {
  'public.*': {},
  'public.likes': { conflict: 'columns', columns: { n: 'counter' } },
  'public.carts': { conflict: 'siblings' },
  'public.drafts': {},
  'public.profiles': {},
  'public.firsts': { conflict: 'siblings' },
  'public.posts': { conflict: 'columns', columns: { tags: 'set' } },
  'public.users': { owner: { column: 'home_region' } },
};
const NAMES = ['likes', 'carts', 'drafts', 'profiles', 'firsts', 'posts', 'users'];

/** The row that everybody writes. Others belong to one region each. */
const SHARED = 100;

const SET: Readonly<Record<string, string>> = {
  likes: 'n = n + 1',
  carts: `items = items || 'x'`,
  drafts: `items = items || 'x'`,
  profiles: `a = a || 'x'`,
  firsts: `items = items || 'x'`,
  posts: `title = title || 'x'`,
  users: `name = name || 'x'`,
};

async function fill(cluster: Cluster): Promise<void> {
  const owned = `(values (1, 'tokyo'), (2, 'frankfurt'), (3, 'virginia'), (${SHARED}, 'tokyo')) as v (id, region)`;
  await cluster.query('tokyo', `insert into likes select id, 0, '' from ${owned}`);
  for (const name of ['carts', 'drafts', 'firsts']) {
    await cluster.query('tokyo', `insert into ${name} select id, '' from ${owned}`);
  }
  await cluster.query('tokyo', `insert into profiles select id, '', '' from ${owned}`);
  await cluster.query('tokyo', `insert into posts select id, '{base}', '' from ${owned}`);
  await cluster.query('tokyo', `insert into users select id, region, '' from ${owned}`);
  await cluster.converged();
}

/** Writes in a region, a statement at a time, each table's own and shared row in turn, until stopped. Returns how often each table was written. */
function writer(cluster: Cluster, region: string): { stop(): Promise<Map<string, number>>; rounds(): number } {
  const own = cluster.regions.indexOf(region) + 1;
  const done = new Map(NAMES.map((name) => [name, 0]));
  let stopped = false;
  let rounds = 0;
  const write = async (): Promise<Map<string, number>> => {
    while (!stopped) {
      for (const name of NAMES) {
        await cluster.query(region, `update ${name} set ${SET[name]} where id = $1`, [own]);
        done.set(name, done.get(name)! + 1);
        if (name !== 'users') await cluster.query(region, `update ${name} set ${SET[name]} where id = ${SHARED}`);
      }
      rounds++;
    }
    return done;
  };
  const running = write();
  running.catch(() => {});
  return {
    rounds: () => rounds,
    stop: () => {
      stopped = true;
      return running;
    },
  };
}

/** Two regions write what the other has not seen. */
async function apart(cluster: Cluster, work: (region: string) => Promise<unknown>): Promise<void> {
  await cluster.cut('tokyo', 'frankfurt');
  await Promise.all(['tokyo', 'frankfurt'].map(work));
  await cluster.heal();
  await cluster.converged();
}

async function eachRegion(cluster: Cluster, text: string): Promise<unknown[]> {
  return await Promise.all(cluster.regions.map((region) => cluster.value(region, text)));
}

test('rules are changed in every direction while all regions write: no write fails, none is lost, and the new rules hold', async () => {
  await using cluster = await makeCluster({ tables: TABLES, viaProxy: true, config: { tables: BEFORE } });
  await cluster.install();
  await cluster.startAgents();
  await fill(cluster);
  await cluster.query('tokyo', `insert into drafts values (7, 'base')`);
  await cluster.query('tokyo', `insert into carts values (8, 'gone')`);
  await cluster.converged();
  await apart(cluster, (region) => cluster.query(region, 'update drafts set items = $1 where id = 7', [region]));
  await cluster.query('virginia', 'delete from carts where id = 8');
  expect(await eachRegion(cluster, 'select count(*)::int from coregent.siblings')).toEqual([2, 2, 2]);

  const dry = await cluster.cliWith({ tables: AFTER }, 'apply', '--dry-run');
  expect(dry).toMatchObject({ code: 3 });
  expect(dry.out).toContain('public.likes: lww → columns, n counter, in every region at once');
  expect(await cluster.value('tokyo', `select rule from coregent.tables where table_name = 'likes'`)).toBe('lww');

  const writers = cluster.regions.map((region) => writer(cluster, region));
  await until(() => writers.every((each) => each.rounds() > 3), { what: 'everybody to write' });
  const applied = await cluster.cliWith({ tables: AFTER }, 'apply');
  expect(applied.err).toBe('');
  expect(applied.code).toBe(0);
  expect(applied.out).toMatch(/public\.posts: columns → columns, tags set, in every region; whoever used it waited \d/);
  const so = writers.map((each) => each.rounds());
  await until(() => writers.every((each, index) => each.rounds() > so[index]! + 3), { what: 'everybody to write on' });
  const written = await Promise.all(writers.map((each) => each.stop()));
  await cluster.converged();
  for (const [index, done] of written.entries()) {
    for (const name of NAMES) {
      const column = { likes: 'n', profiles: 'length(a)', posts: 'length(title)', users: 'length(name)' }[name];
      const found = await eachRegion(
        cluster,
        `select ${column ?? 'length(items)'} from ${name} where id = ${index + 1}`,
      );
      expect(found, `${name} of ${cluster.regions[index]}`).toEqual([1, 1, 1].map(() => done.get(name)));
    }
  }
  expect(await eachRegion(cluster, 'select count(*)::int from coregent.parked')).toEqual([0, 0, 0]);

  // The version that was beside the one shown is on record, and is gone.
  const [shown] = await eachRegion(cluster, 'select items from drafts where id = 7');
  const hidden = shown === 'tokyo' ? 'frankfurt' : 'tokyo';
  const { rows: kept } = await cluster.query(
    'tokyo',
    `select case outcome when 'keep' then local_row when 'apply' then incoming_row end ->> 'items' as stays,
        case outcome when 'keep' then incoming_row when 'apply' then local_row end ->> 'items' as goes
      from coregent.conflicts where table_name = 'public.drafts' and key = '{"id": 7}'`,
  );
  expect(kept).toEqual([{ stays: shown, goes: hidden }]);
  expect(await eachRegion(cluster, 'select count(*)::int from carts where id = 8')).toEqual([0, 0, 0]);

  const base = await cluster.value('tokyo', `select n from likes where id = ${SHARED}`);
  await apart(cluster, async (region) => {
    await cluster.query(region, `update likes set n = n + 5, note = $1 where id = ${SHARED}`, [region]);
    for (const name of ['carts', 'firsts', 'drafts']) {
      await cluster.query(region, `update ${name} set items = $1 where id = ${SHARED}`, [region]);
    }
    await cluster.query(region, `update posts set tags = tags || $1::text where id = ${SHARED}`, [region]);
    await cluster.query(region, region === 'tokyo' ? `update profiles set a = 'a'` : `update profiles set b = 'b'`);
  });
  expect(await eachRegion(cluster, `select n from likes where id = ${SHARED}`)).toEqual(
    [1, 1, 1].map(() => Number(base) + 10),
  );
  for (const name of ['carts', 'firsts']) {
    expect(await eachRegion(cluster, `select count(*)::int from coregent.list_siblings('${name}')`)).toEqual([2, 2, 2]);
  }
  expect(await eachRegion(cluster, `select count(*)::int from coregent.list_siblings('drafts')`)).toEqual([0, 0, 0]);
  expect(
    await eachRegion(cluster, `select array(select unnest(tags) order by 1)::text from posts where id = ${SHARED}`),
  ).toEqual([1, 1, 1].map(() => '{base,frankfurt,tokyo}'));
  // One of the two whole rows.
  for (const both of await eachRegion(cluster, `select count(*)::int from profiles where (a = 'a') = (b = 'b')`)) {
    expect(both).toBe(0);
  }
  await expect(cluster.query('tokyo', 'update users set name = $1 where id = 2', ['x'])).rejects.toThrow(
    /frankfurt owns/,
  );
  expect((await cluster.cli('verify')).code).toBe(0);
  expect((await cluster.cliWith({ tables: AFTER }, 'apply')).out).toBe('Every region is as the file says.\n');
});

const COUNTER = { 'public.likes': { columns: { n: 'counter' } } };

/** Makes the commit of a change fail in a region, as if `apply` were killed ahead of it. */
const PLANT = `
  create table planted ();
  create function fail() returns trigger language plpgsql as $$begin raise exception 'planted'; end$$;
  create constraint trigger late after insert on planted deferrable initially deferred for each row execute function fail();
  alter table planted enable always trigger late;
  create function plant() returns trigger language plpgsql security definer as $$begin
    set constraints public.late deferred; insert into public.planted default values; return new; end$$;
  create trigger planted after update of rule_changes on coregent.progress for each row execute function plant();
  alter table coregent.progress enable always trigger planted;`;
const UPROOT = 'drop trigger planted on coregent.progress; drop table planted; drop function plant, fail;';

test('a change that only one region committed pauses the table, and the next apply finishes it', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tier: 'B',
    tables: 'create table likes (id int primary key, n int not null, note text)',
  });
  await cluster.install();
  await cluster.startAgents();
  await cluster.query('tokyo', `insert into likes select id, 0, '' from generate_series(1, 20) id`);
  await cluster.converged();
  await cluster.query('frankfurt', PLANT);
  const broken = await cluster.cliWith({ tables: COUNTER }, 'apply');
  expect(broken.code).toBe(1);
  expect(broken.err).toMatch(/public\.likes goes by lww, n counter in tokyo, and not yet in frankfurt: planted/);
  expect(broken.err).toContain('Run `coregent apply` again');
  await until(() => cluster.peer('tokyo', 'frankfurt').paused.length > 0, { what: 'the table to pause' });
  for (const region of cluster.regions) {
    await cluster.query(region, 'update likes set n = n + 1, note = $1 where id <= 5', [region]);
    await cluster.query(region, 'delete from likes where id = $1', [region === 'tokyo' ? 6 : 7]);
    await cluster.query(region, 'insert into likes values ($1, 1)', [region === 'tokyo' ? 31 : 32]);
  }
  await cluster.query('frankfurt', UPROOT);
  const finished = await cluster.cliWith({ tables: COUNTER }, 'apply');
  expect(finished.err).toBe('');
  expect(finished.code).toBe(0);
  await cluster.converged();
  expect(await eachRegion(cluster, 'select array_agg(id order by id)::text from likes')).toEqual(
    [1, 2].map(() => `{${[1, 2, 3, 4, 5, ...Array.from({ length: 13 }, (_, n) => n + 8), 31, 32].join(',')}}`),
  );
  await Promise.all(
    cluster.regions.map((region) => cluster.query(region, 'update likes set n = n + 10 where id = 20')),
  );
  await cluster.converged();
  expect(await eachRegion(cluster, 'select n from likes where id = 20')).toEqual([20, 20]);
  expect((await cluster.cli('verify')).code).toBe(0);
});

test('without agents the whole table is compared; what waits in the streams then counts once', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tier: 'C',
    tables: 'create table likes (id int primary key, n int not null, note text)',
  });
  await cluster.install();
  await cluster.query('tokyo', `insert into likes select id, 0, '' from generate_series(1, 20) id`);
  await cluster.startAgents();
  await cluster.converged();
  for (const region of cluster.regions) await cluster.stopAgent(region);
  await cluster.query('tokyo', 'update likes set n = 7 where id = 1');
  await cluster.query('frankfurt', 'delete from likes where id = 2');
  await cluster.query('frankfurt', 'insert into likes values (21, 3)');
  expect(await cluster.cliWith({ tables: COUNTER }, 'apply')).toMatchObject({ code: 0, err: '' });
  expect(await eachRegion(cluster, 'select sum(n)::int from likes')).toEqual([10, 10]);
  await cluster.query('frankfurt', 'update likes set n = n + 1 where id = 1');
  await cluster.query('tokyo', 'update likes set n = n + 1 where id in (1, 21)');
  await cluster.query('tokyo', 'insert into likes values (2, 5)');
  await cluster.startAgents();
  await cluster.converged();
  const numbers = `select string_agg(id || ':' || n, ' ' order by id) from likes where n > 0`;
  expect(await eachRegion(cluster, numbers)).toEqual(['1:9 2:5 21:4', '1:9 2:5 21:4']);
  expect(await eachRegion(cluster, 'select count(*)::int from coregent.conflict_record')).toEqual([0, 0]);

  // A transaction that has the table stands in the way; who it is, is said, and everybody else goes on.
  const session = await cluster.session('frankfurt');
  await session.query('begin');
  await session.query('update likes set n = 1 where id = 20');
  const open = await openRegions(cluster.config, 'test');
  try {
    const { changes } = await makePlan(cluster.config, open);
    expect(changes.map(({ label }) => label)).toEqual(['public.likes']);
    await expect(changeRules(cluster.config, changes, { changed: () => {}, patienceMs: 0 })).rejects.toMatchObject({
      code: 'refused',
      message: expect.stringMatching(/public\.likes is in use by pid \d+.*idle in transaction/),
    });
  } finally {
    await closeRegions(open);
  }
  await cluster.query('tokyo', 'update likes set n = n + 1 where id = 20');
  await session.query('commit');
  await cluster.converged();
});

const FAMILIES = `
  create table wholes (id int primary key, v text, n int not null default 0);
  create table parts (id int primary key, v text, n int not null default 0, tags text[] not null default '{}', top int);
  create table beside (id int primary key, v text, n int not null default 0);
  create table firsts (id int primary key, v text, n int not null default 0);
  create table decided (id int primary key, v text, n int not null default 0);
  create table homes (id int primary key, v text, n int not null default 0, home text not null default coregent_home());
  create function longest(versions decided[]) returns decided language sql immutable
    as 'select x from unnest(versions) x order by length(x.v) desc, x.v limit 1';`;
const RULES = {
  'public.wholes': {},
  'public.parts': { conflict: 'columns', columns: { n: 'counter', tags: 'set', top: 'max' } },
  'public.beside': { conflict: 'siblings' },
  'public.firsts': { conflict: 'fww' },
  'public.decided': { conflict: 'custom', custom: 'public.longest' },
  'public.homes': { owner: { column: 'home' } },
};

test('a column is added and dropped, and a table is added, under every rule while both regions write', async () => {
  const names = Object.keys(RULES).map((label) => label.slice('public.'.length));
  const tables = `create function coregent_home() returns text language sql as 'select null::text';${FAMILIES}`;
  await using cluster = await makeCluster({ regions: 2, tables, config: { tables: RULES } });
  await cluster.install();
  await cluster.startAgents();
  const own = { tokyo: 1, frankfurt: 2 } as const;
  for (const region of cluster.regions) {
    for (const name of names) {
      const home = name === 'homes' ? ', home' : '';
      const id = own[region as keyof typeof own];
      await cluster.query(region, `insert into ${name} (id, v${home}) values (${id}, ''${home && `, '${region}'`})`);
    }
  }
  await cluster.converged();
  let count = 0;
  const write = async (): Promise<void> => {
    count++;
    for (const region of cluster.regions) {
      for (const name of names) {
        const id = own[region as keyof typeof own];
        await cluster.query(region, `update ${name} set n = n + 1, v = v || 'x' where id = $1`, [id]);
        if (name === 'parts')
          await cluster.query(region, 'update parts set n = n + 1, tags = tags || $1::text', [region]);
      }
    }
  };
  const everyTable = async (region: string, text: (name: string) => string): Promise<void> => {
    for (const name of names) await cluster.query(region, text(name));
  };
  await everyTable('tokyo', (name) => `alter table ${name} add column more text default 'some'`);
  await write();
  await everyTable('frankfurt', (name) => `alter table ${name} add column more text default 'some'`);
  await write();
  await cluster.converged();
  for (const region of cluster.regions) {
    const id = own[region as keyof typeof own];
    await everyTable(region, (name) => `update ${name} set more = '${region}' where id = ${id}`);
  }
  await cluster.converged();
  for (const name of names) {
    const all = `select string_agg(id || more || length(v), ' ' order by id) from ${name}`;
    const expected = `1tokyo${count} 2frankfurt${count}`;
    expect(await eachRegion(cluster, all), name).toEqual([expected, expected]);
  }
  // A number that both added to: once for their own row, and once for each.
  expect(await eachRegion(cluster, 'select array_agg(n order by id)::text from parts')).toEqual(
    [1, 2].map(() => `{${3 * count},${3 * count}}`),
  );

  await everyTable('frankfurt', (name) => `alter table ${name} drop column more`);
  await write();
  await everyTable('tokyo', (name) => `alter table ${name} drop column more`);
  await write();
  await cluster.everywhere('create table later (id int primary key, n int not null default 0)');
  await cluster.query('tokyo', 'insert into later select generate_series(1, 10)');
  const more = { tables: { ...RULES, 'public.later': { columns: { n: 'counter' } } } };
  expect(await cluster.cliWith(more, 'apply')).toMatchObject({ code: 0, err: '' });
  await Promise.all(cluster.regions.map((region) => cluster.query(region, 'update later set n = n + 1')));
  await write();
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from later')).toBe(10);
  expect((await cluster.cli('verify')).code).toBe(0);

  await cluster.everywhere('alter table parts drop column top');
  const refused = await cluster.cliWith(more, 'apply');
  expect(refused).toMatchObject({ code: 5 });
  expect(refused.err).toMatch(/public\.parts in tokyo: has no column top, which has the rule max: Correct/);
  expect((await cluster.cliWith(more, 'doctor')).out).toMatch(
    /public\.parts[\s\S]*has no column top, which has the rule max/,
  );
});
