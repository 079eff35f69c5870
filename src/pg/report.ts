import type { Config, RegionConfig } from '../config.ts';
import type { ConflictAlert, Tier } from '../model/api.ts';
import { CoregentError, classify } from '../model/error.ts';
import { readAlert } from './alert.ts';
import { findTier } from './applier.ts';
import { readInstalled, slotName } from './catalog.ts';
import { connect, drop } from './connect.ts';
import { readFollowed, readIdentity, readKnown, type ServerIdentity, strangeness, stranger } from './identity.ts';
import { COUNT_PARKED } from './parked.ts';
import { type Paused, readPaused } from './paused.ts';

/** One region as `status` finds it. */
export interface RegionReport {
  readonly region: string;
  readonly id: number;
  /** `refused`: it is not the server that it was; see `error`. */
  readonly state: 'ok' | 'not installed' | 'unreachable' | 'refused';
  /** PostgreSQL's version, such as `18.4`. */
  readonly version: string | null;
  /** What the role of the region's url may do. */
  readonly tier: Tier | null;
  /** Whether an agent of the region leads. */
  readonly agent: boolean | null;
  readonly tables: number | null;
  readonly conflicts: number | null;
  /** The same by table, those without any left out. */
  readonly conflicts_by_table: Readonly<Record<string, number>> | null;
  /** How those of late compare with `conflicts.alert`, where that is set. */
  readonly alert: ConflictAlert | null;
  readonly parked: number | null;
  /** Tables of a peer that pause here, or are being joined. */
  readonly paused: readonly Paused[] | null;
  readonly error: { readonly code: string; readonly message: string; readonly cure: string } | null;
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

/** What one region's database answered. */
interface Asked {
  readonly report: RegionReport;
  readonly links: LinkReport[];
  /** Undefined where that could not be asked. */
  readonly is?: ServerIdentity;
  /** Which servers its agent took itself and its peers for, by region. */
  readonly was?: ReadonlyMap<string, ServerIdentity>;
}

/** Asks every region's database. A region that does not answer is in the report, not an error. */
export async function makeReport(config: Config): Promise<Report> {
  const each = await Promise.all(config.regions.map((region) => reportRegion(config, region)));
  return {
    cluster: config.cluster,
    at: new Date().toISOString(),
    regions: await Promise.all(each.map((asked, index) => refused(asked, each, config.regions[index]!))),
    links: each.flatMap(({ links }) => links),
  };
}

/** The report of a region, as its peers see it too. */
async function refused({ report, is }: Asked, all: readonly Asked[], region: RegionConfig): Promise<RegionReport> {
  const followed = all.flatMap(({ was }) => was?.get(region.name) ?? []);
  if (!is || !followed.some((was) => strangeness(was, is) !== undefined)) return report;
  try {
    // Its peers were asked at the same time, and may have heard of what it wrote a moment later.
    const client = await connect(region.url, region.name, { purpose: 'status', timeoutMs: TIMEOUT_MS });
    const now = await readIdentity(client).finally(() => drop(client));
    for (const was of followed) {
      const why = strangeness(was, now);
      if (why !== undefined) throw stranger(region.name, why);
    }
    return report;
  } catch (thrown) {
    const { code, message, cure } = classify(thrown, region.name);
    return { ...report, state: code === 'peer_identity' ? 'refused' : 'unreachable', error: { code, message, cure } };
  }
}

async function reportRegion(config: Config, region: RegionConfig): Promise<Asked> {
  const unknown = {
    version: null,
    tier: null,
    agent: null,
    tables: null,
    conflicts: null,
    conflicts_by_table: null,
    alert: null,
    parked: null,
    paused: null,
  };
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
    const { code, message, cure } = classify(thrown, region.name);
    const report = {
      region: region.name,
      id: region.id,
      state: 'unreachable' as const,
      ...unknown,
      error: { code, message, cure },
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
        error: { code: missing.code, message: missing.message, cure: missing.cure },
      };
      return { report, links: links('missing') };
    }
    const { rows: counts } = await client.query(
      `with met as (select table_name, count(*)::float8 as times from coregent.conflict_record group by 1)
      select (select count(*) from coregent.tables)::int as tables,
        (select coalesce(sum(times), 0) from met) as conflicts,
        (select coalesce(jsonb_object_agg(table_name, times), '{}') from met) as conflicts_by_table,
        ${COUNT_PARKED} as parked,
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
    const is = await readIdentity(client);
    const was = new Map<string, ServerIdentity>();
    const known = await readKnown(client);
    if (known) was.set(region.name, { ...is, ...known });
    for (const peer of config.regions) {
      const followed = await readFollowed(client, slotName(config.cluster, peer.id, region.id));
      if (followed) was.set(peer.name, followed);
    }
    return {
      is,
      was,
      report: {
        region: region.name,
        id: region.id,
        state: 'ok',
        version: version[0].server_version,
        tier: await findTier(client),
        ...counts[0],
        alert: await readAlert(client, config.conflicts.alert),
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
    const { code, message, cure } = classify(thrown, region.name);
    const report = {
      region: region.name,
      id: region.id,
      state: 'unreachable' as const,
      ...unknown,
      error: { code, message, cure },
    };
    return { report, links: links('unknown') };
  } finally {
    await client.end().catch(() => {});
  }
}
