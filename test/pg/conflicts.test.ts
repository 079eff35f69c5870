import { rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

let cluster: Cluster;

/** Rows that both regions wrote while they could not hear each other; frankfurt later, but for the deletes of tokyo. */
beforeAll(async () => {
  cluster = await makeCluster({
    regions: 2,
    viaProxy: true,
    tables: `create schema app;
      create table app.log (line text);
      create table items (id bigint primary key, v text, price numeric, doc json, tags text[], raw bytea, twice numeric generated always as (price * 2) stored);
      create function noted() returns trigger language plpgsql as 'begin insert into log values (new.v); return new; end';
      create trigger noted before update on items for each row execute function noted();
      create table pairs (a int, "b c" text, v text, primary key (a, "b c"));
      create table people (id int primary key, age int);
      create table cities (id int primary key, people int, dropped text, code text);
      create table mails (id int primary key, email text unique, v text);
      create table notes (id int primary key, v text);
      create table posts (id int primary key, likes int, title text, body text)`,
    config: {
      conflicts: { alert: '3/h' },
      tables: {
        'public.*': {},
        'public.notes': { conflict: 'siblings' },
        'public.posts': { conflict: 'columns', columns: { likes: 'counter' } },
      },
    },
  });
  for (const region of cluster.regions) {
    const database = new URL(cluster.url(region)).pathname.slice(1);
    // The application's trigger finds its table by a path of its own. One connection is open already.
    await cluster.query(region, `alter database ${database} set search_path = public, app`);
    await cluster.query(region, 'set search_path = public, app');
  }
  await cluster.install();
  await cluster.startAgents();
  await cluster.query('tokyo', `insert into items (id, v, price) values (20, 'both', 1), (21, 'both', 1)`);
  await cluster.converged();
  await cluster.cut('tokyo', 'frankfurt');
  for (const region of cluster.regions) {
    await cluster.query(
      region,
      `insert into items (id, v, price, doc, tags, raw)
        select id, $1, case $1 when 'tokyo' then 9007199254740993.10 else 2 end, '{"from":  "tokyo", "n": 1.50}', array['a', $1], '\\x0001ff'
        from unnest(array[1, 2, 3, 4, 5, 6, 9007199254740993]) id`,
      [region],
    );
    await cluster.query(region, `insert into pairs values (1, 'it''s \\', $1)`, [region]);
  }
  await cluster.query('tokyo', 'delete from items where id = 20');
  await cluster.query('frankfurt', `update items set v = 'frankfurt' where id in (20, 21)`);
  await cluster.query('tokyo', 'delete from items where id = 21');
  await cluster.heal();
  await cluster.converged();
});
afterAll(() => cluster[Symbol.asyncDispose]());

interface Found {
  readonly id: string;
  readonly region: string;
  readonly [column: string]: unknown;
}

async function json(...args: string[]) {
  const { code, out, err } = await cluster.cli('conflicts', ...args, '--json');
  expect({ code, err }, args.join(' ')).toEqual({ code: 0, err: '' });
  return JSON.parse(out);
}

async function list(...args: string[]): Promise<Found[]> {
  return (await json('list', ...args)).conflicts;
}

/** What tokyo recorded of this row of items. */
async function conflictOf(id: number | string): Promise<string> {
  const [found] = await list('--region', 'tokyo', '--table', 'public.items', '--key', `id=${id}`);
  return found!.id;
}

const settle = (id: string, ...args: string[]) =>
  cluster.cli('conflicts', 'settle', id, '--region', 'tokyo', '--by', 'ann', ...args);

async function row(id: number | string, region = 'frankfurt') {
  const { rows } = await cluster.query(
    region,
    `select v, price::text, doc::text, tags, encode(raw, 'hex') as raw from items where id = $1`,
    [id],
  );
  return rows[0];
}

const ofTokyo = {
  v: 'tokyo',
  price: '9007199254740993.10',
  doc: '{"from":  "tokyo", "n": 1.50}',
  tags: ['a', 'tokyo'],
  raw: '0001ff',
};

test('list filters by table, kind, key, time, region, and whether it is settled', async () => {
  expect(await list('--table', 'public.*')).toHaveLength(20);
  expect(await list('--table', '*.pair?')).toHaveLength(2);
  expect(await list('--table', 'public.pair_')).toEqual([]);
  expect(await list('--kind', 'update_missing', '--kind', 'delete_origin_differs')).toHaveLength(4);
  expect(await list('--key', 'id=9007199254740993')).toHaveLength(2);
  expect(await list('--key', '{"id": 9007199254740993}', '--region', 'frankfurt')).toHaveLength(1);
  expect(await list('--key', 'a=1', '--key', "b c=it's \\")).toHaveLength(2);
  expect(await list('--key', 'a=1', '--key', 'b c=other')).toEqual([]);
  expect(await list('--since', '1h')).toHaveLength(20);
  expect(await list('--until', '1h')).toEqual([]);
  expect(await list('--since', '2999-01-01')).toEqual([]);
  const all = await list();
  const later = all.filter((each) => String(each.recorded_at) >= String(all[10]!.recorded_at));
  expect(await list('--since', String(all[10]!.recorded_at))).toEqual(later);
  for (const args of [
    ['--since', 'tomorrow'],
    ['--key', 'id'],
    ['--key', '{"id": '],
    ['--after', 'x'],
    ['--keep', 'other'],
    ['7'],
  ]) {
    expect(await cluster.cli('conflicts', 'list', ...args), args.join(' ')).toMatchObject({ code: 2, out: '' });
  }
});

test('pages of the list are stable: each record once, whatever is recorded in between', async () => {
  const all = await list();
  const seen: Found[] = [];
  let after: string[] = [];
  for (let pages = 0; pages < 10; pages++) {
    const page = await json('list', '--limit', '7', ...after);
    seen.push(...page.conflicts);
    await cluster.query(
      'tokyo',
      `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version)
        values ('public.new', '{}', 'insert_exists', 'lww', 'keep', $1, 0)`,
      [pages + 1],
    );
    if (page.next === null) break;
    after = ['--after', page.next];
  }
  await cluster.query('tokyo', `delete from coregent.conflict_record where table_name = 'public.new'`);
  expect(seen).toEqual(all);
  const text = (await cluster.cli('conflicts', 'list', '--limit', '2')).out;
  expect(text).toMatch(/\nMore: --after \S+,(tokyo|frankfurt),\d+\n$/);
});

test('show puts both sides next to each other, and says what differed and why this one won', async () => {
  const id = await conflictOf(1);
  const shown = await json('show', id, '--region', 'tokyo');
  expect(shown).toMatchObject({
    conflict: { kind: 'insert_exists', outcome: 'apply', local_origin: 'tokyo', incoming_origin: 'frankfurt' },
    now: { changed: null, origin: 'frankfurt' },
  });
  expect([...shown.differs].sort()).toEqual(['price', 'tags', 'v']);
  expect(shown.why).toMatch(/^Rule lww: the later write wins, and frankfurt wrote later, by \d/);
  const { out } = await cluster.cli('conflicts', 'show', id, '--region', 'tokyo');
  expect(out).toMatch(/^conflict \d+ in tokyo: insert_exists of public.items \{"id":1\}$/m);
  expect(out).toMatch(/^from +tokyo +frankfurt$/m);
  expect(out).toMatch(/^v +tokyo +frankfurt +differs$/m);
  expect(out).toMatch(/^written +20\S+Z +20\S+Z$/m);
  expect(out).toContain(`coregent conflicts settle ${id} --region tokyo --keep other`);
  for (const args of [['show'], ['show', 'x'], ['show', '999999'], ['show', id, '--limit', '1']]) {
    expect(await cluster.cli('conflicts', ...args), args.join(' ')).toMatchObject({ code: 2, out: '' });
  }
  // Every region counts for itself.
  const both = (await list('--region', 'frankfurt')).map((each) => each.id);
  expect(both).toContain(id);
  expect((await cluster.cli('conflicts', 'show', id)).err).toContain('name one with --region');
});

test('settle --keep other writes the losing row again, in every region, and once only', async () => {
  const id = await conflictOf(1);
  const dry = await settle(id, '--keep', 'other', '--dry-run');
  expect(dry.code, dry.err).toBe(0);
  expect(dry.out).toMatch(/^begin;\nupdate "public"."items" t\nset "v" = 'tokyo'::text, /);
  expect(await row(1, 'tokyo')).toMatchObject({ v: 'frankfurt' });

  const { code, out, err } = await settle(id, '--keep', 'other');
  expect({ code, err }).toEqual({ code: 0, err: '' });
  expect(out).toMatch(/^Conflict \d+ of tokyo is settled\. The row was written .* Noted in frankfurt too\.\n$/);
  await cluster.converged();
  expect(await row(1)).toEqual(ofTokyo);
  const settled = (await list('--key', 'id=1')).map((each) => [each.region, each.settled_by, each.settled_how]);
  expect(settled.sort()).toEqual([
    ['frankfurt', 'ann', '--keep other in tokyo'],
    ['tokyo', 'ann', '--keep other'],
  ]);
  expect((await list('--unsettled')).some((each) => JSON.stringify(each.key) === '{"id":1}')).toBe(false);
  expect((await cluster.cli('conflicts', 'show', id, '--region', 'tokyo')).out).toMatch(/^Settled at .* by ann/m);

  const again = await settle(id, '--keep', 'local');
  expect(again).toMatchObject({ code: 5, out: '' });
  expect(again.err).toContain('was settled at');
  expect((await settle(id, '--keep', 'local', '--force')).out).toContain('The row is as chosen already.');
});

test('what --dry-run prints can be run by hand', async () => {
  const id = await conflictOf('9007199254740993');
  const { out } = await settle(id, '--keep', 'other', '--dry-run');
  await cluster.query('tokyo', out);
  await cluster.converged();
  expect(await row('9007199254740993')).toEqual(ofTokyo);
  const [found] = await list('--region', 'tokyo', '--key', 'id=9007199254740993');
  expect(found).toMatchObject({ settled_by: 'ann', settled_how: '--keep other' });
  // By then its condition on the version holds no more: nothing is written a second time.
  await cluster.query('tokyo', `update items set v = 'later' where id = 9007199254740993`);
  await cluster.query('tokyo', out);
  expect((await row('9007199254740993', 'tokyo')).v).toBe('later');
});

test('settle --merge takes columns from a side each, --file what it says', async () => {
  const merged = await settle(await conflictOf(2), '--merge', 'price=local,tags=incoming');
  expect(merged, merged.err).toMatchObject({ code: 0 });
  const file = join(tmpdir(), `coregent-row-${process.pid}.json`);
  onTestFinished(() => rm(file, { force: true }));
  await writeFile(file, '{"id": 3, "v": "by hand", "price": 12345678901234567890.5, "doc": {"a":1}, "tags": null}');
  const { code, err } = await settle(await conflictOf(3), '--file', file);
  expect({ code, err }).toEqual({ code: 0, err: '' });
  await cluster.converged();
  expect(await row(2)).toMatchObject({ v: 'frankfurt', price: '9007199254740993.10', tags: ['a', 'frankfurt'] });
  expect(await row(3)).toMatchObject({ v: 'by hand', price: '12345678901234567890.5', tags: null, raw: '0001ff' });

  const id = await conflictOf(4);
  for (const [text, what] of [
    ['{"id": 7}', 'another key'],
    ['{"nothing": 1}', 'no column nothing'],
    ['[1]', 'one JSON object'],
    ['{', 'not JSON'],
  ] as const) {
    await writeFile(file, text);
    const refused = await settle(id, '--file', file);
    expect(refused).toMatchObject({ code: 2, out: '' });
    expect(refused.err).toContain(what);
  }
  for (const args of [
    [],
    ['--merge', 'nothing=local'],
    ['--merge', 'v'],
    ['--keep', 'both'],
    ['--keep', 'other', '--merge', 'v=local'],
  ]) {
    expect(await settle(id, ...args), args.join(' ')).toMatchObject({ code: 2, out: '' });
  }
});

test('a row that changed since is refused unless forced, and what changed is said', async () => {
  const id = await conflictOf(5);
  await cluster.query('frankfurt', `update items set v = 'since' where id = 5`);
  await cluster.converged();
  const refused = await settle(id, '--keep', 'other');
  expect(refused).toMatchObject({ code: 5, out: '' });
  expect(refused.err).toMatch(/written by frankfurt at .*: v is "since"/);
  expect((await cluster.cli('conflicts', 'show', id, '--region', 'tokyo')).out).toContain('The row changed since');
  expect((await settle(id, '--keep', 'other', '--force')).code).toBe(0);
  await cluster.query('tokyo', 'delete from items where id = 6');
  const gone = await conflictOf(6);
  expect((await settle(gone, '--keep', 'other')).err).toContain('it was deleted by tokyo');
  expect((await settle(gone, '--keep', 'other', '--force')).code).toBe(0);
  await cluster.converged();
  expect(await row(5)).toEqual(ofTokyo);
  expect(await row(6)).toEqual(ofTokyo);
});

test('a delete is a side like any other: settling writes the row again, or deletes it', async () => {
  // Of 20 the update was later, of 21 the delete.
  const [back, away] = [await conflictOf(21), await conflictOf(20)];
  expect((await settle(back, '--merge', 'v=local')).code).toBe(2);
  for (const id of [back, away]) {
    const { code, err } = await settle(id, '--keep', 'other');
    expect({ code, err }).toEqual({ code: 0, err: '' });
  }
  await cluster.converged();
  expect(await row(21)).toMatchObject({ v: 'frankfurt', price: '1' });
  expect(await row(20)).toBeUndefined();
});

test('an alarm of too many conflicts is in the status, the metrics and the readiness, and none of these is unready', async () => {
  const { code, out } = await cluster.cli('status');
  expect(code).toBe(0);
  expect(out).toMatch(/^tokyo: \d+ conflicts of late, alert at 3\/h$/m);
  await until(() => cluster.log('tokyo').some(({ event }) => event === 'conflicts.alert'), {
    what: 'the alarm to be logged',
  });
  await cluster.stopAgent('tokyo');
  const { url } = await cluster.startAgent('tokyo', { port: 0 });
  await cluster.streaming('tokyo');
  expect(cluster.agent('tokyo').status().conflicts.alert).toMatchObject({ limit: '3/h', exceeded: true });
  const get = async (path: string): Promise<string> => await (await fetch(`${url}${path}`)).text();
  expect(await get('/metrics')).toContain('coregent_conflict_alert{region="tokyo"} 1');
  expect(JSON.parse(await get('/readyz?verbose'))).toMatchObject({
    ready: true,
    checks: expect.arrayContaining([expect.objectContaining({ name: 'conflicts', ok: false, informs: true })]),
  });
});

test('parked rows are listed, shown, tried again and given up', async () => {
  await cluster.query('frankfurt', 'alter table people add constraint grown check (age >= 18)');
  await cluster.query('tokyo', 'insert into people select n, n from generate_series(15, 17) n');
  await until(async () => Number(await cluster.value('frankfurt', 'select count(*) from coregent.parked')) === 3, {
    what: 'the rows to be parked',
  });
  const { parked } = await json('list', '--parked', '--table', 'public.*');
  expect(parked).toHaveLength(3);
  expect(parked[0]).toMatchObject({ region: 'frankfurt', origin: 'tokyo', sqlstate: '23514', operation: 'insert' });
  const of = (age: number): string => parked.find((each: { row: { age: number } }) => each.row.age === age).id;
  expect(await json('show', of(15), '--parked')).toMatchObject({
    parked: { key: { id: 15 }, row: { id: 15, age: 15 } },
  });
  expect((await cluster.cli('conflicts', 'show', of(15), '--parked')).out).toContain(
    'violates check constraint "grown"',
  );
  expect((await cluster.cli('conflicts', 'list', '--parked')).out).toContain('{"id":15}');
  const first = await json('list', '--parked', '--limit', '2');
  expect(first.parked).toEqual(parked.slice(0, 2));
  const rest = await json('list', '--parked', '--limit', '2', '--after', first.next);
  expect(rest).toMatchObject({ parked: parked.slice(2), next: null });
  expect((await cluster.cli('conflicts', 'list', '--parked', '--limit', '1')).out).toMatch(
    /\nMore: --after \S+,frankfurt,\d+\n$/,
  );

  const vain = await cluster.cli('conflicts', 'settle', '--retry-all');
  expect(vain.code).toBe(3);
  expect(vain.out).toContain('0 found their place, 3 are still parked.');
  const { conflict } = await json('settle', '--discard', of(15), '--by', 'ann');
  expect(await json('show', conflict, '--region', 'frankfurt')).toMatchObject({
    conflict: {
      kind: 'parked',
      outcome: 'discard',
      local_row: null,
      incoming_row: { id: 15, age: 15 },
      settled_by: 'ann',
    },
  });
  await cluster.query('frankfurt', 'alter table people drop constraint grown');
  expect(await json('settle', '--retry', of(16))).toMatchObject({ placed: 1, left: [] });
  expect(await json('settle', '--retry-all')).toMatchObject({ placed: 1, left: [] });
  expect((await json('list', '--parked')).parked).toEqual([]);
  await until(() => cluster.agent('frankfurt').status().parked === 0, { what: 'the agent to count none' });
  // What was given up can still be chosen.
  expect((await cluster.cli('conflicts', 'settle', conflict, '--region', 'frankfurt', '--keep', 'other')).code).toBe(5);
  const { code, err } = await cluster.cli(
    'conflicts',
    'settle',
    conflict,
    '--region',
    'frankfurt',
    '--keep',
    'other',
    '--force',
  );
  expect({ code, err }).toEqual({ code: 0, err: '' });
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from people')).toBe(3);
  for (const args of [
    ['--retry', '99'],
    ['--discard', 'x'],
    ['--retry-all', '--keep', 'other'],
    ['1', '--retry-all'],
  ]) {
    expect(await cluster.cli('conflicts', 'settle', ...args), args.join(' ')).toMatchObject({ code: 2, out: '' });
  }
});

test('a parked row is read and applied although columns of its table were added, dropped and changed since', async () => {
  await cluster.query('frankfurt', 'alter table cities add constraint grown check (people > 10)');
  await cluster.query('tokyo', `insert into cities values (1, 5, 'gone', '7'), (2, 6, 'gone', '8')`);
  await cluster.query('tokyo', 'delete from cities where id = 2');
  await until(async () => Number(await cluster.value('frankfurt', 'select count(*) from coregent.parked')) >= 1, {
    what: 'the row to be parked',
  });
  for (const region of cluster.regions) {
    await cluster.query(
      region,
      `alter table cities add column country text not null default 'jp', add column mayor text, drop column dropped,
        alter column code type numeric(6, 2) using code::numeric`,
    );
  }
  const found = (await json('list', '--parked', '--table', 'public.cities')).parked;
  expect(found.map(({ row }: { row: unknown }) => row)).toContainEqual({
    ...{ id: 1, people: 5, code: '7.00', country: 'jp', mayor: null },
  });
  expect((await cluster.cli('conflicts', 'settle', '--retry-all')).code).toBe(3);
  await cluster.query('frankfurt', 'alter table cities drop constraint grown');
  expect((await cluster.cli('conflicts', 'settle', '--retry-all')).code).toBe(0);
  await cluster.converged();
  expect((await cluster.query('frankfurt', 'select id, people, code::text, country, mayor from cities')).rows).toEqual([
    { id: 1, people: 5, code: '7.00', country: 'jp', mayor: null },
  ]);
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBe(0);
});

test('of two rows with one unique value the one that was deleted is chosen only by force, which deletes the other', async () => {
  await cluster.cut('tokyo', 'frankfurt');
  await cluster.query('tokyo', `insert into mails values (1, 'a@x', 'tokyo')`);
  await cluster.query('frankfurt', `insert into mails values (2, 'a@x', 'frankfurt')`);
  await cluster.heal();
  const ids = (region: string) => cluster.value(region, 'select array_agg(id order by id) from mails');
  const settled = async (id: number): Promise<void> => {
    for (const region of cluster.regions) {
      await until(async () => String(await ids(region)) === String([id]), { what: `${id} alone to be in ${region}` });
    }
  };
  await settled(1);
  // Whoever met both rows before the delete of one arrived has a record.
  const found = await until(async () => (await list('--table', 'public.mails'))[0], { what: 'a record' });
  const region = String(found.region);
  expect(found).toMatchObject({ rule: 'unique', key: { id: 2 } });
  expect((await json('show', found.id, '--region', region)).now).toMatchObject({ row: null, changed: null });

  const choose = ['conflicts', 'settle', found.id, '--region', region, '--keep', 'other'];
  const refused = await cluster.cli(...choose);
  expect(refused).toMatchObject({ code: 5, out: '' });
  expect(refused.err).toContain('duplicate key value violates unique constraint');
  const { code, err } = await cluster.cli(...choose, '--force');
  expect({ code, err }).toEqual({ code: 0, err: '' });
  await settled(2);
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select v from mails')).toBe('frankfurt');
});

test('of versions that are kept side by side a person says which is meant, the one that is shown too', async () => {
  await cluster.query('tokyo', `insert into notes values (1, 'both'), (2, 'both')`);
  await cluster.converged();
  await cluster.cut('tokyo', 'frankfurt');
  for (const region of cluster.regions) await cluster.query(region, 'update notes set v = $1', [region]);
  await cluster.heal();
  await cluster.converged();
  const of = async (id: number) =>
    (await list('--region', 'tokyo', '--table', 'public.notes', '--key', `id=${id}`))[0]!;
  const before = String(await cluster.value('tokyo', 'select v from notes where id = 1'));
  const shown = before === 'tokyo' ? ['local', 'incoming'] : ['incoming', 'local'];
  expect(await settle((await of(1)).id, '--keep', 'other')).toMatchObject({ code: 2, out: '' });
  for (const [index, side] of shown.entries()) {
    const { code, out, err } = await settle((await of(index + 1)).id, '--keep', side);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toContain('The row was written');
  }
  await cluster.converged();
  const other = before === 'tokyo' ? 'frankfurt' : 'tokyo';
  expect(await cluster.value('frankfurt', 'select array_agg(v order by id) from notes')).toEqual([before, other]);
  expect(await cluster.value('frankfurt', 'select count(*)::int from notes where _coregent_parent < 0')).toBe(0);
});

test('settling one side leaves a counter alone, which holds what both did, and takes single columns on demand', async () => {
  await cluster.query('tokyo', `insert into posts values (1, 0, 'both', 'both')`);
  await cluster.converged();
  await cluster.cut('tokyo', 'frankfurt');
  for (const region of cluster.regions) {
    await cluster.query(region, 'update posts set likes = likes + 1, title = $1', [region]);
  }
  await cluster.query('frankfurt', `update posts set body = 'frankfurt'`);
  await cluster.heal();
  await cluster.converged();
  const [found] = await list('--region', 'tokyo', '--table', 'public.posts');
  const side = found!.outcome === 'apply' ? 'local' : 'incoming';
  expect((await settle(found!.id, '--keep', side, '--dry-run')).out).not.toContain('likes');
  const { code, err } = await settle(found!.id, '--merge', `title=${side}`);
  expect({ code, err }).toEqual({ code: 0, err: '' });
  await cluster.converged();
  const { rows } = await cluster.query('frankfurt', 'select likes, title, body from posts');
  expect(rows).toEqual([{ likes: 2, title: side === 'local' ? 'tokyo' : 'frankfurt', body: 'frankfurt' }]);
});
