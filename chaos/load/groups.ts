import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { from as copyFrom } from 'pg-copy-streams';
import { within } from '../../test/world/random.ts';
import type { Group } from '../history.ts';
import type { Kind, Settle, Work } from './writer.ts';

/** A group's number tells where its rows' ids begin. */
const STRIDE = 100_000;
/** So many large groups live in a region at a time. */
const BULK_ALIVE = 2;

function newGroup(work: Work, table: 'entries' | 'bulk' | 'parents', members: number) {
  const number = (work.index + 1) * 10_000_000 + ++work.shared.nextGroup;
  const name = `${work.region}/${number}`;
  const group: Group = { members, inserted: 'no', deleted: 'no' };
  const begin = (): void => {
    group.inserted = 'unknown';
    work.history.groups[table].set(name, group);
  };
  const settle: Settle = (end) => {
    group.inserted = end;
    work.history.groups[table].set(name, group);
    if (end === 'ok') work.shared.alive[table].push(name);
  };
  return { number, name, begin, settle };
}

/** Takes a group of this region that may leave now. */
function takeGroup(work: Work, table: 'entries' | 'bulk' | 'parents', least: number) {
  const alive = work.shared.alive[table];
  if (alive.length <= least) return undefined;
  const [name] = alive.splice(within(work.random, 0, alive.length - 1), 1);
  const group = work.history.groups[table].get(name!)!;
  const settle: Settle = (end) => {
    group.deleted = end;
    if (end === 'no') alive.push(name!);
  };
  return { name: name!, number: Number(name!.split('/')[1]), group, settle };
}

async function insertGroup(work: Work): Promise<Settle> {
  const members = work.random() < 0.05 ? within(work.random, 50, 200) : within(work.random, 1, 6);
  const { number, name, begin, settle } = newGroup(work, 'entries', members);
  begin();
  await work.client.query(
    `insert into entries select $1::bigint + n, $2, $3, repeat($2, 3) from generate_series(1, $3::int) n`,
    [number * STRIDE, name, members],
  );
  return settle;
}

async function copyGroup(work: Work): Promise<Settle> {
  const members = within(work.random, 2, 120);
  const { number, name, settle } = newGroup(work, 'entries', members);
  const lines = Array.from({ length: members }, (_, n) => `${number * STRIDE + n + 1}\t${name}\t${members}\tcopied\n`);
  await pipeline(Readable.from(lines), work.client.query(copyFrom('copy entries (id, grp, members, note) from stdin')));
  return settle;
}

async function deleteGroup(work: Work): Promise<Settle | undefined> {
  const taken = takeGroup(work, 'entries', 30);
  if (!taken) return undefined;
  const { number, name, group, settle } = taken;
  const { rowCount } = await work.client
    .query('delete from entries where id > $1 and id <= $1 + $2', [number * STRIDE, STRIDE])
    .catch((error) => {
      settle('no');
      throw error;
    });
  if (rowCount !== group.members) work.history.faults.push(`${name} had ${rowCount} of ${group.members} rows at home`);
  return settle;
}

/** More rows than a walsender keeps in memory: streamed ahead of their commit. */
async function bulk(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  if (work.shared.alive.bulk.length >= BULK_ALIVE) {
    const { number, group, settle, name } = takeGroup(work, 'bulk', 0)!;
    const { rowCount } = await client
      .query('delete from bulk where id > $1 and id <= $1 + $2', [number * STRIDE, STRIDE])
      .catch((error) => {
        settle('no');
        throw error;
      });
    if (rowCount !== group.members)
      work.history.faults.push(`${name} had ${rowCount} of ${group.members} rows at home`);
    return settle;
  }
  const members = within(random, 10_000, 14_000);
  const { number, name, settle } = newGroup(work, 'bulk', members);
  const insert = `insert into bulk select $1::bigint + n, $2, $3, 'row ' || n from generate_series($4::int, $5::int) n`;
  const half = within(random, 1, members - 1);
  await client.query(insert, [number * STRIDE, name, members, 1, half]);
  await client.query('savepoint later');
  if (random() < 0.3) {
    // The same rows once more, thrown away: a stream with an aborted part.
    await client.query(insert, [number * STRIDE, `${name} undone`, members, half + 1, members]);
    await client.query('rollback to later');
  }
  await client.query(insert, [number * STRIDE, name, members, half + 1, members]);
  if (random() < 0.3) return undefined;
  return settle;
}

/** Parents with their children, written in one region only; deleting the parent deletes the children. */
async function family(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  if (random() < 0.45) {
    const taken = takeGroup(work, 'parents', 10);
    if (!taken) return undefined;
    await client.query('delete from parents where id = $1', [taken.number]).catch((error) => {
      taken.settle('no');
      throw error;
    });
    return taken.settle;
  }
  const members = within(random, 1, 12);
  const { number, name, settle } = newGroup(work, 'parents', members);
  await client.query('insert into parents values ($1, $2)', [number, members]);
  await client.query(`insert into children select $1::bigint * 1000 + n, $1, $2 from generate_series(1, $3::int) n`, [
    number,
    name,
    members,
  ]);
  return settle;
}

/** Groups that come and go whole. */
export const GROUPS: readonly Kind[] = [
  { name: 'group in', weight: 12, run: insertGroup, alone: true },
  { name: 'group copied', weight: 3, run: copyGroup },
  { name: 'group out', weight: 10, run: deleteGroup },
  { name: 'bulk', weight: 0.6, run: bulk },
  { name: 'family', weight: 12, run: family, regions: [0] },
];
