import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import { type CoregentError, classify } from '../model/error.ts';
import { ident, literal } from '../quote.ts';
import { loginOf } from '../url.ts';
import { findTier, TIERS } from './applier.ts';
import { slotName } from './catalog.ts';
import { examineLimits } from './doctor-limits.ts';
import { type Finding, finding } from './findings.ts';
import { type Grantee, grantSections } from './grants.ts';
import { faultsOf, NEWEST_MAJOR, OLDEST_MAJOR } from './releases.ts';
import { type ChangeSetting, settingsOf } from './service.ts';
import { tryStream, WAL_LEVEL } from './streamable.ts';

/** Slots that may keep less than this survive no longer break, in MB. */
const TIGHT_MB = 1_024;
/** A slot with less of its budget left is told of. */
const NEAR = 0.2;
const ROOMY_MB = 50 * 1_024;
const SHORTEST_SENDER_TIMEOUT_MS = 10_000;
const USUAL_SENDER_TIMEOUT_MS = 60_000;

/** What is asked of a server, in one query. */
interface Facts {
  readonly version: number;
  readonly version_text: string;
  readonly standby: boolean;
  readonly wal_level: string;
  readonly keep_mb: number;
  readonly sender_timeout_ms: number;
  readonly slot_timeout_s: number;
  readonly database: string;
  readonly role: string;
  readonly superuser: boolean;
  readonly excess: readonly string[];
  readonly may_create: boolean;
  readonly sees_stats: boolean;
  readonly owns_tables: boolean;
  readonly installed: boolean;
  readonly slots: readonly { name: string; lost: boolean; safe: number | null }[];
}

function ownsTables(role: 'r.oid' | 's.setrole'): string {
  return `exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relowner = ${role} and c.relkind in ('r', 'p')
    and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'coregent'))`;
}

const FACTS = `
select
  current_setting('server_version_num')::int as version,
  current_setting('server_version') as version_text,
  pg_is_in_recovery() as standby,
  ${WAL_LEVEL},
  (select setting::int from pg_settings where name = 'max_slot_wal_keep_size') as keep_mb,
  (select setting::int from pg_settings where name = 'wal_sender_timeout') as sender_timeout_ms,
  coalesce((select setting::int from pg_settings where name = 'idle_replication_slot_timeout'), 0) as slot_timeout_s,
  current_database() as database,
  session_user as role,
  r.rolsuper as superuser,
  array_remove(array[case when r.rolcreaterole then 'createrole' end, case when r.rolcreatedb then 'createdb' end], null) as excess,
  has_database_privilege(current_database(), 'create') as may_create,
  pg_has_role('pg_read_all_stats', 'usage') as sees_stats,
  ${ownsTables('r.oid')} as owns_tables,
  to_regnamespace('coregent') is not null as installed,
  (select coalesce(json_agg(json_build_object('name', slot_name, 'lost', wal_status = 'lost', 'safe', safe_wal_size)), '[]')
    from pg_replication_slots where database = current_database()) as slots
from pg_roles r where r.rolname = session_user`;

/** The role of a session, as the printed grants need it. */
export async function granteeOf(client: pg.Client, owners: readonly string[]): Promise<Grantee> {
  const { rows } = await client.query(
    `select session_user as role, current_database() as database, current_setting('server_version_num')::int as version`,
  );
  return { ...rows[0], owners, exists: true };
}

/** What a region's server and its role leave to be desired. `patienceMs`: how long a transaction may be open. */
export async function examineServer(
  client: pg.Client,
  config: Config,
  region: RegionConfig,
  patienceMs: number,
): Promise<Finding[]> {
  const { rows } = await client.query(FACTS);
  const facts = rows[0] as Facts;
  const here = region.name;
  const change = await settingsOf(client);
  if (facts.standby) return [finding('standby', here, null, 'is a standby', 'Let the url name the primary.')];
  return [
    ...versionFindings(facts.version, facts.version_text, here),
    ...(await ofStream(client, region)),
    ...ofSettings(facts, config, region, change),
    ...(await examineLimits(client, config, region, change)),
    ...ofSlots(facts, config, region, change),
    ...(await ofRole(client, facts, here)),
    ...(await ofUnstamped(client, facts, region)),
    ...(await ofTransactions(client, here, patienceMs)),
    ...(await ofCollation(client, facts, here)),
  ];
}

/** What is wrong with a release. `version`: `server_version_num`. */
export function versionFindings(version: number, text: string, here: string): Finding[] {
  const major = Math.floor(version / 10_000);
  if (major < OLDEST_MAJOR) {
    return [
      finding(
        'version_unsupported',
        here,
        `PostgreSQL ${text}`,
        `is older than ${OLDEST_MAJOR}`,
        `Upgrade to PostgreSQL ${OLDEST_MAJOR} or later.`,
      ),
    ];
  }
  const faults = faultsOf(version);
  const found: Finding[] = [];
  if (faults) {
    found.push(
      finding(
        'version_loses',
        here,
        `PostgreSQL ${text}`,
        faults.whys.join('; '),
        `Upgrade to ${major}.${faults.fixed} or later; a restart with the new binaries is all.`,
      ),
    );
  }
  if (major > NEWEST_MAJOR) {
    found.push(
      finding(
        'version_untested',
        here,
        `PostgreSQL ${text}`,
        `is newer than ${NEWEST_MAJOR}`,
        'Look for a newer version of Coregent.',
      ),
    );
  }
  return found;
}

/** Whether replication connections get through, by opening one. */
async function ofStream(client: pg.Client, region: RegionConfig): Promise<Finding[]> {
  const here = region.name;
  const { rows } = await client.query(
    `select pg_backend_pid() as pid, current_setting('search_path') as path, session_user as role`,
  );
  const cure = 'Let the url reach PostgreSQL itself: host and port of the server, not those of the pooler.';
  // A pooler hands out a number of its own as the session's.
  if (
    rows[0].pid !== (client as unknown as { processID: number }).processID ||
    rows[0].path !== 'pg_catalog, pg_temp'
  ) {
    return [finding('pooler', here, null, 'the session is not the server’s own: a pooler stands between', cure)];
  }
  try {
    await tryStream(region, 'doctor');
    return [];
  } catch (thrown) {
    const { code, message } = classify(thrown, here);
    if (code === 'peer_protocol') return [finding('pooler', here, null, message, cure)];
    if (code === 'peer_busy') return []; // No walsender is free, which is a finding of its own.
    const role = ident(rows[0].role);
    return [
      finding(
        'replication_denied',
        here,
        rows[0].role,
        message,
        code === 'peer_denied' ? 'Let pg_hba.conf admit the role to the database.' : `alter role ${role} replication`,
      ),
    ];
  }
}

function ofSettings(facts: Facts, config: Config, region: RegionConfig, change: ChangeSetting): Finding[] {
  const here = region.name;
  const found: Finding[] = [];
  if (facts.wal_level !== 'logical') {
    found.push(
      finding('wal_level', here, 'wal_level', `is ${facts.wal_level}`, ...change('wal_level', 'logical', 'restart')),
    );
  }
  const instead = change('max_slot_wal_keep_size', ROOMY_MB, 'reload');
  if (facts.keep_mb < 0 && config.slots.maxWalBytes === undefined) {
    found.push(
      finding(
        'wal_unbounded',
        here,
        'slots.max_wal',
        'is not set, and neither is max_slot_wal_keep_size',
        `Set \`slots: { max_wal: 50GB }\` in ${config.path}, below the free space of the disk, and start the agents again${instead.length > 0 ? '; or:' : '.'}`,
        ...instead,
      ),
    );
  } else if (facts.keep_mb >= 0 && facts.keep_mb < TIGHT_MB) {
    found.push(finding('wal_tight', here, 'max_slot_wal_keep_size', `is ${facts.keep_mb} MB`, ...instead));
  }
  if (facts.sender_timeout_ms < SHORTEST_SENDER_TIMEOUT_MS) {
    const is =
      facts.sender_timeout_ms === 0 ? 'is 0: a dead agent’s slot stays busy' : `is ${facts.sender_timeout_ms} ms`;
    found.push(
      finding(
        'sender_timeout',
        here,
        'wal_sender_timeout',
        is,
        ...change('wal_sender_timeout', USUAL_SENDER_TIMEOUT_MS, 'reload'),
      ),
    );
  }
  if (facts.slot_timeout_s > 0) {
    found.push(
      finding(
        'slot_timeout',
        here,
        'idle_replication_slot_timeout',
        'is on',
        ...change('idle_replication_slot_timeout', 0, 'reload'),
      ),
    );
  }
  return found;
}

function ofSlots(facts: Facts, config: Config, region: RegionConfig, change: ChangeSetting): Finding[] {
  const names = config.regions.map((puller) => slotName(config.cluster, region.id, puller.id));
  return facts.slots.flatMap(({ name, lost, safe }) => {
    if (!names.includes(name)) return [];
    if (lost)
      return [
        finding(
          'slot_lost',
          region.name,
          name,
          'its WAL is gone',
          'Start the agent that reads it: it makes the slot anew and joins the rows. So does `coregent apply`.',
        ),
      ];
    if (safe === null || facts.keep_mb <= 0 || safe > facts.keep_mb * 2 ** 20 * NEAR) return [];
    return [
      finding(
        'slot_near_limit',
        region.name,
        name,
        `${Math.max(0, Math.round(safe / 2 ** 20))} MB are left of ${facts.keep_mb} MB`,
        'Start the agent that reads it, or give slots more:',
        ...change('max_slot_wal_keep_size', facts.keep_mb * 4, 'reload'),
      ),
    ];
  });
}

async function ofRole(client: pg.Client, facts: Facts, here: string): Promise<Finding[]> {
  const { role } = facts;
  const found: Finding[] = [];
  if (facts.superuser)
    found.push(
      finding('superuser', here, role, 'is a superuser', 'Make a role of its own: `coregent doctor --grants`.'),
    );
  else if (facts.excess.length > 0) {
    found.push(
      finding(
        'rights_excess',
        here,
        role,
        `has ${facts.excess.join(' and ')}`,
        `alter role ${ident(role)} ${facts.excess.map((each) => `no${each}`).join(' ')}`,
      ),
    );
  }
  if (!facts.may_create && !facts.installed) {
    found.push(
      finding(
        'schema_denied',
        here,
        facts.database,
        `${role} may not create a schema`,
        `grant create on database ${ident(facts.database)} to ${ident(role)}`,
      ),
    );
  }
  if (!facts.sees_stats) {
    found.push(
      finding('stats_hidden', here, role, 'does not see other sessions', `grant pg_read_all_stats to ${ident(role)}`),
    );
  }
  const tier = await findTier(client);
  if (tier !== 'A') {
    const sections = grantSections(await granteeOf(client, facts.owns_tables ? [role] : []));
    const better = sections.filter((section) => section.tier === 'A' || (tier === 'C' && section.tier === 'B'));
    found.push(finding('tier', here, role, `tier ${tier}: ${TIERS[tier]}`, ...better.flatMap(({ sql }) => sql)));
  }
  return found;
}

/**
 * Sessions that begin in the replica role: what they write is not stamped, and so nobody else's. Of the roles that peers and the
 * region's own agent connect as it is right.
 */
async function ofUnstamped(client: pg.Client, facts: Facts, region: RegionConfig): Promise<Finding[]> {
  const here = region.name;
  const ours = [facts.role, loginOf(region.localUrl.reveal()).role];
  const { rows: set } = await client.query(
    `select case when s.setrole <> 0 then pg_get_userbyid(s.setrole) end as role, d.datname as database, ${ownsTables('s.setrole')} as owns
      from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase
      where (s.setdatabase = 0 or d.datname = current_database())
      and exists (select from unnest(s.setconfig) as each where lower(each) = 'session_replication_role=replica') order by 1, 2`,
  );
  const { rows: server } = await client.query(
    `select from pg_settings where name = 'session_replication_role' and setting = 'replica' and source in ('configuration file', 'command line')`,
  );
  const SETTING = 'session_replication_role';
  const found = set.map(({ role: of, database, owns }): Finding | undefined => {
    const within = database === null ? '' : ` in database ${ident(database)}`;
    const reset =
      of === null && database !== null
        ? `alter database ${ident(database)} reset ${SETTING}`
        : `alter role ${of === null ? 'all' : ident(of)}${within} reset ${SETTING}`;
    if (!ours.includes(of)) {
      const who = of === null ? 'every role' : `the role ${of}`;
      return finding('unstamped', here, SETTING, `is replica for ${who}: what it writes does not travel`, reset);
    }
    if (!owns) return undefined;
    const message = `is replica for the role ${of}, which owns tables: what an application writes as that role does not travel`;
    return finding(
      'role_shared',
      here,
      SETTING,
      message,
      'Make a role of its own: `coregent doctor --grants --role …`.',
    );
  });
  if (server.length > 0) {
    const message = 'is replica for the whole server: nothing that is written travels';
    const cure = (await settingsOf(client))(SETTING, 'origin', 'reload');
    found.push(finding('unstamped', here, SETTING, message, ...cure));
  }
  return found.filter((each) => each !== undefined);
}

async function ofTransactions(client: pg.Client, here: string, patienceMs: number): Promise<Finding[]> {
  const { rows: prepared } = await client.query(
    `select gid, owner, prepared::text as since from pg_prepared_xacts
      where database = current_database() and prepared <= clock_timestamp() - $1::float8 * interval '1 ms' order by prepared`,
    [patienceMs],
  );
  const { rows: open } = await client.query(
    `select pid, state, usename as role, xact_start::text as since from pg_stat_activity
      where backend_type = 'client backend' and pid <> pg_backend_pid() and xact_start <= clock_timestamp() - $1::float8 * interval '1 ms'
      and application_name not like 'coregent %' order by xact_start`,
    [patienceMs],
  );
  return [
    ...prepared.map(({ gid, owner, since }) =>
      finding('prepared_old', here, gid, `of ${owner}, prepared at ${since}`, `rollback prepared ${literal(gid)}`),
    ),
    ...open.map(({ pid, state, role, since }) =>
      finding(
        'transaction_long',
        here,
        `session ${pid}`,
        `of ${role}, ${state}, began at ${since}`,
        `select pg_terminate_backend(${pid})`,
      ),
    ),
  ];
}

async function ofCollation(client: pg.Client, { version, database }: Facts, here: string): Promise<Finding[]> {
  if (version < 150_000) return [];
  const { rows } = await client.query(
    `select datcollversion as was, pg_database_collation_actual_version(oid) as is from pg_database where datname = current_database()`,
  );
  const { was, is } = rows[0];
  if (was === null || is === null || was === is) return [];
  return [
    finding(
      'collation_version',
      here,
      database,
      `indexes were made under version ${was}, the system has ${is}`,
      `reindex database ${ident(database)}`,
      `alter database ${ident(database)} refresh collation version`,
    ),
  ];
}

/** A region that could not be asked, as a finding. `door`: it did not even let the role in. */
export function unreachable(error: CoregentError, { name: here, url }: RegionConfig, door: boolean): Finding {
  const { role, database } = loginOf(url.reveal());
  if (door && error.code === 'privilege_missing' && role && database) {
    return finding(
      'unreachable',
      here,
      null,
      error.message,
      `grant connect on database ${ident(database)} to ${ident(role)}`,
    );
  }
  if (error.code === 'peer_protocol') {
    return finding('pooler', here, null, error.message, 'Let the url reach PostgreSQL itself, not the pooler.');
  }
  return finding('unreachable', here, null, `${error.message} (${error.code})`, error.cure);
}
