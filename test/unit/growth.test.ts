import { expect, it } from 'vitest';
import { growthMs } from '../../src/agent/growth.ts';

const NOW_MS = 1_800_000_000_000;

function growth(behindMs: number | undefined, rows: number, bursting = false): number {
  const committedAtMs = behindMs === undefined ? 0 : NOW_MS - behindMs;
  return growthMs({ rows, committedAtMs }, { nowMicros: () => NOW_MS * 1000 }, bursting);
}

it('what is on time waits for more only while more comes at once', () => {
  expect([0, 100, 500].map((behindMs) => growth(behindMs, 1))).toEqual([0, 0, 0]);
  expect([1, 1_999, 2_000].map((rows) => growth(100, rows, true))).toEqual([20, 20, 0]);
});

it('what is late waits in proportion, up to a bound of time and of rows', () => {
  expect([600, 1_500, 60_000].map((behindMs) => growth(behindMs, 1))).toEqual([10, 100, 150]);
  expect([9_999, 10_000].map((rows) => growth(60_000, rows))).toEqual([150, 0]);
});

it('without a commit, or before the peer’s clock was read, nothing is known to be late', () => {
  expect(growth(undefined, 1)).toBe(0);
  expect(growthMs({ rows: 1, committedAtMs: NOW_MS }, { nowMicros: () => undefined }, false)).toBe(0);
});
