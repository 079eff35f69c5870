import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { lsnOf } from '../../src/model/lsn.ts';
import { Acknowledger } from '../../src/pipe/acknowledge.ts';
import { Batch } from '../../src/pipe/batch.ts';
import type { Decoder } from '../../src/pipe/decode.ts';
import { Pipe } from '../../src/pipe/pipe.ts';

beforeEach(() => void vi.useFakeTimers({ toFake: ['performance', 'setTimeout'] }));
afterEach(() => void vi.useRealTimers());

/**
 * What happens when `count` batches wait that all leave parked rows; those of `parts` leave the local transaction open.
 * A batch takes 1 ms, a try of parked rows 100 ms; `tries` of them are due for each batch.
 */
async function flow(count: number, { parts = [], tries = 1 }: { parts?: number[]; tries?: number } = {}) {
  const happened: string[] = [];
  let taken = 0;
  let owed = 0;
  let open = false;
  const decoder = {
    get ready() {
      return taken < count;
    },
    full: false,
    take() {
      const batch = new Batch();
      batch.endLsn = lsnOf(BigInt(++taken));
      return batch;
    },
    resume() {},
  } as Pick<Decoder, 'ready' | 'full' | 'take' | 'resume'> as Decoder;
  const acks = new Acknowledger(lsnOf(0n));
  acks.applied = (peer) => void happened.push(`acknowledged ${peer}`);
  const pipe = new Pipe({
    decoder,
    acks,
    resume() {},
    more: () => false,
    reachClock: async () => {},
    async apply({ endLsn }) {
      vi.advanceTimersByTime(1);
      open = parts.includes(taken);
      if (!open) owed = tries;
      happened.push(`${open ? 'part' : 'batch'} ${endLsn}`);
      return { localLsn: open ? undefined : endLsn };
    },
    owes: () => owed > 0 && !open,
    async settle() {
      vi.advanceTimersByTime(100);
      happened.push('tried');
      owed--;
    },
    applied() {},
    wait: (work) => work,
  });
  pipe.run().catch(() => {});
  while (decoder.ready) await Promise.resolve();
  await vi.advanceTimersByTimeAsync(10_000);
  expect(pipe.applying).toBe(false);
  return happened;
}

it('parked rows are tried again behind a batch, and its end is acknowledged only then', async () => {
  expect(await flow(1)).toEqual(['batch 1', 'tried', 'acknowledged 1']);
});

it('what had no turn yet has it while no batch comes', async () => {
  expect(await flow(1, { tries: 3 })).toEqual(['batch 1', 'tried', 'acknowledged 1', 'tried', 'tried']);
});

it('while batches wait, the stream does not wait for parked rows', async () => {
  const happened = await flow(2_500);
  // Behind the first batch, then once a second of batches each, and at the end.
  expect(happened.filter((what) => what.startsWith('acknowledged'))).toEqual(
    [1, 1001, 2001, 2500].map((batch) => `acknowledged ${batch}`),
  );
  expect(happened.filter((what) => what === 'tried')).toHaveLength(4);
});

it('a part of a transaction acknowledges nothing before it', async () => {
  expect(await flow(4, { parts: [3] })).toEqual([
    'batch 1',
    'tried',
    'acknowledged 1',
    'batch 2',
    'part 3',
    'batch 4',
    'tried',
    'acknowledged 4',
  ]);
});
