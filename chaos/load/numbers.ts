import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { from as copyFrom } from 'pg-copy-streams';
import { within } from '../../test/world/random.ts';
import type { IdRange, Verdict } from '../history.ts';
import { isLost, type Kind, type Settle, type Work } from './writer.ts';

/** Counters of each region; nobody else writes them. */
export const COUNTERS = 4;
/** Sets of rows of each region that it rewrites together, and the rows of each. */
export const PAIRS = { sets: 5, parts: 3 } as const;

/** A counter's key: the region's place, then its number. */
export function counterId(index: number, counter: number): number {
  return index * 100 + counter;
}

async function increment(work: Work): Promise<Settle> {
  const { client, history, random, index, region } = work;
  const id = counterId(index, within(random, 0, COUNTERS - 1));
  const counter = history.counters.get(id)!;
  counter.unknown++;
  const { rowCount } = await client.query('update counters set n = n + 1 where id = $1', [id]).catch((error) => {
    if (!isLost(error)) counter.unknown--;
    throw error;
  });
  if (rowCount !== 1) history.faults.push(`counter ${id} is gone in ${region}, its own region`);
  return (end) => {
    counter.unknown--;
    if (end === 'ok') counter.ok++;
  };
}

/** Increments of which some are taken back by a savepoint, in one transaction. */
async function incrementTwice(work: Work): Promise<Settle> {
  const { client, history, random, index } = work;
  const id = counterId(index, within(random, 0, COUNTERS - 1));
  const counter = history.counters.get(id)!;
  await client.query('update counters set n = n + 1 where id = $1', [id]);
  for (let round = within(random, 1, 3); round > 0; round--) {
    await client.query('savepoint s');
    await client.query('update counters set n = n + 1000 where id = $1', [id]);
    await client.query('rollback to s');
  }
  await client.query('update counters set n = n + 1 where id = $1', [id]);
  return (end) => {
    if (end === 'ok') counter.ok += 2;
    else if (end === 'unknown') counter.unknown += 2;
  };
}

async function rewritePairs(work: Work): Promise<Settle> {
  const set = work.index * 100 + within(work.random, 1, PAIRS.sets);
  const tag = `${work.region}/${work.writer}/${work.next()}`;
  await work.client.query('select from pairs where set_id = $1 order by part for update', [set]);
  for (let part = 1; part <= PAIRS.parts; part++) {
    await work.client.query('update pairs set tag = $3 where set_id = $1 and part = $2', [set, part, tag]);
  }
  // Still under the rows' locks, so that the order is theirs.
  const written = { tag, verdict: 'no' as Verdict | 'no' };
  work.history.tags.set(set, [...(work.history.tags.get(set) ?? []), written]);
  return (end) => {
    written.verdict = end;
  };
}

function newIds(work: Work, count: number, via: string): { first: number; settle: Settle } {
  const first = work.index * 1_000_000_000 + work.shared.nextId + 1;
  work.shared.nextId += count;
  const range: IdRange = { first, count, via, verdict: 'no' };
  return {
    first,
    settle: (end) => {
      range.verdict = end;
      work.history.ids.push(range);
    },
  };
}

async function appendIds(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  const dice = random();
  const count = dice < 0.9 ? within(random, 1, 20) : within(random, 200, 1_000);
  const via = dice < 0.5 ? 'insert' : dice < 0.75 ? 'copy' : 'undone in part';
  const { first, settle } = newIds(work, count, via);
  const insert = 'insert into ids select $1::bigint + n, $3 from generate_series(0, $2::int - 1) n';
  if (via === 'copy') {
    const lines = Array.from({ length: count }, (_, n) => `${first + n}\tcopy\n`);
    await pipeline(Readable.from(lines), client.query(copyFrom('copy ids (id, via) from stdin')));
  } else if (via === 'insert') {
    await client.query(insert, [first, count, via]);
  } else {
    const undone = newIds(work, 3, 'undone');
    await client.query('savepoint s');
    await client.query(insert, [undone.first, 3, 'undone']);
    await client.query('rollback to s');
    await client.query(insert, [first, count, via]);
    undone.settle('no');
    if (random() < 0.2) {
      settle('no');
      return undefined;
    }
  }
  return settle;
}

/** Rows of one region whose value tells how often each transaction was applied. */
export const NUMBERS: readonly Kind[] = [
  { name: 'increment', weight: 12, run: increment, alone: true },
  { name: 'increments', weight: 3, run: incrementTwice },
  { name: 'pairs', weight: 6, run: rewritePairs },
  { name: 'ids', weight: 8, run: appendIds },
];
