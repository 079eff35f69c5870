import pg from 'pg';
import type { Tier } from '../../src/model/api.ts';
import { grantsText } from '../../src/pg/grants.ts';
import type { Query } from './rows.ts';
import { until } from './until.ts';

/** A role of least privilege. */
export interface TierRole {
  readonly name: string;
  readonly password: string;
}

/**
 * Makes the role in a region, by exactly the SQL that `coregent doctor --grants` prints up to its tier. The tables of `public` are
 * given to an owner without rights first, as an application's are.
 */
export async function makeTierRole(query: Query, { name, password }: TierRole, tier: Tier): Promise<void> {
  const owner = `${name}_app`;
  await query(`create role ${owner}`);
  await query(`grant create, usage on schema public to ${owner}`);
  const { rows: tables } = await query(
    `select format('alter table %s owner to ${owner}', oid::regclass) as sql from pg_class
      where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')`,
  );
  for (const { sql } of tables) await query(sql);
  const { rows } = await query(
    `select current_database() as database, current_setting('server_version_num')::int as version`,
  );
  await unhindered(() => query(grantsText({ role: name, ...rows[0], owners: [owner], exists: false }, tier)));
  await query(`alter role ${name} password '${password}'`);
}

/** Drops it again, once its databases are gone. */
export async function dropTierRole(url: string, { name }: TierRole): Promise<void> {
  const client = new pg.Client({ connectionString: Object.assign(new URL(url), { pathname: '/postgres' }).href });
  client.on('error', () => {});
  await client.connect();
  try {
    const { rows } = await client.query('select rolname from pg_roles where rolname in ($1, $2)', [
      name,
      `${name}_app`,
    ]);
    for (const { rolname } of rows) await unhindered(() => client.query(`drop owned by ${rolname}`));
    for (const { rolname } of rows) await client.query(`drop role ${rolname}`);
  } finally {
    await client.end();
  }
}

/**
 * Grants that all databases of a server share (on parameters) are one row, and PostgreSQL does not wait for another session
 * that changes it, but fails: another test may be at it.
 */
async function unhindered(work: () => Promise<unknown>): Promise<void> {
  await until(() => work().then(() => true), { what: 'grants to be changed' });
}
