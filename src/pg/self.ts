import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import { CoregentError } from '../model/error.ts';
import { readInstalled, slotName } from './catalog.ts';
import { type Queryable, transaction } from './connect.ts';
import {
  readFollowed,
  readIdentity,
  readKnown,
  type ServerIdentity,
  sameServer,
  strangeness,
  stranger,
} from './identity.ts';
import { forgetBeginnings, oweAll } from './paused.ts';
import type { OpenRegion } from './setup.ts';

/**
 * Whether this region's server is the one that its agent knew. One that was promoted may lack what the region had written and
 * applied before: it owes itself everything of every peer, its own rows among them. Returns whether that is so.
 * Throws `peer_identity` for another server, and for an earlier timeline: a backup, a clone, or an old primary.
 */
export async function knowSelf(local: pg.Client, config: Config, here: RegionConfig): Promise<boolean> {
  const now = await readIdentity(local);
  return await transaction(local, async () => {
    await local.query('select from coregent.this_region for update');
    const known = await readKnown(local);
    if (known && sameServer(known, now)) return false;
    const why = known && strangeness({ ...now, ...known }, now);
    if (why !== undefined) throw stranger(here.name, why);
    await local.query('update coregent.this_region set system_identifier = $1, timeline = $2', [
      now.systemIdentifier,
      now.timeline,
    ]);
    if (!known) return false;
    await oweOwn(local, config, here, `this region was promoted, to timeline ${now.timeline}`);
    return true;
  });
}

/**
 * Whether a region's agent knows the server that the region is now. Before it does, a promoted standby may have rows that it should
 * have deleted, and nobody knows yet.
 */
export async function knowsSelf(client: Queryable): Promise<boolean> {
  const [now, known] = [await readIdentity(client), await readKnown(client)];
  return !known || sameServer(known, now);
}

/** Throws `peer_identity` when a region is not the server that it was, or that another region has followed. */
export async function refuseStrangers(config: Config, open: readonly OpenRegion[]): Promise<void> {
  const installed: OpenRegion[] = [];
  for (const each of open) if (await readInstalled(each.client, each.region.name)) installed.push(each);
  for (const { region, client } of installed) {
    const followed: ServerIdentity[] = [];
    for (const other of installed) {
      const by = await readFollowed(other.client, slotName(config.cluster, region.id, other.region.id));
      if (by) followed.push(by);
    }
    // Asked last: what was followed moves on.
    const now = await readIdentity(client);
    const known = await readKnown(client);
    for (const was of known ? [{ ...now, ...known }, ...followed] : followed) {
      const why = strangeness(was, now);
      if (why !== undefined) throw stranger(region.name, why);
    }
  }
}

async function oweOwn(client: pg.Client, config: Config, here: RegionConfig, reason: string): Promise<void> {
  const slots = config.regions
    .filter((each) => each !== here)
    .map((peer) => slotName(config.cluster, peer.id, here.id));
  await oweAll(client, slots, { reason, own: true });
}

/**
 * A region was restored, or moved to another server: its agent will join everything of every peer, its own lost rows among them,
 * and every peer's agent everything of it, by a new slot. Agents may run; they see it by themselves.
 */
export async function acceptRestored(config: Config, open: readonly OpenRegion[], name: string): Promise<void> {
  const restored = open.find(({ region }) => region.name === name);
  if (!restored) {
    throw new CoregentError('usage', `there is no region ${name}`, {
      where: '--restored',
      cure: `Name one of ${open.map(({ region }) => region.name).join(', ')}.`,
    });
  }
  const { region, client } = restored;
  if (!(await readInstalled(client, name))) {
    throw new CoregentError('schema_missing', 'this region is not installed', { where: name });
  }
  const { systemIdentifier, timeline } = await readIdentity(client);
  await transaction(client, async () => {
    await client.query('update coregent.this_region set system_identifier = $1, timeline = $2', [
      systemIdentifier,
      timeline,
    ]);
    await oweOwn(client, config, region, 'this region was restored');
  });
  for (const peer of open) {
    if (peer === restored) continue;
    const slot = slotName(config.cluster, region.id, peer.region.id);
    await transaction(peer.client, async () => {
      await peer.client.query(
        `update coregent.progress set lsn = '0/0', system_identifier = $2, timeline = $3 where slot = $1`,
        [slot, systemIdentifier, timeline],
      );
      await forgetBeginnings(peer.client, slot);
      await oweAll(peer.client, [slot], { reason: 'the peer was restored', own: false });
    });
  }
}
