import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { measureCatchUp } from './catchup.ts';
import { CoregentSide } from './coregent.ts';
import { measureHeal } from './heal.ts';
import { measureLag } from './lag.ts';
import { describeMachine } from './machine.ts';
import { measureIdle } from './memory.ts';
import { NativeSide } from './native.ts';
import { type Options, type Part, readOptions, USAGE } from './options.ts';
import { type Progress, type Results, report } from './report.ts';
import { measureRules } from './rules.ts';
import { open } from './server.ts';
import type { Side } from './side.ts';
import { measureWriter } from './writer.ts';

const RESULTS = new URL('../bench/results/', import.meta.url);

// The servers and agents end with this process.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(1));
try {
  const options = readOptions(process.argv.slice(2));
  if (options.help) process.stdout.write(USAGE);
  else await run(options);
  process.exit(0);
} catch (error) {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  process.exit(1);
}

async function run(options: Options): Promise<void> {
  const began = performance.now();
  const seconds = (): number => Math.round((performance.now() - began) / 1000);
  const progress: Progress = (text) => process.stderr.write(`${String(seconds()).padStart(4)} s  ${text}\n`);
  const sides = await Promise.all([CoregentSide.start(options.agentFlags), NativeSide.start(options.nativeStreaming)]);
  try {
    const results = await measure(sides, options, progress);
    const file = await save(results, options);
    process.stdout.write(`${report(results)}\n`);
    progress(`done; all figures are in ${file}`);
  } finally {
    await Promise.all(sides.map((side) => side.close()));
  }
}

async function measure(sides: readonly Side[], options: Options, progress: Progress): Promise<Results> {
  const wants = (part: Part): boolean => options.parts.includes(part);
  const client = await open(sides[0]!.pair.east, 'postgres');
  const { rows } = await client.query('show server_version');
  await client.end();
  const { rounds, rows: size, nativeStreaming, pin } = options;
  // The agent's memory is that of the largest transaction, which catching up measures anyway.
  const workloads = wants('catchup') ? options.workloads : ['bulk'];
  return {
    schema_version: 1,
    date: new Date().toISOString(),
    machine: describeMachine(rows[0].server_version),
    options: { rounds, rows: size, nativeStreaming, pin },
    ...(wants('catchup') || wants('memory')
      ? { catchUp: await measureCatchUp(sides, { ...options, workloads }, progress) }
      : {}),
    ...(wants('lag') ? { lag: await measureLag(sides, options, progress) } : {}),
    ...(wants('writer') ? { writer: await measureWriter(sides, options, progress) } : {}),
    ...(wants('memory') ? { idle: await measureIdle(sides, options, progress) } : {}),
    ...(wants('rules') ? { rules: await measureRules(sides[0] as CoregentSide, options, progress) } : {}),
    ...(wants('heal') ? { heal: await measureHeal(sides, options, progress) } : {}),
  };
}

/** Writes the results and gives the file's path. */
async function save(results: Results, options: Options): Promise<string> {
  const name = `${results.date.slice(0, 19).replaceAll(':', '-')}.json`;
  const file = options.json ?? fileURLToPath(new URL(name, RESULTS));
  if (options.json === undefined) await mkdir(RESULTS, { recursive: true });
  await writeFile(file, `${JSON.stringify(results, null, 2)}\n`);
  return file;
}
