import { isModule, parseRule } from '../model/rule.ts';
import { OURS, PARENT, TOMBSTONES, tableId, VERSION } from '../model/table.ts';
import { literal } from '../quote.ts';
import { PUBLICATION } from './catalog.ts';
import type { Queryable } from './connect.ts';
import { DEFINITION } from './decider.ts';

/** One column of a table as its region has it now. */
interface StandingColumn {
  readonly name: string;
  /** As a Relation message names the type. */
  readonly oid: number;
  readonly modifier: number;
  /** The type as PostgreSQL prints it, with its modifier. */
  readonly written: string;
  /** The type in full: modifier, and what a domain or composite type is made of. */
  readonly type: string;
  /** An enum's labels, of the type itself or of what it is made of. */
  readonly labels: readonly string[];
}

/** What must be alike in two regions for a table's rows to travel between them. */
export interface Standing {
  readonly id: string;
  /** How people write the table's name. */
  readonly label: string;
  /** Its rule; see `ruleText`. */
  readonly rule: string;
  /** Of a rule that is a SQL function: what the function is, as a hash; undefined for other rules, and where it is not there. */
  readonly decider: string | undefined;
  /** Why the table cannot take part as its own region has it; undefined when it can. */
  readonly fault: string | undefined;
  /** Why nothing can be applied to it, though its own rows can travel. */
  readonly barred: string | undefined;
  /** Whether the region sends less than all of it: it was taken out of the publication, or only a part of it is in. */
  readonly unpublished: boolean;
  /** All that travel, version and parent too. */
  readonly columns: readonly StandingColumn[];
  readonly key: readonly string[];
}

/** Every replicated table of a region, by id. */
export interface Standings {
  readonly tables: ReadonlyMap<string, Standing>;
  /** Two readings with the same text found the same. */
  readonly text: string;
}

/** Whether a row `r` of `pg_publication_rel` stands for all rows and columns of its table; from 15 on it need not. */
export const WHOLE = `coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') is null`;

const READ = `
select t.table_id as id, t.schema_name as schema, t.table_name as name, t.rule, c.relkind as kind, c.oid::int8 as relation,
  (select coalesce(json_agg(json_build_object('name', a.attname, 'oid', a.atttypid::int8, 'modifier', a.atttypmod,
      'written', format_type(a.atttypid, a.atttypmod),
      'type', format_type(a.atttypid, a.atttypmod)
        || case when y.typtype = 'd' then ' over ' || format_type(y.typbasetype, y.typtypmod)
          when y.typtype = 'c' then (select coalesce(string_agg(' ' || f.attname || ' ' || format_type(f.atttypid, f.atttypmod), ',' order by f.attnum), '')
            from pg_attribute f where f.attrelid = y.typrelid and f.attnum > 0 and not f.attisdropped) else '' end,
      'labels', (select coalesce(json_agg(e.enumlabel order by e.enumsortorder), '[]') from pg_enum e
        where e.enumtypid in (y.oid, y.typelem, y.typbasetype))) order by a.attname), '[]')
    from pg_attribute a join pg_type y on y.oid = a.atttypid
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '') as columns,
  (select coalesce(json_agg(a.attname order by k.position), '[]')
    from pg_index i cross join lateral unnest(i.indkey) with ordinality as k (attnum, position)
    join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
    where i.indrelid = c.oid and i.indisprimary and i.indisvalid and i.indimmediate and k.position <= i.indnkeyatts) as key,
  (select json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) from pg_attribute a
    where a.attrelid = to_regclass('coregent.tomb_' || t.table_id) and a.attnum > 0 and not a.attisdropped) as buried,
  case when t.rule like '{%"custom"%' then (select ${DEFINITION} from pg_type y
    join pg_proc p on p.pronargs = 1 and p.proargtypes[0] = y.typarray and p.prorettype = y.oid and p.proname = split_part(t.rule::json ->> 'custom', '.', 2)
    join pg_namespace f on f.oid = p.pronamespace and f.nspname = split_part(t.rule::json ->> 'custom', '.', 1)
    join pg_language l on l.oid = p.prolang where y.oid = c.reltype) end as decider,
  -- One for UPDATE (2) bars every INSERT … ON CONFLICT even if it is disabled, one for INSERT (3) only where it fires.
  (select min(r.rulename) from pg_rewrite r where r.ev_class = c.oid
    and (r.ev_type = '2' or r.ev_type = '3' and r.ev_enabled in ('A', 'R'))) as bars,
  (select count(*) from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
    where p.pubname = ${literal(PUBLICATION)} and p.pubinsert and p.pubupdate and p.pubviaroot
    and r.prrelid in (c.oid, to_regclass('coregent.${TOMBSTONES}' || t.table_id)) and ${WHOLE}) < 2 as unpublished
from coregent.tables t
left join (pg_class c join pg_namespace n on n.oid = c.relnamespace) on n.nspname = t.schema_name and c.relname = t.table_name
order by 1`;

/** Reads how every replicated table stands in a region: one query, light enough to be asked every few seconds. */
export async function readStandings(client: Queryable): Promise<Standings> {
  const { rows } = await client.query(READ);
  const tables = rows.map((row): Standing => {
    const columns = row.columns as StandingColumn[];
    const key = row.key as string[];
    return {
      id: tableId(row),
      label: `${row.schema}.${row.name}`,
      rule: row.rule,
      decider: row.decider ?? undefined,
      fault: faultOf(row.kind, columns, key, row.buried ?? {}),
      barred: row.bars === null ? undefined : `has the rule ${row.bars}, which bars upserts: drop it`,
      unpublished: row.unpublished,
      columns,
      key,
    };
  });
  return { tables: new Map(tables.map((table) => [table.id, table])), text: JSON.stringify(rows) };
}

function faultOf(
  kind: string | null,
  columns: readonly StandingColumn[],
  key: readonly string[],
  buried: Readonly<Record<string, string>>,
): string | undefined {
  if (kind === null) return 'is gone: create it again, or drop it everywhere, and run `coregent apply`';
  if (kind !== 'r' && kind !== 'p') return 'is no ordinary table any more';
  if (key.length === 0) return 'has no primary key';
  const names = new Set(columns.map(({ name }) => name));
  if (!names.has(VERSION) || !names.has(PARENT)) return 'has no versions: run `coregent apply`';
  const types = new Map(columns.map((column) => [column.name, column.written]));
  const remembered = Object.keys(buried).filter((name) => !OURS.includes(name));
  if (remembered.length !== key.length || key.some((name) => types.get(name) !== buried[name])) {
    return 'has another key than its deletes are remembered by: run `coregent apply`';
  }
  return undefined;
}

/** The same with tables to which nothing can be applied for another reason, if `barred` gives one. */
export async function withBarred(
  { tables, text }: Standings,
  barred: (table: Standing) => Promise<string | undefined>,
): Promise<Standings> {
  const reasons: (string | undefined)[] = [];
  const all = new Map<string, Standing>();
  for (const [id, table] of tables) {
    const reason = table.barred ?? (await barred(table));
    all.set(id, { ...table, barred: reason });
    reasons.push(reason);
  }
  return { tables: all, text: `${text}\n${JSON.stringify(reasons)}` };
}

/** Why a table's rows cannot travel from a peer to this region; undefined when they can. */
export function disagreement(here: Standing | undefined, there: Standing | undefined): string | undefined {
  if (!here) return 'this region does not replicate it: run `coregent apply`';
  if (!there) return 'the peer does not replicate it: run `coregent apply`';
  if (here.fault) return `here it ${here.fault}`;
  if (there.fault) return `at the peer it ${there.fault}`;
  if (there.unpublished) return 'the peer does not send all of it: run `coregent apply`';
  if (here.barred) return `here it ${here.barred}`;
  if (here.rule !== there.rule) {
    return `its rule is ${here.rule} here and ${there.rule} at the peer: run \`coregent apply\``;
  }
  const { custom } = parseRule(here.rule);
  if (custom !== undefined && !isModule(custom) && (here.decider === undefined || here.decider !== there.decider)) {
    const missing = here.decider === undefined ? 'is not there here' : 'is not there at the peer';
    const what = here.decider && there.decider ? 'is another one here than at the peer' : missing;
    return `the function ${custom} of its rule ${what}: create the same in every region`;
  }
  const mine = new Map(here.columns.map((column) => [column.name, column]));
  const theirs = new Map(there.columns.map((column) => [column.name, column]));
  const what = [
    lacks('the peer', [...mine.keys()], theirs),
    lacks('this region', [...theirs.keys()], mine),
    ...[...mine.values()].map(({ name, type, labels }) => {
      const other = theirs.get(name);
      if (!other) return '';
      if (other.type !== type) return `${name} is ${type} here and ${other.type} at the peer`;
      const unknown = other.labels.filter((label) => !labels.includes(label));
      return unknown.length > 0 ? `the type of ${name} lacks here: ${unknown.join(', ')}` : '';
    }),
    here.key.join() === there.key.join()
      ? ''
      : `the primary key is (${here.key.join(', ')}) here and (${there.key.join(', ')}) at the peer`,
  ];
  return what.filter(Boolean).join('; ') || undefined;
}

function lacks(who: string, names: readonly string[], has: ReadonlyMap<string, unknown>): string {
  const missing = names.filter((name) => !has.has(name));
  return missing.length > 0 ? `${who} lacks ${missing.join(', ')}` : '';
}
