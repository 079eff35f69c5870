import { ident, literal } from '../../src/quote.ts';

/**
 * Namesakes in the schema `S` of whatever `pg_catalog` has: functions and operators of the same arguments, which raise, aggregates
 * that lie, empty tables and types that are another. Who reaches one by its bare name fails, or is told nonsense.
 */
export const namesakes = (schema: string): string => `
  set check_function_bodies = off;
  create schema ${ident(schema)};
  grant usage on schema ${ident(schema)} to public;
  do $do$
  declare
    each record;
  begin
    for each in select p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid) as arguments, p.prorettype::regtype as result, p.proretset
        from pg_proc p where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and p.proargmodes is null
        and not exists (select from unnest(p.proargtypes || nullif(p.prorettype, 'void'::regtype)) a join pg_type t on t.oid = a where t.typtype = 'p')
    loop
      execute format('create function ${ident(schema)}.%I(%s) returns %s%s language plpgsql as %L', each.proname, each.arguments,
        case when each.proretset then 'setof ' else '' end, each.result,
        format('begin raise exception %L; end', 'shadow of ' || each.proname));
    end loop;
    for each in select o.oprname, o.oprleft::regtype as l, o.oprright::regtype as r, p.proname
        from pg_operator o join pg_proc p on p.oid = o.oprcode where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprkind = 'b'
        and exists (select from pg_proc mine where mine.pronamespace = ${literal(schema)}::regnamespace
          and mine.proname = p.proname and mine.proargtypes = p.proargtypes)
    loop
      execute format('create operator ${ident(schema)}.%s (leftarg = %s, rightarg = %s, function = ${ident(schema)}.%I)',
        each.oprname, each.l, each.r, each.proname);
    end loop;
    for each in select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v') loop
      execute format('create table ${ident(schema)}.%I ()', each.relname);
      execute format('grant all on ${ident(schema)}.%I to public', each.relname);
    end loop;
    for each in select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype = 'b'
        and typname !~ '^_' and typrelid = 0 loop
      execute format('create domain ${ident(schema)}.%I as pg_catalog.bool check (false)', each.typname);
    end loop;
  end
  $do$;
  create aggregate ${ident(schema)}.count(*) (sfunc = pg_catalog.int8inc, stype = pg_catalog.int8, initcond = '1000000');
  reset check_function_bodies`;
