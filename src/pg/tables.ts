import { type Config, ruleFor } from '../config.ts';
import { CoregentError, type Fault } from '../model/error.ts';
import { tableLabel } from '../model/table.ts';
import { ident, qualified } from '../quote.ts';
import { mayReplicate } from './applier.ts';
import { type FoundTable, findTables } from './catalog.ts';
import { type Details, findDetails } from './details.ts';
import { sequenceWarnings } from './sequences.ts';
import type { OpenRegion } from './setup.ts';
import type { Warning } from './warning.ts';

/** A table to replicate and what each region has of it, in the order of the regions. */
export interface ChosenTable {
  readonly label: string;
  readonly rule: string;
  readonly found: readonly FoundTable[];
  readonly details: readonly Details[];
}

/** What the regions have that the configuration names. */
export interface Choice {
  readonly tables: readonly ChosenTable[];
  readonly warnings: readonly Warning[];
}

/** The tables that the configuration names, checked in every region. Throws `refused` with every fault at once. */
export async function chooseTables(config: Config, open: readonly OpenRegion[]): Promise<Choice> {
  const perRegion = await Promise.all(open.map(async ({ client }) => inspect(client, await findTables(client))));
  const labels = new Map<string, string>();
  const warnings: Warning[] = [];
  const exact = new Set(config.tables.map(({ glob }) => glob));
  const passed = new Set<string>();
  for (const { tables } of perRegion) {
    for (const { table } of tables) {
      const rule = ruleFor(config, table.schema, table.name);
      const label = tableLabel(table);
      if (!rule) continue;
      if (table.kind === 'partition' && exact.has(label))
        passed.add(`${label} is a partition: name the table that it is a part of`);
      else if (table.kind === 'other' && !exact.has(label)) passed.add(`${label} is not an ordinary table`);
      else if (table.kind !== 'partition') labels.set(label, rule.conflict);
    }
  }
  for (const message of [...passed].sort())
    warnings.push({ code: 'passed_over', message: `${message}; it is passed over`, cure: [] });

  const faults: Fault[] = [];
  const chosen: ChosenTable[] = [];
  for (const [label, rule] of [...labels].sort()) {
    const found = perRegion.map(({ tables }) => tables.find(({ table }) => tableLabel(table) === label));
    const before = faults.length;
    for (const [index, each] of found.entries()) {
      const message = each
        ? unfit(each, perRegion[index]!.mayEnable)
        : 'is missing: create it there too (pg_dump --schema-only), or leave it out of `tables`';
      if (message) faults.push({ path: `${label} in ${open[index]!.region.name}`, message });
    }
    if (faults.length > before) continue;
    const tables = found.map((each) => each!.table);
    const [first, ...others] = tables as [FoundTable, ...FoundTable[]];
    for (const [index, other] of others.entries()) {
      const message = difference(first, other);
      if (message)
        faults.push({
          path: `${label} in ${open[index + 1]!.region.name}`,
          message: `${message} (compared with ${open[0]!.region.name})`,
        });
    }
    chosen.push({ label, rule, found: tables, details: found.map((each) => each!.details) });
  }
  if (faults.length > 0) {
    throw new CoregentError('refused', listed('these tables cannot be replicated as they are', faults), {
      faults,
      cure: 'Mend each table as it says, or name only the others under `tables` in the configuration.',
    });
  }
  if (chosen.length === 0) {
    throw new CoregentError('refused', 'no table of the databases is named under `tables`', {
      where: config.path,
      cure: 'Name tables as schema.table; `public.*` is all of the schema public.',
    });
  }
  const names = open.map(({ region }) => region.name);
  for (const { label, details } of chosen) {
    warnings.push(
      ...sequenceWarnings(
        label,
        names,
        details.map(({ sequences }) => sequences),
      ),
    );
    const firing = new Set(details.flatMap(({ replicaTriggers }) => replicaTriggers));
    for (const trigger of [...firing].sort()) {
      warnings.push({
        code: 'fires_on_apply',
        message: `${label}: the trigger ${trigger} is ENABLE ALWAYS or REPLICA, so it fires again in every region for rows that are applied there`,
        cure: [],
      });
    }
  }
  const withObjects = names.filter((_, index) => perRegion[index]!.largeObjects);
  if (withObjects.length > 0) {
    warnings.push({
      code: 'large_objects',
      message: `there are large objects in ${withObjects.join(', ')}, which no logical replication of PostgreSQL carries: use bytea columns`,
      cure: [],
    });
  }
  return { tables: chosen, warnings };
}

/** A heading and one line per fault, for people. */
export function listed(heading: string, faults: readonly Fault[]): string {
  return [heading, ...faults.map(({ path, message }) => `  ${path}: ${message}`)].join('\n');
}

interface Inspected {
  readonly table: FoundTable;
  readonly details: Details;
}

async function inspect(
  client: OpenRegion['client'],
  tables: readonly FoundTable[],
): Promise<{ readonly tables: readonly Inspected[]; readonly mayEnable: boolean; readonly largeObjects: boolean }> {
  const details = await findDetails(
    client,
    tables.map(({ oid }) => oid),
  );
  const { rows } = await client.query(
    `select (select rolsuper from pg_roles where rolname = current_user) as super, exists (select from pg_largeobject_metadata) as objects`,
  );
  return {
    tables: tables.map((table) => ({ table, details: details.get(table.oid)! })),
    // A session that can't replicate leaves every trigger on.
    mayEnable: rows[0].super || !(await mayReplicate(client)),
    largeObjects: rows[0].objects,
  };
}

/** Why a region's table can't be replicated, and the cure; undefined when it can. */
function unfit({ table, details }: Inspected, mayEnable: boolean): string | undefined {
  const name = qualified(table.schema, table.name);
  if (table.kind === 'other') return 'is not an ordinary table';
  const unlogged = table.unlogged ? table : details.leaves.find((leaf) => leaf.unlogged);
  if (unlogged) {
    return `is unlogged, so its changes are not in the WAL: alter table ${qualified(unlogged.schema, unlogged.name)} set logged`;
  }
  if (details.relatives.length > 0) {
    return `inherits from, or is inherited by, ${details.relatives.join(', ')}, so that one row is of several tables: make it a partitioned table, or alter table … no inherit`;
  }
  if (table.key.length === 0) return KEY_FAULTS[details.keyFault ?? 'missing'](name);
  const late = details.lateTriggers[0];
  if (late !== undefined) {
    return `has the trigger ${ident(late)}, which fires behind ours and could change a row that is stamped already: alter trigger ${ident(late)} on ${name} rename to ${ident(late.replace(/^~+/, ''))}`;
  }
  const recheck = details.rechecks.find(({ always }) => !always);
  if (recheck && !mayEnable) {
    return `has the DEFERRABLE constraint ${ident(recheck.constraint)}, which PostgreSQL does not hold for rows that are applied: as a superuser, alter table ${qualified(recheck.schema, recheck.name)} enable always trigger ${ident(recheck.trigger)}; or make it NOT DEFERRABLE`;
  }
  return table.typeFaults.length > 0 ? table.typeFaults.join('; ') : undefined;
}

const KEY_FAULTS: Readonly<Record<NonNullable<Details['keyFault']> | 'missing', (name: string) => string>> = {
  missing: (name) => `has no usable primary key: alter table ${name} add primary key (…), not deferrable`,
  deferrable: (name) =>
    `has a DEFERRABLE primary key, which says too late which rows are one: alter table ${name} drop constraint …, add primary key (…)`,
  generated: (name) =>
    `has a generated column in its primary key, which does not travel: alter table ${name} drop constraint …, add primary key (…) of other columns`,
  temporal: (name) =>
    `has a primary key WITHOUT OVERLAPS, which does not say which rows are one: alter table ${name} drop constraint …, add primary key (…)`,
};

/** What makes `b` unfit to hold the rows of `a`; undefined when nothing does. */
function difference(a: FoundTable, b: FoundTable): string | undefined {
  const missing = a.columns.find((column) => !b.columns.some((other) => other.name === column.name));
  if (missing) return `lacks the column ${missing.name}`;
  const extra = b.columns.find((column) => !a.columns.some((other) => other.name === column.name));
  if (extra) return `has a further column ${extra.name}`;
  for (const column of a.columns) {
    const other = b.columns.find((each) => each.name === column.name)!;
    if (other.type !== column.type) return `has the column ${column.name} as ${other.type}, not ${column.type}`;
    const [is, shouldBe] = [b.definitions.get(column.name), a.definitions.get(column.name)];
    if (is !== shouldBe) return `has the column ${column.name} of another type by that name: ${is}, not ${shouldBe}`;
    if (other.asText !== column.asText)
      return `has the column ${column.name} of another version of ${column.type}: alter extension … update`;
  }
  if (a.key.join() !== b.key.join()) return `has the primary key (${b.key.join(', ')}), not (${a.key.join(', ')})`;
  return undefined;
}
