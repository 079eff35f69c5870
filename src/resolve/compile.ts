import { type Family, familyOf } from '../model/rule.ts';
import type { Table } from '../model/table.ts';
import { compileRegisters } from './compile-registers.ts';
import { compileVersions } from './compile-versions.ts';
import type { Compiled } from './compiled.ts';
import { compileRows } from './rows.ts';

const FAMILIES: Readonly<Record<Family, (table: Table) => Compiled>> = {
  rows: compileRows,
  registers: compileRegisters,
  versions: compileVersions,
};

/** Compiles the statements for one table as this region has it, by its rule. */
export function compile(table: Table): Compiled {
  return FAMILIES[familyOf(table.rule)](table);
}
