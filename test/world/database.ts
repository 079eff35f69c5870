import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import { until } from './until.ts';

/** What `makeDatabase` may be told. */
export interface DatabaseOptions {
  /** Part of the names of the replication origins to drop at the end. Default: the database's own name. */
  readonly cluster?: string;
}

/** A database of one test, alone on nothing but its server. */
export interface Database extends AsyncDisposable {
  /** Unique among all tests; short and plain enough to be a cluster's name, and so a part of slot names. */
  readonly name: string;
  /** Connection URL of the superuser. */
  readonly url: string;
  /** Runs one statement over a connection that the database keeps, in text format. */
  query(text: string, values?: unknown[]): Promise<pg.QueryResult>;
  /** Ends its sessions and drops it with its replication slots, and the origins named after its cluster. */
  drop(): Promise<void>;
}

/**
 * Makes an empty database on shared server 0, 1 or 2, or on a server of the test's own. Drop it at the end
 * (`onTestFinished(() => database.drop())`, or `await using`). Slots wait for transactions of all databases of a server, so a
 * test that keeps one open for long should start a server of its own.
 */
export async function makeDatabase(
  server: number | { url(database?: string): string } = 0,
  options: DatabaseOptions = {},
): Promise<Database> {
  const name = `t${randomBytes(6).toString('hex')}`;
  const home = typeof server === 'number' ? sharedUrl(server) : server.url();
  const url = Object.assign(new URL(home), { pathname: `/${name}` }).href;
  await once(home, (client) => client.query(`create database ${name} template template0`));
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {}); // The test may crash its server; the next query says so.
  await client.connect();

  const drop = async () => {
    await client.end().catch(() => {});
    await once(home, (admin) => clear(admin, name, options.cluster ?? name));
  };
  return {
    name,
    url,
    query: (text, values) => client.query(text, values),
    drop,
    [Symbol.asyncDispose]: drop,
  };
}

async function clear(admin: pg.Client, name: string, cluster: string): Promise<void> {
  // A slot stays active for a moment after its walsender was told to end, and a new session may come in between.
  await until(
    async () => {
      await admin.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = $1', [name]);
      await admin.query('select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1', [
        name,
      ]);
      await admin.query(`drop database if exists ${name} with (force)`);
      return true;
    },
    { what: `database ${name} to be dropped` },
  );
  await until(
    async () => {
      const mine = 'from pg_replication_origin where strpos(roname, $1) > 0';
      await admin.query(`select pg_replication_origin_drop(roname) ${mine}`, [cluster]);
      return true;
    },
    { what: `replication origins of ${cluster} to be dropped` },
  );
}

function sharedUrl(server: number): string {
  const url = inject('servers')[server];
  if (url === undefined) throw new Error(`No shared server ${server}: there are ${inject('servers').length}.`);
  return url;
}

async function once<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {});
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}
