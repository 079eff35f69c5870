import { deletesName, PARENT, type Table, tableId, tombstoneName, VERSION } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';
import { ruleStamp } from './stamp.ts';
import { stampVersions } from './stamp-versions.ts';

/**
 * Named so that they come after an application's triggers (PostgreSQL fires them by name):
 * the stamp must be on the row as it is stored.
 */
export const TRIGGERS = {
  insert: '~coregent_insert',
  late: '~coregent_late',
  update: '~coregent_update',
  rekey: '~coregent_rekey',
  delete: '~coregent_delete',
  truncate: '~coregent_truncate',
} as const;

/** Names of the trigger functions of a table, in schema `coregent`. */
export function triggerFunctions(table: { readonly schema: string; readonly name: string }): string[] {
  return Object.keys(TRIGGERS).map((kind) => `${kind}_${tableId(table)}`);
}

const NOW =
  "(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) operator(pg_catalog.*) 1000000)::pg_catalog.int8";

const op = (name: string): string => `operator(pg_catalog.${name})`;

/** A version of this moment, for a key of which nothing was seen. */
function stampNow(region: number): string {
  return `(${NOW} ${op('<<')} 7) ${op('|')} ${region}`;
}

/** The next version above what a key has seen. */
function stamp(region: number, seen: string): string {
  return `(greatest(${NOW}, (${seen} ${op('>>')} 7) ${op('+')} 1) ${op('<<')} 7) ${op('|')} ${region}`;
}

/** Whose rights a trigger function has, and which `search_path`: the caller's, or a pinned one. */
type Rights = 'caller' | 'owner' | 'owner, pinned';

/**
 * The rights of the functions that look for keys among tombstones. They have their owner's, because an application may not write
 * tombstones itself. To pin the `search_path` costs an insert more than all else that these functions do, and they need none:
 * - Every function, operator, table and type in them is named with its schema. What is not, has no name: `greatest`, `coalesce` and
 *   `is null` go by a type, not by a path. (`is distinct from`, `in`, `between`, `nullif` and `case x when` look for an operator on the
 *   path, and so do not occur.) Casts are found by type too. So the caller's path is never asked, whatever lies on it.
 * - What they call is PostgreSQL's own and asks no path in its turn: that is so where keys are of its own types or enums, compared by
 *   its own equality. Behind others may be functions of somebody else, written for the path of whoever owns them: that path is pinned.
 */
function rightsOver(table: Table): Rights {
  const own = table.exactKey && table.keyEquals.every((equals) => equals === op('='));
  return own ? 'owner' : 'owner, pinned';
}

/** Options of `create function`. What writes nothing and reads no table is told to be stable, so that it takes no snapshots. */
const OPTIONS: Readonly<Record<Rights, string>> = {
  caller: 'stable',
  owner: 'security definer',
  'owner, pinned': 'security definer set search_path = pg_catalog, pg_temp',
};

/** What a sequence of deletes counts stays below; versions are far above. */
const COUNTED = 2 ** 32;

/** How a table is stamped, beside its rule. */
interface StampingOptions {
  /** A condition under which a row is stamped at all, where apply sessions fire triggers. */
  readonly guard?: string;
  readonly partitioned?: boolean;
  /** Statements for the beginning of what happens when it is truncated. */
  readonly truncating?: string;
  /** Columns that share a constraint, whose registers are written together. */
  readonly groups?: readonly (readonly string[])[];
}

/**
 * The statements that create a table's stamping: functions (replaced when they exist) and triggers.
 * The plain update, the hot one, touches no table and runs as the caller.
 */
export function stampingSql(
  table: Table,
  region: number,
  { guard, partitioned = false, truncating = '', groups = [] }: StampingOptions = {},
): string[] {
  const rule = ruleStamp(table, region, groups);
  const id = tableId(table);
  const target = qualified(table.schema, table.name);
  const tombs = qualified('coregent', tombstoneName(table));
  const key = table.key.map(ident);
  const keyOf = (row: string): string => key.map((name) => `${row}.${name}`).join(', ');
  const unmoved = sameKey(table, 'old', 'new');
  const version = ident(VERSION);
  const parent = ident(PARENT);
  // Of keys that are equal and yet not the same bytes, the last one's bytes stay.
  const rekeyed = table.exactKey ? '' : key.map((name) => `${name} = excluded.${name}, `).join('');
  // Not as an expression with a subquery, whose plan would have a second node around this one.
  const lookUp = `select x.${version} into buried from ${tombs} x where ${sameKey(table, 'x', 'new')};`;
  // A table without tombstones is not even looked into: a statement costs more than all the rest of the trigger.
  const deletes = `${literal(qualified('coregent', deletesName(table)))}::pg_catalog.regclass`;
  const anyDeletes = `pg_catalog.pg_sequence_last_value(${deletes}) is not null`;
  // Of an insert, and of a row under its new key, where no tombstone is under the key: none, or, negated, the greatest delete that was
  // forgotten here, which the sequence holds once any was: that much is known of every key. Before, it counts who began to delete.
  const lastForgotten = `pg_catalog.pg_sequence_last_value(${deletes})`;
  const noParent = `case when ${lastForgotten} ${op('>')} ${COUNTED} then ${op('-')} ${lastForgotten} else -1 end`;
  const noteDeletes = `if not (${anyDeletes}) then
    perform pg_catalog.nextval(${deletes});
  end if;`;
  // Nearly every key is deleted for the first time: to be ready for another costs more than the insert itself.
  const further = (row: string): readonly [string, string][] => Object.entries(rule.buried(row));
  const names = [version, parent, ...further('old').map(([name]) => ident(name))].join(', ');
  const again = Object.entries(rule.buriedAgain).map(([name, value]) => `, ${ident(name)} = ${value}`);
  const replace = `set ${rekeyed}${version} = greatest(excluded.${version}, ${stamp(region, `x.${version}`)}), ${parent} = excluded.${parent}${again.join('')}`;
  const buriedAs = (row: string, stamped: string): string =>
    [keyOf(row), stamped, rule.parent(row), ...further(row).map(([, value]) => value)].join(', ');
  const bury = (row: string, stamped: string): string => {
    const insert = `insert into ${tombs} as x (${key.join(', ')}, ${names})
  values (${buriedAs(row, stamped)}) on conflict (${key.join(', ')})`;
    return `
  ${noteDeletes}
  ${insert} do nothing;
  if not found then
    ${insert} do update
    ${replace};
  end if;`;
  };
  const versions = stampVersions({
    ...{ table, region, tombs, anyDeletes, noteDeletes, noParent, rekeyed },
    stamp: (seen) => stamp(region, seen),
    stampNow: stampNow(region),
  });
  // Every row of a table, whose name belongs between the two halves.
  const buryAll =
    versions?.buryAll ??
    ([
      `insert into ${tombs} as x (${key.join(', ')}, ${names})
  select ${buriedAs('t', stamp(region, `t.${version}`))} from `,
      ` t
  where not exists (select from ${tombs} b where ${sameKey(table, 'b', 't')} and b.${version} ${op('>')} t.${version})
  on conflict (${key.join(', ')}) do update
  ${replace}`,
    ] as const);
  // A partition is truncated by itself, or together with its table, whose trigger then has buried its rows already.
  const buryPart = `if tg_relid operator(pg_catalog.<>) ${literal(target)}::pg_catalog.regclass then
    -- One that was detached keeps the trigger; its rows are no longer the table's.
    if pg_catalog.pg_partition_root(tg_relid) operator(pg_catalog.=) ${literal(target)}::pg_catalog.regclass then
      execute ${literal(buryAll[0])} operator(pg_catalog.||) pg_catalog.format('%I.%I', tg_table_schema, tg_table_name) operator(pg_catalog.||) ${literal(buryAll[1])};
    end if;
    return null;
  end if;
  `;
  const rights = rightsOver(table);
  // Where versions are kept side by side an update, too, asks for its key's tombstone.
  const define = (kind: string, plain: string, plainly: Rights): string => {
    const body = versions?.bodies[kind] ?? plain;
    const as = body === plain ? plainly : rights;
    return `create or replace function coregent.${ident(`${kind}_${id}`)}() returns trigger language plpgsql ${OPTIONS[as]}${rule.settings} as ${dollar(`\n#variable_conflict use_column${body}`)}`;
  };
  const trigger = (kind: keyof typeof TRIGGERS, event: string): string => {
    const when = guard === undefined ? '' : ` when (${guard})`;
    return `create or replace trigger ${ident(TRIGGERS[kind])} ${event} on ${target} for each row${when} execute function coregent.${ident(`${kind}_${id}`)}()`;
  };

  return [
    define(
      'insert',
      `
declare
  buried pg_catalog.int8;
begin${rule.inserted}
  if ${anyDeletes} then
    ${lookUp}
    if buried is not null then
      new.${parent} := buried;
      new.${version} := ${stamp(region, 'buried')};
      return new;
    end if;
  end if;
  new.${parent} := ${noParent};
  new.${version} := ${stampNow(region)};
  return new;
end`,
      rights,
    ),
    // A write that had to wait for the delete of its new key was stamped before it could see that delete.
    // No condition in WHEN: PostgreSQL parses it anew for every statement, which costs more than the function.
    define(
      'late',
      `
declare
  buried pg_catalog.int8;
begin
  if ${anyDeletes} then
    ${lookUp}
    if ${rule.late} then
      raise exception 'the key was deleted while this write waited for it'
        using errcode = '40001', hint = 'Run the transaction again.';
    end if;
  end if;
  return null;
end`,
      rights,
    ),
    define(
      'update',
      `${rule.declare ? `\ndeclare${rule.declare}` : ''}
begin
  if not (${unmoved}) then
    if new.${version} operator(pg_catalog.=) old.${version} then
      raise exception 'a trigger changed the key of a replicated row'
        using errcode = '0A000', hint = 'Change the key in the SET of the UPDATE itself.';
    end if;
    return new;
  end if;
  new.${parent} := ${rule.parent('old')};
  new.${version} := ${stamp(region, `old.${version}`)};${rule.updated}
  return new;
end`,
      'caller',
    ),
    define(
      'rekey',
      `
declare
  buried pg_catalog.int8;
  stamped pg_catalog.int8 := ${stamp(region, `old.${version}`)};
begin
  if ${unmoved} then
    return new;
  end if;
  if ${anyDeletes} then
    ${lookUp}
  end if;${bury('old', 'stamped')}
  new.${parent} := coalesce(buried, ${noParent});
  new.${version} := ${stamp(region, 'greatest(stamped, coalesce(buried, 0))')};${rule.inserted}
  return new;
end`,
      rights,
    ),
    define(
      'delete',
      `
begin${bury('old', stamp(region, `old.${version}`))}
  return old;
end`,
      rights,
    ),
    define(
      'truncate',
      `
begin
  if pg_catalog.current_setting('transaction_isolation') operator(pg_catalog.<>) 'read committed' then
    raise exception 'a replicated table cannot be truncated with an old snapshot'
      using errcode = '0A000', hint = 'Truncate in a READ COMMITTED transaction, or use DELETE.';
  end if;
  ${truncating}${noteDeletes}
  ${partitioned ? buryPart : ''}${buryAll.join(target)};
  return null;
end`,
      'owner, pinned',
    ),
    trigger('insert', 'before insert'),
    trigger('late', `after insert or update of ${key.join(', ')}`),
    // By name `rekey` comes first; `update` leaves what it stamped.
    trigger('rekey', `before update of ${key.join(', ')}`),
    trigger('update', 'before update'),
    trigger('delete', 'before delete'),
    // TRUNCATE travels as the deletes that it is.
    truncateTrigger(table, target),
  ];
}

/** Partitions whose TRUNCATE is not known yet: new ones, and those that were another table's. */
export function unheeded<Leaf extends { readonly truncates: string | null }>(
  table: Table,
  leaves: readonly Leaf[],
): Leaf[] {
  return leaves.filter(({ truncates }) => truncates !== `truncate_${tableId(table)}`);
}

/** The trigger that buries the rows of the table, or of one of its partitions, when that is truncated: `target`, quoted. */
export function truncateTrigger(table: Table, target: string): string {
  return `create or replace trigger ${ident(TRIGGERS.truncate)} before truncate on ${target} for each statement execute function coregent.${ident(`truncate_${tableId(table)}`)}()`;
}

/** Dollar-quotes a function body. The tag cannot occur in it: names are the only foreign text, and they are quoted. */
function dollar(body: string): string {
  return body.includes('$coregent$') ? literal(body) : `$coregent$${body}$coregent$`;
}
