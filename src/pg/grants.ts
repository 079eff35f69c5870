import type { Tier } from '../model/api.ts';
import { ident } from '../quote.ts';
import { ORIGIN_FUNCTIONS } from './origin.ts';

/** What an administrator's grants are printed for. */
export interface Grantee {
  readonly role: string;
  readonly database: string;
  /** Owners of the tables to replicate. */
  readonly owners: readonly string[];
  /** Those of them that are superusers: whoever is a member of one may become one. */
  readonly mighty?: readonly string[];
  /** `server_version_num`. */
  readonly version: number;
  /** Whether the role is there already. */
  readonly exists: boolean;
}

/** Some of the grants, and what they are for. */
export interface GrantSection {
  /** The tier that they make; undefined for what every tier needs. */
  readonly tier: Tier | undefined;
  readonly why: string;
  readonly sql: readonly string[];
}

/**
 * What an administrator runs in the database of a region so that a role without further rights is enough: what every tier needs first,
 * then what makes tier B of C, then what makes A of B. A managed service may refuse the later ones; Coregent works without them.
 */
export function grantSections({ role, database, owners, mighty = [], version, exists }: Grantee): GrantSection[] {
  const to = ident(role);
  // As a setting of a role that an application logs in as too, it would keep the application's own rows from travelling.
  const shared = version < 150_000 && owners.includes(role);
  const parameter = (name: string): string => `grant set on parameter ${name} to ${to}`;
  return [
    {
      tier: undefined,
      why: 'needed: streams, slots, the schema coregent, and columns and triggers on the tables of their owner',
      sql: [
        exists
          ? `alter role ${to} login replication inherit`
          : `create role ${to} login replication password 'CHANGE ME'`,
        `grant connect, create on database ${ident(database)} to ${to}`,
        ...owners
          .filter((owner) => owner !== role && !mighty.includes(owner))
          .map((owner) => `grant ${ident(owner)} to ${to}`),
      ],
    },
    ...mighty.map((owner) => ({
      tier: undefined,
      why: `needed, and not granted: tables of the superuser ${ident(owner)} take another owner (alter table … owner to …), of which the role may be a member`,
      sql: [],
    })),
    {
      tier: undefined,
      why: 'good to have: lag in `coregent status`; in a deadlock apply gives way, not the application',
      sql: [`grant pg_read_all_stats to ${to}`, ...(version >= 150_000 ? [parameter('deadlock_timeout')] : [])],
    },
    {
      tier: 'B',
      why: shared
        ? `tier B takes a role of its own before PostgreSQL 15: ${to} owns tables, and what an application wrote as it would not travel`
        : 'tier B: applying fires neither your triggers nor your foreign keys',
      sql:
        version >= 150_000
          ? [parameter('session_replication_role')]
          : shared
            ? []
            : [`alter role ${to} in database ${ident(database)} set session_replication_role = replica`],
    },
    {
      tier: 'A',
      why: 'tier A: applied rows are marked, and not even sent on',
      sql: [
        `grant execute on function ${ORIGIN_FUNCTIONS.map((name) => `pg_catalog.${name}(text)`).join(', ')} to ${to}`,
      ],
    },
  ];
}

/** The sections that make `tier`, as one script with comments. */
export function grantsText(grantee: Grantee, tier: Tier = 'A'): string {
  return grantSections(grantee)
    .filter((section) => section.tier === undefined || section.tier >= tier)
    .map(({ why, sql }) => [`-- ${why}`, ...sql.map((statement) => `${statement};`)].join('\n'))
    .join('\n');
}
