import { expect, test } from 'vitest';
import { readOptions } from '../../chaos/options.ts';
import { report } from '../../chaos/report.ts';
import { run } from '../../chaos/run.ts';
import { seedOfRun } from '../world/random.ts';

test('every invariant holds after half a minute of load of every kind and random faults', {
  timeout: 900_000,
}, async () => {
  const seed = seedOfRun('storm');
  const lines: string[] = [];
  const results = await run(readOptions(['--minutes', '0.5', '--seed', String(seed)]), (line) => lines.push(line));
  const told = report(results);
  console.info(told);
  // So short a run may not meet a case of every law; a longer one has to.
  const violated = results.verdicts.flatMap(({ violations }) => violations);
  expect([results.broken, ...violated], [...lines, told].join('\n')).toEqual([undefined]);
  expect(results.transactions).toBeGreaterThan(100);
});
