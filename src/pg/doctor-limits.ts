import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import { ident } from '../quote.ts';
import { slotName } from './catalog.ts';
import { type Finding, type FindingCode, finding } from './findings.ts';
import type { ChangeSetting } from './service.ts';

/** What a server and a role may have at once, and what is left of it. Walsenders are no connections, but count for roles and databases. */
interface Limits {
  readonly version: number;
  readonly role: string;
  readonly database: string;
  readonly superuser: boolean;
  readonly slots_max: number;
  readonly slots_free: number;
  readonly slots: readonly string[];
  readonly senders_max: number;
  readonly senders_free: number;
  /** Of ours, in this database. */
  readonly senders_ours: number;
  readonly origins_max: number;
  readonly origins_free: number;
  readonly origins: readonly string[];
  readonly sessions_max: number;
  readonly sessions_free: number;
  /** Of ours, in this database, without this one. */
  readonly sessions_ours: number;
  /** Negative: none. */
  readonly role_max: number;
  readonly role_used: number;
  readonly database_max: number;
  readonly database_used: number;
}

const LIMITS = `
with sessions as (
  select a.usesysid, a.datid, a.application_name like 'coregent %' and a.datid = d.oid and a.pid <> pg_backend_pid() as ours,
    exists (select from pg_stat_replication w where w.pid = a.pid) as sends
  from pg_stat_activity a, pg_database d where a.usesysid is not null and d.datname = current_database()
)
select
  current_setting('server_version_num')::int as version, session_user as role, current_database() as database, r.rolsuper as superuser,
  current_setting('max_replication_slots')::int as slots_max,
  current_setting('max_replication_slots')::int - (select count(*) from pg_replication_slots)::int as slots_free,
  (select coalesce(json_agg(slot_name), '[]') from pg_replication_slots where database = current_database()) as slots,
  current_setting('max_wal_senders')::int as senders_max,
  current_setting('max_wal_senders')::int - (select count(*) from pg_stat_replication)::int as senders_free,
  (select count(*) from sessions where ours and sends)::int as senders_ours,
  o.most as origins_max, o.most - (select count(*) from pg_replication_origin)::int as origins_free,
  (select coalesce(json_agg(roname), '[]') from pg_replication_origin) as origins,
  current_setting('max_connections')::int as sessions_max,
  current_setting('max_connections')::int - (select count(*) from sessions where not sends)::int
    - case when r.rolsuper then 0 else current_setting('superuser_reserved_connections')::int
      + coalesce(current_setting('reserved_connections', true), '0')::int end as sessions_free,
  (select count(*) from sessions where ours and not sends)::int as sessions_ours,
  r.rolconnlimit as role_max, (select count(*) from sessions where usesysid = r.oid)::int as role_used,
  d.datconnlimit as database_max, (select count(*) from sessions where datid = d.oid)::int as database_used
from pg_roles r, pg_database d,
  (select coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int as most) o
where r.rolname = session_user and d.datname = current_database()`;

/** A setting is raised to this at least, so that nobody has to come back soon. */
const ENOUGH = 20;

/** Whether a region has what its own agent and those of the other regions take of it: slots, walsenders, origins and connections. */
export async function examineLimits(
  client: pg.Client,
  config: Config,
  region: RegionConfig,
  change: ChangeSetting,
): Promise<Finding[]> {
  const limits = (await client.query(LIMITS)).rows[0] as Limits;
  const here = region.name;
  const others = config.regions.filter((other) => other !== region);
  const found: Finding[] = [];
  const short = (code: FindingCode, object: string, needed: number, free: number, ...cure: string[]): void => {
    found.push(
      finding(
        code,
        here,
        object,
        `${needed} more ${needed === 1 ? 'is' : 'are'} needed, ${Math.max(0, free)} free`,
        ...cure,
      ),
    );
  };
  const raise = (name: string, most: number, by: number): string[] =>
    change(name, Math.max(ENOUGH, most + by), 'restart');

  const slots = others.filter(
    (puller) => !limits.slots.includes(slotName(config.cluster, region.id, puller.id)),
  ).length;
  const origins = others.filter(
    (peer) => !limits.origins.includes(slotName(config.cluster, peer.id, region.id)),
  ).length;
  const apart = limits.version >= 180_000;
  // Before 18 one setting is for both, and one statement has to be enough for both.
  const slotsLack = slots - limits.slots_free;
  const originsLack = origins - limits.origins_free;
  const lack = apart ? slotsLack : Math.max(slotsLack, originsLack);
  if (slotsLack > 0) {
    const name = 'max_replication_slots';
    short('slots_short', name, slots, limits.slots_free, ...raise(name, limits.slots_max, lack));
  }
  if (originsLack > 0) {
    const name = apart ? 'max_active_replication_origins' : 'max_replication_slots';
    const by = apart ? originsLack : lack;
    short('origins_short', name, origins, limits.origins_free, ...raise(name, limits.origins_max, by));
  }
  // One more each for `apply`.
  const senders = Math.max(0, others.length - limits.senders_ours) + 1;
  if (limits.senders_free < senders) {
    const by = senders - limits.senders_free;
    const name = 'max_wal_senders';
    short('walsenders_short', name, senders, limits.senders_free, ...raise(name, limits.senders_max, by));
  }

  // Its own agent: one, one that forgets deletes, and one for each peer. Each peer's: two that ask, and one that forgets deletes.
  const sessions = Math.max(0, 2 + 4 * others.length - limits.sessions_ours);
  if (limits.sessions_free < sessions) {
    const by = sessions - limits.sessions_free;
    const name = 'max_connections';
    short('connections_short', name, sessions, limits.sessions_free, ...raise(name, limits.sessions_max, by));
  }
  if (limits.superuser) return found;
  const all = sessions + Math.max(0, others.length - limits.senders_ours);
  const bounds = [
    ['role', limits.role, limits.role_max, limits.role_used],
    ['database', limits.database, limits.database_max, limits.database_used],
  ] as const;
  for (const [kind, name, most, used] of bounds) {
    if (most < 0 || most - used >= all) continue;
    const enough = Math.max(ENOUGH, used + all);
    short(
      'connections_short',
      `${kind} ${name}`,
      all,
      most - used,
      `alter ${kind} ${ident(name)} connection limit ${enough}`,
    );
  }
  return found;
}
