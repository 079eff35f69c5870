import type { Happened } from '../faults/storm.ts';
import type { History } from '../history.ts';
import { SETTINGS } from '../load/writer.ts';
import type { Verdict } from './verdict.ts';

/** A fault shorter than this is no test: writers may wait for a row, of a frozen agent's transaction too, as long as their `lock_timeout`. */
const LEAST_MS = SETTINGS.lock_timeout + 1_000;
/** A writer may wait so long for a lock, or for the last fault to end, before it counts. */
const SLACK_MS = 500;
/** Where a table beside the replicated ones took so many writes in the meantime, the machine can't be why a region acknowledged none. */
const WITNESSED = 10;

/** INV-V: while something else is broken (a link, another region, its own agent) a region acknowledges writes. */
export function checkAvailable({
  regions,
  history,
  beats,
  happened,
}: {
  readonly regions: readonly string[];
  readonly history: History;
  /** Moments of writes to a table that is not replicated, by region. */
  readonly beats: History['acknowledged'];
  readonly happened: readonly Happened[];
}): Verdict {
  const violations: string[] = [];
  let windows = 0;
  for (const region of regions) {
    const stopped = happened.filter(({ stops }) => stops.includes(region));
    for (const { name, where, stops, from, to } of happened) {
      if (stops.includes(region) || to - from < LEAST_MS) continue;
      if (stopped.some((other) => other.from < to + SLACK_MS && other.to > from - SLACK_MS)) continue;
      const within = (moments: readonly number[] = []): number => moments.filter((at) => at >= from && at <= to).length;
      const silent = within(history.acknowledged.get(region)) === 0;
      if (silent && within(beats.get(region)) < WITNESSED) continue;
      windows++;
      if (silent) {
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
