import type { Owner } from './owner.ts';

/** How a table settles writes of which neither had seen the other. */
export const TABLE_RULES = ['lww', 'fww', 'columns', 'siblings', 'custom'] as const;
export type TableRule = (typeof TABLE_RULES)[number];

/** How one column settles them, whatever its table's rule does with the others. */
export const COLUMN_RULES = ['counter', 'max', 'min', 'set', 'map', 'text'] as const;
export type ColumnRule = (typeof COLUMN_RULES)[number];

/** The whole rule of a table. Data: `resolve/` reads it twice, in memory and into SQL. */
export interface Rule {
  readonly conflict: TableRule;
  /** Columns with a rule of their own, by name. */
  readonly columns: Readonly<Record<string, ColumnRule>>;
  /** Of the rule `custom`: what decides, a SQL function's qualified name or a module's path. */
  readonly custom?: string;
  /** Of a module: the SHA-256 of its bytes, in hex; undefined where nobody has read it yet. */
  readonly hash?: string;
  /** Whose writes are taken at all. */
  readonly owner?: Owner;
}

/** The default. */
export const LWW: Rule = { conflict: 'lww', columns: {} };

/**
 * What a rule needs besides version and parent:
 * `rows`: nothing, the greater version is the row;
 * `registers`: each column, or group of columns, is joined by itself;
 * `versions`: concurrent versions of the row are kept side by side, under a version vector.
 */
export type Family = 'rows' | 'registers' | 'versions';

export function familyOf({ conflict, columns }: Rule): Family {
  if (conflict === 'columns' || (conflict === 'lww' && Object.keys(columns).length > 0)) return 'registers';
  return conflict === 'lww' ? 'rows' : 'versions';
}

/** Whether what decides is a module; else it is a SQL function. */
export function isModule(custom: string): boolean {
  return custom.startsWith('.');
}

/** The rule as the catalogs of all regions hold it; equal texts mean equal rules. */
export function ruleText(rule: Rule): string {
  const { conflict, columns, custom, hash, owner } = rule;
  const names = Object.keys(columns).sort();
  if (names.length === 0 && custom === undefined && owner === undefined) return conflict;
  return JSON.stringify({
    conflict,
    ...(names.length > 0 ? { columns: Object.fromEntries(names.map((name) => [name, columns[name]])) } : {}),
    ...(custom === undefined ? {} : { custom }),
    ...(hash === undefined ? {} : { hash }),
    ...(owner === undefined ? {} : { owner }),
  });
}

/** The same without the owner: rules with equal texts settle conflicts alike. */
export function settlingText({ owner: _, ...rule }: Rule): string {
  return ruleText(rule);
}

/** Reads what `ruleText` wrote. */
export function parseRule(text: string): Rule {
  const read = text.startsWith('{') ? JSON.parse(text) : { conflict: text };
  return { columns: {}, ...read };
}
