import { type Column, deletesName, PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { INTEGERS, type Layout, layoutOf } from '../resolve/layout.ts';
import { MERGED, REPLACED_MERGED } from '../resolve/registers.ts';
import type { RuleStamp } from './stamp.ts';

const op = (name: string): string => `operator(pg_catalog.${name})`;
const EMPTY = `'{}'::pg_catalog.jsonb`;
const version = ident(VERSION);
const parent = ident(PARENT);
const state = ident(STATE);

/** Types of PostgreSQL's own that are compared faster by their operator, and are equal only in equal bytes. */
const COMPARED =
  /^(smallint|integer|bigint|boolean|uuid|date|text|character varying(\(\d+\))?|timestamp( \S+)? with(out)? time zone)$/;

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
  const deletes = `${literal(qualified('coregent', deletesName(table)))}::pg_catalog.regclass`;
  const seenIn = (row: string): string => {
    const own = object([[regionOf(`${row}.${version}`), `${row}.${version}`]]);
    const before = `case when ${row}.${parent} ${op('<')} 0 then ${EMPTY} else ${object([[regionOf(`${row}.${parent}`), `${row}.${parent}`]])} end`;
    return `coregent.seen_join(coalesce(${row}.${state} ${op('->')} 'seen', ${before}), ${own})`;
  };
  return {
    settings: parts.sets.every(({ type }) => PLAIN.test(type)) ? '' : SETTINGS,
    declare: `
  base pg_catalog.jsonb;`,
    // The sequence holds the greatest delete that was forgotten here, once any was: that much is known of every key.
    noParent: `${op('-')} greatest(pg_catalog.pg_sequence_last_value(${deletes}), 1)`,
    inserted: `${settle(parts, 'new')}
  new.${state} := null;`,
    updated: `${settle(parts, 'old')}
  base := coalesce(old.${state}, ${writtenOut(parts, 'old')});
  new.${state} := base ${op('||')} ${object(changes(parts, region, groups))};${parts.counters.map(bounded).join('')}${parts.sets.map(shown).join('')}${rewritten(parts.texts)}`,
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
  const [before, now] = [`old.${ident(name)}`, `new.${ident(name)}`];
  const sum = `coregent.counter_value(new.${state} ${op('->')} 'n' ${op('->')} ${literal(name)})`;
  const at = bounds.map((bound) => `${before} ${op('=')} '${bound}'`).join(' or ');
  return `
  if (${at}) and ${before} ${op('<>')} ${now} then
    ${now} := greatest(least(${sum}, ${bounds[1]}), ${bounds[0]});
  end if;`;
}

/** A set that was changed shows its elements in their order. */
function shown(column: Column): string {
  const { name } = column;
  return `
  if ${differ([column])} then
    new.${ident(name)} := coregent.set_value(new.${state} ${op('->')} 's' ${op('->')} ${literal(name)});
  end if;`;
}

/** Who writes a text has seen all its documents, which the row shows as one. */
function rewritten(texts: readonly Column[]): string {
  if (texts.length === 0) return '';
  const each = texts.map(
    (column) => `
    if ${differ([column])} then
      base := base ${op('-')} ${literal(column.name)}::pg_catalog.text;
    end if;`,
  );
  return `
  if base ${op('?')} 't' then
    base := base ${op('->')} 't';${each.join('')}
    new.${state} := (new.${state} ${op('-')} 't'::pg_catalog.text) ${op('||')} case when base ${op('=')} ${EMPTY} then base else ${object([["'t'", 'base']])} end;
  end if;`;
}

/** The parts of the state that an update changes, `base` being the state before. */
function changes(
  { registers, counters, sets, maps, texts }: Layout,
  region: number,
  groups: readonly (readonly string[])[],
): (readonly [string, string])[] {
  const now = `new.${version}`;
  const here = literal(String(region));
  const found: (readonly [string, string])[] = [
    ["'seen'", `(base ${op('->')} 'seen') ${op('||')} ${object([[here, now]])}`],
  ];
  if (registers.length > 0 || texts.length > 0) {
    // A text is in no group: what several regions write of it stays, all of it.
    const alone = [
      ...registers.filter(({ name }) => !groups.some((group) => group.includes(name))),
      ...texts.map((column) => ({ name: column.name, columns: [column] })),
    ];
    const together = groups
      .map((group) => registers.filter(({ name }) => group.includes(name)))
      .filter((group) => group.length > 0);
    const written = [
      `(base ${op('->')} 'r')`,
      ...(alone.length > 0
        ? [
            `pg_catalog.jsonb_strip_nulls(${object(alone.map(({ name, columns }) => [literal(name), `case when ${differ(columns)} then ${now} end`]))})`,
          ]
        : []),
      ...together.map(
        (group) =>
          `case when ${differ(group.flatMap(({ columns }) => columns))} then ${object(group.map(({ name }) => [literal(name), now]))} else ${EMPTY} end`,
      ),
    ];
    found.push(["'r'", written.join(` ${op('||')} `)]);
  }
  const part = (key: string, names: readonly (readonly [string, string])[]): void => {
    if (names.length > 0) found.push([literal(key), `(base ${op('->')} ${literal(key)}) ${op('||')} ${object(names)}`]);
  };
  part(
    'n',
    counters.map(({ name }) => {
      const [mine, before] = [`new.${ident(name)}`, `old.${ident(name)}`];
      const shares = `(base ${op('->')} 'n' ${op('->')} ${literal(name)})`;
      const share = `coalesce((${shares} ${op('->')} ${here} ${op('->>')} 1)::pg_catalog.numeric, 0)`;
      const delta = `(${mine}::pg_catalog.numeric ${op('-')} coalesce(${before}::pg_catalog.numeric, 0))`;
      const added = object([[here, `pg_catalog.jsonb_build_array(${now}, ${share} ${op('+')} ${delta})`]]);
      return [
        literal(name),
        `case when ${mine} ${op('=')} ${before} then ${shares} else ${shares} ${op('||')} ${added} end`,
      ];
    }),
  );
  part(
    's',
    sets.map((column) => {
      const { name } = column;
      const elements = `(base ${op('->')} 's' ${op('->')} ${literal(name)})`;
      const next = `coregent.set_next(${elements}, new.${ident(name)}::pg_catalog.text[], ${now})`;
      return [literal(name), `case when ${differ([column])} then ${next} else ${elements} end`];
    }),
  );
  part(
    'm',
    maps.map((column) => {
      const name = ident(column.name);
      const path = `(base ${op('->')} 'm' ${op('->')} ${literal(column.name)})`;
      const next = `coregent.map_next(old.${name}, new.${name}, ${path}, (base ${op('->')} 'b')::pg_catalog.int8, null, ${now}, 0)`;
      return [literal(column.name), `case when ${differ([column])} then ${next} else ${path} end`];
    }),
  );
  return found;
}

/** Whether any of these columns differs between `old` and `new`, in its bytes. */
function differ(columns: readonly Column[]): string {
  const [only] = columns;
  if (columns.length === 1 && COMPARED.test(only!.type) && only!.collation === '') {
    const [before, now] = [`old.${ident(only!.name)}`, `new.${ident(only!.name)}`];
    return `case when ${before} is null then ${now} is not null else ${now} is null or ${before} ${op('<>')} ${now} end`;
  }
  const row = (alias: string): string =>
    `row(${columns.map(({ name }) => `${alias}.${ident(name)}`).join(', ')})::pg_catalog.record`;
  return `${row('old')} ${op('*<>')} ${row('new')}`;
}
