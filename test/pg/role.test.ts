import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { expect, inject, onTestFinished, test } from 'vitest';
import { makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

/** What docs/start.md asks a superuser for: needed in any case, and what it says is only good to have. */
const NEEDED = `
  create role ROLE login replication password 'secret';
  create role ROLE_app;
  grant ROLE_app to ROLE;
  do $$ begin execute format('grant create on database %I to ROLE', current_database()); end $$;
  grant set on parameter session_replication_role to ROLE;
  alter table items owner to ROLE_app`;
const GOOD = `
  grant pg_read_all_stats to ROLE;
  grant execute on function
    pg_replication_origin_oid(text), pg_replication_origin_create(text),
    pg_replication_origin_drop(text), pg_replication_origin_session_setup(text)
    to ROLE`;

test.each([
  ['every grant that the documentation names', [NEEDED, GOOD], false],
  ['the grants that it calls needed', [NEEDED], true],
] as const)('a role with %s is enough for everything, and rows go round no ring', async (_, grants, without) => {
  const name = `r${randomBytes(5).toString('hex')}`;
  onTestFinished(async () => {
    for (const url of inject('servers')) await drop(url, name);
  });
  await using cluster = await makeCluster({
    tables: 'create table items (id int primary key, v text)',
    role: { name, password: 'secret' },
  });
  for (const region of cluster.regions) {
    for (const each of grants) await cluster.query(region, each.replaceAll('ROLE', name));
    await cluster.query(region, `insert into items values ($1, 'before')`, [cluster.regions.indexOf(region)]);
  }
  await cluster.install();
  await cluster.startAgents();
  for (const region of cluster.regions) {
    expect(cluster.log(region).some(({ event }) => event === 'origin.unavailable')).toBe(without);
  }
  for (const [index, region] of cluster.regions.entries()) {
    await cluster.query(region, `insert into items select $1 * 1000 + n, $2 from generate_series(1, 100) n`, [
      index + 1,
      region,
    ]);
    await cluster.query(region, `update items set v = $1 where id = 0`, [region]);
    await cluster.query(region, 'delete from items where id = $1', [(index + 1) * 1000 + 1]);
  }
  await cluster.converged();
  expect(await cluster.value('virginia', 'select count(*)::int from items')).toBe(3 + 3 * 99);
  // G1: each agent applied what its peers' own applications wrote, and nothing that came to them from others.
  for (const region of cluster.regions) {
    const { rows } = await cluster.query(region, 'select sum(transactions)::int as n from coregent.progress');
    expect(rows[0].n, region).toBe(6);
  }
  expect(await cluster.cli('verify')).toMatchObject({ code: 0 });
  expect(await cluster.cli('status')).toMatchObject({ code: 0, err: '' });
  for (const region of cluster.regions) await cluster.stopAgent(region);
  await until(() => cluster.cli('remove', '--yes').then(({ code }) => code === 0), { what: 'remove to succeed' });
  expect(await cluster.value('tokyo', `select count(*)::int from pg_namespace where nspname = 'coregent'`)).toBe(0);
});

async function drop(url: string, name: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const { rowCount } = await client.query('select from pg_roles where rolname = $1', [name]);
    if (rowCount) await client.query(`drop owned by ${name}; drop role ${name}; drop role if exists ${name}_app`);
  } finally {
    await client.end();
  }
}
