import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { allSettled } from '../test/world/confirmed.ts';
import { checkAnswers } from './checks/answers.ts';
import { checkAvailable } from './checks/available.ts';
import { checkEqual } from './checks/equal.ts';
import { checkForeign } from './checks/foreign.ts';
import { checkOnce, checkWhole } from './checks/once.ts';
import { checkOwned } from './checks/owned.ts';
import { checkDisk, checkQuiet } from './checks/quiet.ts';
import { checkLost, checkRecords, checkWholeRows, readOutcome, settled } from './checks/registers.ts';
import { checkParts, checkVersions } from './checks/rules.ts';
import { checkValues } from './checks/values.ts';
import { type Asked, passed, type Verdict } from './checks/verdict.ts';
import { type Happened, startStorm } from './faults/storm.ts';
import { History } from './history.ts';
import { seedRows, startLoad } from './load/load.ts';
import { tombstonesOf } from './load/register.ts';
import type { Options } from './options.ts';
import { ACCOUNTS, CHILDREN, TEAMS } from './tables.ts';
import { type Seen, startWatch } from './watch.ts';
import { makeWorld, type World } from './world.ts';

/** What a run came to. */
export interface Results {
  readonly seed: number;
  readonly minutes: number;
  readonly drawn: World['drawn'];
  readonly passed: boolean;
  readonly verdicts: readonly Verdict[];
  /** What went so wrong that not everything could be checked. */
  readonly broken: string | undefined;
  readonly transactions: number;
  readonly unanswered: number;
  readonly kinds: Readonly<Record<string, number>>;
  readonly refused: Readonly<Record<string, number>>;
  readonly faults: Readonly<Record<string, number>>;
  /** Seconds from the end of the storm until every region had confirmed everything. */
  readonly healedS: number | undefined;
  readonly memoryMiB: number;
  readonly errors: Readonly<Record<string, number>>;
  /** Where the logs are, if they were kept. */
  readonly folder: string | undefined;
}

/** After the storm agents connect again, catch up and confirm; these bound a hang, not the time, which the machine decides. In ms. */
const STREAMING_MS = 60_000;
const CONFIRMED_MS = 600_000;

/** One run from beginning to end. `tell` is given lines for people. Never leaves a process or, unless something failed, a file behind. */
export async function run(options: Options, tell: (line: string) => void): Promise<Results> {
  const began = performance.now();
  const say = (line: string): void => tell(`${((performance.now() - began) / 1000).toFixed(1).padStart(7)} s  ${line}`);
  const world = await makeWorld(options);
  const history = new History();
  let keep = options.keep;
  try {
    say(`drawn: ${JSON.stringify(world.drawn)}; logs in ${world.folder}`);
    await world.coregent('apply');
    for (const { keeper } of world.regions) await keeper.start();
    await seedRows(world, history);
    for (const { keeper } of world.regions) await keeper.streaming(STREAMING_MS);
    say(`load and faults for ${options.minutes} min`);
    const { happened, beats, seen } = await storm(world, options, history, say);
    const healing = performance.now();
    let healedS: number | undefined;
    let broken: string | undefined;
    try {
      for (const { keeper } of world.regions) await keeper.streaming(STREAMING_MS);
      await allSettled(
        world.regions.map(({ name, query }) => ({ region: name, query })),
        CONFIRMED_MS,
      );
      healedS = (performance.now() - healing) / 1000;
      say(`everything is confirmed, joined and settled everywhere, ${healedS.toFixed(1)} s after the storm`);
    } catch (error) {
      broken = `the regions did not settle: ${(error as Error).message}`;
      say(broken);
    }
    const verdicts = await check(world, history, { happened, beats, seen, settled: broken === undefined });
    const ok = broken === undefined && verdicts.every(passed);
    keep ||= !ok;
    const results: Results = {
      seed: options.seed,
      minutes: options.minutes,
      drawn: world.drawn,
      passed: ok,
      verdicts,
      broken,
      transactions: history.transactions,
      unanswered: history.unknown,
      kinds: Object.fromEntries(history.kinds),
      refused: Object.fromEntries(history.refused),
      faults: countBy(happened.map(({ name }) => name)),
      healedS,
      memoryMiB: Math.round(seen.memoryMiB),
      errors: Object.fromEntries(seen.codes),
      folder: keep ? world.folder : undefined,
    };
    if (keep) await keepEvidence(world, history, results);
    return results;
  } catch (error) {
    keep = true;
    await world.keepLogs();
    throw new Error(`${(error as Error).message}\nThe logs are in ${world.folder}`, { cause: error });
  } finally {
    await world.close(keep);
  }
}

async function storm(world: World, options: Options, history: History, say: (line: string) => void) {
  const load = startLoad(world, options, history);
  const watch = startWatch(world);
  const faults = startStorm(world, options, say);
  const until = performance.now() + options.minutes * 60_000;
  for (let minute = 1; performance.now() < until - 100; minute++) {
    await sleep(Math.min(60_000, until - performance.now()));
    const { transactions, unknown } = history;
    say(
      `minute ${minute}: ${transactions} transactions, ${unknown} unanswered, ${faults.happened.length} faults, ${watch.seen.torn.length} torn`,
    );
  }
  await faults.heal();
  say('healed; the load ends');
  await load.stop();
  return { happened: faults.happened, beats: load.beats.acknowledged, seen: await watch.stop() };
}

async function check(
  world: World,
  history: History,
  {
    happened,
    beats,
    seen,
    settled: isSettled,
  }: { happened: readonly Happened[]; beats: History['acknowledged']; seen: Seen; settled: boolean },
): Promise<Verdict[]> {
  const { regions, keepsTombstones: tombstonesStay } = world;
  const outcome = await readOutcome(regions, world.tables.registers);
  const writes = settled(history.writes, outcome);
  const verdicts = [
    await checkEqual(regions, { tombstonesStay }),
    checkWholeRows(writes, outcome),
    checkLost(writes, outcome, { tombstonesStay }),
    await checkOnce(regions, history),
    await checkWhole(regions, history, seen),
    await checkVersions(regions, history),
    await checkParts(regions, history),
    await checkValues(regions, history),
    await checkOwned(regions, writes, history),
    await checkForeign(regions, history),
    await checkRecords(regions),
    checkAvailable({ regions: regions.map(({ name }) => name), history, beats, happened }),
    checkAnswers({
      transactions: history.transactions,
      faults: history.faults,
      surprises: world.surprises,
      codes: seen.codes,
    }),
  ];
  if (isSettled) verdicts.push(await checkQuiet(regions), await checkDisk(regions, seen.retainedBytes));
  return verdicts;
}

async function keepEvidence(world: World, history: History, results: Results): Promise<void> {
  await world.keepLogs();
  const plain = (_: string, value: unknown): unknown => (typeof value === 'bigint' ? String(value) : value);
  await writeFile(join(world.folder, 'results.json'), JSON.stringify(results, null, 2));
  await writeFile(join(world.folder, 'writes.json'), JSON.stringify([...history.writes], plain));
  await writeFile(join(world.folder, 'versions.json'), JSON.stringify(history.versions, plain));
  const { values, children } = history;
  await writeFile(join(world.folder, 'values.json'), JSON.stringify({ values, children: [...children] }));
  for (const { name, query } of world.regions) {
    const rows: Record<string, unknown> = {};
    try {
      for (const table of await tablesOf(query)) rows[table] = (await query(`select * from ${table}`)).rows;
    } catch (error) {
      rows.failed = (error as Error).message;
    }
    await writeFile(join(world.folder, `rows-${name}.json`), JSON.stringify(rows, plain));
  }
}

/** What was recorded, what is parked, and families of rows with their deletes: what is looked at first when a law was violated. */
async function tablesOf(query: Asked['query']): Promise<string[]> {
  const families = [...Object.keys(CHILDREN), TEAMS.name, ACCOUNTS.name];
  const graves: string[] = [];
  for (const name of families)
    graves.push(await tombstonesOf({ query } as Parameters<typeof tombstonesOf>[0], { name }));
  return ['coregent.conflict_record', 'coregent.parked', ...families, ...graves];
}

function countBy(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of names) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
}
