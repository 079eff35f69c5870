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
  readonly tables: readonly { oid: number; owner: string; member: boolean; forced: boolean; bypass: boolean }[];
  readonly triggers: readonly { oid: number; name: string; before: boolean; enabled: string; definition: string }[];
  readonly rules: readonly { oid: number; name: string; enabled: string; bars: boolean }[];
  readonly keys: readonly { oid: number; name: string }[];
  readonly subscriptions: readonly { oid: number; name: string }[];
  readonly publications: readonly { oid: number; name: string }[];
}

const list = (select: string): string => `(select coalesce(json_agg(x), '[]') from (${select}) x)`;

const AROUND = `select
  ${list(`select c.oid::int8 as oid, pg_get_userbyid(c.relowner) as owner, pg_has_role(session_user, c.relowner, 'usage') as member,
      c.relforcerowsecurity and not c.relispartition as forced, r.rolsuper or r.rolbypassrls as bypass
    from pg_class c, pg_roles r where c.oid = any ($2) and r.rolname = session_user`)} as tables,
  ${list(`select tgrelid::int8 as oid, tgname as name, tgtype & 2 = 2 as before, tgenabled as enabled, pg_get_triggerdef(oid) as definition
    from pg_trigger where tgrelid = any ($2) and tgparentid = 0 and not tgisinternal and tgname not like '~coregent%' and tgenabled <> 'D' order by tgname`)} as triggers,
  ${list(`select ev_class::int8 as oid, rulename as name, ev_enabled as enabled, ev_type = '2' as bars from pg_rewrite
    where ev_class = any ($1) and rulename <> '_RETURN' and (ev_enabled <> 'D' or ev_type = '2') order by rulename`)} as rules,
  ${list(`select conrelid::int8 as oid, conname as name from pg_constraint
    where conrelid = any ($1) and contype = 'f' and not condeferrable order by conname`)} as keys,
  ${list(`select r.srrelid::int8 as oid, s.subname as name from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
    where r.srrelid = any ($1) and s.subenabled order by s.subname`)} as subscriptions,
  ${list(`select distinct r.oid::int8 as oid, p.pubname as name from pg_publication_tables p
    join pg_namespace n on n.nspname = p.schemaname join pg_class r on r.relnamespace = n.oid and r.relname = p.tablename
    where r.oid = any ($1) and p.pubname <> '${PUBLICATION}' order by p.pubname`)} as publications`;

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
  const { rows: session } = await client.query('select session_user as role');
  const around = rows[0] as Around;
  return tables.flatMap((table) => examineTable(table, around, { here, tier, role: session[0].role }));
}

function examineTable(
  table: FoundTable,
  around: Around,
  { here, tier, role }: { here: string; tier: Tier; role: string },
): Finding[] {
  const label = tableLabel(table);
  const target = qualified(table.schema, table.name);
  const mine = <T extends { oid: number }>(all: readonly T[]): T[] =>
    all.filter(({ oid }) => Number(oid) === table.oid);
  const [{ owner, member, forced, bypass }] = mine(around.tables) as [Around['tables'][number]];
  const firesInReplica = (enabled: string): boolean => enabled === 'A' || enabled === 'R';
  const found: Finding[] = [];
  if (!member)
    found.push(finding('owner_missing', here, label, `belongs to ${owner}`, `grant ${ident(owner)} to ${ident(role)}`));
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
  for (const { name } of mine(around.publications)) {
    found.push(
      finding(
        'publication',
        here,
        label,
        `the publication ${name} has it too`,
        `alter publication ${ident(name)} drop table ${target}`,
      ),
    );
  }
  return found;
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
