/** The version of the JSON shapes below; it rises when a field changes its meaning or goes away. */
export const SCHEMA_VERSION = 1;

/** The port of an agent's HTTP API when none is named. */
export const DEFAULT_PORT = 7420;

/** `starting`: not connected yet. `standby`: another agent of the region leads. `active`: applies. */
export type AgentState = 'starting' | 'standby' | 'active' | 'stopping';

/** `waiting`: between two attempts. `failed`: needs a person. */
export type PeerState = 'connecting' | 'copying' | 'streaming' | 'waiting' | 'failed' | 'stopped';

/**
 * What an agent's role may do. `A`: applied rows carry a replication origin, nothing of the application's fires on apply.
 * `B`: no origins. `C`: neither, so triggers and foreign keys fire on apply.
 */
export type Tier = 'A' | 'B' | 'C';

/** Why a link last failed. */
export interface LastError {
  /** A code of the table in `error.ts`. */
  readonly code: string;
  /** Redacted text. */
  readonly message: string;
  /** ISO 8601, UTC. */
  readonly at: string;
}

/** A table of a peer that is not followed: it differs in the two regions, or rows of it came and went unseen. */
export interface PausedTable {
  readonly table: string;
  /** `joining`: both regions have it alike, it is followed again, and what was missed is being copied. */
  readonly state: 'paused' | 'joining';
  readonly reason: string;
  /** ISO 8601, UTC. */
  readonly since: string;
  /** Rows copied so far. */
  readonly rows: number;
}

/** One peer as this agent sees it. Null means not known yet. LSNs are texts like `16/B374D848`, times ISO 8601 in UTC. */
export interface PeerStatus {
  readonly region: string;
  readonly id: number;
  readonly state: PeerState;
  /** Since when the state holds. */
  readonly since: string;
  /** The end of WAL that has arrived here. */
  readonly received_lsn: string | null;
  /** The end of WAL that is committed here, perhaps not flushed. */
  readonly applied_lsn: string | null;
  /** The end of WAL that survives a crash here, and is confirmed to the peer. */
  readonly durable_lsn: string | null;
  readonly lag_bytes: number | null;
  /** Age of the oldest change that waits here or, while the link is down, may be missing; 0 when nothing does. */
  readonly lag_ms: number | null;
  /** Rows applied a second, over the last few seconds. */
  readonly rows_per_second: number;
  /** How far the peer's clock runs ahead of this region's; negative when behind. */
  readonly clock_offset_ms: number | null;
  /** Totals since the agent started. */
  readonly transactions: number;
  readonly rows: number;
  readonly conflicts: number;
  readonly paused: readonly PausedTable[];
  readonly last_error: LastError | null;
}

/** How the conflicts recorded of late compare with `conflicts.alert`. */
export interface ConflictAlert {
  /** As it stands in the file: `10/min`. */
  readonly limit: string;
  /** Recorded within that time. */
  readonly recent: number;
  readonly exceeded: boolean;
}

/** `GET /v1/status`. */
export interface AgentStatus {
  readonly schema_version: typeof SCHEMA_VERSION;
  readonly cluster: string;
  readonly region: string;
  readonly id: number;
  readonly state: AgentState;
  /** Since when the state holds. */
  readonly since: string;
  /** Version text of the region's PostgreSQL, such as `18.4`; null while it is not reachable. */
  readonly database: { readonly version: string | null };
  /** Null while nothing was applied yet. */
  readonly tier: Tier | null;
  readonly peers: readonly PeerStatus[];
  /** Conflicts recorded in this region since the agent started. */
  readonly conflicts: { readonly total: number; readonly alert: ConflictAlert | null };
  /** Rows that could not be applied and wait with their error. */
  readonly parked: number;
}

/** One check of `GET /readyz`. */
export interface ReadyCheck {
  readonly name: string;
  readonly ok: boolean;
  readonly detail: string;
  /** It only informs: whether the region is ready does not hang on it. */
  readonly informs?: true;
}

/** `GET /readyz`: the failing checks, or all with `?verbose`. */
export interface Readiness {
  readonly schema_version: typeof SCHEMA_VERSION;
  readonly ready: boolean;
  readonly checks: readonly ReadyCheck[];
}

/** `GET /v1/conflicts`. */
export interface ConflictPage {
  readonly schema_version: typeof SCHEMA_VERSION;
  readonly conflicts: readonly unknown[];
}

/** Every error answer of the API, as RFC 9457 has it; `code` is of the table in `error.ts` or an HTTP word. */
export interface Problem {
  readonly type: 'about:blank';
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly code: string;
}
