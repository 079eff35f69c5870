import { describe, expect, test } from 'vitest';
import { Pacing } from '../../src/pg/pacing.ts';

/** Reads chunks of these sizes, `everyMs` apart, until one of them makes it pause; its pause in ms. */
function readUntilPause(pacing: Pacing, bytes: number, everyMs: number): number {
  for (let read = 0; read < 1_000; read++) {
    pacing.read(bytes, read * everyMs);
    const pauseMs = pacing.emptied();
    if (pauseMs > 0) return pauseMs;
  }
  return 0;
}

describe('a socket is left alone', () => {
  test('not at a thousand small transactions a second', () => {
    expect(readUntilPause(new Pacing(), 500, 1)).toBe(0);
  });

  test('when much comes at once', () => {
    expect(readUntilPause(new Pacing(), 60_000, 0.1)).toBe(4);
  });

  test('when many small reads follow each other', () => {
    expect(readUntilPause(new Pacing(), 200, 0.1)).toBe(4);
  });

  test('for longer as long as little is gathered, up to a bound, and for less when much is', () => {
    const pacing = new Pacing();
    const pauses = [readUntilPause(pacing, 60_000, 0.1)];
    for (const bytes of [40_000, 40_000, 40_000, 400_000, 1_000_000, 1_000_000, 1_000_000]) {
      pacing.paused(0);
      pacing.read(bytes, 0);
      pauses.push(pacing.emptied());
    }
    expect(pauses).toEqual([4, 8, 16, 16, 16, 8, 4, 4]);
    expect(pacing.bursting).toBe(true);
  });

  test('no more once a thousand transactions a second are all that is gathered, however long the pause', () => {
    const pacing = new Pacing();
    readUntilPause(pacing, 60_000, 0.1);
    pacing.paused(0);
    pacing.read(40_000, 0);
    expect(pacing.emptied()).toBe(8);
    pacing.paused(0);
    pacing.read(8 * 500, 0);
    expect(pacing.emptied()).toBe(0);
    pacing.calm();
    expect(pacing.bursting).toBe(false);
  });
});
