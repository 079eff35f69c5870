import { type Config, ruleFor } from '../config.ts';
import { CoregentError, classify, type Fault } from '../model/error.ts';
import { isModule, type Rule, ruleText } from '../model/rule.ts';
import { type Column, STATE, type Table, tableLabel } from '../model/table.ts';
import { Modules } from '../modules.ts';
import { ident, qualified } from '../quote.ts';
import { mayReplicate } from './applier.ts';
import { type FoundTable, findTables } from './catalog.ts';
import { deciderFaults } from './decider.ts';
import { type Details, findDetails } from './details.ts';
import { ruleFault } from './rule-faults.ts';
import { sequenceWarnings } from './sequences.ts';
import type { OpenRegion } from './setup.ts';
import { readOwnerType } from './stamp-owner.ts';
import type { Warning } from './warning.ts';

/** A table to replicate and what each region has of it, in the order of the regions. */
export interface ChosenTable {
  readonly label: string;
  /** As the catalogs hold it; see `ruleText`. */
  readonly rule: string;
  readonly found: readonly (FoundTable & Table)[];
  readonly details: readonly Details[];
}

/** Why a table cannot be replicated as one region has it. */
export interface TableFault {
  readonly label: string;
  readonly region: string;
  readonly message: string;
  /** SQL that begins in lower case, or sentences. */
  readonly cure: readonly string[];
}

/** What the regions have that the configuration names. */
export interface Survey {
  /** Those without faults, so far as one region alone shows them. */
  readonly tables: readonly ChosenTable[];
  readonly faults: readonly TableFault[];
  readonly warnings: readonly Warning[];
}

/** The tables that the configuration names, checked in every region. Throws `refused` with every fault at once. */
export async function chooseTables(config: Config, open: readonly OpenRegion[]): Promise<Omit<Survey, 'faults'>> {
  const { tables, faults: found, warnings } = await surveyTables(config, open);
  if (found.length > 0) {
    const faults = found.map(({ label, region, message, cure }) => ({
      path: `${label} in ${region}`,
      message: cure.length === 0 ? message : `${message}: ${cure.join('; ')}`,
    }));
    throw new CoregentError('refused', listed('these tables cannot be replicated as they are', faults), {
      faults,
      cure: 'Mend each table as it says, or name only the others under `tables` in the configuration.',
    });
  }
  if (tables.length === 0) {
    throw new CoregentError('refused', NO_TABLES.message, { where: config.path, cure: NO_TABLES.cure });
  }
  return { tables, warnings };
}

/** Said where a configuration names nothing that is there. */
export const NO_TABLES = {
  message: 'no table of the databases is named under `tables`',
  cure: 'Name tables as schema.table; `public.*` is all of the schema public.',
};

/** Looks at the tables that the configuration names in every region. */
export async function surveyTables(config: Config, open: readonly OpenRegion[]): Promise<Survey> {
  const perRegion = await Promise.all(open.map(async ({ client }) => inspect(client, await findTables(client))));
  const names = open.map(({ region }) => region.name);
  const { labels, warnings } = namedTables(
    config,
    perRegion.flatMap(({ tables }) => tables.map(({ table }) => table)),
  );
  const faults: TableFault[] = [];
  const chosen: ChosenTable[] = [];
  const modules = new Modules(config.path);
  for (const [label, named] of [...labels].sort()) {
    const rule = await withHash(named, modules).catch((error) => {
      const { message } = classify(error);
      faults.push({
        label,
        region: names[0]!,
        message: `has the rule ${named.custom}, and ${message}`,
        cure: [MODULE_CURE],
      });
    });
    if (!rule) continue;
    const found = perRegion.map(({ tables }) => tables.find(({ table }) => tableLabel(table) === label));
    const before = faults.length;
    for (const [index, each] of found.entries()) {
      const [message, ...cure] = each ? unfit(each, perRegion[index]!.mayEnable) : MISSING;
      if (message !== undefined) faults.push({ label, region: names[index]!, message, cure });
    }
    if (faults.length > before) continue;
    const tables = found.map((each) => ({ ...each!.table, rule }));
    for (const [index, table] of tables.entries()) {
      const unruly = ruleFault(table, rule);
      if (unruly) faults.push({ label, region: names[index]!, message: unruly.message, cure: [unruly.cure] });
      const read = rule.owner && (await readOwnerType(open[index]!.client, table, rule.owner));
      if (!read || 'type' in read) continue;
      faults.push({ label, region: names[index]!, message: read.fault.message, cure: [read.fault.cure] });
    }
    const clients = open.map(({ client }) => client);
    for (const { region, message, cure } of await deciderFaults(rule, tables, clients)) {
      faults.push({ label, region: names[region]!, message, cure: [cure] });
    }
    const [first, ...others] = found as [Inspected, ...Inspected[]];
    for (const [index, other] of others.entries()) {
      const [message, ...cure] = difference(first, other);
      if (message !== undefined) {
        faults.push({ label, region: names[index + 1]!, message: `${message} (compared with ${names[0]})`, cure });
      }
    }
    chosen.push({ label, rule: ruleText(rule), found: tables, details: found.map((each) => each!.details) });
  }
  warnings.push(...chosen.flatMap((table) => tableWarnings(table, names)));
  const withObjects = names.filter((_, index) => perRegion[index]!.largeObjects);
  if (withObjects.length > 0) {
    warnings.push({
      code: 'large_objects',
      object: null,
      message: `there are large objects in ${withObjects.join(', ')}, which no logical replication of PostgreSQL carries: use bytea columns`,
      cure: [],
    });
  }
  return { tables: chosen, faults, warnings };
}

const MODULE_CURE =
  'Correct `custom`: a file beside the configuration, TypeScript with erasable types or JavaScript, whose default export is (versions) => row and which imports nothing';

/** The rule with the hash of its module, if it has one. Throws where the module is not there, or is none. */
async function withHash(rule: Rule, modules: Modules): Promise<Rule> {
  if (rule.custom === undefined || !isModule(rule.custom)) return rule;
  return { ...rule, hash: await modules.check(rule.custom) };
}

/** The rule of each table that is named, by label, and what is passed over although it is named. */
function namedTables(
  config: Config,
  tables: readonly FoundTable[],
): { readonly labels: Map<string, Rule>; readonly warnings: Warning[] } {
  const labels = new Map<string, Rule>();
  const passed = new Map<string, string>();
  const exact = new Set(config.tables.map(({ glob }) => glob));
  for (const table of tables) {
    const rule = ruleFor(config, table.schema, table.name);
    const label = tableLabel(table);
    if (!rule) continue;
    if (table.kind === 'partition' && exact.has(label))
      passed.set(label, 'is a partition: name the table that it is a part of');
    else if (table.kind === 'other' && !exact.has(label)) passed.set(label, 'is not an ordinary table');
    else if (table.kind !== 'partition') labels.set(label, rule);
  }
  const warnings = [...passed].sort().map(
    ([object, why]): Warning => ({
      code: 'passed_over',
      object,
      message: `${why}; it is passed over`,
      cure: [],
    }),
  );
  return { labels, warnings };
}

function tableWarnings({ label, details }: ChosenTable, regions: readonly string[]): Warning[] {
  const firing = new Set(details.flatMap(({ replicaTriggers }) => replicaTriggers));
  return [
    ...sequenceWarnings(
      label,
      regions,
      details.map(({ sequences }) => sequences),
    ),
    ...generatedApart(label, details, regions),
    ...[...firing].sort().map(
      (trigger): Warning => ({
        code: 'fires_on_apply',
        object: label,
        message: `the trigger ${trigger} is ENABLE ALWAYS or REPLICA, so it fires again in every region for rows that are applied there`,
        cure: [],
      }),
    ),
  ];
}

/** Warnings for columns that each region computes for itself, and in another way. */
function generatedApart(label: string, details: readonly Details[], regions: readonly string[]): Warning[] {
  const columns = new Set(details.flatMap(({ generated }) => Object.keys(generated)));
  return [...columns].sort().flatMap((column): Warning[] => {
    const ways = details.map(({ generated }) => generated[column]);
    if (new Set(ways.filter((way) => way !== undefined)).size < 2) return [];
    const said = ways.flatMap((way, index) => (way === undefined ? [] : [`${way} in ${regions[index]}`]));
    return [
      {
        code: 'generated_differs',
        object: label,
        message: `the column ${column} is generated as ${said.join(', ')}: regions show other values of one row`,
        cure: [],
      },
    ];
  });
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

/** Nothing, or what is wrong and then its cures. */
type Unfit = readonly [] | readonly [what: string, ...cure: string[]];

const MISSING: Unfit = ['is missing', 'Create it there too (pg_dump --schema-only), or leave it out of `tables`.'];

/** Why a region's table can't be replicated. */
function unfit({ table, details }: Inspected, mayEnable: boolean): Unfit {
  const name = qualified(table.schema, table.name);
  if (table.kind === 'other') return ['is not an ordinary table', 'Leave it out of `tables`.'];
  const unlogged = table.unlogged ? table : details.leaves.find((leaf) => leaf.unlogged);
  if (unlogged) {
    const part = qualified(unlogged.schema, unlogged.name);
    return ['is unlogged, so its changes are not in the WAL', `alter table ${part} set logged`];
  }
  if (details.relatives.length > 0) {
    return [
      `inherits from, or is inherited by, ${details.relatives.join(', ')}, so that one row is of several tables`,
      'Make it a partitioned table, or run: alter table … no inherit …',
    ];
  }
  if (table.key.length === 0) {
    const [what, sql] = KEY_FAULTS[details.keyFault ?? 'missing'];
    return [what, `alter table ${name} ${sql}`];
  }
  const mute = details.mute[0];
  if (mute) {
    return [
      'has no replica identity, so that PostgreSQL would refuse every update of it as soon as it is published',
      `alter table ${qualified(mute.schema, mute.name)} replica identity default`,
    ];
  }
  const late = details.lateTriggers[0];
  if (late !== undefined) {
    return [
      `has the trigger ${ident(late)}, which fires behind ours and could change a row that is stamped already`,
      `alter trigger ${ident(late)} on ${name} rename to ${ident(late.replace(/^~+/, ''))}`,
    ];
  }
  const recheck = details.rechecks.find(({ always }) => !always);
  if (recheck && !mayEnable) {
    return [
      `has the DEFERRABLE constraint ${ident(recheck.constraint)}, which PostgreSQL does not hold for rows that are applied`,
      `alter table ${qualified(recheck.schema, recheck.name)} enable always trigger ${ident(recheck.trigger)}`,
      'That takes a superuser. Or make the constraint NOT DEFERRABLE.',
    ];
  }
  if (table.typeFaults.length === 0) return [];
  return [table.typeFaults.join('; ')];
}

const KEY_FAULTS: Readonly<Record<NonNullable<Details['keyFault']> | 'missing', readonly [string, string]>> = {
  missing: ['has no usable primary key', 'add primary key (…)'],
  deferrable: [
    'has a DEFERRABLE primary key, which says too late which rows are one',
    'drop constraint …, add primary key (…)',
  ],
  generated: [
    'has a generated column in its primary key, which does not travel',
    'drop constraint …, add primary key (…)',
  ],
  temporal: [
    'has a primary key WITHOUT OVERLAPS, which does not say which rows are one',
    'drop constraint …, add primary key (…)',
  ],
};

/** What makes `b` unfit to hold the rows of `a`. */
function difference({ table: a, details: ours }: Inspected, { table: b, details: theirs }: Inspected): Unfit {
  const travelling = ({ columns }: FoundTable): readonly Column[] => columns.filter(({ name }) => name !== STATE);
  const all = travelling(a);
  const others = travelling(b);
  const missing = all.find((column) => !others.some((other) => other.name === column.name));
  if (missing) {
    const { name, type } = missing;
    return [`lacks the column ${name}`, `alter table ${qualified(b.schema, b.name)} add column ${ident(name)} ${type}`];
  }
  const extra = others.find((column) => !all.some((other) => other.name === column.name));
  if (extra) return [`has a further column ${extra.name}`, 'Add it in the other regions, or drop it here.'];
  for (const column of all) {
    const other = others.find((each) => each.name === column.name)!;
    if (other.type !== column.type) {
      return [
        `has the column ${column.name} as ${other.type}, not ${column.type}`,
        `alter table ${qualified(b.schema, b.name)} alter column ${ident(column.name)} type ${column.type}`,
      ];
    }
    const [is, shouldBe] = [b.definitions.get(column.name), a.definitions.get(column.name)];
    if (is !== shouldBe) {
      return [
        `has the column ${column.name} of another type by that name: ${is}, not ${shouldBe}`,
        'Make the types alike.',
      ];
    }
    if (other.asText !== column.asText) {
      return [
        `has the column ${column.name} of another version of ${column.type}`,
        'Bring its extension to one version: alter extension … update',
      ];
    }
  }
  if (a.key.join() !== b.key.join()) {
    return [
      `has the primary key (${b.key.join(', ')}), not (${a.key.join(', ')})`,
      'Give it the same key in every region.',
    ];
  }
  const folded = a.key.find((name) => ours.folded[name] !== theirs.folded[name]);
  if (folded === undefined) return [];
  const said = ({ folded: of }: Details): string =>
    of[folded] === undefined ? 'a deterministic collation' : `the nondeterministic collation of ${of[folded]}`;
  return [
    `has the key column ${folded} in ${said(theirs)}, not ${said(ours)}: other texts are one key there`,
    `alter table ${qualified(b.schema, b.name)} alter column ${ident(folded)} type ${b.columns.find(({ name }) => name === folded)!.type} collate …`,
  ];
}
