import type { RegionConfig } from '../config.ts';
import { CoregentError, classify } from '../model/error.ts';
import { connect } from './connect.ts';
import { settingsOf } from './service.ts';
import type { OpenRegion } from './setup.ts';

/** PostgreSQL's effective `wal_level`, as a column. */
export const WAL_LEVEL = `coalesce(current_setting('effective_wal_level', true), current_setting('wal_level')) as wal_level`;

/** Opens a replication connection and closes it again. Throws why there is none; `peer_protocol` where a pooler stands between. */
export async function tryStream(region: RegionConfig, purpose: string): Promise<void> {
  const replication = await connect(region.url, region.name, { purpose, replication: true });
  try {
    await replication.query('IDENTIFY_SYSTEM');
  } catch (thrown) {
    // A pooler that passes over what it does not know of the connection: then it is a word that SQL does not have.
    if ((thrown as { code?: string }).code !== '42601') throw classify(thrown, region.name);
    throw new CoregentError('peer_protocol', 'the connection is none for replication', {
      where: region.name,
      cause: thrown,
    });
  } finally {
    await replication.end().catch(() => {});
  }
}

/** Throws where nothing could be streamed from a region, before anything is changed for it. */
export async function refuseStreamless({ region, client }: OpenRegion): Promise<void> {
  const { rows } = await client.query(`select ${WAL_LEVEL}`);
  if (rows[0].wal_level !== 'logical') {
    const change = await settingsOf(client);
    throw new CoregentError('peer_not_ready', `wal_level is ${rows[0].wal_level}`, {
      where: region.name,
      cure: `${change('wal_level', 'logical', 'restart').join('; ')} \`coregent doctor\` says what else is missing.`,
    });
  }
  try {
    await tryStream(region, 'apply');
  } catch (thrown) {
    const error = classify(thrown, region.name);
    // All walsenders may be busy for a moment, with those that run already.
    if (error.code !== 'peer_busy') throw error;
  }
}
