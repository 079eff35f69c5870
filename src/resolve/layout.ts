import type { ColumnRule } from '../model/rule.ts';
import { type Column, OURS, type Table } from '../model/table.ts';

/** Columns that are written together: one register of a row. */
export interface RegisterColumns {
  readonly name: string;
  readonly columns: readonly Column[];
}

/** What a table's rows are joined by, part by part: its columns by their rule. */
export interface Layout {
  readonly registers: readonly RegisterColumns[];
  readonly counters: readonly Column[];
  readonly sets: readonly Column[];
  readonly maps: readonly Column[];
  /** With `most`: the greater value stays; else the smaller. */
  readonly bounds: readonly { readonly column: Column; readonly most: boolean }[];
  /** Registers that keep what was written at once, to show it merged. */
  readonly texts: readonly Column[];
}

/** The register of all columns that have no rule of their own, where the table's rule is not `columns`. */
export const REST = '*';

/** Bounds of the integer types: a counter whose sum is beyond them shows the bound. */
export const INTEGERS: Readonly<Record<string, readonly [string, string]>> = {
  smallint: ['-32768', '32767'],
  integer: ['-2147483648', '2147483647'],
  bigint: ['-9223372036854775808', '9223372036854775807'],
};

/** A table's parts. Keys whose equal values have equal bytes are in none: they never differ. */
export function layoutOf(table: Table): Layout {
  const { conflict, columns: rules } = table.rule;
  const columns = table.columns.filter(
    ({ name }) => !OURS.includes(name) && !(table.exactKey && table.key.includes(name)),
  );
  const ruled = (rule: ColumnRule): readonly Column[] => columns.filter(({ name }) => rules[name] === rule);
  const plain = columns.filter(({ name }) => rules[name] === undefined);
  return {
    registers:
      conflict === 'columns'
        ? plain.map((column) => ({ name: column.name, columns: [column] }))
        : plain.length > 0
          ? [{ name: REST, columns: plain }]
          : [],
    counters: ruled('counter'),
    sets: ruled('set'),
    maps: ruled('map'),
    bounds: [
      ...ruled('max').map((column) => ({ column, most: true })),
      ...ruled('min').map((column) => ({ column, most: false })),
    ],
    texts: ruled('text'),
  };
}

/** Types of PostgreSQL's own that are equal, by an operator that is faster than a look at bytes, only where their bytes are. */
const COMPARED =
  /^(smallint|integer|bigint|boolean|uuid|date|text|numeric\(\d+,\d+\)|character( varying)?\(\d+\)|character varying|timestamp( \S+)? with(out)? time zone)$/;

/** Whether a column's equal values have equal bytes. */
export function isExact({ type, collation }: Column): boolean {
  return COMPARED.test(type) && collation === '';
}
