import { expect, it } from 'vitest';
import { dumpCatalog } from '../world/catalog.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';

const TRIGGER = `create function quiet() returns trigger language plpgsql as 'begin return new; end';`;

interface Found {
  readonly code: string;
  readonly region: string | null;
  readonly object: string | null;
  readonly cure: readonly string[];
}

/** What doctor says of tables. */
async function doctor(cluster: Cluster, change: Record<string, unknown> = {}): Promise<Found[]> {
  const found = JSON.parse((await cluster.cliWith(change, 'doctor', '--json')).out).findings as Found[];
  return found.filter(({ code }) => code !== 'superuser' && code !== 'wal_unbounded');
}

async function catalogs(cluster: Cluster): Promise<string[][]> {
  return await Promise.all(
    cluster.regions.map((region) => dumpCatalog(cluster.query.bind(cluster, region), cluster.name)),
  );
}

it('B6, B17, C13, D11, D19: what could not be replicated faithfully is refused with its cure, and nothing changes', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: `${TRIGGER}
      create table fine (id int primary key, v text);
      create trigger early before insert or update on fine for each row execute function quiet();
      create trigger "~last" after update on fine for each row execute function quiet();
      create table keyless (a int);
      create unlogged table fleeting (a int primary key);
      create table lazy (a int, primary key (a) deferrable);
      create table mute (a int primary key); alter table mute replica identity nothing;
      create table computed (a int, b int generated always as (a + 1) stored primary key);
      create table parent (a int primary key);
      create table child (primary key (a)) inherits (parent);
      create table "late; ""x""" (a int primary key);
      create trigger "~~x" before update on "late; ""x""" for each row execute function quiet();
      create extension file_fdw; create server files foreign data wrapper file_fdw;
      create table swept (a int primary key) partition by list (a);
      create unlogged table swept_1 partition of swept for values in (1);
      create foreign table elsewhere (a int) server files options (filename '/dev/null');
      create materialized view summary as select 1 as a`,
  });
  const before = await catalogs(cluster);
  const { code, out, err } = await cluster.cli('apply');
  expect({ code, out }).toEqual({ code: 5, out: '' });
  for (const fault of [
    /public\.keyless in tokyo: has no usable primary key: alter table "public"\."keyless" add primary key/,
    /public\.fleeting in frankfurt: is unlogged, .*: alter table "public"\."fleeting" set logged/,
    /public\.lazy in tokyo: has a DEFERRABLE primary key, .*drop constraint …, add primary key/,
    /public\.mute in tokyo: has no replica identity, .*: alter table "public"\."mute" replica identity default/,
    /public\.computed in tokyo: has a generated column in its primary key/,
    /public\.parent in tokyo: inherits from, or is inherited by, public\.child.* partitioned table/,
    /public\.child in tokyo: inherits from, or is inherited by, public\.parent/,
    /public\.late; "x" in tokyo: has the trigger "~~x", .*: alter trigger "~~x" on "public"\."late; ""x""" rename to "x"/,
    /public\.swept in tokyo: is unlogged, .*: alter table "public"\."swept_1" set logged/,
  ]) {
    expect(err).toMatch(fault);
  }
  expect(err).not.toMatch(/public\.(fine|elsewhere|summary) in/);
  const found = await doctor(cluster);
  for (const [object, cure] of [
    ['public.keyless', ['alter table "public"."keyless" add primary key (…)']],
    ['public.fleeting', ['alter table "public"."fleeting" set logged']],
    ['public.late; "x"', ['alter trigger "~~x" on "public"."late; ""x""" rename to "x"']],
    ['public.swept', ['alter table "public"."swept_1" set logged']],
  ]) {
    expect(found).toContainEqual(expect.objectContaining({ code: 'table_unfit', region: 'tokyo', object, cure }));
  }
  // Not only when nothing is refused.
  expect(found).toContainEqual(expect.objectContaining({ code: 'passed_over', object: 'public.summary' }));
  expect(await catalogs(cluster)).toEqual(before);
  // Named by itself it is refused; named by a glob it was passed over.
  const named = await cluster.cliWith({ tables: { 'public.fine': {}, 'public.summary': {} } }, 'apply');
  expect(named).toMatchObject({
    code: 5,
    err: expect.stringContaining('public.summary in tokyo: is not an ordinary table'),
  });
});

it('C16: a key whose collation takes other texts for one in one region only is refused', async () => {
  const folding = (locale: string) =>
    `create collation folding (provider = icu, locale = '${locale}', deterministic = false);`;
  await using cluster = await makeCluster({
    tables: 'create table other (id text collate "C" primary key, v text)',
  });
  for (const [region, collation] of [
    ['tokyo', folding('und-u-ks-level2')],
    ['frankfurt', folding('und-u-ks-level1')],
    ['virginia', 'create collation folding from "C";'],
  ] as const) {
    await cluster.query(
      region,
      `${collation} create table names (a int, b text collate folding, v text collate folding, primary key (a, b))`,
    );
  }
  const { code, err } = await cluster.cli('apply');
  expect(code).toBe(5);
  expect(err).toContain(
    'public.names in frankfurt: has the key column b in the nondeterministic collation of und-u-ks-level1, not the nondeterministic collation of und-u-ks-level2',
  );
  expect(err).toContain('public.names in virginia: has the key column b in a deterministic collation, not');
  expect(err).not.toContain('public.other');
});

it('C13: what is passed over, and what does not travel, is said, as JSON too', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: `${TRIGGER}
      create table fine (id int primary key, v text);
      create trigger noisy after update on fine for each row execute function quiet();
      alter table fine enable always trigger noisy;
      create materialized view summary as select 1 as a;
      create table cut (a int primary key) partition by list (a);
      create table cut_1 partition of cut default;
      create trigger heard after insert on cut_1 for each row execute function quiet();
      alter table cut_1 enable replica trigger heard`,
  });
  await cluster.query('frankfurt', 'select lo_create(0)');
  for (const [region, way] of [
    ['tokyo', 'id + 1'],
    ['frankfurt', 'id + 2'],
  ] as const) {
    await cluster.query(region, `alter table fine add column next int generated always as (${way}) stored`);
    await cluster.query(region, 'alter table fine add column alike int generated always as (id * 2) stored');
  }
  const tables = { 'public.*': {}, 'public.cut_1': {} };
  const { code, err } = await cluster.cliWith({ tables }, 'apply', '--dry-run');
  expect(code).toBe(3);
  expect(err.trim().split('\n')).toEqual([
    'Warning: public.cut_1: is a partition: name the table that it is a part of; it is passed over',
    'Warning: public.summary: is not an ordinary table; it is passed over',
    expect.stringMatching(/^Warning: public\.cut: the trigger heard is ENABLE ALWAYS or REPLICA/),
    'Warning: public.fine: the column next is generated as (id + 1) in tokyo, (id + 2) in frankfurt: regions show other values of one row',
    expect.stringMatching(/^Warning: public\.fine: the trigger noisy is ENABLE ALWAYS or REPLICA/),
    expect.stringMatching(/^Warning: there are large objects in frankfurt, .*bytea/),
  ]);
  const json = await cluster.cliWith({ tables }, 'apply', '--dry-run', '--json');
  expect(json.err).toBe('');
  expect(JSON.parse(json.out).warnings.map(({ code }: { code: string }) => code)).toEqual([
    'passed_over',
    'passed_over',
    'fires_on_apply',
    'generated_differs',
    'fires_on_apply',
    'large_objects',
  ]);
  const found = await doctor(cluster, { tables });
  expect(
    found.filter(({ region }) => region !== 'frankfurt').map(({ code, region, object }) => [code, region, object]),
  ).toEqual([
    ['generated_differs', null, 'public.fine'],
    ['large_objects', null, null],
    ['trigger_fires', 'tokyo', 'public.cut_1'],
    ['trigger_fires', 'tokyo', 'public.fine'],
    ['passed_over', null, 'public.cut_1'],
    ['passed_over', null, 'public.summary'],
  ]);
  for (const { code, region, cure } of found) if (code === 'trigger_fires') await cluster.query(region!, cure[0]!);
  expect((await doctor(cluster, { tables })).map(({ code }) => code)).toEqual([
    'generated_differs',
    'large_objects',
    'passed_over',
    'passed_over',
  ]);
});

it('C11, C12: sequences that would hand out equal numbers are warned of, and the cure makes them differ', async () => {
  await using cluster = await makeCluster({
    tables: `
      create table a (id serial primary key, v text);
      create table b (id bigint generated always as identity primary key, nr smallserial unique, free serial);
      create sequence shared;
      create table c (id bigint default nextval('shared') * 10 primary key);
      create table d (id int primary key, nr int generated by default as identity);
      create table e (id uuid default gen_random_uuid() primary key)`,
  });
  await cluster.query('frankfurt', `insert into a (v) select 'x' from generate_series(1, 5000)`);
  const found = await doctor(cluster);
  const { err } = await cluster.cli('apply');
  const warned = err.match(/public\.\w+: the column \w+/g);
  expect(warned).toEqual([
    'public.a: the column id',
    'public.b: the column id',
    'public.b: the column nr',
    'public.c: the column id',
  ]);
  expect(err).toMatch(
    /public\.a: .*in tokyo, frankfurt, virginia, each for itself.*steps of 3; up to 2147483647 each region then has \d+ numbers left, so think of bigint/,
  );
  expect(err).toMatch(/public\.b: the column nr .*up to 32767/);
  const cures = [...err.matchAll(/^ {2}in (\w+): (alter sequence .*;)$/gm)];
  expect(cures).toHaveLength(12);
  expect(found.map(({ code, region, cure }) => [code, region, `${cure.join()};`]).sort()).toEqual(
    cures.map(([, region, sql]) => ['sequence_collides', region, sql]).sort(),
  );
  for (const [, region, sql] of cures) await cluster.query(region!, sql!);
  expect((await cluster.cli('apply')).err).toBe('');
  expect(await doctor(cluster)).toEqual([]);
  await cluster.query('tokyo', 'alter table e add unique (id) deferrable');
  expect(await doctor(cluster)).toMatchObject([{ code: 'apply_needed', region: 'tokyo', object: 'public.e' }]);
  await cluster.install();
  expect(await doctor(cluster)).toEqual([]);
  await cluster.startAgents();
  for (const region of cluster.regions) {
    for (let n = 0; n < 20; n++) await cluster.query(region, `insert into a (v) values ($1)`, [region]);
    for (let n = 0; n < 20; n++) await cluster.query(region, `insert into b default values`);
  }
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, `select count(*)::int from a where v <> 'x'`)).toBe(60);
    expect(await cluster.value(region, `select count(*)::int from b`)).toBe(60);
    expect(await cluster.value(region, `select count(*)::int from coregent.conflict_record`)).toBe(0);
  }
});

it('B6: a role that may replicate and is no superuser is told what the superuser must run for a DEFERRABLE constraint', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: 'create table a (id int primary key, nr int unique deferrable initially deferred)',
    tier: 'A',
  });
  const { code, err } = await cluster.cli('apply');
  expect(code).toBe(5);
  for (const region of cluster.regions) {
    const cure = new RegExp(
      `public\\.a in ${region}: .*: (alter table "public"\\."a" enable always trigger "[^"]+"); That takes a superuser`,
    );
    await cluster.query(region, err.match(cure)![1]!);
  }
  await cluster.install();
  expect(await doctor(cluster)).toEqual([]);
  const found = async () => (await doctor(cluster)).map(({ code, region }) => [code, region]);
  await cluster.query('frankfurt', 'alter table a disable trigger user');
  expect(await found()).toEqual([['triggers_gone', 'frankfurt']]);
  await cluster.query('tokyo', 'alter table a add unique (id, nr) deferrable');
  expect(await found()).toEqual([['table_unfit', 'tokyo']]);
});
