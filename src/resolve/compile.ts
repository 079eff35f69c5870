import { familyOf, LWW, ruleText } from '../model/rule.ts';
import { type Table, tableLabel } from '../model/table.ts';
import { compileVersions } from './compile-versions.ts';
import type { Compiled } from './compiled.ts';
import { compileRows } from './rows.ts';

/** Compiles the statements for one table as this region has it, by its rule. */
export function compile(table: Table): Compiled {
  const rule = table.rule ?? LWW;
  const family = familyOf(rule);
  if (family === 'rows') return compileRows(table);
  if (family === 'versions') return compileVersions(table);
  throw new Error(`${tableLabel(table)} has the rule ${ruleText(rule)}, which is not carried out`);
}
