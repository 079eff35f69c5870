import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { NAME, parseConfig } from '../config.ts';
import { CoregentError, classify, EXIT } from '../model/error.ts';
import { Secret } from '../model/secret.ts';
import { findTables, readInstalled } from '../pg/catalog.ts';
import { connect } from '../pg/connect.ts';
import { urlFault } from '../url.ts';
import type { Context } from './context.ts';
import { table, toJson, visible } from './print.ts';

/** Options of `coregent init`. */
export interface InitOptions {
  /** `name` or `name=url`. */
  readonly region?: readonly string[];
  readonly table?: readonly string[];
  readonly cluster?: string;
  readonly out?: string;
  readonly force?: boolean;
}

interface Asked {
  readonly name: string;
  /** The environment variable that the file refers to. */
  readonly variable: string;
  readonly url?: Secret;
}

interface Look {
  /** Name, and why it cannot be replicated when it cannot. */
  readonly tables: readonly { name: string; obstacle?: string }[];
  /** The id the region has been given already. */
  readonly id?: number;
}

interface Looked extends Asked {
  readonly id: number;
  readonly look?: Look;
  readonly error?: CoregentError;
}

/**
 * `coregent init`: looks at the databases that are reachable, reading only, and writes the configuration file. The file
 * never holds a secret: URLs are `${TOKYO_URL}` references. Refuses to overwrite (`refused`, exit 5) without `--force`.
 */
export async function run(options: InitOptions, context: Context): Promise<number> {
  const asked = askedRegions(options.region ?? [], context);
  const path = options.out ?? context.config;
  // Also before the databases are looked at, so that the refusal does not wait for one that does not answer.
  if (!options.force && existsSync(path)) throw refusal(path);
  const looked = withIds(await Promise.all(asked.map(lookAt)));
  const globs = tablesOf(looked, options.table ?? []);
  const text = fileText(options.cluster ?? guessCluster(asked), looked, globs);
  // Reading back what is written shows faults of names and globs before the file exists.
  parseConfig(text, { path, env: exampleEnv(asked) });
  await write(path, text, options.force === true);
  if (context.json) context.out(toJson(asDocument(path, looked, globs)));
  else report(path, looked, globs, context);
  return EXIT.ok;
}

function askedRegions(given: readonly string[], context: Context): Asked[] {
  const asked = given.map((text): Asked => {
    const [name = ''] = text.split('=', 1);
    // Not quoted back: when the name is forgotten, the text is the URL.
    if (!NAME.test(name)) throw fault('--region takes name or name=url, with a name like tokyo or eu_west');
    const variable = `${name.toUpperCase()}_URL`;
    const inline = text.includes('=') ? text.slice(name.length + 1) : undefined;
    if (inline && /:[^@/]+@/.test(inline)) {
      context.note(
        `Note: the password of ${name} is in the process list and the shell's history; set ${variable} instead.`,
      );
    }
    const url = inline ?? context.env[variable];
    const wrong = url ? urlFault(url) : undefined;
    if (wrong) throw fault(`the url of ${name} ${wrong}`);
    return { name, variable, ...(url ? { url: new Secret(url) } : {}) };
  });
  const twice = asked.find(({ name }, i) => asked.findIndex((other) => other.name === name) !== i);
  if (twice) throw fault(`the region ${twice.name} is given twice`);
  if (asked.length < 2) throw fault('name at least two regions');
  return asked;
}

function fault(message: string): CoregentError {
  const cure = 'For instance: coregent init --region tokyo --region frankfurt (with TOKYO_URL and FRANKFURT_URL set).';
  return new CoregentError('usage', message, { cure });
}

async function lookAt(asked: Asked): Promise<Asked & { look?: Look; error?: CoregentError }> {
  if (!asked.url) return asked;
  try {
    const client = await connect(asked.url, asked.name, { purpose: 'init', timeoutMs: 5000 });
    try {
      const found = await findTables(client);
      const installed = await readInstalled(client, asked.name);
      const tables = found
        .filter(({ kind }) => kind === 'table' || kind === 'partitioned')
        .map(({ schema, name, unlogged, key }) => {
          const obstacle = unlogged ? 'unlogged' : key.length === 0 ? 'no primary key' : '';
          return { name: `${schema}.${name}`, ...(obstacle ? { obstacle } : {}) };
        });
      return { ...asked, look: { tables, ...(installed ? { id: installed.region.id } : {}) } };
    } finally {
      await client.end();
    }
  } catch (error) {
    return { ...asked, error: classify(error, asked.name) };
  }
}

/** A region keeps the id it is installed with: its versions carry it. The others get the lowest free ones in order. */
function withIds(regions: readonly (Asked & { look?: Look; error?: CoregentError })[]): Looked[] {
  const taken = new Set(regions.flatMap(({ look }) => look?.id ?? []));
  let next = 1;
  return regions.map((region) => {
    while (taken.has(next)) next++;
    return { ...region, id: region.look?.id ?? next++ };
  });
}

interface Entry {
  readonly name: string;
  readonly obstacle?: string;
}

/**
 * The globs asked for, or else every table found anywhere. Tables that some region cannot replicate follow with the
 * reason; under a glob it must be known too which tables will not take part.
 */
function tablesOf(regions: readonly Looked[], globs: readonly string[]): Entry[] {
  const seen = regions.filter(({ look }) => look);
  const names = new Set(seen.flatMap(({ look }) => look?.tables.map(({ name }) => name) ?? []));
  const found = [...names].sort().map((name): Entry => {
    for (const { name: region, look } of seen) {
      const here = look?.tables.find((candidate) => candidate.name === name);
      const obstacle = here ? here.obstacle : 'missing';
      if (obstacle) return { name, obstacle: `${obstacle} in ${region}` };
    }
    return { name };
  });
  const fit = globs.length > 0 ? globs.map((name) => ({ name })) : found.filter(({ obstacle }) => !obstacle);
  return [...(fit.length > 0 ? fit : [{ name: 'public.*' }]), ...found.filter(({ obstacle }) => obstacle)];
}

function fileText(cluster: string, regions: readonly Looked[], tables: readonly Entry[]): string {
  const width = Math.max(...regions.map(({ name }) => name.length));
  return [
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the notation of the file, not of TypeScript
    '# Regions of one cluster. ${NAME} is read from the environment: keep passwords out of this file.',
    `cluster: ${JSON.stringify(cluster).replace(/^"(\w+)"$/, '$1')}`,
    'regions:',
    ...regions.map(
      ({ name, id, variable }) => `  ${`${name}:`.padEnd(width + 1)} { id: ${id}, url: "\${${variable}}" }`,
    ),
    'tables:',
    ...tables.map(({ name, obstacle }) => (obstacle ? `  # ${key(name)}: {}  # ${obstacle}` : `  ${key(name)}: {}`)),
    '',
  ].join('\n');
}

function key(name: string): string {
  return /^[A-Za-z_][\w.*?$-]*$/.test(name) ? name : JSON.stringify(name);
}

function guessCluster(asked: readonly Asked[]): string {
  const found = asked.flatMap(({ url }) => (url ? [basename(new URL(url.reveal()).pathname).toLowerCase()] : []));
  return found.find((name) => NAME.test(name) && name !== 'postgres') ?? 'main';
}

function exampleEnv(asked: readonly Asked[]): Record<string, string> {
  const urlOf = ({ name, url }: Asked) => url?.reveal() ?? `postgres://${name.replaceAll('_', '-')}.invalid/database`;
  return Object.fromEntries(asked.map((region) => [region.variable, urlOf(region)]));
}

async function write(path: string, text: string, force: boolean): Promise<void> {
  try {
    // wx and not a look before: another may write the file in between.
    await writeFile(path, text, { flag: force ? 'w' : 'wx' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw classify(error, path);
    throw refusal(path);
  }
}

function refusal(path: string): CoregentError {
  const cure = 'Choose another file with --out, or overwrite it with --force.';
  return new CoregentError('refused', 'the file exists already', { where: path, cure });
}

/** The line that sets the variable, with `***` where the password belongs. */
function exportLine({ variable, url }: Asked): string {
  const shown = url?.display() ?? 'postgres://user:***@host:5432/database';
  return `export ${variable}='${shown.replaceAll("'", "'\\''")}'`;
}

function asDocument(path: string, regions: readonly Looked[], tables: readonly Entry[]) {
  return {
    schema_version: 1,
    path,
    regions: regions.map(({ name, id, variable, look, error }) => {
      return { name, id, variable, looked_at: look !== undefined, error: error ?? null };
    }),
    tables: tables.filter(({ obstacle }) => !obstacle).map(({ name }) => name),
    left_out: tables.flatMap(({ name, obstacle }) => (obstacle ? [{ table: name, reason: obstacle }] : [])),
    exports: regions.map(exportLine),
  };
}

function report(path: string, regions: readonly Looked[], tables: readonly Entry[], context: Context): void {
  const { out } = context;
  const state = ({ look, error }: Looked) =>
    error?.message ?? (look ? `${look.tables.length} tables` : 'not looked at');
  const rows = regions.map((region) => [region.name, String(region.id), visible(state(region))]);
  out(table([{ title: 'region' }, { title: 'id', align: 'right' }, { title: 'found' }], rows, context.colour));
  const left = tables.filter(({ obstacle }) => obstacle);
  if (left.length > 0) {
    const reasons = left.map(({ name, obstacle }) => [visible(name), obstacle ?? '']);
    out(`\n${table([{ title: 'left out' }, { title: 'because' }], reasons, context.colour)}`);
  }
  out(`\nWrote ${path}. It refers to these variables; put the passwords in place of ***:\n`);
  for (const region of regions) out(exportLine(region));
  out('\nThen: coregent apply');
}
