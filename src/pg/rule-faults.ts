import type { ColumnRule, Rule } from '../model/rule.ts';
import { type Column, tableLabel } from '../model/table.ts';
import type { FoundTable } from './catalog.ts';

/** Types of PostgreSQL's own without an order. */
const UNORDERED = /^(json|xml|point|line|lseg|box|path|polygon|circle|pg_\w+|aclitem|xid|cid)(\[\])*$/;

/** What a column must be for its rule, and whether it is. */
const NEEDS: Readonly<Partial<Record<ColumnRule, { readonly what: string; fits(column: Column): boolean }>>> = {
  counter: {
    what: 'smallint, integer, bigint or numeric',
    fits: ({ type }) => /^(smallint|integer|bigint|numeric(\(.*\))?)$/.test(type),
  },
  text: { what: 'bytea', fits: ({ type }) => type === 'bytea' },
  set: { what: 'an array', fits: ({ type }) => type.endsWith('[]') },
  map: { what: 'jsonb', fits: ({ type }) => type === 'jsonb' },
  max: { what: 'of a type with an order', fits: ({ type }) => !UNORDERED.test(type) },
  min: { what: 'of a type with an order', fits: ({ type }) => !UNORDERED.test(type) },
};

/** Why a table cannot have its rule, and the cure; undefined when it can. */
export function ruleFault(
  table: FoundTable,
  rule: Rule,
): { readonly message: string; readonly cure: string } | undefined {
  const label = tableLabel(table);
  for (const [name, columnRule] of Object.entries(rule.columns)) {
    const column = table.columns.find((each) => each.name === name);
    const where = `tables.${label}.columns.${name}`;
    if (!column) {
      return { message: `has no column ${name}, which has the rule ${columnRule}`, cure: `Correct ${where}.` };
    }
    if (table.key.includes(name)) {
      return {
        message: `has ${name} in its primary key, which has the rule ${columnRule}: keys say which rows are one`,
        cure: `Leave ${where} out.`,
      };
    }
    const needs = NEEDS[columnRule];
    if (needs && !needs.fits(column)) {
      return {
        message: `has the column ${name} as ${column.type}; the rule ${columnRule} is for what is ${needs.what}`,
        cure: `Correct ${where}, or change the column's type.`,
      };
    }
  }
  if (Object.keys(rule.columns).length > 0 && rule.conflict !== 'lww' && rule.conflict !== 'columns') {
    return {
      message: `has rules for columns beside the rule ${rule.conflict}, which keeps whole rows`,
      cure: `Let tables.${label}.conflict be lww or columns, or leave its columns out.`,
    };
  }
  return undefined;
}
