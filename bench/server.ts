import pg from 'pg';
import { type Server, startPostgres } from '#coregent/demo/postgres.js';

/**
 * Where they differ from the defaults of `startPostgres`: enough WAL and time that no checkpoint falls into a measurement
 * (each begins behind one), and no autovacuum, which would come in one round and not in another. fsync stays on.
 */
const SETTINGS = {
  shared_buffers: '256MB',
  max_wal_size: '8GB',
  checkpoint_timeout: '1h',
  autovacuum: false,
  max_prepared_transactions: 10,
};

/** The database that is measured; made anew for every measurement. */
export const DATABASE = 'bench';

export function startServer(name: string): Promise<Server> {
  return startPostgres({ name, settings: SETTINGS });
}

/** A connection to the measured database, or another. */
export async function open(server: Server, database = DATABASE): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: server.url(database), application_name: 'bench' });
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** Takes everything of an earlier measurement away and makes an empty database. */
export async function recreateDatabase(server: Server): Promise<void> {
  const client = await open(server, 'postgres');
  try {
    await waitFor('slots to be free', async () => {
      const { rows } = await client.query('select 1 from pg_replication_slots where active');
      return rows.length === 0;
    });
    await client.query('select pg_drop_replication_slot(slot_name) from pg_replication_slots');
    await client.query(`drop database if exists ${DATABASE} with (force)`);
    await client.query('select pg_replication_origin_drop(roname) from pg_replication_origin');
    await client.query(`create database ${DATABASE}`);
  } finally {
    await client.end();
  }
}

/** Asks every few ms until it is so. Throws after `timeoutMs`. */
export async function waitFor<T>(
  what: string,
  ask: () => Promise<T | undefined | false>,
  { everyMs = 5, timeoutMs = 300_000 } = {},
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs / 1000} s for ${what}`);
    await new Promise((done) => setTimeout(done, everyMs));
  }
}
