import { CoregentError } from '../model/error.ts';
import { formatLsn, type LSN, parseLsn } from '../model/lsn.ts';
import type { Queryable } from './connect.ts';

/** Who a server is, and how far its WAL goes. LSNs are only comparable between equal identities (PostgreSQL, IDENTIFY_SYSTEM). */
export interface ServerIdentity {
  readonly systemIdentifier: string;
  readonly timeline: number;
  /** Of a server, where its WAL is flushed to; of one that was followed, how far that was. */
  readonly lsn: LSN;
}

/** The columns of a query that {@link identityOf} reads. */
export const IDENTITY =
  // The control file knows a promotion only after its first checkpoint; a file of WAL is named by its timeline at once.
  `(select system_identifier::text from pg_control_system()) as system_identifier,
    ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int as timeline,
    pg_current_wal_flush_lsn()::text as lsn`;

/** Reads a row with the columns of {@link IDENTITY}. */
export function identityOf(row: { system_identifier: string; timeline: number; lsn: string }): ServerIdentity {
  return { systemIdentifier: row.system_identifier, timeline: row.timeline, lsn: parseLsn(row.lsn) };
}

/** Reads the server's identity over an ordinary connection. */
export async function readIdentity(client: Queryable): Promise<ServerIdentity> {
  return identityOf((await client.query(`select ${IDENTITY}`)).rows[0]);
}

/** Which server was followed by a slot, and how far, as the region of this connection has it; undefined if it does not follow yet. */
export async function readFollowed(client: Queryable, slot: string): Promise<ServerIdentity | undefined> {
  const { rows } = await client.query(
    'select system_identifier, timeline, lsn::text from coregent.progress where slot = $1',
    [slot],
  );
  return rows[0] && identityOf(rows[0]);
}

/** Which server the region's agent knew as its own when it led last; undefined if none ever led. */
export async function readKnown(client: Queryable): Promise<Omit<ServerIdentity, 'lsn'> | undefined> {
  const { rows } = await client.query('select system_identifier, timeline from coregent.this_region');
  const { system_identifier: systemIdentifier, timeline } = rows[0];
  return systemIdentifier === null ? undefined : { systemIdentifier, timeline };
}

/** Whether two readings are of one server, not promoted in between. */
export function sameServer(a: Omit<ServerIdentity, 'lsn'>, b: Omit<ServerIdentity, 'lsn'>): boolean {
  return a.systemIdentifier === b.systemIdentifier && a.timeline === b.timeline;
}

/** Why a server cannot be the one that was followed, or a later one of the same history; undefined if it can. A promoted standby can. */
export function strangeness(was: ServerIdentity, now: ServerIdentity): string | undefined {
  if (now.systemIdentifier !== was.systemIdentifier || now.timeline < was.timeline) {
    return `it is server ${now.systemIdentifier} on timeline ${now.timeline}, and was ${was.systemIdentifier} on timeline ${was.timeline}`;
  }
  if (now.timeline > was.timeline || now.lsn >= was.lsn) return undefined;
  return `its WAL ends at ${formatLsn(now.lsn)}, before ${formatLsn(was.lsn)}, which was applied elsewhere: it has gone back in time`;
}

/** The refusal of a region that is not the server it was. Only a person can say whether the old one is gone. */
export function stranger(region: string, why: string): CoregentError {
  return new CoregentError('peer_identity', `${region} is not the server that was followed: ${why}`, {
    where: region,
    cure: `Check the url. If ${region} was restored from a backup or moved to another server, and the old one is gone for good, run \`coregent apply --restored ${region}\`.`,
  });
}
