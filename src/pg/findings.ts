/** `blocker`: replication does not work, or regions will differ. `warning`: it works until something happens. `notice`: good to know. */
export type Severity = 'blocker' | 'warning' | 'notice';

interface FindingRow {
  readonly severity: Severity;
  readonly doc: string;
}

/** Everything that `coregent doctor` may find. Names are stable: scripts match on them. */
export const findings = {
  unreachable: { severity: 'blocker', doc: 'The region does not answer, or does not let the role in.' },
  pooler: {
    severity: 'blocker',
    doc: 'A pooler stands between: it carries no replication, and sessions lose their settings.',
  },
  standby: { severity: 'blocker', doc: 'The url names a standby; its primary is needed.' },
  replication_denied: { severity: 'blocker', doc: 'The role may log in, but not replicate.' },
  version_unsupported: { severity: 'blocker', doc: 'PostgreSQL is older than 14.' },
  version_untested: { severity: 'notice', doc: 'PostgreSQL is newer than what this version was tested with.' },
  version_loses: {
    severity: 'warning',
    doc: 'This minor version is known to lose or repeat changes; the next ones do not.',
  },
  wal_level: { severity: 'blocker', doc: '`wal_level` is not `logical`.' },
  slots_short: { severity: 'blocker', doc: 'Too few replication slots are free for the other regions.' },
  walsenders_short: { severity: 'blocker', doc: 'Too few walsenders are free for the other regions.' },
  origins_short: {
    severity: 'warning',
    doc: 'Too few replication origins are free; without one a link works as in tier B.',
  },
  connections_short: {
    severity: 'blocker',
    doc: 'Too few connections are free for the agents: of the server, of the database, or of the role.',
  },
  slot_lost: {
    severity: 'blocker',
    doc: 'PostgreSQL dropped WAL that a slot still needed; rows must be joined again.',
  },
  slot_near_limit: { severity: 'warning', doc: 'A slot has used up most of the WAL that it may keep.' },
  wal_unbounded: { severity: 'warning', doc: 'A region that is away makes this one keep WAL until its disk is full.' },
  wal_tight: { severity: 'warning', doc: 'Slots may keep so little WAL that a short break costs a join of all rows.' },
  sender_timeout: {
    severity: 'warning',
    doc: '`wal_sender_timeout` is off, or so short that a busy agent loses its stream.',
  },
  slot_timeout: { severity: 'warning', doc: 'PostgreSQL drops slots of a region that is away for a while.' },
  prepared_old: { severity: 'warning', doc: 'A prepared transaction is open for long: slots keep WAL for it.' },
  transaction_long: { severity: 'warning', doc: 'A transaction is open for long: slots keep WAL for it.' },
  clock_offset: { severity: 'blocker', doc: 'Two regions’ clocks differ by more than `clock.max_offset`; rows wait.' },
  clock_unusable: {
    severity: 'blocker',
    doc: 'A region’s clock says the year 3111 or later: no region takes what is written there.',
  },
  encoding: { severity: 'blocker', doc: 'The databases have different encodings.' },
  collation: {
    severity: 'warning',
    doc: 'The databases have different default collations: text keys may be equal in one only.',
  },
  collation_version: {
    severity: 'warning',
    doc: 'The operating system’s collation changed under the database’s indexes.',
  },
  tier: {
    severity: 'warning',
    doc: 'The role may not do all that makes applying cheapest: tier B or C, see privileges.md.',
  },
  schema_denied: { severity: 'blocker', doc: 'The role may not create the schema coregent.' },
  owner_missing: {
    severity: 'blocker',
    doc: 'The role is no member of the table’s owner: it can add neither columns nor triggers.',
  },
  unstamped: {
    severity: 'blocker',
    doc: '`session_replication_role` is `replica` where applications write: our triggers do not fire, and nothing of it travels.',
  },
  role_shared: {
    severity: 'warning',
    doc: 'The role writes in the replica role from its first moment on, and owns tables: an application that logs in as it writes rows that do not travel.',
  },
  stats_hidden: {
    severity: 'notice',
    doc: 'The role does not see other sessions: `status` shows no lag, doctor no long transactions.',
  },
  superuser: { severity: 'notice', doc: 'The role is a superuser, which is more than Coregent needs.' },
  rights_excess: { severity: 'notice', doc: 'The role may create roles or databases, which Coregent does not need.' },
  table_unfit: {
    severity: 'blocker',
    doc: 'A table cannot be replicated as it is; `apply` refuses it for the same reason.',
  },
  region_refused: {
    severity: 'blocker',
    doc: 'The database belongs to another region, another cluster or a later version, or a table has another key than it had; `apply` refuses it.',
  },
  no_tables: { severity: 'blocker', doc: 'The configuration names no table of the databases.' },
  triggers_gone: {
    severity: 'blocker',
    doc: 'Triggers of ours are gone or disabled: what is written to the table does not travel, or comes back after a delete.',
  },
  unpublished: {
    severity: 'blocker',
    doc: 'A table, or a part of it, was taken out of the publication coregent: what is written there does not travel. `apply` puts it back, and the other regions join its rows.',
  },
  apply_needed: {
    severity: 'warning',
    doc: 'A table is not as `apply` leaves it: it is new, or a partition or a DEFERRABLE constraint of it is, or it was made by another version.',
  },
  passed_over: {
    severity: 'notice',
    doc: 'A glob names something that is no ordinary table, or a partition is named: it is not replicated by itself.',
  },
  sequence_collides: {
    severity: 'warning',
    doc: 'Several regions number a key or a unique column by sequences that hand out the same numbers.',
  },
  generated_differs: {
    severity: 'warning',
    doc: 'A generated column is computed in another way in some region, so that one row shows other values there.',
  },
  large_objects: { severity: 'warning', doc: 'There are large objects, which do not travel.' },
  trigger_fires: { severity: 'warning', doc: 'A trigger of yours fires again where rows are applied.' },
  trigger_changes: {
    severity: 'blocker',
    doc: 'A BEFORE trigger of yours fires where rows are applied, and may change them: regions then differ.',
  },
  foreign_key_fires: {
    severity: 'notice',
    doc: 'A foreign key that is not deferrable is checked row by row where rows are applied.',
  },
  rule: {
    severity: 'warning',
    doc: 'A rule rewrites what is written to the table: it may hide writes from triggers, or do them twice. With one for UPDATE, even if it is disabled, PostgreSQL allows no `insert … on conflict`: the table pauses.',
  },
  rls_forced: {
    severity: 'blocker',
    doc: 'Row security holds for the table’s owner too, and so for applying and comparing.',
  },
  subscription: {
    severity: 'warning',
    doc: 'A native subscription writes the table: its rows are not stamped, and not replicated.',
  },
  publication: {
    severity: 'notice',
    doc: 'Another publication sends the table’s rows on, our two columns and applied rows included.',
  },
} as const satisfies Record<string, FindingRow>;

export type FindingCode = keyof typeof findings;

/** One thing that is not as it should be. */
export interface Finding {
  readonly code: FindingCode;
  readonly severity: Severity;
  /** Null for what concerns several. */
  readonly region: string | null;
  /** A table, slot, setting or role; null for the region as a whole. */
  readonly object: string | null;
  readonly message: string;
  /** SQL to run in that region (without a comment), or words where there is none. */
  readonly cure: readonly string[];
}

/** Makes a finding of the table's severity. */
export function finding(
  code: FindingCode,
  region: string | null,
  object: string | null,
  message: string,
  ...cure: string[]
): Finding {
  return { code, severity: findings[code].severity, region, object, message, cure };
}
