import { setTimeout as sleep } from 'node:timers/promises';

const SHORTEST_MS = 2;
const LONGEST_MS = 100;

/** What `until` may be told. */
export interface UntilOptions {
  /** What is waited for, in words; the error says it. */
  readonly what: string;
  /** Milliseconds from now. Default 90 s: far more than needed, so that a busy machine fails no test. */
  readonly deadlineMs?: number;
}

/**
 * Waits until `condition` gives something truthy, and returns that. Asks again at growing intervals, 2 to 100 ms. An error
 * that it throws counts as "not yet"; after the deadline the last one is the cause of the failure.
 */
export async function until<T>(
  condition: () => T | Promise<T>,
  { what, deadlineMs = 90_000 }: UntilOptions,
): Promise<Exclude<Awaited<T>, undefined | null | false | 0 | ''>> {
  const deadline = performance.now() + deadlineMs;
  for (let waitMs = SHORTEST_MS; ; waitMs = Math.min(waitMs * 1.5, LONGEST_MS)) {
    let cause: unknown;
    try {
      const value = await condition();
      if (value) return value as Exclude<Awaited<T>, undefined | null | false | 0 | ''>;
    } catch (error) {
      cause = error;
    }
    if (performance.now() > deadline) throw new Error(`Not within ${deadlineMs} ms: ${what}`, { cause });
    await sleep(waitMs);
  }
}
