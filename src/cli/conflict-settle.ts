import { readFile } from 'node:fs/promises';
import { userInfo } from 'node:os';
import type { Config } from '../config.ts';
import { CoregentError, classify, EXIT } from '../model/error.ts';
import { Modules } from '../modules.ts';
import { connect } from '../pg/connect.ts';
import { discardParked, retryParked } from '../pg/parked.ts';
import { regionOf } from '../pg/record.ts';
import { type Choice, noteElsewhere, type Settlement, type Side, settle } from '../pg/settle.ts';
import type { OpenRegion } from '../pg/setup.ts';
import type { ConflictsOptions } from './conflicts.ts';
import type { Context } from './context.ts';
import { toJson, visible } from './print.ts';

/** How long another region may take to be reached, only to be told. */
const TOLD_MS = 3_000;

/** `coregent conflicts settle ID`: an ordinary write of the row in the region that recorded the conflict, noted in its record. */
export async function settleConflict(
  open: readonly OpenRegion[],
  options: ConflictsOptions,
  context: Context,
  config: Config,
): Promise<number> {
  const id = options.arguments[1]!;
  const { choice, how } = await choiceOf(options);
  const by = options.by ?? user();
  const at = await regionOf(open, 'coregent.conflict_record', id);
  const dryRun = options.dryRun ?? false;
  const done = await settle(at, { id, choice, how, by, force: options.force ?? false, dryRun });
  const told = dryRun ? [] : await tellOthers(config, open, done, { by, how }, context);
  if (context.json) {
    const { record, sql, written, version } = done;
    context.out(
      toJson({
        schema_version: 1,
        region: record.region,
        id,
        dry_run: dryRun,
        sql,
        written,
        version,
        also_noted_in: told,
      }),
    );
  } else if (dryRun) {
    context.out(done.sql.map((each) => `${each};`).join('\n'));
  } else {
    context.out(sentence(done, told));
  }
  return EXIT.ok;
}

function sentence({ record, written, version }: Settlement, told: readonly string[]): string {
  const what = written ? `The row was written (version ${version}) and replicates.` : 'The row is as chosen already.';
  const also = told.length > 0 ? ` Noted in ${told.join(', ')} too.` : '';
  return `Conflict ${record.id} of ${record.region} is settled. ${what}${also}`;
}

async function choiceOf(options: ConflictsOptions): Promise<{ choice: Choice; how: string }> {
  const { keep, merge, file } = options;
  if ([keep, merge, file].filter((each) => each !== undefined).length !== 1) {
    throw new CoregentError('usage', 'conflicts settle takes one of --keep, --merge and --file', {
      cure: 'For instance: coregent conflicts settle 7 --region tokyo --keep other',
    });
  }
  if (keep) return { choice: { keep }, how: `--keep ${keep}` };
  if (merge) {
    const parts = merge.flat();
    const columns = new Map<string, Side>(parts);
    if (columns.size < parts.length) throw new CoregentError('usage', 'a column is named twice', { where: '--merge' });
    return { choice: { merge: columns }, how: `--merge ${parts.map((part) => part.join('=')).join(',')}` };
  }
  return { choice: { file: await readRow(file!) }, how: `--file ${file}` };
}

/** The text of a file that holds one JSON object. */
async function readRow(path: string): Promise<string> {
  const text = await readFile(path, 'utf8').catch((error) => {
    throw classify(error, path);
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CoregentError('usage', `the file is not JSON: ${(error as Error).message}`, {
      where: path,
      cause: error,
    });
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return text;
  throw new CoregentError('usage', 'the file must hold one JSON object, a column to each key', { where: path });
}

function user(): string {
  try {
    return userInfo().username;
  } catch {
    return 'unknown';
  }
}

/** The other regions recorded the same conflict for themselves; one that cannot be reached is none the worse for it. */
async function tellOthers(
  config: Config,
  open: readonly OpenRegion[],
  done: Settlement,
  note: { by: string; how: string },
  context: Context,
): Promise<string[]> {
  const told: string[] = [];
  for (const region of config.regions) {
    if (region.name === done.record.region) continue;
    const known = open.find((each) => each.region.name === region.name);
    try {
      const client =
        known?.client ?? (await connect(region.url, region.name, { purpose: 'conflicts', timeoutMs: TOLD_MS }));
      try {
        if ((await noteElsewhere(client, done, note)) > 0) told.push(region.name);
      } finally {
        if (!known) await client.end().catch(() => {});
      }
    } catch (error) {
      context.note(visible(`${region.name} could not be told: ${classify(error, region.name).message}`));
    }
  }
  return told;
}

/** `coregent conflicts settle --retry ID | --retry-all | --discard ID`: rows that are parked. 3 when some are left. */
export async function settleParked(
  config: Config,
  open: readonly OpenRegion[],
  options: ConflictsOptions,
  context: Context,
): Promise<number> {
  const { retry, retryAll, discard } = options;
  const stray = (['keep', 'merge', 'file', 'force', 'dryRun'] as const).find((each) => options[each] !== undefined);
  const asked = [retry, retryAll, discard].filter((each) => each !== undefined).length;
  if (stray || asked > 1) {
    throw new CoregentError('usage', 'one of --retry, --retry-all and --discard stands alone');
  }
  if (discard !== undefined) {
    const at = await regionOf(open, 'coregent.parked', discard);
    const conflict = await discardParked(at, discard, options.by ?? user());
    const region = at.region.name;
    if (context.json) context.out(toJson({ schema_version: 1, region, discarded: discard, conflict }));
    else context.out(`Row ${discard} of ${region} is given up. It is kept as conflict ${conflict}.`);
    return EXIT.ok;
  }
  const work = new Map<OpenRegion, string[] | undefined>();
  if (retryAll) for (const at of open) work.set(at, undefined);
  for (const id of retry ?? []) {
    const at = await regionOf(open, 'coregent.parked', id);
    work.set(at, [...(work.get(at) ?? []), id]);
  }
  const modules = new Modules(config.path);
  let placed = 0;
  const left: { region: string; id: string; reason: string }[] = [];
  for (const [{ region }, ids] of work) {
    const client = await connect(region.url, region.name, { purpose: 'retry', applies: true });
    try {
      const done = await retryParked({ region, client }, modules, ids);
      placed += done.placed;
      left.push(...done.left.map((each) => ({ region: region.name, ...each })));
    } finally {
      await client.end().catch(() => {});
      await modules.close();
    }
  }
  if (context.json) {
    context.out(toJson({ schema_version: 1, placed, left }));
  } else {
    for (const { region, id, reason } of left) context.out(visible(`${region} ${id}: ${reason}`));
    context.out(`${placed} found their place, ${left.length} are still parked.`);
  }
  return left.length > 0 ? EXIT.findings : EXIT.ok;
}
