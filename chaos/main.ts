import { writeFile } from 'node:fs/promises';
import { readOptions, USAGE } from './options.ts';
import { report } from './report.ts';
import { run } from './run.ts';

// Servers and agents end with this process.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(1));
try {
  const options = readOptions(process.argv.slice(2));
  if (options.help) {
    process.stdout.write(USAGE);
    process.exit(0);
  }
  process.stdout.write(`seed ${options.seed}\n`);
  const results = await run(options, (line) => process.stdout.write(`${line}\n`));
  process.stdout.write(`${report(results)}\n`);
  if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(results, null, 2)}\n`);
  process.exit(results.passed ? 0 : 1);
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(1);
}
