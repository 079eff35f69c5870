import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { examine } from '../../src/pg/doctor.ts';
import type { Finding, FindingCode } from '../../src/pg/findings.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { startPooler } from '../world/pooler.ts';
import { until } from '../world/until.ts';

/** Servers of their own, stopped and started again, on a machine that runs other tests. */
const STARTS_SERVERS_MS = 120_000;
const ITEMS = 'create table items (id int primary key, v text)';

async function doctor(
  cluster: Cluster,
  change: Record<string, unknown> = {},
): Promise<{ code: number; findings: Finding[] }> {
  const { code, out } = await cluster.cliWith(change, 'doctor', '--json');
  return { code, findings: JSON.parse(out).findings };
}

const codes = (findings: readonly Finding[]): string[] => [...new Set(findings.map(({ code }) => code))].sort();

/** Runs the SQL of the cures, as an administrator in the region of each; words are left to people. */
async function cure(cluster: Cluster, findings: readonly Finding[], ...which: FindingCode[]): Promise<void> {
  for (const { code, region, cure: lines } of findings) {
    if (which.length > 0 && !which.includes(code)) continue;
    for (const line of lines) if (/^[a-z]|^CREATE /.test(line)) await cluster.query(region!, line);
  }
}

test('a superuser on sound databases is told only that it is one, and that nothing bounds the WAL that slots keep', async () => {
  await using cluster = await makeCluster({ tables: ITEMS, regions: 2 });
  for (const installed of [false, true]) {
    if (installed) await cluster.install();
    const { code, findings } = await doctor(cluster);
    expect(codes(findings)).toEqual(['superuser', 'wal_unbounded']);
    expect(code).toBe(0);
  }
  const taken = await doctor(cluster, { cluster: 'another' });
  expect(taken.code).toBe(3);
  expect(taken.findings.filter((each) => each.code === 'region_refused').map(({ region }) => region)).toEqual(
    cluster.regions,
  );
  const { out, code, err } = await cluster.cli('doctor');
  expect({ code, err }).toEqual({ code: 0, err: '' });
  expect(out).toContain(
    `warning tokyo slots.max_wal: is not set, and neither is max_slot_wal_keep_size (wal_unbounded)\n    Set \`slots: { max_wal: 50GB }\``,
  );
  expect(out).toContain(`    alter system set max_slot_wal_keep_size = '50GB';`);
  expect(out).toContain('2 warnings, 2 notices');
  expect((await cluster.cliWith({ slots: { max_wal: '50GB' } }, 'doctor')).out).not.toContain('wal_unbounded');

  // A table that is new, and one that was replicated and is another one now.
  await cluster.everywhere('create table later (id int primary key)');
  await cluster.query('frankfurt', `begin; drop table items; ${ITEMS}; commit`);
  const pending = (await doctor(cluster)).findings.filter((each) => /_gone$|_needed$/.test(each.code));
  expect(pending.map((each) => `${each.code} ${each.region} ${each.object}`)).toEqual([
    'triggers_gone frankfurt public.items',
    'apply_needed tokyo public.later',
    'apply_needed frankfurt public.later',
  ]);
  await cluster.install();
  expect(codes((await doctor(cluster)).findings)).toEqual(['superuser', 'wal_unbounded']);
});

test('settings of a server that are in the way are found, and gone once the cures were run', {
  timeout: STARTS_SERVERS_MS,
}, async () => {
  await using cluster = await makeCluster({
    tables: ITEMS,
    regions: 2,
    servers: 'own',
    settings: {
      wal_level: 'replica',
      max_replication_slots: 30,
      max_wal_senders: 1,
      session_replication_role: 'replica',
      wal_sender_timeout: 0,
      max_slot_wal_keep_size: '64MB',
    },
  });
  const newest = Number(await cluster.value('tokyo', `select current_setting('server_version_num')`)) >= 180_000;
  const late = { max_active_replication_origins: 0, idle_replication_slot_timeout: '1min' };
  for (const region of newest ? cluster.regions : []) {
    for (const [name, value] of Object.entries(late))
      await cluster.query(region, `alter system set ${name} = '${value}'`);
    await cluster.server(region).stop();
    await cluster.server(region).start();
  }
  // Somebody else has every slot: with fewer of them than are taken the server would not start again.
  const take = `select count(pg_create_physical_replication_slot('taken_' || n)) from generate_series(1, 30) n`;
  for (const region of cluster.regions) await cluster.query(region, take);
  const { code, findings } = await doctor(cluster);
  expect(code).toBe(3);
  const expected = [
    ...(newest ? ['origins_short'] : []),
    'sender_timeout',
    ...(newest ? ['slot_timeout'] : []),
    'slots_short',
    'superuser',
    'unstamped',
    'wal_level',
    'wal_tight',
    'walsenders_short',
  ];
  expect(codes(findings)).toEqual(expected);
  const refused = await cluster.cli('apply');
  expect(refused).toMatchObject({ code: 1, out: '' });
  expect(refused.err).toContain(`alter system set wal_level = 'logical'`);
  await cure(cluster, findings);
  for (const region of cluster.regions) {
    await cluster.server(region).stop();
    await cluster.server(region).start();
  }
  expect(codes((await doctor(cluster)).findings)).toEqual(['superuser']);
  await cluster.install();
});

test('E25, G4: limits of roles, and roles whose writes would not travel, are found, and gone once the cures were run', async () => {
  // Its own servers: what is set for a role there is told of in every database.
  await using cluster = await makeCluster({ tables: ITEMS, regions: 2, tier: 'B', servers: 'own' });
  const { role } = cluster;
  const [app, ours] = [`role ${role}_app`, `role ${role}`];
  await cluster.query('tokyo', `alter ${ours} connection limit 3`);
  const here = async (sql: string): Promise<void> => {
    await cluster.query('frankfurt', `do $$ begin execute format('${sql}', current_database()); end $$`);
  };
  await here('alter database %I connection limit 6');
  const set = 'set session_replication_role = replica';
  await here(`alter database %I ${set}`);
  await here(`alter ${app} in database %I ${set}`);
  await cluster.query('tokyo', `alter ${app} ${set}`);
  // Of the role that applies it is right, unless it owns tables: then an application may be that role.
  await cluster.query('tokyo', `alter ${ours} ${set}`);
  const { code, findings } = await doctor(cluster);
  expect(code).toBe(3);
  expect(codes(findings)).toEqual(['connections_short', 'tier', 'unstamped', 'wal_unbounded']);
  const told = findings.filter((each) => each.code === 'unstamped').map(({ region, message }) => [region, message]);
  expect(told).toEqual([
    ['tokyo', `is replica for the role ${role}_app: what it writes does not travel`],
    ['frankfurt', `is replica for the role ${role}_app: what it writes does not travel`],
    ['frankfurt', 'is replica for every role: what it writes does not travel'],
  ]);
  expect(
    findings
      .filter((each) => each.code === 'connections_short')
      .map(({ region, object }) => [region, object?.split(' ')[0]]),
  ).toEqual([
    ['tokyo', 'role'],
    ['frankfurt', 'database'],
  ]);
  await cure(cluster, findings, 'connections_short', 'unstamped');
  expect(codes((await doctor(cluster)).findings)).toEqual(['tier', 'wal_unbounded']);
  // Where nobody may change a setting by SQL, words say where it is changed.
  await here(`alter database %I set rds.logical_replication = off`);
  const unbounded = (await doctor(cluster)).findings.filter((each) => each.code === 'wal_unbounded');
  expect(unbounded.map((each) => each.cure.slice(1))).toEqual([
    [`alter system set max_slot_wal_keep_size = '50GB'`, 'select pg_reload_conf()'],
    ['Set max_slot_wal_keep_size = 51200 in the parameter group (of the cluster, for Aurora).'],
  ]);
  await here(`alter database %I reset rds.logical_replication`);
  await here(`alter database %I set azure.extensions = plpgsql`);
  const azure = (await doctor(cluster)).findings.filter((each) => each.code === 'wal_unbounded')[1]!;
  expect(azure).toMatchObject({ region: 'frankfurt', cure: [expect.stringMatching(/ and start the agents again\.$/)] });
  // The role that the region's own agent connects as is as right, whoever runs doctor.
  const own = cluster.url('frankfurt');
  await here(`alter role ${new URL(own).username} in database %I ${set}`);
  const { regions } = JSON.parse(await readFile(cluster.configFile, 'utf8'));
  const as = (localUrl: string) => ({ regions: { ...regions, frankfurt: { ...regions.frankfurt, localUrl } } });
  expect(codes((await doctor(cluster)).findings)).toEqual(['tier', 'unstamped', 'wal_unbounded']);
  expect(await doctor(cluster, as(own))).toMatchObject({ code: 0 });
  expect(codes((await doctor(cluster, as(own))).findings)).toEqual(['tier', 'wal_unbounded']);
  await here(`alter ${app} in database %I ${set}`);
  const shared = (await doctor(cluster, as(Object.assign(new URL(own), { username: `${role}_app` }).href))).findings;
  expect(shared.filter((each) => each.code === 'role_shared').map(({ message }) => message)).toEqual([
    `is replica for the role ${role}_app, which owns tables: what an application writes as that role does not travel`,
  ]);
  await cure(cluster, (await doctor(cluster)).findings, 'unstamped');
  await cluster.query('tokyo', `alter table items owner to ${role}`);
  expect(codes((await doctor(cluster)).findings)).toEqual(['role_shared', 'tier', 'wal_unbounded']);
});

test('C8, D7, D8, E8: encodings, clocks, transactions and slots', { timeout: STARTS_SERVERS_MS }, async () => {
  await using cluster = await makeCluster({
    tables: ITEMS,
    regions: 2,
    servers: 'own',
    settings: { max_prepared_transactions: 5, max_slot_wal_keep_size: '1GB' },
  });
  await cluster.install();
  const open = await cluster.session('tokyo');
  await open.query('begin; select 1');
  await cluster.query('frankfurt', `begin; insert into items values (1, 'x'); prepare transaction 'it''s mine'`);
  const patient = await examine(cluster.config);
  expect(codes(patient.findings)).toEqual(['superuser']);
  const found = await examine(cluster.config, 0);
  expect(codes(found.findings)).toEqual(['prepared_old', 'superuser', 'transaction_long']);
  await cure(cluster, found.findings, 'prepared_old', 'transaction_long');
  expect(codes((await examine(cluster.config, 0)).findings)).toEqual(['superuser']);

  // A slot that is nearly, then wholly, out of WAL.
  const write = `select pg_logical_emit_message(false, 'x', repeat('x', 4000000))`;
  for (const region of cluster.regions) await cluster.query(region, `alter system set max_slot_wal_keep_size = '48MB'`);
  for (const region of cluster.regions) await cluster.query(region, 'select pg_reload_conf()');
  const near = await until(
    async () => {
      await cluster.query('tokyo', write);
      return (await doctor(cluster)).findings.find((each) => each.code === 'slot_near_limit');
    },
    { what: 'the slot to be told of' },
  );
  expect(near).toMatchObject({ region: 'tokyo', severity: 'warning' });
  for (let i = 0; i < 10; i++) await cluster.query('tokyo', write);
  await cluster.query('tokyo', 'checkpoint');
  const lost = await doctor(cluster);
  expect(lost.code).toBe(3);
  expect(lost.findings).toContainEqual(
    expect.objectContaining({ code: 'slot_lost', region: 'tokyo', severity: 'blocker' }),
  );
  await cluster.query('tokyo', `alter system set max_slot_wal_keep_size = '2GB'`);
  await cluster.query('tokyo', 'select pg_reload_conf()');
  await cluster.install();
  expect(codes((await doctor(cluster)).findings)).not.toContain('slot_lost');

  // Another encoding, under the same role.
  await cluster.query('frankfurt', `create database latin encoding 'LATIN1' template template0 locale 'C'`);
  const url = Object.assign(new URL(cluster.url('frankfurt')), { pathname: '/latin' }).href;
  const regions = { tokyo: { id: 1, url: cluster.url('tokyo') }, frankfurt: { id: 2, url } };
  expect((await doctor(cluster, { regions })).findings).toContainEqual(
    expect.objectContaining({ code: 'encoding', region: 'frankfurt', message: 'is LATIN1, tokyo is UTF8' }),
  );
  const refused = await cluster.cliWith({ regions }, 'apply');
  expect(refused.code).toBe(5);
  expect(refused.err).toMatch(/its database is LATIN1, that of tokyo is UTF8\n {2}at frankfurt\n.*with encoding UTF8/);
});

test('C16, G7: collations, standbys and subscriptions', { timeout: STARTS_SERVERS_MS }, async () => {
  await using cluster = await makeCluster({ tables: ITEMS, regions: 2, servers: 'own' });
  await cluster.query('tokyo', `create database other locale_provider icu icu_locale 'en' template template0`);
  await cluster.query('frankfurt', 'create publication other for table items');
  await cluster.query('frankfurt', 'create publication everything for all tables');
  await cluster.query(
    'frankfurt',
    `create collation letters (provider = icu, locale = 'en'); create index on items (v collate letters);
      update pg_collation set collversion = '1' where collname = 'letters'`,
  );
  await cluster.query('tokyo', `create subscription native connection '${cluster.url('frankfurt')}' publication other`);
  const { findings } = await doctor(cluster);
  expect(codes(findings)).toEqual(['collation_version', 'publication', 'subscription', 'superuser', 'wal_unbounded']);
  expect(findings.find((each) => each.code === 'collation_version')).toMatchObject({
    region: 'frankfurt',
    object: 'public.items',
    message: expect.stringMatching(/^an index in the collation public\.letters was made under version 1, /),
  });
  await cure(cluster, findings, 'collation_version', 'publication', 'subscription');
  // A publication for all tables can leave none out.
  const left = (await doctor(cluster)).findings;
  expect(codes(left)).toEqual(['publication', 'superuser', 'wal_unbounded']);
  expect(left.find((each) => each.code === 'publication')!.cure).toEqual([
    expect.stringMatching(/^It is for all tables,/),
  ]);
  await cluster.query('frankfurt', 'drop publication everything');
  await cluster.query('tokyo', 'drop subscription native');

  const url = Object.assign(new URL(cluster.url('tokyo')), { pathname: '/other' }).href;
  const regions = { tokyo: { id: 1, url }, frankfurt: { id: 2, url: cluster.url('frankfurt') } };
  await cluster.query('tokyo', `update pg_database set datcollversion = '1' where datname = 'other'`);
  const icu = (await doctor(cluster, { regions })).findings;
  expect(codes(icu)).toEqual(expect.arrayContaining(['collation', 'collation_version']));
  const other = await cluster.session('tokyo', 'other');
  for (const line of icu.find((each) => each.code === 'collation_version')!.cure) await other.query(line);
  expect(codes((await doctor(cluster, { regions })).findings)).not.toContain('collation_version');

  const server = cluster.server('frankfurt');
  await server.stop();
  await writeFile(join(server.dataDir, 'standby.signal'), '', { mode: 0o666 });
  await server.start();
  const standby = await doctor(cluster);
  expect(standby.code).toBe(3);
  expect(standby.findings[0]).toMatchObject({ code: 'standby', region: 'frankfurt' });
});

test('a role without rights is told of each that it lacks; what --grants prints is enough', async () => {
  await using cluster = await makeCluster({ tables: ITEMS, regions: 2, tier: 'A' });
  expect(codes((await doctor(cluster)).findings)).toEqual(['wal_unbounded']);
  const { role } = cluster;
  for (const region of cluster.regions) {
    await cluster.query(
      region,
      `alter role ${role} noreplication createdb; revoke ${role}_app from ${role}; revoke pg_read_all_stats from ${role}`,
    );
    await cluster.query(
      region,
      `do $$ begin execute format('revoke create on database %I from ${role}', current_database()); end $$`,
    );
    await cluster.query(region, `revoke execute on function pg_replication_origin_create(text) from ${role}`);
  }
  const { code, findings } = await doctor(cluster);
  expect(code).toBe(3);
  expect(codes(findings)).toEqual([
    'owner_missing',
    'replication_denied',
    'rights_excess',
    'schema_denied',
    'stats_hidden',
    'tier',
    'wal_unbounded',
  ]);
  expect(findings.find((each) => each.code === 'tier')?.message).toMatch(/^tier B: /);
  await cure(cluster, findings, 'rights_excess');
  const { out } = await cluster.cli('doctor', '--grants');
  for (const region of cluster.regions)
    await cluster.query(region, out.slice(out.indexOf(`-- in ${region},`)).split(/\n\n/)[0]!);
  expect(codes((await doctor(cluster)).findings)).toEqual(['wal_unbounded']);
  await cluster.install();

  // A member that does not inherit, and a table of a superuser.
  const inherits = Number(await cluster.value('tokyo', `select current_setting('server_version_num')`)) >= 160_000;
  await cluster.query(
    'tokyo',
    inherits ? `grant ${role}_app to ${role} with inherit false` : `alter role ${role} noinherit`,
  );
  await cluster.query('frankfurt', 'alter table items owner to current_user');
  const owned = (await doctor(cluster)).findings;
  expect(codes(owned)).toEqual(expect.arrayContaining(['owner_missing', 'wal_unbounded']));
  const mighty = owned.find((each) => each.code === 'owner_missing' && each.region === 'frankfurt')!;
  expect(mighty.cure[0]).toMatch(/^Give it to an owner that is no superuser, alter table "public"\."items" owner to …/);
  const printed = (await cluster.cli('doctor', '--grants')).out;
  expect(printed).toMatch(/-- needed, and not granted: tables of the superuser "postgres"/);
  expect(printed).not.toContain('grant "postgres"');
  await cure(
    cluster,
    owned.filter(({ region }) => region === 'tokyo'),
    'owner_missing',
    'stats_hidden',
    'tier',
  );
  await cluster.query('frankfurt', `alter table items owner to ${role}_app`);
  await cluster.query(
    'frankfurt',
    `do $$ begin execute format('revoke connect on database %I from public, ${role}', current_database()); end $$`,
  );
  const shut = (await doctor(cluster)).findings;
  expect(codes(shut)).toEqual(['unreachable', 'wal_unbounded']);
  await cure(cluster, shut, 'unreachable');
  expect(codes((await doctor(cluster)).findings)).toEqual(['wal_unbounded']);
});

test('D11, G2, G6, G7, B17: what lies around a table and gets in the way is found, and gone once the cures were run', async () => {
  await using cluster = await makeCluster({
    tables: `${ITEMS}; create unlogged table fast (id int primary key); create table keyless (id int);
      create function noop() returns trigger language plpgsql as 'begin return new; end';
      create trigger always before insert on items for each row execute function noop();
      alter table items enable always trigger always;
      create rule hide as on delete to items do instead nothing;
      alter table items enable row level security; alter table items force row level security;
      create publication other for table items;`,
    regions: 2,
    tier: 'B',
  });
  await cluster.query('frankfurt', 'alter table items add column extra int');
  const { code, findings } = await doctor(cluster);
  expect(code).toBe(3);
  expect(codes(findings)).toEqual([
    'publication',
    'rls_forced',
    'rule',
    'table_unfit',
    'tier',
    'trigger_fires',
    'wal_unbounded',
  ]);
  const unfit = findings.filter((each) => each.code === 'table_unfit');
  expect(unfit.map(({ region, object }) => `${object} ${region}`).sort()).toEqual([
    'public.fast frankfurt',
    'public.fast tokyo',
    'public.items frankfurt',
    'public.keyless frankfurt',
    'public.keyless tokyo',
  ]);
  const refused = await cluster.cli('apply', '--json');
  expect(refused.code).toBe(5);
  expect(JSON.parse(refused.err).error.faults).toHaveLength(unfit.length);
  await cure(cluster, findings, 'publication', 'rls_forced', 'rule', 'trigger_fires', 'tier');
  for (const region of cluster.regions) {
    await cluster.query(region, 'alter table fast set logged; alter table keyless add primary key (id)');
  }
  await cluster.query('tokyo', 'alter table items add column extra int');
  expect(codes((await doctor(cluster)).findings)).toEqual(['wal_unbounded']);
  await cluster.install();
});

test('tier C: triggers and foreign keys that fire on apply are silenced by the printed statements', async () => {
  await using cluster = await makeCluster({
    tables: `create table items (id int primary key, v text, up int references items);
      create table log (id uuid primary key default gen_random_uuid(), t text);
      create function stamp() returns trigger language plpgsql as $$ begin new.v := new.v || ' of ' || current_database(); return new; end $$;
      create function tell() returns trigger language plpgsql as $$ begin insert into public.log (t) values (tg_name); return null; end $$;
      create trigger stamp before insert or update on items for each row when (new.id > 0) execute function stamp();
      create trigger tell after insert on items for each row execute function tell();
      create constraint trigger later after insert on items deferrable initially deferred for each row execute function tell('EXECUTE FUNCTION');`,
    regions: 2,
    tier: 'C',
  });
  const { code, findings } = await doctor(cluster);
  expect(code).toBe(3);
  expect(codes(findings)).toEqual(['foreign_key_fires', 'tier', 'trigger_changes', 'trigger_fires', 'wal_unbounded']);
  await cure(cluster, findings, 'foreign_key_fires', 'trigger_changes', 'trigger_fires');
  expect(codes((await doctor(cluster)).findings)).toEqual(['tier', 'wal_unbounded']);
  await cluster.install();
  await cluster.startAgents();
  await cluster.query(
    'tokyo',
    `insert into items values (1, 'one', null), (2, 'two', 1); update items set v = v || '!' where id = 1`,
  );
  await cluster.converged();
  expect(await cluster.value('frankfurt', 'select count(*)::int from log')).toBe(4);
  expect(await cluster.value('frankfurt', 'select v from items where id = 2')).toBe(
    await cluster.value('tokyo', `select 'two of ' || current_database()`),
  );
});

test('E21: a pooler in the way is told from the server itself; a region that does not answer is exit 4', async () => {
  await using cluster = await makeCluster({ tables: ITEMS, regions: 2 });
  const { hostname, port } = new URL(cluster.url('tokyo'));
  const pooler = await startPooler({ host: hostname, port: Number(port) });
  onTestFinished(() => pooler.close());
  const at = (to: number) => Object.assign(new URL(cluster.url('tokyo')), { port: String(to) }).href;
  const through = (url: string) => ({
    regions: { tokyo: { id: 1, url }, frankfurt: { id: 2, url: cluster.url('frankfurt') } },
  });
  const { code, findings } = await doctor(cluster, through(at(pooler.port)));
  expect(code).toBe(3);
  expect(findings[0]).toMatchObject({ code: 'pooler', severity: 'blocker', region: 'tokyo' });
  // Nothing is changed through one, and no slot is left behind.
  const refused = await cluster.cliWith(through(at(pooler.port)), 'apply');
  expect(refused).toMatchObject({ code: 1, out: '', err: expect.stringContaining('not a pooler') });
  for (const region of cluster.regions)
    expect(await cluster.value(region, `select to_regnamespace('coregent')`)).toBeNull();
  pooler.close();
  const away = await doctor(cluster, through(at(pooler.port)));
  expect(away.code).toBe(4);
  expect(away.findings[0]).toMatchObject({ code: 'unreachable', region: 'tokyo' });
  expect(away.findings).toContainEqual(expect.objectContaining({ code: 'superuser', region: 'frankfurt' }));
});
