import { expect, onTestFinished, test } from 'vitest';
import type { Tier } from '../../src/model/api.ts';
import { literal } from '../../src/quote.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { namesakes } from '../world/namesakes.ts';
import { until } from '../world/until.ts';

async function made(options: Parameters<typeof makeCluster>[0]): Promise<Cluster> {
  const cluster = await makeCluster(options);
  onTestFinished(() => cluster[Symbol.asyncDispose]());
  return cluster;
}

test.each<Tier>(['A', 'C'])(
  'J1: names that shadow those of PostgreSQL reach nothing of ours, on the path of an application or of our role (tier %s)',
  async (tier) => {
    const cluster = await made({
      regions: 2,
      tier,
      tables: `
        create table items (id int primary key, v text, n numeric(12, 2), email text unique);
        create table spelled (code numeric primary key, v text);
        insert into items select n, 'before' from generate_series(1, 20) n`,
    });
    const path = `${cluster.role}, public, pg_catalog`;
    const shadow = async (region: string): Promise<void> => {
      await cluster.query(region, namesakes(cluster.role));
      const role = `alter role ${cluster.role} in database %I set search_path = ${path}`;
      await cluster.query(region, `do $$ begin execute format(${literal(role)}, current_database()); end $$`);
    };
    await Promise.all(cluster.regions.map(shadow));
    await cluster.install();
    await cluster.startAgents();

    const [tokyo, frankfurt] = await Promise.all(cluster.regions.map((region) => cluster.session(region)));
    for (const session of [tokyo!, frankfurt!]) await session.query(`set search_path = ${path}`);
    await expect(tokyo!.query('select now()')).rejects.toThrow('shadow of now');
    const equals = 'operator(pg_catalog.=)';
    await tokyo!.query(`insert into items (id, v) select n, 'many' from pg_catalog.generate_series(21, 2000) n`);
    await tokyo!.query(`insert into spelled values (1.0, 'first'), (2, 'second')`);
    await cluster.converged();
    await frankfurt!.query(`update items set v = 'changed' where id ${equals} 1`);
    await frankfurt!.query(`update items set id = 3000 where id ${equals} 2`);
    await frankfurt!.query(`delete from items where id ${equals} 3`);
    await frankfurt!.query(`insert into items (id, v) values (3, 'again')`);
    await frankfurt!.query(`update spelled set code = 1.00 where code ${equals} 1.0`);
    await cluster.converged();
    await tokyo!.query('truncate spelled');
    await tokyo!.query(`insert into spelled values (2.0, 'again')`);
    await cluster.converged();

    const told =
      'select coregent.region(), coregent.version_region(1), coregent.version_time(128) as time, peer from coregent.status';
    expect((await tokyo!.query(told)).rows).toEqual([
      { region: 'tokyo', version_region: 'tokyo', time: new Date(0), peer: 'frankfurt' },
    ]);

    // Conflicts, one of a unique value.
    for (const region of cluster.regions) await cluster.stopAgent(region);
    await tokyo!.query(`update items set v = 'of tokyo' where id ${equals} 5`);
    await frankfurt!.query(`update items set v = 'of frankfurt' where id ${equals} 5`);
    await frankfurt!.query(`delete from items where id ${equals} 6`);
    await tokyo!.query(`update items set v = 'of tokyo' where id ${equals} 6`);
    await tokyo!.query(`update items set email = 'same' where id ${equals} 7`);
    await frankfurt!.query(`update items set email = 'same' where id ${equals} 8`);
    await cluster.startAgents();
    await cluster.confirmed();
    for (const session of [tokyo!, frankfurt!]) {
      await until(async () => (await session.query('select from coregent.parked')).rowCount === 0, {
        what: 'the unique value to be settled',
      });
      const { rows } = await session.query(`select id, v from items where id operator(pg_catalog.<) 7 order by id`);
      expect(rows.map(({ id, v }) => `${id} ${v}`)).toEqual([
        '1 changed',
        '3 again',
        '4 before',
        '5 of frankfurt',
        '6 of tokyo',
      ]);
      expect((await session.query(`select id from items where email operator(pg_catalog.=) 'same'`)).rows).toEqual([
        { id: 7 },
      ]);
    }
    const seen = cluster.regions.flatMap((region) => cluster.log(region)).filter(({ level }) => level !== 'debug');
    expect(seen.filter((line) => JSON.stringify(line).includes('shadow of'))).toEqual([]);

    const conflicts = JSON.parse((await cluster.cli('--json', 'conflicts', 'list')).out);
    expect(conflicts.conflicts.length).toBeGreaterThan(1);
    const status = JSON.parse((await cluster.cli('--json', 'status')).out);
    expect(status.regions).toMatchObject([
      { state: 'ok', tables: 2, parked: 0, agent: true },
      { state: 'ok', tables: 2, parked: 0, agent: true },
    ]);
    const verified = await cluster.cli('--json', 'verify');
    expect(verified.code, verified.err).toBe(0);
    const doctor = JSON.parse((await cluster.cli('--json', 'doctor')).out);
    expect(JSON.stringify(doctor)).not.toContain('shadow of');
    expect((await cluster.cli('apply')).code).toBe(0);
    for (const region of cluster.regions) await cluster.stopAgent(region);
    const removed = await cluster.cli('remove', '--yes');
    expect(removed.code, removed.err).toBe(0);
  },
);

/** What the owner of a table would do with more rights than his own; each is refused to the role that applies. */
const GRABS = [
  'alter role current_user superuser',
  'create role grabbed superuser',
  'grant pg_execute_server_program to current_user',
  `copy (select 1) to program 'true'`,
  `perform pg_catalog.pg_read_file('/etc/hostname')`,
  'perform rolpassword from pg_catalog.pg_authid',
];

test('J2: what the owner of a table attaches to it runs as a role of few rights, and triggers and rules not at all', async () => {
  const cluster = await made({
    regions: 2,
    tier: 'A',
    tables:
      'create table items (id int primary key, v text, n int); create table others (id int primary key, v text); create table witness (who text, what text)',
    config: { tables: { 'public.items': {}, 'public.others': {} } },
  });
  const owner = `${cluster.role}_app`;
  const grabs = GRABS.map(
    (grab) => `begin ${grab}; grabbed := ${literal(grab)}; exception when insufficient_privilege then null; end;`,
  );
  for (const region of cluster.regions) {
    const session = await cluster.session(region);
    await session.query(`set role ${owner}`);
    await session.query(`
      grant insert on witness to public;
      create function grab() returns trigger language plpgsql as $$
        begin insert into public.witness values (current_user, tg_name); return new; end $$;
      create trigger plain before insert or update on items for each row execute function grab();
      create function checked(v text) returns boolean language plpgsql as $$
        declare grabbed text;
        begin
          ${grabs.join('\n          ')}
          insert into public.witness values (current_user, 'check');
          if grabbed is not null then raise exception '% was granted to %', grabbed, current_user; end if;
          return true;
        end $$;
      alter table items add check (public.checked(v));
      create rule also as on insert to items where new.id > 100 do also insert into public.witness values (current_user, 'rule')`);
  }
  await cluster.install();
  await cluster.startAgents();
  const app = await cluster.session('tokyo');
  await app.query(`set role ${owner}`);
  await app.query(`insert into items values (1, 'x', 1)`);
  await app.query('truncate public.witness');
  await cluster.converged();
  await app.query(`insert into items values (101, 'x', 1)`);
  await app.query('update items set n = 2 where id = 1');
  await cluster.converged();
  const { rows } = await cluster.query('frankfurt', 'select distinct who, what from witness order by what');
  expect(rows).toEqual([{ who: cluster.role, what: 'check' }]);
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBe(0);
  const { rows: seen } = await cluster.query('tokyo', 'select distinct who, what from witness order by what');
  expect(seen).toEqual(['check', 'plain', 'rule'].map((what) => ({ who: owner, what })));

  // A rule for updates bars upserts even where it does not fire: that table pauses, no other, until it is gone.
  await cluster.query('frankfurt', 'create rule halt as on update to items where false do instead nothing');
  await app.query(`insert into items values (102, 'x', 1)`);
  await app.query(`insert into others values (1, 'goes on')`);
  await until(() => cluster.value('frankfurt', 'select v from others where id = 1'), {
    what: 'a row of another table',
  });
  // Rows may come a moment before the status says what is owed.
  const owed = await until(
    () => {
      const { paused } = cluster.peer('frankfurt', 'tokyo');
      return paused.length > 0 ? paused : undefined;
    },
    { what: 'the pause to be said' },
  );
  expect(owed).toMatchObject([{ table: 'public.items', reason: expect.stringContaining('the rule halt') }]);
  await cluster.query('frankfurt', 'drop rule halt on items');
  await until(() => cluster.value('frankfurt', 'select v from items where id = 102'), {
    what: 'the row that was passed over',
  });
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBe(0);
});
