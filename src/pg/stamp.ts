import { familyOf } from '../model/rule.ts';
import { type Table, VERSION } from '../model/table.ts';
import { ident } from '../quote.ts';
import { stampRegisters } from './stamp-registers.ts';

/**
 * What a rule adds to the stamping functions, as plpgsql and SQL that asks no `search_path`. Its statements come behind the version
 * and the parent, which they find in `new`; the rows are `old` and `new`, an older tombstone is `x`, the one in its place `excluded`.
 */
export interface RuleStamp {
  /** Settings that what is written down as text depends on, as further options of the functions; empty where nothing does. */
  readonly settings: string;
  /** Further variables. */
  readonly declare: string;
  readonly inserted: string;
  readonly updated: string;
  /** The parent of a write that replaces this row. */
  parent(row: string): string;
  /** Of a tombstone: its columns besides key, version and parent, each with its value for the row that is deleted. */
  buried(row: string): Readonly<Record<string, string>>;
  /** The values of these where an older tombstone is there. */
  readonly buriedAgain: Readonly<Record<string, string>>;
  /** Whether the tombstone of version `buried` ends the row that was just written. */
  readonly late: string;
}

/** Whole rows have nothing but version and parent. */
const ROWS: RuleStamp = {
  settings: '',
  declare: '',
  inserted: '',
  updated: '',
  parent: (row) => `${row}.${ident(VERSION)}`,
  buried: () => ({}),
  buriedAgain: {},
  late: `buried operator(pg_catalog.>=) new.${ident(VERSION)}`,
};

/** What the table's rule adds for this region. `groups`: columns that share a constraint. */
export function ruleStamp(table: Table, region: number, groups: readonly (readonly string[])[]): RuleStamp {
  return familyOf(table.rule) === 'registers' ? stampRegisters(table, region, groups) : ROWS;
}
