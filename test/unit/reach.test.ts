import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { backoffMs, soonest } from '../../src/agent/reach.ts';

describe('backoff', () => {
  test('a peer that was merely away is tried again within 2.5 s, however long it was away', () => {
    for (let failures = 1; failures < 2_000; failures++) {
      for (const random of [0, 0.5, 0.999]) {
        const waitMs = backoffMs(failures, 'peer_unreachable', random);
        expect(waitMs).toBeGreaterThanOrEqual(50);
        expect(waitMs).toBeLessThanOrEqual(2_500);
      }
    }
  });

  test('what needs a person is tried less and less often, at least every 10 s', () => {
    expect(backoffMs(1, 'peer_identity', 0)).toBe(50);
    expect(backoffMs(1_000, 'peer_identity', 0.999)).toBeGreaterThan(9_000);
    expect(backoffMs(1_000, 'peer_identity', 0.999)).toBeLessThanOrEqual(10_000);
  });

  test('peers that failed at one moment are not tried at one moment', () => {
    expect(backoffMs(9, 'peer_unreachable', 0)).not.toBe(backoffMs(9, 'peer_unreachable', 0.5));
  });
});

describe('the soonest of several attempts', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  /** Attempts that the test answers. */
  function attempts() {
    const all: { signal: AbortSignal; answer: (word: string) => void; fail: (error: Error) => void }[] = [];
    const attempt = (signal: AbortSignal): Promise<string> =>
      new Promise((answer, fail) => {
        all.push({ signal, answer, fail });
      });
    return { all, attempt };
  }

  test('one that is answered is the only one', async () => {
    const { all, attempt } = attempts();
    const found = soonest(attempt, new AbortController().signal);
    all[0]!.answer('one');
    expect(await found).toBe('one');
    await vi.advanceTimersByTimeAsync(60_000);
    expect(all.length).toBe(1);
    expect(all[0]!.signal.aborted).toBe(false);
  });

  test('beside one that hangs another begins every 2 s; the first answer counts, and the others are dropped', async () => {
    const { all, attempt } = attempts();
    const found = soonest(attempt, new AbortController().signal);
    await vi.advanceTimersByTimeAsync(4_000);
    expect(all.length).toBe(3);
    all[2]!.answer('three');
    all[1]!.answer('two');
    expect(await found).toBe('three');
    expect(all.map(({ signal }) => signal.aborted)).toEqual([true, true, false]);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(all.length).toBe(3);
  });

  test('a fault ends all of them', async () => {
    const { all, attempt } = attempts();
    const found = soonest(attempt, new AbortController().signal);
    found.catch(() => {});
    await vi.advanceTimersByTimeAsync(2_000);
    all[0]!.fail(new Error('refused'));
    await expect(found).rejects.toThrow('refused');
    expect(all.map(({ signal }) => signal.aborted)).toEqual([true, true]);
  });

  test('so does stopping', async () => {
    const { all, attempt } = attempts();
    const stopping = new AbortController();
    const found = soonest(attempt, stopping.signal);
    stopping.abort();
    await expect(found).rejects.toThrow();
    expect(all.map(({ signal }) => signal.aborted)).toEqual([true]);
  });
});
