import { type Config, loadConfig, ruleFor } from '../config.ts';
import { EXIT } from '../model/error.ts';
import { findTables } from '../pg/catalog.ts';
import { type Diagnosis, examine } from '../pg/doctor.ts';
import { granteeOf } from '../pg/doctor-server.ts';
import type { Finding, Severity } from '../pg/findings.ts';
import { grantsText } from '../pg/grants.ts';
import { closeRegions, openRegions } from '../pg/setup.ts';
import type { Context } from './context.ts';
import { colours, table, toJson, visible } from './print.ts';

/** Options of `coregent doctor`. */
export interface DoctorOptions {
  /** Print the grants that a role needs instead of looking for faults. */
  readonly grants?: boolean;
  /** The role that they are for; by default that of each region's url. */
  readonly role?: string;
}

/** `coregent doctor`: what is wrong in any region, and the exact cure of each. 3 when there are blockers, 4 when a region cannot be reached. */
export async function run(options: DoctorOptions, context: Context): Promise<number> {
  const config = await loadConfig(context.config, context.env);
  if (options.grants) return await printGrants(config, options.role, context);
  const diagnosis = await examine(config);
  if (context.json) context.out(toJson({ schema_version: 1, ...diagnosis }));
  else context.out(text(diagnosis, context.colour));
  if (diagnosis.unreachable) return EXIT.unreachable;
  return diagnosis.findings.some(({ severity }) => severity === 'blocker') ? EXIT.findings : EXIT.ok;
}

/** The diagnosis for people. */
export function text({ cluster, regions, findings }: Diagnosis, colour: boolean): string {
  const paint = colours(colour);
  const painted: Record<Severity, (word: string) => string> = {
    blocker: paint.red,
    warning: paint.yellow,
    notice: paint.cyan,
  };
  const rows = regions.map(({ region, version, tier }) => [
    region,
    version ?? '–',
    tier ?? '–',
    counts(findings.filter((each) => each.region === region)) || paint.green('ok'),
  ]);
  const said = findings.map(({ code, severity, region, object, message, cure }) => {
    const where = [region, object].filter((each) => each !== null).map((each) => visible(each!));
    const head = [painted[severity](severity), ...(where.length > 0 ? [`${where.join(' ')}:`] : []), visible(message)];
    return [`${head.join(' ')} (${code})`, ...cure.map((line) => `    ${asCure(visible(line, '\n'))}`)].join('\n');
  });
  return [
    `cluster ${cluster}`,
    table([{ title: 'region' }, { title: 'PostgreSQL' }, { title: 'tier' }, { title: 'found' }], rows, colour),
    ...(said.length > 0 ? ['', ...said] : []),
    '',
    counts(findings) || 'Nothing to mend.',
  ].join('\n');
}

/** SQL begins in lower case, or is as PostgreSQL prints it; words are a sentence. */
function asCure(line: string): string {
  return /^[a-z]|^CREATE /.test(line) ? `${line};` : line;
}

/** `2 blockers, 1 notice`; empty for none. */
function counts(findings: readonly Finding[]): string {
  return (['blocker', 'warning', 'notice'] as const)
    .map((severity) => [findings.filter((each) => each.severity === severity).length, severity] as const)
    .filter(([count]) => count > 0)
    .map(([count, word]) => `${count} ${word}${count === 1 ? '' : 's'}`)
    .join(', ');
}

async function printGrants(config: Config, role: string | undefined, context: Context): Promise<number> {
  const open = await openRegions(config, 'doctor');
  try {
    const scripts: { region: string; sql: string }[] = [];
    for (const { region, client } of open) {
      const tables = (await findTables(client)).filter(({ schema, name }) => ruleFor(config, schema, name));
      const { rows } = await client.query(
        `select distinct o.rolname as owner, o.rolsuper as mighty from pg_class c join pg_roles o on o.oid = c.relowner where c.oid = any ($1) order by 1`,
        [tables.map(({ oid }) => oid)],
      );
      const grantee = await granteeOf(
        client,
        rows.map(({ owner }) => owner as string),
      );
      const { rowCount } = await client.query('select from pg_roles where rolname = $1', [role ?? grantee.role]);
      const mighty = rows.filter((row) => row.mighty && row.owner !== (role ?? grantee.role)).map(({ owner }) => owner);
      const sql = grantsText({ ...grantee, mighty, role: role ?? grantee.role, exists: rowCount === 1 });
      scripts.push({ region: region.name, sql });
    }
    if (context.json) context.out(toJson({ schema_version: 1, grants: scripts }));
    else context.out(scripts.map(({ region, sql }) => `-- in ${region}, as an administrator\n${sql}`).join('\n\n'));
    return EXIT.ok;
  } finally {
    await closeRegions(open);
  }
}
