import type pg from 'pg';
import { type Config, ruleFor } from '../config.ts';
import type { Tier } from '../model/api.ts';
import { tableLabel } from '../model/table.ts';
import { ident, qualified } from '../quote.ts';
import { APPLY_SETTING, findTier, notAppliedHere } from './applier.ts';
import { type FoundTable, findTables, PUBLICATION } from './catalog.ts';
import { type Finding, finding } from './findings.ts';

/** What belongs to a region's tables besides their columns, and gets in the way. */
interface Around {
  readonly tables: readonly {
    oid: number;
    owner: string;
    /** Whether the owner is a superuser. */
    mighty: boolean;
    /** Whether the role has the owner's rights; and whether it is a member, which without `inherit` is not the same. */
    member: boolean;
    joined: boolean;
    forced: boolean;
    bypass: boolean;
  }[];
  readonly triggers: readonly { oid: number; name: string; before: boolean; enabled: string; definition: string }[];
  readonly rules: readonly { oid: number; name: string; enabled: string; bars: boolean }[];
  readonly keys: readonly { oid: number; name: string }[];
  readonly subscriptions: readonly { oid: number; name: string }[];
  readonly publications: readonly { oid: number; name: string; every: boolean; listed: boolean }[];
  readonly collations: readonly { oid: number; name: string; was: string; is: string }[];
}

const list = (select: string): string => `(select coalesce(json_agg(x), '[]') from (${select}) x)`;

const AROUND = `select
  ${list(`select c.oid::int8 as oid, pg_get_userbyid(c.relowner) as owner, o.rolsuper as mighty,
      pg_has_role(session_user, c.relowner, 'usage') as member, pg_has_role(session_user, c.relowner, 'member') as joined,
      c.relforcerowsecurity and not c.relispartition as forced, r.rolsuper or r.rolbypassrls as bypass
    from pg_class c join pg_roles o on o.oid = c.relowner, pg_roles r where c.oid = any ($2) and r.rolname = session_user`)} as tables,
  ${list(`select tgrelid::int8 as oid, tgname as name, tgtype & 2 = 2 as before, tgenabled as enabled, pg_get_triggerdef(oid) as definition
    from pg_trigger where tgrelid = any ($2) and tgparentid = 0 and not tgisinternal and tgname not like '~coregent%' and tgenabled <> 'D' order by tgname`)} as triggers,
  ${list(`select ev_class::int8 as oid, rulename as name, ev_enabled as enabled, ev_type = '2' as bars from pg_rewrite
    where ev_class = any ($1) and rulename <> '_RETURN' and (ev_enabled <> 'D' or ev_type = '2') order by rulename`)} as rules,
  ${list(`select conrelid::int8 as oid, conname as name from pg_constraint
    where conrelid = any ($1) and contype = 'f' and not condeferrable order by conname`)} as keys,
  ${list(`select r.srrelid::int8 as oid, s.subname as name from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
    where r.srrelid = any ($1) and s.subenabled order by s.subname`)} as subscriptions,
  ${list(`select distinct r.oid::int8 as oid, p.pubname as name, u.puballtables as every,
      exists (select from pg_publication_rel l where l.prpubid = u.oid and l.prrelid = r.oid) as listed
    from pg_publication_tables p join pg_publication u on u.pubname = p.pubname
    join pg_namespace n on n.nspname = p.schemaname join pg_class r on r.relnamespace = n.oid and r.relname = p.tablename
    where r.oid = any ($1) and p.pubname <> '${PUBLICATION}' order by p.pubname`)} as publications,
  ${list(`select distinct i.indrelid::int8 as oid, quote_ident(n.nspname) || '.' || quote_ident(c.collname) as name, c.collversion as was, v.is
    from pg_index i cross join lateral unnest(i.indcollation::oid[]) as k (oid) join pg_collation c on c.oid = k.oid
    join pg_namespace n on n.oid = c.collnamespace cross join lateral (select pg_collation_actual_version(c.oid) as is) v
    where i.indrelid = any ($2) and c.collversion <> v.is order by 2`)} as collations`;

/** What lies around a region's replicated tables: owners, triggers, rules, row security, other replication. */
export async function examineTables(client: pg.Client, config: Config, here: string): Promise<Finding[]> {
  const found = await findTables(client);
  const named = found.filter(
    ({ schema, name, kind }) => ruleFor(config, schema, name) && (kind === 'table' || kind === 'partitioned'),
  );
  if (named.length === 0) return [];
  const tier = await findTier(client);
  const oids = named.map(({ oid }) => oid);
  // Rows are applied to a table as a whole; its partitions have owners and triggers of their own.
  const { rows: parts } = await client.query(
    'select p.relid::oid::int8 as oid from unnest($1::oid[]) r (oid) cross join pg_partition_tree(r.oid) p',
    [oids],
  );
  const whole = new Set([...oids, ...parts.map(({ oid }) => Number(oid))]);
  const tables = found.filter(({ oid }) => whole.has(oid));
  const { rows } = await client.query(AROUND, [oids, [...whole]]);
  const { rows: session } = await client.query(
    `select session_user as role, current_setting('server_version_num')::int as version`,
  );
  const around = rows[0] as Around;
  return tables.flatMap((table) => examineTable(table, around, { here, tier, ...session[0] }));
}

function examineTable(
  table: FoundTable,
  around: Around,
  { here, tier, role, version }: { here: string; tier: Tier; role: string; version: number },
): Finding[] {
  const label = tableLabel(table);
  const target = qualified(table.schema, table.name);
  const mine = <T extends { oid: number }>(all: readonly T[]): T[] =>
    all.filter(({ oid }) => Number(oid) === table.oid);
  const [owned] = mine(around.tables) as [Around['tables'][number]];
  const { owner, member, forced, bypass } = owned;
  const firesInReplica = (enabled: string): boolean => enabled === 'A' || enabled === 'R';
  const found: Finding[] = [];
  if (!member) {
    found.push(
      finding('owner_missing', here, label, `belongs to ${owner}`, ...memberCure(owned, target, role, version)),
    );
  }
  if (forced && !bypass) {
    found.push(
      finding('rls_forced', here, label, 'has FORCE ROW LEVEL SECURITY', `alter role ${ident(role)} bypassrls`),
    );
  }
  for (const { name, before, enabled, definition } of mine(around.triggers)) {
    if (tier !== 'C') {
      if (!firesInReplica(enabled)) continue;
      found.push(
        finding(
          'trigger_fires',
          here,
          label,
          `the trigger ${name} is ENABLE ${enabled === 'A' ? 'ALWAYS' : 'REPLICA'}`,
          `alter table ${target} enable trigger ${ident(name)}`,
        ),
      );
    } else if (!definition.includes(APPLY_SETTING)) {
      found.push(
        finding(
          before ? 'trigger_changes' : 'trigger_fires',
          here,
          label,
          `the trigger ${name} fires in tier C`,
          ...guardedTrigger(definition, name, target),
        ),
      );
    }
  }
  for (const { name, enabled, bars } of mine(around.rules)) {
    const when = tier === 'C' || firesInReplica(enabled) ? ', also of what is applied' : '';
    found.push(
      finding(
        'rule',
        here,
        label,
        bars
          ? `the rule ${name} is for UPDATE, and so nothing is applied`
          : `the rule ${name} rewrites what is written${when}`,
        bars ? `drop rule ${ident(name)} on ${target}` : `alter table ${target} disable rule ${ident(name)}`,
      ),
    );
  }
  if (tier === 'C') {
    for (const { name } of mine(around.keys)) {
      found.push(
        finding(
          'foreign_key_fires',
          here,
          label,
          `the foreign key ${name} is not deferrable`,
          `alter table ${target} alter constraint ${ident(name)} deferrable`,
        ),
      );
    }
  }
  for (const { name } of mine(around.subscriptions)) {
    found.push(
      finding(
        'subscription',
        here,
        label,
        `the subscription ${name} writes it`,
        `alter subscription ${ident(name)} disable`,
        'Or leave the table out of `tables`.',
      ),
    );
  }
  for (const { name, every, listed } of mine(around.publications)) {
    found.push(
      finding(
        'publication',
        here,
        label,
        `the publication ${name} has it too`,
        listed
          ? `alter publication ${ident(name)} drop table ${target}`
          : `It is for all tables${every ? '' : ' of the schema'}, and can leave none out: let its subscribers have one that lists what they need, create publication … for table …`,
      ),
    );
  }
  for (const { name, was, is } of mine(around.collations)) {
    found.push(
      finding(
        'collation_version',
        here,
        label,
        `an index in the collation ${name} was made under version ${was}, the system has ${is}`,
        `reindex table ${target}`,
        `alter collation ${name} refresh version`,
      ),
    );
  }
  return found;
}

/** What makes the role have the rights of a table's owner. */
function memberCure(
  { owner, mighty, joined }: Around['tables'][number],
  target: string,
  role: string,
  version: number,
): string[] {
  if (mighty) {
    return [
      `Give it to an owner that is no superuser, alter table ${target} owner to …, since a member of a superuser may become one. If that is meant:`,
      `grant ${ident(owner)} to ${ident(role)}`,
    ];
  }
  if (!joined) return [`grant ${ident(owner)} to ${ident(role)}`];
  // A member that does not inherit.
  return [
    version >= 160_000
      ? `grant ${ident(owner)} to ${ident(role)} with inherit true`
      : `alter role ${ident(role)} inherit`,
  ];
}

/** The statements that make a trigger, given as `pg_get_triggerdef` prints it, pass by what is applied. */
export function guardedTrigger(definition: string, name: string, target: string): string[] {
  const [, head, condition, action] =
    /^(.*? FOR EACH (?:ROW|STATEMENT))(?: WHEN \((.*)\))?( EXECUTE (?:FUNCTION|PROCEDURE) .*)$/s.exec(definition) ?? [];
  if (head === undefined || action === undefined) return [];
  const guard = condition === undefined ? notAppliedHere() : `(${condition}) and (${notAppliedHere()})`;
  const made = `${head} WHEN (${guard})${action}`;
  if (/^CREATE CONSTRAINT /.test(head)) return [`drop trigger ${ident(name)} on ${target}`, made];
  return [made.replace(/^CREATE /, 'CREATE OR REPLACE ')];
}
