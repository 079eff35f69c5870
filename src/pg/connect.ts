import type { Socket } from 'node:net';
import pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { parseExact } from '../model/json.ts';
import type { Secret } from '../model/secret.ts';
import { APPLY_SETTINGS, becomeApplier } from './applier.ts';

/**
 * Settings every session of ours pins, so that no database, role or application default can change what a value means,
 * whose function a name reaches, or how a prepared statement is planned.
 */
const PINNED = [
  ['search_path', 'pg_catalog, pg_temp'],
  ['DateStyle', 'ISO, YMD'],
  ['IntervalStyle', 'postgres'],
  ['TimeZone', 'UTC'],
  ['extra_float_digits', '3'],
  ['bytea_output', 'hex'],
  ['lc_monetary', 'C'],
  ['xmloption', 'content'],
  ['row_security', 'off'],
  // What is written to and read from the catalog, and compared between regions, as text.
  ['standard_conforming_strings', 'on'],
  ['quote_all_identifiers', 'off'],
  ['array_nulls', 'on'],
  ['transform_null_equals', 'off'],
  ['statement_timeout', '0'],
  ['lock_timeout', '0'],
  ['transaction_timeout', '0'], // Since 17.
  ['idle_session_timeout', '0'],
  ['idle_in_transaction_session_timeout', '0'],
  // A machine that vanished holds its locks no longer than a minute.
  ['tcp_keepalives_idle', '30'],
  ['tcp_keepalives_interval', '10'],
  ['tcp_keepalives_count', '3'],
  ['default_transaction_isolation', 'read committed'],
  ['default_transaction_read_only', 'off'],
  ['client_encoding', 'UTF8'],
] as const;

/** Whatever runs one statement: a connection, or a turn of one that several share. */
export interface Queryable {
  query(text: string, values?: unknown[]): Promise<pg.QueryResult>;
}

/** What a connection is for; shown in `pg_stat_activity.application_name`. */
export interface ConnectOptions {
  /** Ends up as `coregent <purpose>`. */
  readonly purpose: string;
  /** A connection that speaks the replication protocol; it pins nothing. */
  readonly replication?: boolean;
  /** How long to wait for the connection, in ms. */
  readonly timeoutMs?: number;
  /** Drops the connection when it comes, whether it is open by then or not. */
  readonly signal?: AbortSignal;
  /** It writes rows as other regions wrote them: see {@link becomeApplier}. Every other session writes as an application does. */
  readonly applies?: boolean;
}

/**
 * Connects and pins the session. The client has an `error` listener, so a lost connection never ends the process.
 * Throws `peer_unreachable` and its relatives with `where` set, and what {@link becomeApplier} throws.
 */
export async function connect(url: Secret, where: string, options: ConnectOptions): Promise<pg.Client> {
  const timeoutMs = options.timeoutMs ?? 10_000;
  const client = new pg.Client({
    connectionString: url.reveal(),
    application_name: `coregent ${options.purpose}`,
    connectionTimeoutMillis: timeoutMs,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    ...(options.replication ? { replication: 'database' } : {}),
  } as pg.ClientConfig);
  client.on('error', () => {});
  const onAbort = (): void => drop(client);
  options.signal?.addEventListener('abort', onAbort);
  client.once('end', () => options.signal?.removeEventListener('abort', onAbort));
  for (const type of [pg.types.builtins.JSON, pg.types.builtins.JSONB]) client.setTypeParser(type, parseExact);
  try {
    await client.connect();
    if (!options.replication) {
      const settings = [...PINNED, ...(options.applies ? APPLY_SETTINGS : [])];
      const pin = (name: string, value: string): string =>
        `case when pg_catalog.current_setting(${name}, true) is not null then pg_catalog.set_config(${name}, ${value}, false) end`;
      const text = `select ${settings.map((_, index) => pin(`$${2 * index + 1}`, `$${2 * index + 2}`)).join(', ')}`;
      // The driver's bound on connecting ends with the handshake; a network may fall silent behind it.
      await client.query({ text, values: settings.flat(), query_timeout: timeoutMs } as pg.QueryConfig);
      if (options.applies) await becomeApplier(client, where);
    }
    return client;
  } catch (error) {
    drop(client);
    throw connectionError(error, where);
  }
}

/** Ends a connection at once and without a word, whatever it waits for. */
export function drop(client: pg.Client): void {
  (client as unknown as { connection: { stream: Socket } }).connection.stream.destroy();
}

/** What broke a connection. The driver's own faults (no answer in time, closed in mid-word) carry no code. */
export function connectionError(error: unknown, where: string): CoregentError {
  if (error instanceof Error && !('code' in error)) {
    return new CoregentError('peer_unreachable', error.message, { where, cause: error });
  }
  return classify(error, where);
}

/** Runs `work` in a transaction; rolls back and rethrows when it fails. */
export async function transaction<T>(client: pg.Client, work: () => Promise<T>): Promise<T> {
  await client.query('begin');
  try {
    const result = await work();
    await client.query('commit');
    return result;
  } catch (error) {
    await client.query('rollback').catch(() => {});
    throw error;
  }
}
