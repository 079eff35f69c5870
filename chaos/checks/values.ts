import type { History, ValueWrite } from '../history.ts';
import { nameOf } from '../history.ts';
import { leavesOf, VALUES } from '../tables.ts';
import type { Asked, Verdict } from './verdict.ts';

/** By region and place, the value that is shown. */
async function shownIn(regions: readonly Asked[]): Promise<Map<string, Map<string, string>>> {
  const shown = new Map<string, Map<string, string>>();
  for (const { name, query } of regions) {
    const rows = new Map<string, string>();
    for (const [table, column] of Object.entries(VALUES)) {
      const found = await query(`select id::text, ${column} as value from ${table}`);
      for (const { id, value } of found.rows) {
        for (const [place, leaf] of leavesOf(id, value)) rows.set(nameOf(table, place), leaf);
      }
    }
    shown.set(name, rows);
  }
  return shown;
}

/** Values that stand in a row of a conflict record, of any region, as `table place value`. */
async function recordedIn(regions: readonly Asked[]): Promise<Set<string>> {
  const recorded = new Set<string>();
  for (const { query } of regions) {
    for (const [table, column] of Object.entries(VALUES)) {
      const { rows } = await query(
        `select key ->> 'id' as id, local_row -> $2 as l, incoming_row -> $2 as i from coregent.conflict_record
          where table_name = 'public.' || $1`,
        [table, column],
      );
      for (const { id, l, i } of rows) {
        for (const [place, leaf] of [...leavesOf(id, l), ...leavesOf(id, i)])
          recorded.add(`${nameOf(table, place)} ${leaf}`);
      }
    }
  }
  return recorded;
}

/**
 * INV-E: in rows that are joined part by part, every value that was written and acknowledged is there, was replaced or deleted by somebody
 * who saw it, or stands in a conflict record; one that was replaced is not there any more.
 */
export async function checkValues(regions: readonly Asked[], { values }: Pick<History, 'values'>): Promise<Verdict> {
  const shown = await shownIn(regions);
  const recorded = await recordedIn(regions);
  const violations: string[] = [];
  const cases = { 'there at the end': 0, 'replaced knowingly': 0, 'on record': 0 };
  const byRow = new Map<string, ValueWrite[]>();
  for (const write of values) {
    const row = nameOf(write.table, write.place);
    byRow.set(row, [...(byRow.get(row) ?? []), write]);
  }
  for (const [row, writes] of byRow) {
    const there = regions.map(({ name }) => shown.get(name)!.get(row));
    const seen = new Set(writes.map(({ saw }) => saw));
    const happened = ({ verdict, value }: ValueWrite): boolean =>
      verdict === 'ok' ||
      (value === null
        ? there.includes(undefined)
        : there.includes(value) || seen.has(value) || recorded.has(`${row} ${value}`));
    const all = writes.filter(happened);
    const replaced = new Map(all.filter(({ saw }) => saw !== null).map((write) => [write.saw, write]));
    for (const { value, region } of all) {
      if (value === null) continue;
      const by = replaced.get(value);
      for (const [index, { name }] of regions.entries()) {
        const isThere = there[index] === value;
        if (isThere && by?.verdict === 'ok') {
          violations.push(`${name}: ${row} shows ${value}, which ${by.value ?? 'a delete'} of ${by.region} replaced`);
        } else if (isThere) cases['there at the end']++;
        else if (by) cases['replaced knowingly']++;
        else if (recorded.has(`${row} ${value}`)) cases['on record']++;
        else violations.push(`${name}: ${value} of ${region} in ${row} vanished without a record`);
      }
    }
  }
  for (const [region, rows] of shown) {
    for (const [row, value] of rows) {
      const known = byRow.get(row)?.some((write) => write.value === value) ?? false;
      // What nobody wrote yet is empty.
      if (value !== '' && !known) violations.push(`${region}: ${row} shows ${value}, which nobody wrote`);
    }
  }
  return {
    name: 'INV-E',
    law: 'a value is there, was replaced by who saw it, or is on record',
    cases,
    violations,
  };
}
