import { createHash } from 'node:crypto';
import type { Rule } from './rule.ts';

/** One column that travels between regions. Generated columns do not. */
export interface Column {
  readonly name: string;
  /** The type's OID in this region. */
  readonly oid: number;
  /** The type as PostgreSQL prints it, with its modifier: `numeric(12,2)`. */
  readonly type: string;
  /** The collation as quoted SQL where it is not the type's own; empty otherwise. */
  readonly collation: string;
  /** `GENERATED ALWAYS AS IDENTITY`: can be inserted, not updated. */
  readonly identityAlways: boolean;
  /** The type has no binary form: its values travel as text, and are staged so. */
  readonly asText?: true;
  /** It is `json`, or made of it. */
  readonly holdsJson?: true;
}

/** A replicated table as one region has it. */
export interface Table {
  /** The relation's OID in this region. */
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** Application columns in this region's order, and {@link STATE} where the rule needs one. */
  readonly columns: readonly Column[];
  /** Names of the primary key's columns, in key order. */
  readonly key: readonly string[];
  /** For each of them, the equality that its index goes by, as SQL: `operator(pg_catalog.=)`. */
  readonly keyEquals: readonly string[];
  /**
   * Whether equal keys always have equal bytes (integers, uuid, text under a deterministic collation, …).
   * Where they may differ (`numeric` 1.0 and 1.00) the database, not the agent, must decide which rows are one.
   */
  readonly exactKey: boolean;
  /** How it settles concurrent writes. */
  readonly rule: Rule;
}

/** The version of the write that a row shows. */
export const VERSION = '_coregent_version';
/** The version that this write replaced. */
export const PARENT = '_coregent_parent';
/** What a rule needs besides (see `familyOf`), as `jsonb`; null: just what the row's last write makes of it. */
export const STATE = '_coregent_state';
/** Only in flight: the version that the first of several collapsed writes replaced. */
export const FIRST = '_coregent_first';

/** Our columns of a replicated table, which are not the application's. */
export const OURS: readonly string[] = [VERSION, PARENT, STATE];

/** A short stable name for a table, equal in every region; safe where identifiers are limited to 63 bytes. */
export function tableId(table: { readonly schema: string; readonly name: string }): string {
  return createHash('sha256').update(`${table.schema}\0${table.name}`).digest('hex').slice(0, 16);
}

/** What names of tables of tombstones begin with. */
export const TOMBSTONES = 'tomb_';

/** The table in schema `coregent` that remembers this table's deletes. */
export function tombstoneName(table: { readonly schema: string; readonly name: string }): string {
  return `${TOMBSTONES}${tableId(table)}`;
}

/**
 * The sequence in schema `coregent` that has a value once the table had a tombstone.
 * Whoever inserts asks it first: reading a sequence costs a tenth of looking into a table, and is never a snapshot late.
 */
export function deletesName(table: { readonly schema: string; readonly name: string }): string {
  return `deletes_${tableId(table)}`;
}

/** How people write a table's name: `public.orders`. Not quoted, never part of SQL. */
export function tableLabel(table: { readonly schema: string; readonly name: string }): string {
  return `${table.schema}.${table.name}`;
}
