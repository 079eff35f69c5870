import type pg from 'pg';
import { familyOf, isModule, type Rule } from '../model/rule.ts';
import { type Table, tableLabel } from '../model/table.ts';
import { ident } from '../quote.ts';

/** What is wrong in one region, and the cure. */
export interface DeciderFault {
  /** The place of the region in the list. */
  readonly region: number;
  readonly message: string;
  readonly cure: string;
}

/** What a function does, as SQL over `pg_proc p` and `pg_language l`: equal where it was created alike. */
export const DEFINITION = `md5(concat_ws(' ', l.lanname, p.proconfig::text, p.proisstrict::text, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)))`;

const FIND = `
select p.provolatile = 'i' as immutable, p.proretset or p.prorettype <> c.reltype as mistyped, p.oid::regprocedure::text as signature,
  ${DEFINITION} as hash
from pg_class c join pg_type t on t.oid = c.reltype
join pg_proc p on p.proname = $3 and p.pronargs = 1 and p.proargtypes[0] = t.typarray and p.prokind = 'f'
join pg_namespace n on n.oid = p.pronamespace and n.nspname = $2
join pg_language l on l.oid = p.prolang
where c.oid = $1`;

/**
 * What keeps a table's rule from being carried out: `custom` needs a function that makes one row of many, the same in every region.
 * `tables` is the table as each region has it, `clients` are theirs.
 */
export async function deciderFaults(
  rule: Rule,
  tables: readonly Table[],
  clients: readonly pg.Client[],
): Promise<DeciderFault[]> {
  const own = Object.keys(rule.columns);
  if (familyOf(rule) === 'versions' && own.length > 0) {
    const message = `the rule \`${rule.conflict}\` is for whole rows, and ${own.join(', ')} has a rule of its own`;
    return [{ region: 0, message, cure: 'take the rule of the columns out, or that of the table' }];
  }
  if (rule.conflict !== 'custom') return [];
  if (rule.custom === undefined) {
    const cure = 'name one: `custom: schema.function`, or a module: `custom: ./resolvers/name.ts`';
    return [{ region: 0, message: 'the rule `custom` names no function', cure }];
  }
  if (isModule(rule.custom)) return [];
  const [schema, name] = rule.custom.split('.');
  const faults: DeciderFault[] = [];
  let first: string | undefined;
  for (const [region, table] of tables.entries()) {
    const { rows } = await clients[region]!.query(FIND, [table.oid, schema, name]);
    const [found] = rows;
    const label = tableLabel(table);
    if (!found || found.mistyped) {
      const message = `there is no function ${rule.custom}(${label}[]) that returns ${label}`;
      faults.push({ region, message, cure: 'create it, and mark it immutable' });
    } else if (!found.immutable) {
      const cure = `alter function ${ident(schema!)}.${ident(name!)} immutable`;
      faults.push({ region, message: `the function ${found.signature} is not immutable`, cure });
    } else {
      first ??= found.hash;
      if (found.hash !== first) {
        const message = `the function ${found.signature} is another one than in the first region`;
        faults.push({ region, message, cure: 'create the same function in every region' });
      }
    }
  }
  return faults;
}
