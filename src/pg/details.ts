import type pg from 'pg';
import { literal, qualified } from '../quote.ts';
import { TRIGGERS } from './triggers.ts';

/** Another relation that belongs to a table. */
export interface Part {
  readonly schema: string;
  readonly name: string;
}

/** One partition that holds rows. */
export interface Leaf extends Part {
  readonly unlogged: boolean;
  /** What our TRUNCATE trigger calls; null where there is none, since it is not inherited as row triggers are. */
  readonly truncates: string | null;
}

/** What keeps a DEFERRABLE unique or exclusion constraint of a table or of one of its partitions: a trigger of the server's own. */
export interface Recheck extends Part {
  readonly constraint: string;
  readonly trigger: string;
  /** Whether it fires for a session that replicates, which it does not by itself. */
  readonly always: boolean;
}

/** A sequence that fills a column of a key or of a unique index. */
export interface Sequence extends Part {
  readonly column: string;
  /** The greatest value that both the sequence and its column can hold. */
  readonly max: bigint;
  readonly increment: bigint;
  /** The value before the next one that it gives. */
  readonly last: bigint;
}

/** What only `apply` asks of a table. */
export interface Details {
  readonly leaves: readonly Leaf[];
  /** Parents and children by plain inheritance. */
  readonly relatives: readonly string[];
  /** Why its primary key, if it has one, can't be used. */
  readonly keyFault: 'deferrable' | 'generated' | 'temporal' | undefined;
  /** Columns of the primary key whose collation takes different texts for one, and that collation's locale. */
  readonly folded: Readonly<Record<string, string>>;
  /** Those of its parts, or itself, whose updates PostgreSQL refuses as soon as they are published. */
  readonly mute: readonly Part[];
  /** Generated columns and their expressions. */
  readonly generated: Readonly<Record<string, string>>;
  readonly rechecks: readonly Recheck[];
  /** Columns that a constraint or a unique index ties together: what is valid of them is so only as a whole. */
  readonly groups: readonly (readonly string[])[];
  /** BEFORE row triggers of the application that fire behind ours: they could change a row that is stamped already. */
  readonly lateTriggers: readonly string[];
  /** Triggers of the application that also fire where rows are applied. */
  readonly replicaTriggers: readonly string[];
  readonly sequences: readonly Sequence[];
}

/** Each subquery is about `c`, and about its partitions where these have something of their own. */
const FIND = `
select c.oid,
  (select coalesce(json_agg(json_build_object('schema', ln.nspname, 'name', l.relname, 'unlogged', l.relpersistence <> 'p',
      'truncates', (select f.proname from pg_trigger g join pg_proc f on f.oid = g.tgfoid where g.tgrelid = l.oid and g.tgname = $1 and g.tgenabled = 'O')) order by ln.nspname, l.relname), '[]')
    from pg_partition_tree(c.oid) p join pg_class l on l.oid = p.relid join pg_namespace ln on ln.oid = l.relnamespace
    where p.isleaf and p.relid <> c.oid) as leaves,
  (select coalesce(json_agg(r.oid::regclass::text order by 1), '[]')
    from pg_inherits h join pg_class r on r.oid = case when h.inhrelid = c.oid then h.inhparent else h.inhrelid end
    where c.oid in (h.inhrelid, h.inhparent) and c.relkind <> 'p' and not c.relispartition) as relatives,
  (select case when not i.indimmediate then 'deferrable' when i.indisexclusion then 'temporal'
      when exists (select from pg_attribute a where a.attrelid = c.oid and a.attnum = any (i.indkey) and a.attgenerated <> '') then 'generated' end
    from pg_index i where i.indrelid = c.oid and i.indisprimary) as key_fault,
  (select coalesce(json_object_agg(a.attname, coalesce(to_jsonb(co) ->> 'colllocale', to_jsonb(co) ->> 'colliculocale', to_jsonb(co) ->> 'collcollate')), '{}')
    from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey)
    join pg_collation co on co.oid = a.attcollation and not co.collisdeterministic
    where i.indrelid = c.oid and i.indisprimary) as folded,
  (select coalesce(json_agg(json_build_object('schema', rn.nspname, 'name', r.relname) order by rn.nspname, r.relname), '[]')
    from mine m join pg_class r on r.oid = m.oid and r.relkind = 'r' join pg_namespace rn on rn.oid = r.relnamespace
    where r.relreplident = 'n' or r.relreplident = 'i' and not exists (select from pg_index i where i.indrelid = r.oid and i.indisreplident)) as mute,
  (select coalesce(json_object_agg(a.attname, pg_get_expr(f.adbin, f.adrelid)), '{}') from pg_attribute a
    join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
    where a.attrelid = c.oid and a.attgenerated <> '' and not a.attisdropped) as generated,
  (select coalesce(json_agg(json_build_object('schema', rn.nspname, 'name', r.relname, 'constraint', o.conname, 'trigger', g.tgname, 'always', g.tgenabled = 'A') order by rn.nspname, r.relname, o.conname), '[]')
    from mine m join pg_class r on r.oid = m.oid join pg_namespace rn on rn.oid = r.relnamespace
    join pg_constraint o on o.conrelid = m.oid and o.contype in ('u', 'x') and o.condeferrable
    join pg_trigger g on g.tgconstraint = o.oid and g.tgrelid = m.oid and g.tgisinternal) as rechecks,
  (select coalesce(json_agg(tied.names order by tied.names::text), '[]') from (
      select array_agg(distinct a.attname::text order by a.attname::text) as names
      from (select o.oid, unnest(o.conkey) as attnum from pg_constraint o where o.conrelid = c.oid and o.contype in ('c', 'u', 'f', 'x')
        union all select i.indexrelid, d.refobjsubid from pg_index i join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
          and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.refobjsubid > 0 where i.indrelid = c.oid and i.indisunique) k
      join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum group by k.oid) tied where cardinality(tied.names) > 1) as tied,
  -- Triggers fire in the order of their names' bytes; 1 is FOR EACH ROW, 2 is BEFORE.
  (select coalesce(json_agg(distinct g.tgname), '[]') from mine m join pg_trigger g on g.tgrelid = m.oid
    where not g.tgisinternal and g.tgenabled in ('O', 'A') and g.tgtype & 3 = 3
      and g.tgname collate "C" > '~coregent_' and g.tgname not like '~coregent\\_%') as late_triggers,
  (select coalesce(json_agg(distinct g.tgname), '[]') from mine m join pg_trigger g on g.tgrelid = m.oid
    where not g.tgisinternal and g.tgenabled in ('A', 'R')) as replica_triggers,
  (select coalesce(json_agg(distinct jsonb_build_object('schema', sn.nspname, 'name', s.relname, 'column', a.attname,
      'max', least(q.seqmax, case a.atttypid when 21 then 32767 when 23 then 2147483647 else q.seqmax end)::text, 'increment', q.seqincrement::text,
      'start', q.seqstart::text, 'readable', has_sequence_privilege(s.oid, 'select'))), '[]')
    from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey)
    left join pg_attrdef f on f.adrelid = c.oid and f.adnum = a.attnum
    -- A default depends on the sequence that it calls; an identity's sequence depends on the column.
    join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
      or d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.refobjsubid = a.attnum and d.deptype = 'i'
    join pg_class s on s.oid = case d.classid when 'pg_class'::regclass then d.objid else d.refobjid end and s.relkind = 'S'
    join pg_namespace sn on sn.oid = s.relnamespace join pg_sequence q on q.seqrelid = s.oid
    where i.indrelid = c.oid and i.indisunique) as sequences
from pg_class c
  cross join lateral (select array_agg(p.relid::oid) as oids from (select c.oid as relid union select p.relid from pg_partition_tree(c.oid) p) p) as tree
where c.oid = any ($2::oid[])`.replaceAll('from mine m', 'from unnest(tree.oids) as m (oid)');

interface FoundSequence extends Part {
  readonly column: string;
  readonly max: string;
  readonly increment: string;
  readonly start: string;
  readonly readable: boolean;
}

/** Looks at these tables more closely than {@link findTables}; by their OIDs. */
export async function findDetails(client: pg.Client, oids: readonly number[]): Promise<Map<number, Details>> {
  const { rows } = await client.query(FIND, [TRIGGERS.truncate, oids]);
  const next = await nextValues(
    client,
    rows.flatMap((row) => row.sequences as FoundSequence[]),
  );
  return new Map(
    rows.map((row) => [
      Number(row.oid),
      {
        leaves: row.leaves,
        relatives: row.relatives,
        keyFault: row.key_fault ?? undefined,
        folded: row.folded,
        mute: row.mute,
        generated: row.generated,
        rechecks: row.rechecks,
        groups: together(row.tied),
        lateTriggers: row.late_triggers,
        replicaTriggers: row.replica_triggers,
        sequences: (row.sequences as FoundSequence[]).map(({ schema, name, column, ...found }) => {
          const increment = BigInt(found.increment);
          const last = (next.get(qualified(schema, name)) ?? BigInt(found.start)) - increment;
          return { schema, name, column, max: BigInt(found.max), increment, last };
        }),
      },
    ]),
  );
}

/** The next value of each sequence that may be read, by its quoted name. The catalog only knows of those that were used since they were set. */
async function nextValues(client: pg.Client, sequences: readonly FoundSequence[]): Promise<Map<string, bigint>> {
  const readable = new Map(
    sequences.flatMap(({ schema, name, increment, readable }) =>
      readable ? [[qualified(schema, name), increment]] : [],
    ),
  );
  if (readable.size === 0) return new Map();
  const { rows } = await client.query(
    [...readable]
      .map(
        ([name, increment]) =>
          `select ${literal(name)} as name, (last_value + case when is_called then ${increment} else 0 end)::text as next from ${name}`,
      )
      .join(' union all '),
  );
  return new Map(rows.map(({ name, next }) => [name, BigInt(next)]));
}

/** Of sets of columns that share members, their unions; each in the order of its names. */
function together(tied: readonly (readonly string[])[]): readonly (readonly string[])[] {
  const groups: Set<string>[] = [];
  for (const names of tied) {
    const touched = groups.filter((group) => names.some((name) => group.has(name)));
    for (const group of touched) groups.splice(groups.indexOf(group), 1);
    groups.push(new Set([...names, ...touched.flatMap((group) => [...group])]));
  }
  return groups.map((group) => [...group].sort()).sort((a, b) => (a.join() < b.join() ? -1 : 1));
}
