import { type Column, OURS, PARENT, STATE, type Table, tableId, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { INTEGERS, isExact, type Layout, layoutOf, REST, type RegisterColumns } from '../resolve/layout.ts';
import { MERGED, REPLACED_MERGED } from '../resolve/registers.ts';
import type { RuleStamp } from './stamp.ts';

const op = (name: string): string => `operator(pg_catalog.${name})`;
const EMPTY = `'{}'::pg_catalog.jsonb`;
const version = ident(VERSION);
const parent = ident(PARENT);
const state = ident(STATE);

/** Arrays of types whose text is the same whatever a session has set. */
const PLAIN = /^(smallint|integer|bigint|numeric(\(.*\))?|text|character varying(\(\d+\))?|uuid|boolean)\[\]$/;
/** The settings under which our own sessions read and write texts. */
const SETTINGS = ` set datestyle = 'ISO, YMD' set intervalstyle = postgres set timezone = 'UTC' set extra_float_digits = 3 set bytea_output = hex set lc_monetary = 'C' set xmloption = content`;

const object = (pairs: readonly (readonly [string, string])[]): string =>
  `pg_catalog.jsonb_build_object(${pairs.map(([key, value]) => `${key}, ${value}`).join(', ')})`;
const regionOf = (of: string): string => `(${of} ${op('&')} 127)::pg_catalog.text`;

/**
 * How rows that are joined part by part are stamped: `resolve/registers.ts` read into triggers. An insert leaves the state null,
 * since it says nothing that the row does not; an update compares the row with what it was.
 */
export function stampRegisters(table: Table, region: number, groups: readonly (readonly string[])[]): RuleStamp {
  const parts = layoutOf(table);
  const replaced = (row: string): string =>
    `case when ${row}.${parent} ${op('=')} ${MERGED} then ${REPLACED_MERGED} else ${row}.${version} end`;
  const seenIn = (row: string): string => {
    const own = object([[regionOf(`${row}.${version}`), `${row}.${version}`]]);
    const before = `case when ${row}.${parent} ${op('<')} 0 then ${EMPTY} else ${object([[regionOf(`${row}.${parent}`), `${row}.${parent}`]])} end`;
    return `coregent.seen_join(coalesce(${row}.${state} ${op('->')} 'seen', ${before}), ${own})`;
  };
  return {
    settings: parts.sets.every(({ type }) => PLAIN.test(type)) ? '' : SETTINGS,
    declare: `
  base pg_catalog.jsonb;
  mark pg_catalog.jsonb;`,
    inserted: `${settle(parts, 'new')}
  new.${state} := null;`,
    updated: `${settle(parts, 'old')}
  base := old.${state};
  if base is null then
    base := ${writtenOut(parts, 'old')};
  end if;
  mark := pg_catalog.to_jsonb(new.${version});
  ${put(['seen', String(region)], 'mark')}${changes(table, parts, region, groups)}
  new.${state} := base;`,
    parent: replaced,
    buried: (row) => ({
      [STATE]: `case when ${row}.${state} is not null then ${object([["'seen'", `${row}.${state} ${op('->')} 'seen'`]])} end`,
    }),
    buriedAgain: { [STATE]: object([["'seen'", `coregent.seen_join(${seenIn('x')}, ${seenIn('excluded')})`]]) },
    // A life that began without sight of a delete is ended by it, however much later the version. What has a state was not just born.
    late: `new.${state} is null and buried ${op('>')} greatest(new.${parent}, ${op('-')} new.${parent})`,
  };
}

/** The state that an insert left out, for the row with this alias. */
function writtenOut({ counters, sets, maps }: Layout, row: string): string {
  const at = `${row}.${version}`;
  const from = `${row}.${parent}`;
  const region = regionOf(at);
  const written = object([
    ["'l'", `greatest(${from}, 0)`],
    ["'b'", at],
    ["'r'", EMPTY],
    ["'seen'", object([[region, at]])],
    ...(counters.length > 0
      ? [
          [
            "'n'",
            object(
              counters.map(({ name }) => [
                literal(name),
                object([[region, `pg_catalog.jsonb_build_array(${at}, coalesce(${row}.${ident(name)}, 0))`]]),
              ]),
            ),
          ] as const,
        ]
      : []),
    ...(sets.length > 0
      ? [
          [
            "'s'",
            object(
              sets.map(({ name }) => [
                literal(name),
                `coregent.set_next(${EMPTY}, ${row}.${ident(name)}::pg_catalog.text[], ${at})`,
              ]),
            ),
          ] as const,
        ]
      : []),
    ...(maps.length > 0 ? [["'m'", object(maps.map(({ name }) => [literal(name), EMPTY]))] as const] : []),
  ]);
  const horizon = `case when ${from} ${op('<')} ${REPLACED_MERGED} then ${object([["'h'", `${op('-')} ${from}`]])} else ${EMPTY} end`;
  return `${written} ${op('||')} ${horizon}`;
}

/** Makes of what the application wrote what its parts can show: counters and sets are never null, bounds only move one way. */
function settle({ counters, sets, bounds }: Layout, row: 'old' | 'new'): string {
  const lines = counters.flatMap(({ name, type }) => {
    const column = `new.${ident(name)}`;
    const given = [
      `if ${column} is null then
    ${column} := 0;
  end if;`,
    ];
    // Neither NaN nor an infinity can be added to and taken away again.
    if (!type.startsWith('numeric')) return given;
    return [
      ...given,
      `if (${column} ${op('-')} ${column}) ${op('<>')} 0 then
    raise exception 'a counter must be a finite number' using errcode = '22003';
  end if;`,
    ];
  });
  if (row === 'new') {
    for (const { name } of sets) {
      const column = `new.${ident(name)}`;
      lines.push(`${column} := coregent.set_value(coregent.set_next(${EMPTY}, ${column}::pg_catalog.text[], 0));`);
    }
  }
  if (row === 'old') {
    for (const { column, most } of bounds) {
      const [mine, theirs] = [`new.${ident(column.name)}`, `old.${ident(column.name)}`];
      lines.push(`${mine} := ${most ? 'greatest' : 'least'}(${theirs}, ${mine});`);
    }
  }
  return lines.map((line) => `\n  ${line}`).join('');
}

/** A counter of which several regions' shares are beyond its bounds together shows the bound, and so not what was added and taken away. */
function bounded({ name, type }: Column): string {
  const bounds = INTEGERS[type];
  if (!bounds) return '';
  const before = `old.${ident(name)}`;
  const sum = `coregent.counter_value(base ${op('#>')} ${path(['n', name])})`;
  return `
    if (${bounds.map((bound) => `${before} ${op('=')} '${bound}'`).join(' or ')}) then
      new.${ident(name)} := greatest(least(${sum}, ${bounds[1]}), ${bounds[0]});
    end if;`;
}

/** A place in the state, as SQL. */
function path(keys: readonly string[]): string {
  const quoted = keys.map((key) => `"${key.replaceAll(/["\\]/g, '\\$&')}"`);
  return `${literal(`{${quoted.join(',')}}`)}::pg_catalog.text[]`;
}

/** The statement that puts a value into its place in `base`, whose parents are there. */
function put(keys: readonly string[], value: string): string {
  return `base := pg_catalog.jsonb_set(base, ${path(keys)}, ${value});`;
}

/**
 * Statements for what an update changes in `base`, the state before; `mark` is its version. A statement for each part: most updates
 * change few, and what is not run is not even prepared, which costs more than to run it once.
 */
function changes(
  table: Table,
  { registers, counters, sets, maps, texts }: Layout,
  region: number,
  groups: readonly (readonly string[])[],
): string {
  const alone = registers.filter(({ name }) => !groups.some((group) => group.includes(name)));
  const together = groups.map((group) => registers.filter(({ name }) => group.includes(name)));
  const written = (group: readonly RegisterColumns[]): string => {
    if (group.length === 0) return '';
    return when(
      differ(group.flatMap(({ columns }) => columns)),
      group.map(({ name }) => put(['r', name], 'mark')),
    );
  };
  const known = [...alone.map((register) => [register]), ...together].map(written).join('');
  const plain = `
  if ${hasColumns(table, registers)} then${known}
  else
    base := base ${op('||')} ${object([["'r'", `(base ${op('->')} 'r') ${op('||')} ${writtenOfAny(table, groups)}`]])};
  end if;`;
  // A text is in no group: what several regions write of it stays, all of it.
  const documents = texts.map((column) => written([{ name: column.name, columns: [column] }]));
  const added = counters.map((column) => {
    const { name, type } = column;
    const [mine, before] = [`new.${ident(name)}`, `old.${ident(name)}`];
    // Shares of a narrow type cannot leave the widest integer.
    const wide = type === 'smallint' || type === 'integer' ? 'pg_catalog.int8' : 'pg_catalog.numeric';
    const share = `coalesce((base ${op('#>>')} ${path(['n', name, String(region), '1'])})::${wide}, 0)`;
    const delta = `(${mine}::${wide} ${op('-')} coalesce(${before}::${wide}, 0))`;
    const next = put(['n', name, String(region)], `pg_catalog.jsonb_build_array(mark, ${share} ${op('+')} ${delta})`);
    return when(`(${mine} ${op('=')} ${before}) is not true`, [`${next}${bounded(column)}`]);
  });
  const chosen = sets.map((column) => {
    const mine = `new.${ident(column.name)}`;
    const elements = `base ${op('#>')} ${path(['s', column.name])}`;
    return when(differ([column]), [
      put(['s', column.name], `coregent.set_next(${elements}, ${mine}::pg_catalog.text[], new.${version})`),
      `${mine} := coregent.set_value(${elements});`,
    ]);
  });
  const mapped = maps.map((column) => {
    const name = ident(column.name);
    const known = `base ${op('#>')} ${path(['m', column.name])}`;
    const inserted = `(base ${op('->')} 'b')::pg_catalog.int8`;
    const next = `coregent.map_next(old.${name}, new.${name}, ${known}, ${inserted}, null, new.${version}, 0)`;
    return when(differ([column]), [put(['m', column.name], next)]);
  });
  // Who writes a text has seen all its documents, which the row shows as one.
  const merged =
    texts.length === 0
      ? ''
      : when(`base ${op('?')} 't'`, [
          ...texts.map((column) => when(differ([column]), [`base := base ${op('#-')} ${path(['t', column.name])};`])),
          when(`(base ${op('->')} 't') ${op('=')} ${EMPTY}`, [`base := base ${op('-')} 't'::pg_catalog.text;`]),
        ]);
  return [plain, ...documents, ...added, ...chosen, ...mapped, merged].join('');
}

/** A condition: the table has the columns that it had when its triggers were made. A constant of a plan, which the table's changes end. */
function hasColumns(table: Table, registers: readonly RegisterColumns[]): string {
  const names = registers.flatMap(({ columns }) => columns.map(({ name }) => literal(name)));
  return `coregent.has_columns(${relation(table)}, ${literal(tableId(table))}, array[${names.join(', ')}]::pg_catalog.text[])`;
}

/**
 * The registers that an update wrote, of whatever columns the table has by now: one that was added is written to before anybody runs
 * `apply`, and one that was dropped cannot be named. Values are compared as texts of their JSON.
 */
function writtenOfAny(table: Table, groups: readonly (readonly string[])[]): string {
  const { conflict, columns } = table.rule;
  const apart = [...OURS, ...Object.keys(columns), ...(table.exactKey ? table.key : [])];
  const names = (list: readonly string[]): string => `array[${list.map(literal).join(', ')}]::pg_catalog.text[]`;
  const generated = `array(select a.attname::pg_catalog.text from pg_catalog.pg_attribute a
      where a.attrelid ${op('=')} ${relation(table)} and a.attgenerated ${op('<>')} ''::pg_catalog."char")`;
  const rest = (row: string): string =>
    `(pg_catalog.to_jsonb(${row}) ${op('-')} ${names(apart)} ${op('-')} ${generated})`;
  const differs = (name: string): string =>
    `(${rest('old')} ${op('->')} ${name})::pg_catalog.text ${op('<>')} (${rest('new')} ${op('->')} ${name})::pg_catalog.text`;
  const all = (of: readonly string[], condition: string): string =>
    `case when ${condition} then ${object(of.map((name) => [literal(name), 'mark']))} else ${EMPTY} end`;
  if (conflict !== 'columns') {
    return all([REST], `${rest('old')}::pg_catalog.text ${op('<>')} ${rest('new')}::pg_catalog.text`);
  }
  return [
    `(select coalesce(pg_catalog.jsonb_object_agg(n.name, mark), ${EMPTY}) from pg_catalog.jsonb_object_keys(${rest('new')}) as n (name) where ${differs('n.name')})`,
    ...groups.map((group) =>
      all(group, `exists (select from pg_catalog.unnest(${names(group)}) as n (name) where ${differs('n.name')})`),
    ),
  ].join(` ${op('||')} `);
}

function relation(table: Table): string {
  return `${literal(qualified(table.schema, table.name))}::pg_catalog.regclass`;
}

function when(condition: string, statements: readonly string[]): string {
  // In parentheses: a `then` of its own would end it.
  return `
  if (${condition}) then
    ${statements.join('\n    ')}
  end if;`;
}

/** Whether any of these columns differs between `old` and `new`, in its bytes. */
function differ(columns: readonly Column[]): string {
  const [only] = columns;
  if (columns.length === 1 && isExact(only!)) {
    const [before, now] = [`old.${ident(only!.name)}`, `new.${ident(only!.name)}`];
    return `case when ${before} is null then ${now} is not null else ${now} is null or ${before} ${op('<>')} ${now} end`;
  }
  const row = (alias: string): string =>
    `row(${columns.map(({ name }) => `${alias}.${ident(name)}`).join(', ')})::pg_catalog.record`;
  return `${row('old')} ${op('*<>')} ${row('new')}`;
}
