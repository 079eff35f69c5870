import { expect, test } from 'vitest';
import { readOptions } from '../../chaos/options.ts';
import { report } from '../../chaos/report.ts';
import { run } from '../../chaos/run.ts';
import { seedOfRun } from '../world/random.ts';

test('every invariant holds after a minute of load of every kind and random faults', {
  timeout: 600_000,
}, async () => {
  const seed = seedOfRun('storm');
  const lines: string[] = [];
  const results = await run(readOptions(['--minutes', '1', '--seed', String(seed)]), (line) => lines.push(line));
  console.info(report(results));
  expect(results.passed, [...lines, report(results)].join('\n')).toBe(true);
});
