import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import { CoregentError } from '../model/error.ts';
import { familyOf, parseRule, type Rule, ruleText } from '../model/rule.ts';
import {
  deletesName,
  OURS,
  PARENT,
  STATE,
  type Table,
  TOMBSTONES,
  tableId,
  tableLabel,
  tombstoneName,
  VERSION,
} from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { guardsOf } from './applier.ts';
import { type FoundTable, findTables, PUBLICATION, readInstalled } from './catalog.ts';
import { transaction } from './connect.ts';
import { type Details, findDetails } from './details.ts';
import { isRecreated, oweAgain } from './recreated.ts';
import { disownSql, OWNER_TRIGGER, type Ownership, ownerSql, readOwnerType, truncateOwned } from './stamp-owner.ts';
import { WHOLE } from './standing.ts';
import { stampingSql, TRIGGERS, triggerFunctions, truncateTrigger, unheeded } from './triggers.ts';

/** One change to one region, as `apply --dry-run` prints it. */
export interface Action {
  readonly region: string;
  /** For people: `stamp public.orders`. */
  readonly what: string;
  /** Statements run in one transaction. */
  readonly sql: readonly string[];
  /** The table whose rule it makes another one: to be carried out in all regions at once. */
  readonly changes?: string;
}

/** Waits this long for a table's lock before letting the application go first, in ms. */
const LOCK_TIMEOUT_MS = 2_000;
const LOCK_TRIES = 60;

/**
 * The changes that bring one region to what the configuration says; empty when there are none.
 * `tables` are the tables to replicate as this region has them.
 * Throws `refused` when the database already belongs to another region or cluster, or a table's key is another one.
 */
export async function planRegion(
  client: pg.Client,
  config: Config,
  region: RegionConfig,
  tables: readonly { readonly table: FoundTable & Table; readonly details: Details; readonly rule: string }[],
): Promise<Action[]> {
  const actions: Action[] = [];
  const add = (what: string, sql: readonly string[]): void => {
    actions.push({ region: region.name, what, sql });
  };
  const installed = await readInstalled(client, region.name);
  if (installed) {
    const { id, name, cluster } = installed.region;
    if (id !== region.id || name !== region.name || cluster !== config.cluster) {
      throw new CoregentError('refused', `this database is region ${name} (${id}) of cluster ${cluster}`, {
        where: region.name,
        cure: 'Correct the region’s url or id; or run `coregent remove` with the file that made it.',
      });
    }
  } else {
    const catalog = await readFile(new URL('../../sql/0001_catalog.sql', import.meta.url), 'utf8');
    add('create schema coregent', [
      catalog,
      `insert into coregent.this_region values (${region.id}, ${literal(region.name)}, ${literal(config.cluster)})`,
    ]);
  }

  const known = installed
    ? (await client.query(`select id, name from coregent.regions`)).rows.map((row) => `${row.id} ${row.name}`)
    : [];
  const wanted = config.regions.map(({ id, name }) => `${id} ${name}`);
  if ([...known].sort().join() !== [...wanted].sort().join()) {
    add('list the regions', [
      'delete from coregent.regions',
      `insert into coregent.regions values ${config.regions.map(({ id, name }) => `(${id}, ${literal(name)})`).join(', ')}`,
    ]);
  }

  const publication = await readPublication(client);
  if (publication.options !== 'right') {
    const statement = publication.options === 'none' ? 'create publication' : 'alter publication';
    const word = publication.options === 'none' ? 'with' : 'set';
    add(`${statement} ${PUBLICATION}`, [
      `${statement} ${ident(PUBLICATION)} ${word} (publish = 'insert, update', publish_via_partition_root = true)`,
    ]);
  }
  const { rows: registered } = installed
    ? await client.query(`select table_id, rule, stamp from coregent.tables`)
    : { rows: [] };
  const byId = new Map(registered.map((row) => [row.table_id as string, row]));

  const remembered = await readRemembered(client);
  const guards = await guardsOf(client);
  const names = config.regions.map(({ name }) => name);
  for (const { table, details, rule } of tables) {
    const row = byId.get(tableId(table));
    const partitioned = table.kind === 'partitioned';
    const ownership = await ownershipOf(client, table, region.name, names);
    const stamping = stampingSql(table, region.id, {
      partitioned,
      groups: details.groups,
      ...(guards ? { guard: guards.stamp } : {}),
      ...(ownership ? { truncating: truncateOwned(table, ownership) } : {}),
    });
    if (ownership) {
      stamping.push(...ownerSql(table, ownership, { partitioned, ...(guards ? { guard: guards.owner } : {}) }));
    }
    const parts = [
      ...rememberSql(table, remembered.get(tombstoneName(table)), region.name),
      ...partsSql(table, details, guards === undefined),
    ];
    // A walsender of PostgreSQL 14 takes a table that it has met for what it was, until the publication changes.
    if (row && unheeded(table, details.leaves).length > 0) {
      parts.push(`alter publication ${ident(PUBLICATION)} set (publish = 'insert, update')`);
    }
    const stamp = stampHash(stamping);
    const whole =
      row?.rule === rule &&
      row.stamp === stamp &&
      table.stamped &&
      Object.values(TRIGGERS).every((name) => table.triggers.includes(name)) &&
      table.triggers.includes(OWNER_TRIGGER) === (ownership !== undefined) &&
      [tableLabel(table), `coregent.${tombstoneName(table)}`].every((label) => publication.whole.has(label)) &&
      parts.length === 0;
    if (whole) continue;
    const recreated = row !== undefined && isRecreated(table) ? region.id : undefined;
    const sql = [...tableSql(table, rule, { stamping, stamp, recreated }, publication), ...parts];
    const label = tableLabel(table);
    // Another version of a module: what rows mean stays, and regions that don't have it yet pause.
    if (row === undefined || ruleText(unread(row.rule)) === ruleText(unread(rule))) {
      add(`stamp ${label}`, sql);
      continue;
    }
    if (recreated !== undefined) {
      throw new CoregentError('refused', `${label} was created again, and its rule is another one`, {
        where: region.name,
        cure: `Run \`coregent apply\` with the rule that it had, ${row.rule}, and then with the other one.`,
      });
    }
    actions.push({ region: region.name, what: `change the rule of ${label}`, sql, changes: label });
  }
  return actions;
}

/** A rule without the hash of its module. */
function unread(text: string): Rule {
  const { hash: _, ...rule } = parseRule(text);
  return rule;
}

/** By which region's writes of a table are refused here; undefined where nobody's are. Throws `refused` for a column that won't do. */
async function ownershipOf(
  client: pg.Client,
  table: Table,
  here: string,
  regions: readonly string[],
): Promise<Ownership | undefined> {
  const owner = table.rule.owner;
  if (!owner) return undefined;
  const read = await readOwnerType(client, table, owner);
  if ('type' in read) return { owner, type: read.type, here, regions };
  const { message, cure } = read.fault;
  throw new CoregentError('refused', `${tableLabel(table)} ${message}`, { where: here, cure });
}

/** What a region's publication is. */
interface Publication {
  readonly options: 'none' | 'other' | 'right';
  /** Tables of which it has all rows and columns, and those of which it has a part. */
  readonly whole: ReadonlySet<string>;
  readonly partial: ReadonlySet<string>;
}

async function readPublication(client: pg.Client): Promise<Publication> {
  const { rows: found } = await client.query(
    `select pubinsert and pubupdate and pubviaroot and not pubdelete and not pubtruncate as right from pg_publication where pubname = $1`,
    [PUBLICATION],
  );
  const { rows: tables } = await client.query(
    `select n.nspname || '.' || c.relname as label, ${WHOLE} as whole from pg_publication p
      join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
      where p.pubname = $1`,
    [PUBLICATION],
  );
  const labels = (whole: boolean): Set<string> =>
    new Set(tables.filter((table) => table.whole === whole).map(({ label }) => label));
  const options = found.length === 0 ? 'none' : found[0].right ? 'right' : 'other';
  return { options, whole: labels(true), partial: labels(false) };
}

/** The columns of every table of tombstones and their types, by its name. */
async function readRemembered(client: pg.Client): Promise<Map<string, Readonly<Record<string, string>>>> {
  const { rows } = await client.query(
    `select c.relname as name, json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) as types
      from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where c.relnamespace = to_regnamespace('coregent') and starts_with(c.relname, $1) and c.relkind = 'r' group by 1`,
    [TOMBSTONES],
  );
  return new Map(rows.map(({ name, types }) => [name, types]));
}

/** Deletes are remembered by the key as it is now: its columns may have other types than they had. Throws `refused` for another key. */
function rememberSql(table: Table, types: Readonly<Record<string, string>> | undefined, where: string): string[] {
  if (!types) return [];
  const before = Object.keys(types).filter((name) => !OURS.includes(name));
  if (before.length !== table.key.length || before.some((name) => !table.key.includes(name))) {
    throw new CoregentError(
      'refused',
      `${tableLabel(table)} has another primary key than its deletes are remembered by`,
      {
        where,
        cure: `Make (${before.join(', ')}) its primary key again; or run \`coregent remove\` and \`coregent apply\` anew, while nobody writes.`,
      },
    );
  }
  const tombs = qualified('coregent', tombstoneName(table));
  return table.columns
    .filter(({ name, type }) => table.key.includes(name) && types[name] !== type)
    .map(({ name, type }) => `alter table ${tombs} alter column ${ident(name)} type ${type}`);
}

/** What partitions need of their own, and constraints that a session that replicates would not hold by itself. */
function partsSql(table: Table, { leaves, rechecks }: Details, replicates: boolean): string[] {
  const unheld = replicates ? rechecks.filter(({ always }) => !always) : [];
  return [
    ...unheeded(table, leaves).map(({ schema, name }) => truncateTrigger(table, qualified(schema, name))),
    ...unheld.map(
      ({ schema, name, trigger }) => `alter table ${qualified(schema, name)} enable always trigger ${ident(trigger)}`,
    ),
  ];
}

function addColumns(version: string, parent: string): string {
  const add = (name: string, value: string): string =>
    `add column if not exists ${ident(name)} int8 not null default ${value}`;
  return `${add(VERSION, version)}, ${add(PARENT, parent)}`;
}

/** Rows and tombstones have a state where the rule needs one. */
function stateSql(table: Table): string[] {
  const family = familyOf(table.rule);
  const change = (needed: boolean): string =>
    needed ? `add column if not exists ${ident(STATE)} jsonb` : `drop column if exists ${ident(STATE)}`;
  return [
    `alter table ${qualified(table.schema, table.name)} ${change(family !== 'rows')}`,
    `alter table ${qualified('coregent', tombstoneName(table))} ${change(family !== 'rows')}`,
  ];
}

/** A version of the statement's time, as SQL; stable, so that a column with this default rewrites no row. */
function versionNow(region: number): string {
  return `(((date_part('epoch', statement_timestamp()) * 1000000)::int8 << 7) | ${region})`;
}

/** Changes when what stamps the table must change. */
function stampHash(stamping: readonly string[]): string {
  return createHash('sha256').update(stamping.join('\0')).digest('hex').slice(0, 16);
}

function tableSql(
  table: Table,
  rule: string,
  {
    stamping,
    stamp,
    recreated,
  }: {
    readonly stamping: readonly string[];
    readonly stamp: string;
    /** The region's id, where the table was replicated before it was created again. */
    readonly recreated: number | undefined;
  },
  publication: Publication,
): string[] {
  const target = qualified(table.schema, table.name);
  const tombs = qualified('coregent', tombstoneName(table));
  const byName = new Map(table.columns.map((column) => [column.name, column]));
  const key = table.key.map((name) => {
    const column = byName.get(name)!;
    return `${ident(name)} ${column.type}${column.collation ? ` collate ${column.collation}` : ''} not null`;
  });
  const publish = [
    [tableLabel(table), target],
    [`coregent.${tombstoneName(table)}`, tombs],
  ].flatMap(([label, name]) => [
    ...(publication.partial.has(label!) ? [`drop table ${name}`] : []),
    ...(publication.whole.has(label!) ? [] : [`add table ${name}`]),
  ]);
  return [
    // Writers wait here, so that no write is between "not stamped" and "published".
    `lock table ${target} in access exclusive mode`,
    `create table if not exists ${tombs} (${key.join(', ')}, ${ident(VERSION)} int8 not null, ${ident(PARENT)} int8 not null, primary key (${table.key.map(ident).join(', ')}))`,
    `create sequence if not exists ${qualified('coregent', deletesName(table))}`,
    ...(recreated === undefined
      ? [`alter table ${target} ${addColumns('0', '0')}`]
      : [
          // Its rows are new writes, which no delete of its earlier life may bury; and it lacks what its peers have of that.
          // A life of its own for each, where rows are joined by their lives.
          `alter table ${target} ${addColumns(versionNow(recreated), familyOf(table.rule) === 'registers' ? `-${versionNow(recreated)}` : '-1')}`,
          `alter table ${target} alter column ${ident(VERSION)} set default 0, alter column ${ident(PARENT)} set default 0`,
          oweAgain(table, 'select slot from coregent.progress'),
        ]),
    ...stateSql(table),
    ...(table.rule.owner ? [] : disownSql(table)),
    ...stamping,
    ...triggerFunctions(table).map((name) => `revoke all on function coregent.${ident(name)}() from public`),
    ...publish.map((what) => `alter publication ${ident(PUBLICATION)} ${what}`),
    `insert into coregent.tables (table_id, schema_name, table_name, rule, stamp, last_column)
      select ${literal(tableId(table))}, ${literal(table.schema)}, ${literal(table.name)}, ${literal(rule)}, ${literal(stamp)}, max(attnum)
      from pg_attribute where attrelid = ${literal(target)}::regclass
      on conflict (table_id) do update set rule = excluded.rule, stamp = excluded.stamp, last_column = excluded.last_column`,
  ];
}

/** Runs an action. A table that the application holds is tried again and again, each time for a short while only. */
export async function runAction(client: pg.Client, action: Action): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await transaction(client, async () => {
        await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
        for (const statement of action.sql) await client.query(statement);
      });
      return;
    } catch (error) {
      const { code } = error as { code?: string };
      // 55P03: no lock in time; 40P01: a deadlock, of which PostgreSQL ended our side.
      if ((code !== '55P03' && code !== '40P01') || attempt === LOCK_TRIES) throw error;
    }
  }
}

/** The statements that take everything of ours out of a region, but for slots and replication origins. */
export async function removalSql(client: pg.Client): Promise<string[]> {
  const statements: string[] = [`drop publication if exists ${ident(PUBLICATION)}`];
  const tables = await findTables(client);
  const details = await findDetails(
    client,
    tables.filter(({ stamped }) => stamped).map(({ oid }) => oid),
  );
  for (const table of tables) {
    const target = qualified(table.schema, table.name);
    for (const trigger of table.triggers) statements.push(`drop trigger if exists ${ident(trigger)} on ${target}`);
    for (const { schema, name, trigger, always } of details.get(table.oid)?.rechecks ?? []) {
      if (always) statements.push(`alter table ${qualified(schema, name)} enable trigger ${ident(trigger)}`);
    }
    if (table.stamped && table.kind !== 'partition') {
      statements.push(`alter table ${target} ${OURS.map((name) => `drop column if exists ${ident(name)}`).join(', ')}`);
    }
  }
  statements.push('drop schema if exists coregent cascade');
  return statements;
}
