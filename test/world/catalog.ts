import type { Query } from './rows.ts';

/**
 * Everything in a database that is not data, one line each, and what it has in its server under its name: slots and origins.
 * Two equal dumps mean that nothing was added, taken or altered in between.
 */
export async function dumpCatalog(query: Query, cluster: string): Promise<string[]> {
  const { rows } = await query(DUMP, [cluster]);
  return rows.map(({ line }) => line as string);
}

const OURS = `n.nspname !~ '^pg_' and n.nspname <> 'information_schema'`;

const DUMP = `
select line collate "C" as line from (
  select format('schema %s %s', nspname, nspacl) as line from pg_namespace n where ${OURS}
  union all select format('relation %s.%s %s %s %s', n.nspname, relname, relkind, relreplident, relacl)
    from pg_class c join pg_namespace n on n.oid = relnamespace where ${OURS}
  union all select format('column %s.%s.%s %s %s %s', n.nspname, relname, attname, atttypid::regtype, attnotnull, pg_get_expr(adbin, adrelid))
    from pg_attribute a join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
    left join pg_attrdef on adrelid = attrelid and adnum = attnum where ${OURS} and attnum > 0 and not attisdropped
  union all select format('constraint %s.%s %s', n.nspname, conname, pg_get_constraintdef(k.oid))
    from pg_constraint k join pg_namespace n on n.oid = connamespace where ${OURS}
  union all select format('trigger %s on %s %s', tgname, tgrelid::regclass, tgenabled) from pg_trigger where not tgisinternal
  union all select format('function %s %s', p.oid::regprocedure, proacl) from pg_proc p join pg_namespace n on n.oid = pronamespace where ${OURS}
  union all select format('publication %s %s', pubname, (select array_agg(prrelid::regclass::text order by 1) from pg_publication_rel where prpubid = p.oid))
    from pg_publication p
  union all select format('event trigger %s', evtname) from pg_event_trigger
  union all select format('extension %s', extname) from pg_extension
  union all select format('setting %s %s', setrole, setconfig) from pg_db_role_setting
    where setdatabase = (select oid from pg_database where datname = current_database())
  union all select format('slot %s %s', slot_name, plugin) from pg_replication_slots where database = current_database()
  union all select format('origin %s', roname) from pg_replication_origin where strpos(roname, $1) > 0
) lines order by 1`;
