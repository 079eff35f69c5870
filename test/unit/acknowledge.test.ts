import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { lsnOf } from '../../src/model/lsn.ts';
import { Acknowledger } from '../../src/pipe/acknowledge.ts';

const lsn = (value: number) => lsnOf(BigInt(value));

type Step = { do: 'apply' | 'flush' | 'idle'; by: number };
const step: fc.Arbitrary<Step> = fc.record({
  do: fc.constantFrom('apply', 'apply', 'flush', 'idle'),
  by: fc.integer({ min: 0, max: 5 }),
});

/** Runs steps whose peer and local positions only grow, as logs do. */
function run(
  steps: readonly Step[],
  check: (acks: Acknowledger, applied: { peer: number; local: number }[], flushed: number) => void,
): void {
  const acks = new Acknowledger(lsn(0));
  const applied: { peer: number; local: number }[] = [];
  let [peer, local, flushed] = [0, 1000, 1000];
  for (const { do: what, by } of steps) {
    if (what === 'apply') {
      peer += by + 1;
      local += by;
      applied.push({ peer, local });
      acks.applied(lsn(peer), lsn(local));
    } else if (what === 'flush') {
      flushed = Math.min(local, flushed + by);
      acks.flushed(lsn(flushed));
    } else {
      peer += by;
      acks.idle(lsn(peer));
    }
    check(acks, applied, flushed);
  }
}

const steps = fc.array(step, { maxLength: 300 });

describe('the acknowledger', () => {
  it('never confirms past what is flushed here', () => {
    fc.assert(
      fc.property(steps, (given) => {
        run(given, (acks, applied, flushed) => {
          for (const { peer, local } of applied) if (local > flushed) expect(acks.durable < lsn(peer)).toBe(true);
        });
      }),
    );
  });

  it('never moves back', () => {
    fc.assert(
      fc.property(steps, (given) => {
        let before = lsn(0);
        run(given, (acks) => {
          expect(acks.durable >= before).toBe(true);
          before = acks.durable;
        });
      }),
    );
  });

  it('confirms everything once everything is flushed', () => {
    fc.assert(
      fc.property(steps, (given) => {
        let all: { acks: Acknowledger; applied: { peer: number; local: number }[] } | undefined;
        run(given, (acks, applied) => {
          all = { acks, applied };
        });
        const last = all?.applied.at(-1);
        if (!all || !last) return;
        if (all.acks.awaited !== undefined) all.acks.flushed(all.acks.awaited);
        expect(all.acks.awaited).toBeUndefined();
        expect(all.acks.durable >= lsn(last.peer)).toBe(true);
      }),
    );
  });

  it('lets idle WAL go only while nothing is in flight', () => {
    const acks = new Acknowledger(lsn(10));
    acks.idle(lsn(20));
    expect(acks.durable).toBe(20n);
    acks.applied(lsn(30), lsn(7));
    acks.idle(lsn(40));
    expect(acks.durable).toBe(20n);
    acks.flushed(lsn(6));
    expect(acks.durable).toBe(20n);
    acks.flushed(lsn(7));
    expect(acks.durable).toBe(30n);
    acks.idle(lsn(40));
    expect(acks.durable).toBe(40n);
  });

  it('stays small however many commits wait for one flush', () => {
    const acks = new Acknowledger(lsn(0));
    for (let n = 1; n <= 10_000; n++) acks.applied(lsn(n), lsn(n));
    acks.flushed(lsn(9_999));
    expect(acks.durable < 10_000n).toBe(true);
    acks.flushed(lsn(10_000));
    expect(acks.durable).toBe(10_000n);
  });
});
