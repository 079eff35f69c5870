import pg from 'pg';
import { within } from '../../test/world/random.ts';
import { LEDGER } from '../tables.ts';
import { register } from './register.ts';
import type { Kind, Settle, Work } from './writer.ts';

/** Rows that begin in each region, and what each has. */
export const LEDGER_ROWS = { perRegion: 12, each: 100 } as const;
/** What a write of a row is told that another region owns. */
const NOT_OWNER = 'CG001';

/** Some rows that this region owns: their ids. */
async function mine({ client, random, region }: Work, count: number): Promise<number[]> {
  const { rows } = await client.query(
    `select id from ledger where home = $1 order by md5(id || ' ' || $2::float8) limit $3`,
    [region, random(), count],
  );
  return rows.map(({ id }) => id);
}

async function ownedStill({ client, region }: Work, ids: readonly number[]): Promise<boolean> {
  const { rowCount } = await client.query('select from ledger where id = any ($1) and home = $2', [ids, region]);
  return rowCount === ids.length;
}

/** From one row of this region to another, as a plain transaction: only because nobody else writes them is nothing lost. */
async function transfer(work: Work): Promise<Settle | undefined> {
  const ids = await mine(work, 2);
  const [from, to] = ids;
  if (to === undefined) return undefined;
  return await register(work, LEDGER, ids.map(String), async () => {
    if (!(await ownedStill(work, ids))) return;
    const { rows } = await work.client.query('select n::int from ledger where id = $1', [from]);
    const amount = within(work.random, 0, rows[0].n);
    await work.client.query('update ledger set n = n - $2 where id = $1', [from, amount]);
    await work.client.query('update ledger set n = n + $2 where id = $1', [to, amount]);
  });
}

/** Gives a row away; from its commit on this region may not write it any more. */
async function handOver(work: Work): Promise<Settle | undefined> {
  const { client, history, random, others } = work;
  const ids = await mine(work, 1);
  if (ids.length === 0) return undefined;
  const settle = await register(work, LEDGER, ids.map(String), async () => {
    if (!(await ownedStill(work, ids))) return;
    await client.query('update ledger set home = $2 where id = any ($1)', [
      ids,
      others[within(random, 0, others.length - 1)],
    ]);
  });
  return (
    settle &&
    ((end) => {
      settle(end);
      if (end === 'ok') history.owned.moved++;
    })
  );
}

/** Writes what another region owns, in each way there is: it must be refused, with the owner's name. */
async function trespass(work: Work): Promise<undefined> {
  const { client, history, random, region, others } = work;
  const { rows } = await client.query(
    `select id, home from ledger where home <> $1 order by md5(id || ' ' || $2::float8) limit 1 for update`,
    [region, random()],
  );
  // A row that was given to this region while its lock was waited for is its own.
  if (!rows[0] || rows[0].home === region) return;
  const { id, home } = rows[0];
  const stranger = others[within(random, 0, others.length - 1)]!;
  const ways: readonly (readonly [text: string, values: readonly unknown[], owner: string])[] = [
    ['update ledger set n = n + 1 where id = $1', [id], home],
    ['update ledger set home = $2 where id = $1', [id, region], home],
    ['delete from ledger where id = $1', [id], home],
    ['insert into ledger values ($1, $2, 0)', [1_000_000 + work.next(), stranger], stranger],
  ];
  const [text, values, owner] = ways[within(random, 0, ways.length - 1)]!;
  try {
    const { rowCount } = await client.query(text, [...values]);
    history.faults.push(`${region} wrote ${rowCount} rows that ${owner} owns: ${text} (${values.join(', ')})`);
  } catch (error) {
    if (!(error instanceof pg.DatabaseError) || error.code !== NOT_OWNER) throw error;
    history.owned.refused++;
    if (error.detail !== owner) history.faults.push(`${region} was told that ${error.detail} owns what ${owner} owns`);
  }
}

/** Rows of which each has one owner. */
export const OWNED: readonly Kind[] = [
  { name: 'transfer', weight: 8, run: transfer },
  { name: 'hand over', weight: 2, run: handOver },
  { name: 'trespass', weight: 2, run: trespass },
];
