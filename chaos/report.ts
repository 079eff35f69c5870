import { passed, type Verdict } from './checks/verdict.ts';
import type { Results } from './run.ts';

/** Violations that are printed of each invariant. */
const SHOWN = 20;

/** The results as text: a table of invariants, then what was violated. */
export function report(results: Results): string {
  const { verdicts, broken, folder, seed, minutes, drawn } = results;
  const lines = [
    '',
    `transactions ${results.transactions}, unanswered ${results.unanswered}, refused ${words(results.refused) || 'none'}`,
    `kinds: ${words(results.kinds)}`,
    `faults: ${words(results.faults) || 'none'}`,
    `links said: ${words(results.errors) || 'nothing'}; an agent took at most ${results.memoryMiB} MiB`,
    '',
    ...verdicts.map(line),
    '',
  ];
  for (const { name, violations } of verdicts) {
    for (const violation of violations.slice(0, SHOWN)) lines.push(`${name}: ${violation}`);
    if (violations.length > SHOWN) lines.push(`${name}: and ${violations.length - SHOWN} more`);
  }
  if (broken !== undefined) lines.push(broken);
  if (folder !== undefined) lines.push(`logs and history: ${folder}`);
  const again = `npm run chaos -- --minutes ${minutes} --seed ${seed}`;
  lines.push(
    results.passed ? `passed (seed ${seed}, ${JSON.stringify(drawn)})` : `${ending(results)}; again: ${again}`,
  );
  return lines.join('\n');
}

/** A short storm may meet too little of something to prove a law: that is no breach, and no pass either. */
function ending({ verdicts, broken }: Results): string {
  const breached = broken !== undefined || verdicts.some(({ violations }) => violations.length > 0);
  return breached ? 'FAILED' : 'NOT PASSED: no law was violated, but not every law was put to the test';
}

function line(verdict: Verdict): string {
  const { name, violations, cases, figures } = verdict;
  const mark = passed(verdict) ? 'held' : violations.length > 0 ? 'VIOLATED' : 'UNTESTED';
  return `${name.padEnd(8)} ${mark.padEnd(9)} ${words({ ...cases, ...figures })}`;
}

function words(counts: Readonly<Record<string, number>>): string {
  return Object.entries(counts)
    .map(([name, count]) => `${name} ${count}`)
    .join(', ');
}
