import { type Column, PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import { ident, literal } from '../quote.ts';
import { INTEGERS, isExact, layoutOf } from './layout.ts';
import type { Parts } from './parts.ts';
import { MERGED, REPLACED_MERGED } from './registers.ts';

/** Conditions and values over rows that are joined part by part, by their aliases: `t` is here, `s` came, `x` is a tombstone. */
export interface RegisterSql {
  /** One write made the row, and had seen all that is in it. */
  simple(alias: string): string;
  life(alias: string): string;
  /** The delete ends the row's life. */
  ended(tombstone: string, row: string): string;
  /** What the row's writers, and who deleted it, have seen. */
  sees(row: string): string;
  deleterSaw(tombstone: string): string;
  /** Whether who has seen this had seen the row. */
  hadSeen(vector: string, row: string): string;
  /** `t` and `s` have other bytes although nobody wrote in between: they are older than replication (region 0), or a backup was restored. */
  readonly twins: string;
  /** Which of `t` and `s` stays where one loses what the other had not seen; null where nothing is lost. `known`: who deleted an earlier life had seen `s`. */
  outcome(known: string): string;
  /** A query of these columns of the join of `t` and `s`, of which `s` is not of an earlier life; nothing where this does not hold. */
  joined(columns: readonly string[], where?: string): string;
}

/** `registers.ts` read into SQL, but for the statements themselves. */
export function registerSql(table: Table, { list, v, p, rowColumns }: Parts): RegisterSql {
  const { registers, counters, sets, maps, bounds, texts } = layoutOf(table);
  const state = (alias: string): string => `${alias}.${ident(STATE)}`;
  const simple = (alias: string): string => `${p(alias)} <> ${MERGED}`;
  const life = (alias: string): string =>
    `case when ${state(alias)} is null then greatest(${p(alias)}, 0) else (${state(alias)} ->> 'l')::int8 end`;
  const horizon = (alias: string): string => `case when ${p(alias)} < ${REPLACED_MERGED} then -${p(alias)} else 0 end`;
  const ended = (tombstone: string, row: string): string =>
    `${v(tombstone)} > case when ${state(row)} is null then greatest(${p(row)}, ${horizon(row)})
      else greatest((${state(row)} ->> 'l')::int8, (${state(row)} ->> 'h')::int8) end`;
  const vector = (of: string): string => `jsonb_build_object((${of} & 127)::text, ${of})`;
  const sees = (row: string): string => `coalesce(${state(row)} -> 'seen', ${vector(v(row))})`;
  const deleterSaw = (tombstone: string): string =>
    `coregent.seen_join(coalesce(${state(tombstone)} -> 'seen', case when ${p(tombstone)} < 0 then '{}' else ${vector(p(tombstone))} end), ${vector(v(tombstone))})`;
  const hadSeen = (seen: string, row: string): string =>
    `case when ${simple(row)} then coregent.seen_covers(${seen}, ${v(row)}) else coregent.seen_contains(${seen}, ${state(row)} -> 'seen') end`;
  const bytes = (alias: string, columns: readonly string[]): string => `row(${list(columns, alias)})`;
  const whole = (alias: string): string => `${bytes(alias, rowColumns)}::record`;
  const twins = `(${v('t')} = ${v('s')} or ${sees('t')} ? '0') and ${whole('t')} operator(pg_catalog.*<>) ${whole('s')}`;

  // The version that a register has, as jsonb: they are compared as the numbers that they are.
  const at = (alias: string, name: string): string =>
    `case when ${state(alias)} is null then to_jsonb(${v(alias)}) else coalesce(${state(alias)} -> 'r' -> ${literal(name)}, ${state(alias)} -> 'b') end`;
  const differ = (columns: readonly Column[]): string => {
    const names = columns.map(({ name }) => name);
    if (columns.every(isExact)) return `(${list(names, 't')}) is distinct from (${list(names, 's')})`;
    return `${bytes('t', names)}::record operator(pg_catalog.*<>) ${bytes('s', names)}::record`;
  };
  const met = registers.map(({ name, columns }) => {
    const names = columns.map((column) => column.name);
    const [mine, theirs] = [at('t', name), at('s', name)];
    const text = (alias: string): string => `${bytes(alias, names)}::text collate "C"`;
    const covered = (alias: string, version: string): string =>
      `coregent.seen_covers(${sees(alias)}, (${version})::int8)`;
    return {
      wins: `(${theirs} > ${mine} or (${theirs} = ${mine} and ${text('s')} > ${text('t')}))`,
      lost: `(${differ(columns)}
        and (${mine} = ${theirs} or not (${covered('t', theirs)} or ${covered('s', mine)})))`,
    };
  });
  /** The join of a document, `mine` and `theirs` being what the states know of it, `base` the versions of the inserts. */
  const document = (name: string, side: (alias: string) => readonly [path: string, base: string]): string => {
    const given = ['t', 's'].map((alias) => {
      const [path, base] = side(alias);
      return {
        base,
        text: `${alias}.${ident(name)}, ${path} -> 'm' -> ${literal(name)}, ${base}, null, ${sees(alias)}`,
      };
    });
    const [mine, theirs] = given as [(typeof given)[0], (typeof given)[0]];
    return `coregent.map_join(${mine.text}, ${theirs.text}, greatest(${mine.base}, ${theirs.base}), 0)`;
  };
  const base = (alias: string): string =>
    `case when ${state(alias)} is null then ${v(alias)} else (${state(alias)} ->> 'b')::int8 end`;
  const documents = maps.map(({ name }) => document(name, (alias) => [state(alias), base(alias)]));
  const outcome = (known: string): string => {
    const anyOf = (side: 'a' | 'b', condition: (register: (typeof met)[0]) => string): string =>
      [...met.map((each) => `(${condition(each)})`), ...documents.map((_, index) => `d.m${index} ? '${side}'`)].join(
        ' or ',
      ) || 'false';
    const here = anyOf('a', ({ lost, wins }) => `${lost} and ${wins}`);
    const there = anyOf('b', ({ lost, wins }) => `${lost} and not ${wins}`);
    const parts = `case when ${here} then case when ${there} then 'merge' else 'apply' end when ${there} then 'keep' end`;
    const alike =
      documents.length === 0
        ? parts
        : `(select ${parts} from (select ${documents.map((each, index) => `${each} as m${index}`).join(', ')} offset 0) d)`;
    return `case when ${life('s')} > ${life('t')} then case when ${hadSeen(sees('s'), 't')} then null else 'apply' end
        when ${life('s')} < ${life('t')} then case when ${hadSeen(sees('t'), 's')} or ${known} then null else 'keep' end
        else ${alike} end`;
  };

  /** The state of a row, written out where it is null. */
  const written = (alias: string): string => {
    const of = (columns: readonly { readonly name: string }[], value: (column: string) => string): string =>
      `jsonb_build_object(${columns.map(({ name }) => `${literal(name)}, ${value(`${alias}.${ident(name)}`)}`).join(', ')})`;
    const share = (column: string): string =>
      `jsonb_build_object((${v(alias)} & 127)::text, jsonb_build_array(${v(alias)}, coalesce(${column}, 0)))`;
    const elements = (column: string): string => `coregent.set_next('{}', ${column}::text[], ${v(alias)})`;
    const pairs = [
      `'l', greatest(${p(alias)}, 0), 'b', ${v(alias)}, 'r', '{}'::jsonb, 'seen', ${vector(v(alias))}`,
      ...(counters.length > 0 ? [`'n', ${of(counters, share)}`] : []),
      ...(sets.length > 0 ? [`'s', ${of(sets, elements)}`] : []),
      ...(maps.length > 0 ? [`'m', ${of(maps, () => `'{}'::jsonb`)}`] : []),
    ];
    const whole = `coalesce(${state(alias)}, jsonb_build_object(${pairs.join(', ')})
        || case when ${p(alias)} < ${REPLACED_MERGED} then jsonb_build_object('h', ${horizon(alias)}) else '{}' end)`;
    if (texts.length === 0) return whole;
    const documents = texts.map(({ name }) => {
      const bytes = `translate(encode(${alias}.${ident(name)}, 'base64'), E'\\n', '')`;
      return `${literal(name)}, coalesce(${state(alias)} -> 't' -> ${literal(name)}, jsonb_build_object(${at(alias, name)} #>> '{}', ${bytes}))`;
    });
    return `(${whole} || jsonb_build_object('t', jsonb_build_object(${documents.join(', ')})))`;
  };
  const won = (index: number): string => `_coregent_w${index}`;
  const doc = (index: number): string => `_coregent_d${index}`;
  const shown = new Map<string, string>([
    ...registers.flatMap(({ columns }, index) =>
      columns.map(
        ({ name }) => [name, `case when w.${won(index)} then s.${ident(name)} else t.${ident(name)} end`] as const,
      ),
    ),
    ...counters.map(({ name, type }) => {
      const sum = `coregent.counter_value(w._coregent_joined -> 'n' -> ${literal(name)})`;
      const within = INTEGERS[type];
      return [name, `(${within ? `least(greatest(${sum}, ${within[0]}), ${within[1]})` : sum})::${type}`] as const;
    }),
    ...sets.map(
      ({ name, type }) => [name, `coregent.set_value(w._coregent_joined -> 's' -> ${literal(name)})::${type}`] as const,
    ),
    ...maps.map(
      ({ name }, index) =>
        [name, `case when w._coregent_later then s.${ident(name)} else w.${doc(index)} -> 'd' end`] as const,
    ),
    ...bounds.map(({ column: { name }, most }) => {
      const [mine, theirs] = [`t.${ident(name)}`, `s.${ident(name)}`];
      const both = most ? 'greatest' : 'least';
      // Of values that are equal and yet not the same bytes the first one stays: the greater text.
      const value = `case when ${mine}::text collate "C" < ${theirs}::text collate "C" then ${both}(${theirs}, ${mine}) else ${both}(${mine}, ${theirs}) end`;
      return [name, `case when w._coregent_later then ${theirs} else ${value} end`] as const;
    }),
  ]);
  // What several documents make is made elsewhere, and says nothing that they don't.
  const told = [...shown.keys()];
  for (const { name } of texts) {
    shown.set(name, `coregent.text_last(w._coregent_joined -> 't' -> ${literal(name)})`);
  }
  const names = [...shown.keys()];
  const same = (alias: string, whose: string): string =>
    `m._coregent_joined = m.${whose}${told.length > 0 ? ` and ${bytes('m', told)}::record operator(pg_catalog.*=) ${bytes(alias, told)}::record` : ''}`;
  const merged: Readonly<Record<string, string>> = {
    [VERSION]: `greatest(${v('t')}, ${v('s')})`,
    [PARENT]: String(MERGED),
    [STATE]: texts.length > 0 ? 'coregent.state_stored(k._coregent_joined)' : 'k._coregent_joined',
  };
  const column = (name: string): string =>
    merged[name] === undefined
      ? `${shown.has(name) ? 'k' : 't'}.${ident(name)}`
      : `case k._coregent_whose when 's' then s.${ident(name)} when 't' then t.${ident(name)} else ${merged[name]} end as ${ident(name)}`;
  const wins = met.map((each, index) => `, (e._coregent_later or ${each.wins}) as ${won(index)}`).join('');
  const docs = maps.map(({ name }, index) => {
    const of = document(name, (alias) => {
      const whose = `e._coregent_${alias === 't' ? 'mine' : 'theirs'}`;
      return [whose, `(${whose} ->> 'b')::int8`];
    });
    const later = `jsonb_build_object('n', e._coregent_theirs -> 'm' -> ${literal(name)})`;
    return `, case when e._coregent_later then ${later} else ${of} end as ${doc(index)}`;
  });
  const paths = maps.map(({ name }, index) => `${literal(name)}, coalesce(w.${doc(index)} -> 'n', '{}')`);
  const stored =
    maps.length > 0
      ? `w._coregent_joined || jsonb_build_object('m', jsonb_build_object(${paths.join(', ')}))`
      : 'w._coregent_joined';
  const values = names.map((name) => `, ${shown.get(name)} as ${ident(name)}`).join('');
  // Of two rows of one life whose registers began alike, each part by its place; all others need a closer look.
  const part = (whose: string, ...keys: string[]): string =>
    `f._coregent_${whose}${keys.map((key) => ` -> ${literal(key)}`).join('')}`;
  const named = (columns: readonly { readonly name: string }[], value: (name: string) => string): string =>
    `jsonb_build_object(${columns.map(({ name }) => `${literal(name)}, ${value(name)}`).join(', ')})`;
  const theirsWon = registers.map(
    ({ name }, index) => `${literal(name)}, case when f.${won(index)} then ${part('theirs', 'r', name)} end`,
  );
  const joinedParts = [
    ...(registers.length > 0
      ? [`'r', (${part('mine', 'r')}) || jsonb_strip_nulls(jsonb_build_object(${theirsWon.join(', ')}))`]
      : []),
    `'seen', coregent.seen_join(${part('mine', 'seen')}, ${part('theirs', 'seen')})`,
    ...(counters.length > 0
      ? [
          `'n', ${named(counters, (name) => `coregent.seen_join(${part('mine', 'n', name)}, ${part('theirs', 'n', name)})`)}`,
        ]
      : []),
    ...(sets.length > 0
      ? [
          `'s', ${named(sets, (name) => `coregent.set_join(${part('mine', 's', name)}, ${part('mine', 'seen')}, ${part('theirs', 's', name)}, ${part('theirs', 'seen')})`)}`,
        ]
      : []),
  ];
  const alike = ['l', 'b', 'h'].map((key) => `(${part('mine', key)}) is not distinct from (${part('theirs', key)})`);
  const closely = 'coregent.state_join(f._coregent_mine, f._coregent_theirs)';
  const stateOf =
    texts.length > 0
      ? closely
      : `case when ${alike.join(' and ')}
            then f._coregent_mine || jsonb_build_object(${joinedParts.join(', ')})
            else ${closely} end`;
  // Each step is fenced off (`offset 0`), so that none is worked out twice.
  const joined = (
    columns: readonly string[],
    where = 'true',
  ): string => `select ${columns.map(column).join(', ')} from (
      select m.*, case when ${same('s', '_coregent_theirs')} then 's' when ${same('t', '_coregent_mine')} then 't' else 'm' end as _coregent_whose from (
        select ${stored} as _coregent_joined, w._coregent_mine, w._coregent_theirs${values} from (
          select f.*, ${stateOf} as _coregent_joined from (select e.*${wins}${docs.join('')} from (
            select ${written('t')} as _coregent_mine, ${written('s')} as _coregent_theirs, ${life('s')} > ${life('t')} as _coregent_later where ${where} offset 0
          ) e offset 0) f offset 0) w offset 0) m offset 0) k`;
  return { simple, life, ended, sees, deleterSaw, hadSeen, twins, outcome, joined };
}
