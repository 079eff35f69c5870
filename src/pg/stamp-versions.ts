import { familyOf, type Rule } from '../model/rule.ts';
import { PARENT, STATE, type Table, VERSION } from '../model/table.ts';
import { ident } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';

const version = ident(VERSION);
const parent = ident(PARENT);
const state = ident(STATE);

/** What every table's stamping has. */
export interface Stamping {
  readonly table: Table;
  readonly region: number;
  readonly tombs: string;
  /** The next version above what was seen. */
  stamp(seen: string): string;
  /** A version of this moment. */
  readonly stampNow: string;
  readonly anyDeletes: string;
  readonly noteDeletes: string;
  /** The parent of what replaces neither a row nor a delete that is known here. */
  readonly noParent: string;
  /** The key of a row's last write stays in use where equal keys have other bytes. */
  readonly rekeyed: string;
}

/** Bodies of trigger functions by kind, and the two halves around a table's name that bury every row. */
export interface Bodies {
  readonly bodies: Readonly<Record<string, string>>;
  readonly buryAll: readonly [string, string];
}

/**
 * How rows are stamped whose rule keeps versions side by side; undefined for other rules. A write carries all that its author
 * had seen: the versions that the row stood for, and the key's deletes. It replaces them all.
 */
export function stampVersions(stamping: Stamping): Bodies | undefined {
  const { table, region, tombs, stamp, anyDeletes, noParent, rekeyed } = stamping;
  const { rule } = table;
  if (familyOf(rule) !== 'versions') return undefined;
  const keys = table.key.map(ident);
  const keyOf = (row: string): string => keys.map((name) => `${row}.${name}`).join(', ');
  const replaced = (row: string): string => replacedBy(rule, row);
  const seenBy = (row: string): string => `coregent.row_seen(${row}.${version}, ${row}.${parent}, ${row}.${state})`;
  const grave = 'coregent.row_seen(_coregent_buried, _coregent_before, _coregent_burial)';
  const lookUp = (row: string, options = ''): string =>
    `select x.${version}, x.${parent}, x.${state} into _coregent_buried, _coregent_before, _coregent_burial from ${tombs} x where ${sameKey(table, 'x', row)}${options};`;
  const declared = `
declare
  _coregent_buried pg_catalog.int8;
  _coregent_before pg_catalog.int8;
  _coregent_burial pg_catalog.jsonb;`;
  const columns = `${keys.join(', ')}, ${version}, ${parent}, ${state}`;
  // Nearly every key is deleted for the first time. A tombstone that is there may be forgotten at any moment.
  const bury = `
  ${stamping.noteDeletes}
  _coregent_stamped := ${stamp(`old.${version}`)};
  _coregent_replaced := ${replaced('old')};
  _coregent_seen := ${seenBy('old')};
  loop
    insert into ${tombs} as x (${columns})
    values (${keyOf('old')}, _coregent_stamped, _coregent_replaced, coregent.state_after(_coregent_stamped, _coregent_replaced, _coregent_seen)) on conflict (${keys.join(', ')}) do nothing;
    exit when found;
    ${lookUp('old', ' for update')}
    continue when _coregent_buried is null;
    _coregent_stamped := ${stamp(`greatest(old.${version}, _coregent_buried)`)};
    _coregent_seen := coregent.seen_join(_coregent_seen, ${grave});
    update ${tombs} x set ${rekeyed.replaceAll('excluded.', 'old.')}${version} = _coregent_stamped, ${parent} = _coregent_replaced, ${state} = coregent.state_after(_coregent_stamped, _coregent_replaced, _coregent_seen)
    where ${sameKey(table, 'x', 'old')};
    exit;
  end loop;`;
  const burying = `${declared}
  _coregent_stamped pg_catalog.int8;
  _coregent_replaced pg_catalog.int8;
  _coregent_seen pg_catalog.jsonb;`;
  const insertOver = (floor: string): string => `new.${parent} := _coregent_buried;
    new.${version} := ${stamp(floor)};
    new.${state} := coregent.state_after(new.${version}, _coregent_buried, ${grave});`;
  const op = (name: string): string => `operator(pg_catalog.${name})`;
  const regionOf = (of: string): string => `(${of} ${op('&')} 127)`;
  // What most writes have seen is told by their version and parent.
  const told = `old.${state} is null and _coregent_buried is null and (old.${parent} ${op('<')} 0
    or ${regionOf(`old.${parent}`)} ${op('=')} ${region} or ${regionOf(`old.${parent}`)} ${op('=')} ${regionOf(`old.${version}`)})`;
  return {
    bodies: {
      insert: `${declared}
begin
  new.${state} := null;
  if ${anyDeletes} then
    ${lookUp('new')}
    if _coregent_buried is not null then
      ${insertOver('_coregent_buried')}
      return new;
    end if;
  end if;
  new.${parent} := ${noParent};
  new.${version} := ${stamping.stampNow};
  return new;
end`,
      update: `${declared}
begin
  if not (${sameKey(table, 'old', 'new')}) then
    if new.${version} ${op('=')} old.${version} then
      raise exception 'a trigger changed the key of a replicated row'
        using errcode = '0A000', hint = 'Change the key in the SET of the UPDATE itself.';
    end if;
    return new;
  end if;
  if ${anyDeletes} then
    ${lookUp('new')}
  end if;
  new.${parent} := ${replaced('old')};
  new.${version} := ${stamp(`greatest(old.${version}, _coregent_buried)`)};
  if ${told} then
    new.${state} := null;
  else
    new.${state} := coregent.state_after(new.${version}, new.${parent},
      case when _coregent_buried is null then ${seenBy('old')} else coregent.seen_join(${seenBy('old')}, ${grave}) end);
  end if;
  return new;
end`,
      rekey: `${burying}
begin
  if ${sameKey(table, 'old', 'new')} then
    return new;
  end if;${bury}
  _coregent_buried := null;
  ${lookUp('new')}
  if _coregent_buried is null then
    new.${parent} := ${noParent};
    new.${version} := ${stamp('_coregent_stamped')};
    new.${state} := null;
  else
    ${insertOver('greatest(_coregent_stamped, _coregent_buried)')}
  end if;
  return new;
end`,
      delete: `${burying}
begin${bury}
  return old;
end`,
    },
    buryAll: [
      `insert into ${tombs} as x (${columns})
  select ${keys.map((name) => `n.${name}`).join(', ')}, n._coregent_stamped, n._coregent_replaced, coregent.state_after(n._coregent_stamped, n._coregent_replaced, n._coregent_seen)
  from (select ${keyOf('t')}, ${stamp(`greatest(t.${version}, b.${version})`)} as _coregent_stamped, ${replaced('t')} as _coregent_replaced,
    case when b.${version} is null then ${seenBy('t')} else coregent.seen_join(${seenBy('t')}, ${seenBy('b')}) end as _coregent_seen from `,
      ` t left join ${tombs} b on ${sameKey(table, 'b', 't')}) n
  on conflict (${keys.join(', ')}) do update
  set ${rekeyed}${version} = greatest(excluded.${version}, x.${version}), ${parent} = excluded.${parent},
    ${state} = coregent.state_after(greatest(excluded.${version}, x.${version}), excluded.${parent}, coregent.seen_join(${seenBy('x')}, ${seenBy('excluded')}))`,
    ],
  };
}

/** The write whose values a row shows, as SQL; see `replaced` in `resolve/versions.ts`. */
function replacedBy({ conflict }: Rule, row: string): string {
  if (conflict === 'siblings') return `${row}.${version}`;
  const first = `(${row}.${state} operator(pg_catalog.->) 'set' operator(pg_catalog.->) 0 operator(pg_catalog.->>) 'v')::pg_catalog.int8`;
  return `case when ${row}.${parent} operator(pg_catalog.=) -2 then ${conflict === 'fww' ? first : '-1'} else ${row}.${version} end`;
}
