import { expect, it, vi } from 'vitest';
import { type LSN, lsnOf } from '../../src/model/lsn.ts';
import { Acknowledger } from '../../src/pipe/acknowledge.ts';
import { Batch } from '../../src/pipe/batch.ts';
import type { Decoder } from '../../src/pipe/decode.ts';
import { Pipe } from '../../src/pipe/pipe.ts';

/** A pipe through which `count` batches go that all leave parked rows; a batch takes 1 ms and a settling 100 ms, of a clock that only they move. */
async function flow(count: number): Promise<{ happened: string[]; acked: LSN[] }> {
  let nowMs = 0;
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => nowMs);
  const happened: string[] = [];
  const acked: LSN[] = [];
  let left = count;
  let owed = false;
  const decoder = {
    get ready() {
      return left > 0;
    },
    full: false,
    take() {
      const batch = new Batch();
      batch.endLsn = lsnOf(BigInt(count - --left));
      return batch;
    },
    resume() {},
  } as Pick<Decoder, 'ready' | 'full' | 'take' | 'resume'> as Decoder;
  const acks = new Acknowledger(lsnOf(0n));
  vi.spyOn(acks, 'applied').mockImplementation((peer) => void acked.push(peer));
  const pipe = new Pipe({
    decoder,
    acks,
    resume() {},
    more: () => false,
    reachClock: async () => {},
    async apply({ endLsn }) {
      nowMs += 1;
      happened.push(`batch ${endLsn}`);
      owed = true;
      return { localLsn: endLsn };
    },
    owes: () => owed,
    async settle() {
      nowMs += 100;
      happened.push('settled');
      owed = false;
    },
    applied() {},
    wait: (work) => work,
  });
  pipe.run().catch(() => {});
  await vi.waitFor(() => expect(acked.at(-1)).toBe(lsnOf(BigInt(count))));
  expect(pipe.applying).toBe(false);
  clock.mockRestore();
  return { happened, acked };
}

it('parked rows are tried again behind a batch, and its end is acknowledged only then', async () => {
  const { happened, acked } = await flow(1);
  expect(happened).toEqual(['batch 1', 'settled']);
  expect(acked).toEqual([1n]);
});

it('while batches wait, the stream does not wait for parked rows', async () => {
  const { happened, acked } = await flow(2_500);
  // Behind the first batch, then once a second of batches each, and at the end.
  expect(acked).toEqual([1n, 1001n, 2001n, 2500n]);
  expect(happened.filter((what) => what === 'settled')).toHaveLength(4);
  expect(happened.at(-1)).toBe('settled');
});
