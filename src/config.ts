import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { exactness, globMatches, splitGlob } from './glob.ts';
import { CoregentError, classify, type Fault } from './model/error.ts';
import { nearest } from './model/nearest.ts';
import { COLUMN_RULES, LWW, type Rule, TABLE_RULES } from './model/rule.ts';
import { Secret } from './model/secret.ts';
import { parseDuration, parseRate, parseSize, type Rate } from './model/units.ts';
import { ownerFaults, readOwner } from './owner.ts';
import { serverOf, urlFault } from './url.ts';
import { readYaml, type YamlText } from './yaml.ts';

/** What is said of the tables that a glob names: `schema.table`, where `*` stands for any characters and `?` for one. */
export interface TableGlob extends Partial<Rule> {
  readonly glob: string;
}

/** One region: a writable PostgreSQL and its agent. */
export interface RegionConfig {
  readonly name: string;
  /** 1 to 127; the low bits of every version that this region stamps. Must never change. */
  readonly id: number;
  /** How peers reach this PostgreSQL. */
  readonly url: Secret;
  /** How the region's own agent reaches it; the same as `url` unless the file says otherwise. */
  readonly localUrl: Secret;
}

/** `coregent.yaml`, checked and with every default filled in. */
export interface Config {
  readonly cluster: string;
  /** In the order of the file; at least two. */
  readonly regions: readonly RegionConfig[];
  readonly defaults: Rule;
  /** The least exact glob first: each further match refines what those before it say. */
  readonly tables: readonly TableGlob[];
  readonly clock: { readonly maxOffsetMs: number; readonly settleMs: number };
  readonly batch: { readonly rows: number; readonly bytes: number };
  readonly tombstones: { readonly intervalMs: number };
  readonly conflicts: {
    readonly retentionMs: number;
    /** Most records that are kept, and most bytes of them. */
    readonly limit: number;
    readonly maxBytes: number;
    /** More conflicts than this are an alarm; undefined: none is. */
    readonly alert: Rate | undefined;
  };
  /** Most WAL that a slot may keep before it is dropped, in bytes; undefined: no bound of ours. */
  readonly slots: { readonly maxWalBytes: number | undefined };
  /** The file it was read from. */
  readonly path: string;
}

/** The environment that `${NAME}` is read from; `process.env` fits. */
export type Env = Readonly<Record<string, string | undefined>>;

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const DAY = 24 * 60 * MINUTE;

/** A name of a cluster or region: it becomes part of slot names, which PostgreSQL bounds in length and letters. */
export const NAME = /^[a-z][a-z0-9_]{0,29}$/;
const nameRule = 'must be lower-case letters, digits and _, begin with a letter, and have at most 30 characters';

const name = z.string().regex(NAME, nameRule);
const url = z.string().superRefine((text, context) => {
  const message = urlFault(text);
  if (message) context.addIssue({ code: 'custom', message });
});
const duration = (least: number, most: number) =>
  unit(parseDuration, 'a duration like 500ms, 5s, 1h or 7d', least, most);
const size = (least: number, most: number) => unit(parseSize, 'a size like 64MB or 1GiB', least, most);
const rate = z.unknown().transform((given, context): Rate => {
  const found = typeof given === 'string' ? parseRate(given) : undefined;
  if (found && found.count > 0) return found;
  const message = found ? 'must be at least 1' : 'must be a rate like 10/min (s, min, h or d)';
  context.addIssue({ code: 'custom', message });
  return z.NEVER;
});

const conflict = z.enum(TABLE_RULES).optional();

const region = z.strictObject({ id: z.int().min(1).max(127), url, localUrl: url.optional() });
const table = z.strictObject({
  conflict,
  columns: z.record(z.string(), z.enum(COLUMN_RULES)).optional(),
  custom: z
    .string()
    .regex(
      /^([^./]+\.[^./]+|\.{1,2}\/.*\.m?[jt]s)$/,
      'must be a SQL function, schema.function, or a module beside this file: ./resolvers/name.ts',
    )
    .optional(),
  owner: z.unknown().optional(),
});
const schema = z.strictObject({
  cluster: name,
  regions: z.record(z.string(), region),
  defaults: z.strictObject({ conflict }).optional(),
  tables: z.record(z.string(), table.nullable()),
  clock: z
    .strictObject({ max_offset: duration(1, 60 * MINUTE).optional(), settle: duration(SECOND, DAY).optional() })
    .optional(),
  batch: z
    .strictObject({
      rows: z.int().min(1).max(1_000_000).optional(),
      bytes: size(64 * 1024, 1024 ** 3).optional(),
    })
    .optional(),
  tombstones: z.strictObject({ interval: duration(1000, DAY).optional() }).optional(),
  slots: z.strictObject({ max_wal: size(1024 ** 2, 1024 ** 5).optional() }).optional(),
  conflicts: z
    .strictObject({
      retention: duration(MINUTE, 3650 * DAY).optional(),
      limit: z.int().min(100).max(1_000_000_000).optional(),
      max_size: size(1024 ** 2, 1024 ** 5).optional(),
      alert: rate.optional(),
    })
    .optional(),
});

/** Words of the design that this version does not carry out yet. */
const laterRules = ['strong'];
const laterColumnRules = ['escrow'];

/** Reads and checks the file. Fails with `config_missing` or `config_invalid`, the latter with every fault at once. */
export async function loadConfig(path: string, env: Env = process.env): Promise<Config> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
      throw new CoregentError('config_missing', 'there is no configuration file', { where: path, cause: error });
    }
    throw classify(error, path);
  }
  return parseConfig(text, { path, env });
}

/** Checks the text of a configuration file; `path` is only used to say where a fault is. */
export function parseConfig(text: string, from: { path: string; env: Env }): Config {
  const yaml = readYaml(text, from.env);
  const parsed = schema.safeParse(yaml.value);
  const faults = [...yaml.faults];
  const unreadable = new Set(faults.map((fault) => fault.path));
  const syntaxBroken = yaml.value === undefined && faults.length > 0;
  if (!syntaxBroken) {
    const found = [...(parsed.error?.issues ?? []).flatMap((issue) => describe(issue, yaml)), ...cross(yaml.value)];
    for (const { path, message } of found) {
      // A missing variable is reported once, not again as the bad value that it leaves.
      if (!unreadable.has(path.join('.'))) faults.push({ path: path.join('.'), line: yaml.line(path), message });
    }
  }
  if (faults.length > 0 || !parsed.success) throw invalid(faults, from.path);
  return complete(parsed.data, from.path);
}

/** The rule of a table, or undefined when no glob names it and it is not replicated. */
export function ruleFor(config: Config, schema: string, table: string): Rule | undefined {
  const found = config.tables.filter(({ glob }) => globMatches(glob, schema, table));
  if (found.length === 0) return undefined;
  const columns = Object.assign({}, ...found.map((entry) => entry.columns));
  const { conflict, custom, owner } = Object.assign({ ...config.defaults }, ...found);
  const decider = conflict === 'custom' && custom !== undefined ? { custom } : {};
  return { conflict, columns, ...decider, ...(owner === undefined ? {} : { owner }) };
}

function complete(file: z.output<typeof schema>, path: string): Config {
  const defaults: Rule = { ...LWW, ...said(file.defaults) };
  return {
    cluster: file.cluster,
    regions: Object.entries(file.regions).map(([name, region]) => ({
      name,
      id: region.id,
      url: new Secret(region.url),
      localUrl: new Secret(region.localUrl ?? region.url),
    })),
    defaults,
    tables: Object.entries(file.tables)
      .map(([glob, entry]) => ({ glob, ...said(entry), ...(entry?.owner ? { owner: readOwner(entry.owner) } : {}) }))
      .sort((a, b) => exactness(a.glob) - exactness(b.glob)),
    clock: { maxOffsetMs: file.clock?.max_offset ?? 500, settleMs: file.clock?.settle ?? MINUTE },
    batch: { rows: file.batch?.rows ?? 20_000, bytes: file.batch?.bytes ?? 16 * 1024 ** 2 },
    tombstones: { intervalMs: file.tombstones?.interval ?? MINUTE },
    slots: { maxWalBytes: file.slots?.max_wal },
    conflicts: {
      retentionMs: file.conflicts?.retention ?? 30 * DAY,
      limit: file.conflicts?.limit ?? 1_000_000,
      maxBytes: file.conflicts?.max_size ?? 1024 ** 3,
      alert: file.conflicts?.alert,
    },
    path,
  };
}

type Said = Pick<Partial<Rule>, 'conflict' | 'columns' | 'custom'>;

/** What an entry says, without the keys that it leaves out. A function is the rule `custom`. */
function said(entry: { [K in keyof Said]: Said[K] | undefined } | null | undefined): Said {
  const { conflict = entry?.custom && 'custom', columns, custom } = entry ?? {};
  return Object.fromEntries(Object.entries({ conflict, columns, custom }).filter(([, value]) => value !== undefined));
}

interface Found {
  readonly path: readonly string[];
  readonly message: string;
}

/** One issue of the schema in a person's words. Quotes only what stands in the file: a replaced value may be a secret. */
function describe(issue: z.core.$ZodIssue, yaml: YamlText): Found[] {
  const path = issue.path.map(String);
  const written = yaml.written(path);
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => ({ path: [...path, key], message: unknownKey(path, key) }));
    case 'invalid_type':
      return [{ path, message: written === undefined ? 'is missing' : `must be ${article(issue.expected)}` }];
    case 'invalid_value':
      return [{ path, message: unknownRule(path, written) }];
    case 'too_small':
      return [{ path, message: `must be at least ${issue.minimum}` }];
    case 'too_big':
      return [{ path, message: `must be at most ${issue.maximum}` }];
    default:
      return [{ path, message: issue.message }];
  }
}

function article(type: string): string {
  const words: Record<string, string> = { int: 'a whole number', number: 'a number', string: 'a text' };
  return words[type] ?? 'a map of keys and values';
}

function unknownRule(path: readonly string[], written: unknown): string {
  const column = path.at(-1) !== 'conflict';
  if (written === 'owner') return 'is a key beside `conflict`: `owner: { column: home_region }`';
  const [known, later] = column ? [COLUMN_RULES, laterColumnRules] : [TABLE_RULES, laterRules];
  const instead = known.length > 0 ? `; use ${known.map((rule) => `\`${rule}\``).join(', ')}` : '; leave it out';
  if (later.includes(String(written))) return `the rule \`${written}\` is not yet available${instead}`;
  const near = typeof written === 'string' ? nearest(written, [...known, ...later]) : undefined;
  return `is not a known rule${near ? `; did you mean \`${near}\`?` : instead}`;
}

function unknownKey(path: readonly string[], key: string): string {
  const known = keysAt(path);
  const near = nearest(key, known);
  return `is not a known key; ${near ? `did you mean \`${near}\`?` : `known here: ${known.join(', ')}`}`;
}

function keysAt(path: readonly string[]): string[] {
  let at: unknown = schema;
  for (const step of path) at = at && inner(at, step);
  const end = unwrap(at);
  return end instanceof z.ZodObject ? Object.keys(end.shape) : [];
}

function inner(type: unknown, step: string): unknown {
  const at = unwrap(type);
  if (at instanceof z.ZodObject) return at.shape[step];
  return at instanceof z.ZodRecord ? at.valueType : undefined;
}

function unwrap(type: unknown): unknown {
  let at = type;
  while (at instanceof z.ZodOptional || at instanceof z.ZodNullable) at = at.unwrap();
  return at;
}

/** Faults between parts of the file. They read the raw value, so that they are found beside faults of the schema. */
function cross(value: unknown): Found[] {
  const found: Found[] = [];
  const regions = entriesOf(value, 'regions');
  const ids = new Map<unknown, string>();
  const servers = new Map<string, string>();
  if (regions && regions.length < 2) {
    found.push({ path: ['regions'], message: `must name at least two regions; it names ${regions.length}` });
  }
  for (const [name, entry] of regions ?? []) {
    if (!NAME.test(name)) found.push({ path: ['regions', name], message: `the name of a region ${nameRule}` });
    const { id, url } = (entry ?? {}) as { id?: unknown; url?: unknown };
    const twin = ids.get(id);
    if (id !== undefined && twin) {
      found.push({ path: ['regions', name, 'id'], message: `is the id of \`${twin}\` too; ids are unique` });
    } else ids.set(id, name);
    const server = typeof url === 'string' ? serverOf(url) : undefined;
    const same = server && servers.get(server);
    if (same) found.push({ path: ['regions', name, 'url'], message: `reaches the same database as \`${same}\`` });
    else if (server) servers.set(server, name);
  }
  const tables = entriesOf(value, 'tables');
  if (tables?.length === 0) found.push({ path: ['tables'], message: 'must name a table, for instance `public.*: {}`' });
  for (const [glob, entry] of tables ?? []) {
    const owner = (entry as { owner?: unknown } | null)?.owner;
    const names = (regions ?? []).map(([name]) => name);
    for (const { path, message } of owner === undefined ? [] : ownerFaults(owner, names)) {
      found.push({ path: ['tables', glob, 'owner', ...path], message });
    }
    const [schema, table] = splitGlob(glob);
    if (!schema || !table) {
      found.push({ path: ['tables', glob], message: 'must name schema and table, like `public.orders` or `public.*`' });
    } else if (schema === 'coregent' || schema === 'pg_catalog' || schema === 'information_schema') {
      found.push({ path: ['tables', glob], message: 'is a schema of the system, which is never replicated' });
    }
  }
  return found;
}

function entriesOf(value: unknown, key: string): [string, unknown][] | undefined {
  const map: unknown = (value as Record<string, unknown> | null | undefined)?.[key];
  return typeof map === 'object' && map !== null && !Array.isArray(map) ? Object.entries(map) : undefined;
}

function unit(parse: (text: string) => number | undefined, what: string, least: number, most: number) {
  return z.unknown().transform((given, context) => {
    const amount = typeof given === 'string' ? parse(given) : undefined;
    if (amount !== undefined && amount >= least && amount <= most) return amount;
    const message = amount === undefined ? `must be ${what}` : `is out of bounds (${least} to ${most})`;
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  });
}

function invalid(found: readonly Fault[], path: string): CoregentError {
  const faults = [...found].sort((a, b) => (a.line ?? 0) - (b.line ?? 0));
  const count = faults.length === 1 ? 'one fault' : `${faults.length} faults`;
  const lines = faults.map(({ path, line, message }) => `  line ${line}: ${path ? `${path} ` : ''}${message}`);
  return new CoregentError('config_invalid', [`the configuration has ${count}`, ...lines].join('\n'), {
    where: path,
    faults,
  });
}
