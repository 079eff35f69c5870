import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import { CoregentError } from '../model/error.ts';
import { slotName } from './catalog.ts';
import { transaction } from './connect.ts';
import { removalSql } from './install.ts';

/** The slots that lie in a region, and the replication origins: one per direction, and more that a join may have left. */
export interface OurNames {
  readonly slots: readonly string[];
  readonly origins: readonly string[];
}

/** What of a cluster's slots and origins belongs in this region. */
export function slotsOf(config: Config, region: RegionConfig): OurNames {
  const others = config.regions.filter((other) => other !== region);
  const origins = others.map((peer) => slotName(config.cluster, peer.id, region.id));
  return {
    slots: others.map((puller) => slotName(config.cluster, region.id, puller.id)),
    origins: origins.flatMap((name) => [name, `${name}_join`, `${name}_apply`]),
  };
}

/** Takes everything of ours out of one region. Repeatable. Throws `refused` while an agent reads one of its slots. */
export async function removeRegion(client: pg.Client, where: string, ours: OurNames): Promise<void> {
  const { rows: active } = await client.query(
    'select slot_name from pg_replication_slots where slot_name = any ($1) and active',
    [ours.slots],
  );
  if (active.length > 0) {
    throw new CoregentError('refused', `agents still read from it: ${active.map((row) => row.slot_name).join(', ')}`, {
      where,
      cure: 'Stop the agents of all regions first.',
    });
  }
  await client.query(
    'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = any ($1)',
    [ours.slots],
  );
  // Only what is there: a role that may not drop origins has never made one.
  const { rows: origins } = await client.query('select roname from pg_replication_origin where roname = any ($1)', [
    ours.origins,
  ]);
  for (const { roname } of origins) await client.query('select pg_replication_origin_drop($1)', [roname]);
  const statements = await removalSql(client);
  await transaction(client, async () => {
    await client.query(`set local lock_timeout = '10s'`);
    for (const statement of statements) await client.query(statement);
  });
}
