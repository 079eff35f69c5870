import type { Config, RegionConfig } from '../config.ts';
import type { Tier } from '../model/api.ts';
import { CoregentError, classify } from '../model/error.ts';
import { findTier } from './applier.ts';
import { readInstalled, slotName } from './catalog.ts';
import { connect } from './connect.ts';
import { type Paused, readPaused } from './paused.ts';

/** One region as `status` finds it. */
export interface RegionReport {
  readonly region: string;
  readonly id: number;
  readonly state: 'ok' | 'not installed' | 'unreachable';
  /** PostgreSQL's version, such as `18.4`. */
  readonly version: string | null;
  /** What the role of the region's url may do. */
  readonly tier: Tier | null;
  /** Whether an agent of the region leads. */
  readonly agent: boolean | null;
  readonly tables: number | null;
  readonly conflicts: number | null;
  readonly parked: number | null;
  /** Tables of a peer that pause here, or are being joined. */
  readonly paused: readonly Paused[] | null;
  readonly error: { readonly code: string; readonly message: string } | null;
}

/** One direction: what `from` wrote and `to` has not yet. Null where `from` could not be asked. */
export interface LinkReport {
  readonly from: string;
  readonly to: string;
  readonly slot: string;
  readonly state: 'streaming' | 'idle' | 'stopped' | 'lost' | 'missing' | 'unknown';
  /** WAL of `from` that is not durable at `to`, in bytes. */
  readonly lag_bytes: number | null;
  /** Time from a flush at `from` to its being durable at `to`, in ms; 0 when nothing is under way. */
  readonly lag_ms: number | null;
  /** WAL that the slot keeps `from` from removing, in bytes. */
  readonly retained_bytes: number | null;
}

/** What `status` prints. */
export interface Report {
  readonly cluster: string;
  readonly at: string;
  readonly regions: readonly RegionReport[];
  readonly links: readonly LinkReport[];
}

const TIMEOUT_MS = 3_000;
const LOCK_CLASS = 0x636f7265;

/** Asks every region's database. A region that does not answer is in the report, not an error. */
export async function makeReport(config: Config): Promise<Report> {
  const each = await Promise.all(config.regions.map((region) => reportRegion(config, region)));
  return {
    cluster: config.cluster,
    at: new Date().toISOString(),
    regions: each.map(({ report }) => report),
    links: each.flatMap(({ links }) => links),
  };
}

async function reportRegion(
  config: Config,
  region: RegionConfig,
): Promise<{ report: RegionReport; links: LinkReport[] }> {
  const unknown = { version: null, tier: null, agent: null, tables: null, conflicts: null, parked: null, paused: null };
  const links = (state: LinkReport['state']): LinkReport[] =>
    config.regions
      .filter((other) => other !== region)
      .map((to) => ({
        from: region.name,
        to: to.name,
        slot: slotName(config.cluster, region.id, to.id),
        state,
        lag_bytes: null,
        lag_ms: null,
        retained_bytes: null,
      }));
  let client: Awaited<ReturnType<typeof connect>>;
  try {
    client = await connect(region.url, region.name, { purpose: 'status', timeoutMs: TIMEOUT_MS });
  } catch (thrown) {
    const { code, message } = classify(thrown, region.name);
    const report = {
      region: region.name,
      id: region.id,
      state: 'unreachable' as const,
      ...unknown,
      error: { code, message },
    };
    return { report, links: links('unknown') };
  }
  try {
    const { rows: version } = await client.query('show server_version');
    if (!(await readInstalled(client, region.name))) {
      const missing = new CoregentError('schema_missing', 'this region is not installed');
      const report = {
        region: region.name,
        id: region.id,
        state: 'not installed' as const,
        ...unknown,
        version: version[0].server_version,
        error: { code: missing.code, message: missing.message },
      };
      return { report, links: links('missing') };
    }
    const { rows: counts } = await client.query(
      `select (select count(*) from coregent.tables)::int as tables,
        (select count(*) from coregent.conflict_record)::float8 as conflicts,
        (select count(*) from coregent.parked)::int as parked,
        exists (select from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
          and classid = $1 and objid = $2 and objsubid = 2 and granted) as agent`,
      [LOCK_CLASS, region.id],
    );
    const { rows: slots } = await client.query(
      `select s.slot_name, s.active, s.wal_status = 'lost' as lost,
        greatest(pg_current_wal_lsn() - s.confirmed_flush_lsn, 0)::float8 as lag_bytes,
        (pg_current_wal_lsn() - s.restart_lsn)::float8 as retained,
        coalesce(extract(epoch from r.flush_lag) * 1000, 0)::float8 as lag_ms
      from pg_replication_slots s left join pg_stat_replication r on r.pid = s.active_pid
      where s.database = current_database()`,
    );
    const found = new Map(slots.map((slot) => [slot.slot_name as string, slot]));
    return {
      report: {
        region: region.name,
        id: region.id,
        state: 'ok',
        version: version[0].server_version,
        tier: await findTier(client),
        ...counts[0],
        paused: await readPaused(client, config, region),
        error: null,
      },
      links: links('missing').map((link) => {
        const slot = found.get(link.slot);
        if (!slot) return link;
        const state = slot.lost ? 'lost' : !slot.active ? 'stopped' : slot.lag_bytes > 0 ? 'streaming' : 'idle';
        return {
          ...link,
          state,
          lag_bytes: slot.lag_bytes,
          lag_ms: slot.active ? Math.round(slot.lag_ms) : null,
          retained_bytes: slot.retained,
        };
      }),
    };
  } catch (thrown) {
    const { code, message } = classify(thrown, region.name);
    const report = {
      region: region.name,
      id: region.id,
      state: 'unreachable' as const,
      ...unknown,
      error: { code, message },
    };
    return { report, links: links('unknown') };
  } finally {
    await client.end().catch(() => {});
  }
}
