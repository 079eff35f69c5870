import type { Happened } from '../faults/storm.ts';
import type { History } from '../history.ts';
import type { Verdict } from './verdict.ts';

/** A fault shorter than this is no test: a writer pauses, and large transactions take their time. */
const LEAST_MS = 3_000;
/** A writer may wait so long for a lock, or for the last fault to end, before it counts. */
const SLACK_MS = 500;

/** INV-V: while something else is broken (a link, another region, its own agent) a region acknowledges writes. */
export function checkAvailable(regions: readonly string[], history: History, happened: readonly Happened[]): Verdict {
  const violations: string[] = [];
  let windows = 0;
  for (const region of regions) {
    const moments = history.acknowledged.get(region) ?? [];
    const stopped = happened.filter(({ stops }) => stops.includes(region));
    for (const { name, where, stops, from, to } of happened) {
      if (stops.includes(region) || to - from < LEAST_MS) continue;
      if (stopped.some((other) => other.from < to + SLACK_MS && other.to > from - SLACK_MS)) continue;
      windows++;
      if (!moments.some((at) => at >= from && at <= to)) {
        violations.push(`${region} acknowledged nothing in ${Math.round(to - from)} ms of ${name} (${where})`);
      }
    }
  }
  return {
    name: 'INV-V',
    law: 'a region acknowledges writes whatever happens elsewhere and to its agent',
    cases: { windows },
    violations,
  };
}
