import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { parseLsn } from '../../src/model/lsn.ts';
import { tombstoneName } from '../../src/model/table.ts';
import { drop } from '../../src/pg/connect.ts';
import { endEarlier, LEADER_CLASS, type Leader, leaderOf } from '../../src/pg/earlier.ts';
import type { Store } from '../../src/pg/store.ts';
import { until } from '../world/until.ts';
import { isBlocked, openRegions, openSession, pull, slotOf, type TestRegion, type TestRegions } from './link.ts';
import { type Applier, openApplier, tryAll } from './region.ts';

/** A row and its tombstone that arrive by two links, each committed without sight of the other; and sessions that are lost just then. */

const SCHEMA =
  'create table notes (id int primary key, v text); create table seats (id int primary key, pos int unique)';

let world: TestRegions;
let tokyo: TestRegion;
let frankfurt: TestRegion;
let virginia: TestRegion;
/** Of frankfurt. */
let leader: Leader;
let leading: Awaited<ReturnType<typeof openSession>>;

beforeAll(async () => {
  world = await openRegions(SCHEMA, 3);
  [tokyo, frankfurt, virginia] = world.regions as [TestRegion, TestRegion, TestRegion];
  leading = await openSession(frankfurt);
  await leading.query('select pg_advisory_lock($1, $2)', [LEADER_CLASS, frankfurt.id]);
  leader = await leaderOf(leading, frankfurt.id);
});
afterAll(async () => {
  await leading[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

/** A link into frankfurt, with a session of its own, as an agent has it. */
interface Link {
  readonly from: TestRegion;
  readonly applier: Applier;
  readonly store: Store;
  /** What its sessions know to be settled. */
  readonly settled: Set<number>;
}

let open: Applier[] = [];
let rowsOf: Link;
let deletesOf: Link;

async function connect(from: TestRegion, settled: Set<number>): Promise<Link> {
  const applier = await openApplier(frankfurt.database.url);
  open.push(applier);
  await endEarlier(applier.client, 'apply', from.id, leader);
  const slot = slotOf(from, frankfurt);
  const lsn = parseLsn((await frankfurt.value(`select lsn::text from coregent.progress where slot = '${slot}'`))!);
  return { from, applier, settled, store: applier.store({ slot, peerId: from.id, lsn, settled }) };
}

/** The link's next session, which has settled what the last one left. */
async function again({ from, settled }: Link): Promise<Link> {
  const link = await connect(from, settled);
  await tryAll(link.store);
  return link;
}

let key = 0;

beforeEach(async () => {
  key++;
  rowsOf = await connect(tokyo, new Set());
  deletesOf = await connect(virginia, new Set());
  for (const link of [rowsOf, deletesOf]) {
    await tryAll(link.store);
    await pull(link.from, frankfurt, link.store);
  }
});
afterEach(async () => {
  await Promise.all(open.map(({ client }) => client.end().catch(() => {})));
  open = [];
});

const oid = async (table: string): Promise<number> => Number(await frankfurt.value(`select '${table}'::regclass::oid`));
const seen = async (table = 'notes'): Promise<boolean> =>
  (await frankfurt.value(`select count(*) from ${table} where id = ${key}`)) === '1';
const deleted = async (table = 'notes'): Promise<boolean> =>
  (await frankfurt.value(
    `select count(*) from coregent.${tombstoneName({ schema: 'public', name: table })} where id = ${key}`,
  )) === '1';

/** Has tokyo insert a row, virginia delete it, both links apply, so that the second has applied unseen what the first then commits. `commit` lets the second commit. */
async function cross(first: Link, second: Link): Promise<{ applied: Promise<unknown>; commit(): Promise<void> }> {
  await tokyo.sql(`insert into notes values (${key})`);
  await virginia.pull(tokyo);
  await virginia.sql(`delete from notes where id = ${key}`);
  const session = await openSession(frankfurt);
  await session.query('begin');
  await session.query('select from coregent.progress where slot = $1 for update', [slotOf(second.from, frankfurt)]);
  const applied = pull(second.from, frankfurt, second.store);
  applied.catch(() => {});
  await until(() => isBlocked(frankfurt), { what: 'the second to wait with its commit' });
  await pull(first.from, frankfurt, first.store);
  return {
    applied,
    commit: async () => {
      await session.query('commit');
      await session.end();
    },
  };
}

const socketOf = ({ applier }: Link) =>
  (applier.client as unknown as { connection: { stream: { pause(): void } } }).connection.stream;

describe.each([
  ['the delete', () => [rowsOf, deletesOf] as const, () => deleted()],
  ['the row', () => [deletesOf, rowsOf] as const, () => seen()],
])('D17: a row and its delete cross, and %s is committed second', (_what, order, committed) => {
  it('by a session that lasts: the row goes, and nothing is left in doubt', async () => {
    const [first, second] = order();
    const { applied, commit } = await cross(first, second);
    await commit();
    await applied;
    expect(await deleted()).toBe(true);
    expect(await seen()).toBe(false);
    expect([...second.settled].sort()).toEqual([await oid('notes'), await oid('seats')].sort());
    expect(second.store.owesTries).toBe(false);
  });

  it('by a session that is lost before it hears of its commit: the next one finds the row', async () => {
    const [first, second] = order();
    const { applied, commit } = await cross(first, second);
    socketOf(second).pause();
    await commit();
    await until(committed, { what: 'the commit' });
    drop(second.applier.client);
    await expect(applied).rejects.toThrow();
    expect([await seen(), await deleted()]).toEqual([true, true]);
    expect([...second.settled]).toEqual([await oid('seats')]);
    await again(second);
    expect([await seen(), await deleted()]).toEqual([false, true]);
  });

  it('by a session that is lost between its commit and the look behind it: the next one finds the row', async () => {
    const [first, second] = order();
    const { applied, commit } = await cross(first, second);
    const { client } = second.applier;
    const query = client.query.bind(client) as (...args: unknown[]) => unknown;
    client.query = ((...args: unknown[]) => {
      drop(client);
      return query(...args);
    }) as typeof client.query;
    await commit();
    await expect(applied).rejects.toThrow();
    expect([await seen(), await deleted()]).toEqual([true, true]);
    expect([...second.settled]).toEqual([await oid('seats')]);
    await again(second);
    expect([await seen(), await deleted()]).toEqual([false, true]);
  });

  it('by a session that works on when its agent has let go of it: the next one ends it before it looks', async () => {
    const [first, second] = order();
    const { applied, commit } = await cross(first, second);
    drop(second.applier.client);
    await expect(applied).rejects.toThrow();
    const next = await again(second);
    await commit();
    expect(await committed()).toBe(false);
    // Nothing of it was applied: it comes again.
    expect(next.store.lsn).toBe(second.store.lsn);
    expect(next.store.owesTries).toBe(false);
  });
});

it('D17: an agent that does not lead here, or no more, ends nobody’s session and begins none', async () => {
  const applier = await openApplier(frankfurt.database.url);
  open.push(applier);
  for (const other of [
    { ...leader, session: 'of another server' },
    { ...leader, id: leader.id + 1 },
  ]) {
    await expect(endEarlier(applier.client, 'apply', tokyo.id, other)).rejects.toMatchObject({
      code: 'apply_interrupted',
    });
  }
  expect((await rowsOf.applier.client.query('select 1 as alive')).rows).toEqual([{ alive: 1 }]);
});

it('D17: a table that a session has no rows of stays in doubt until one that has looks at it', async () => {
  const settled = new Set([await oid('seats')]);
  const link = await again({ ...rowsOf, settled });
  expect([...settled].sort()).toEqual([await oid('notes'), await oid('seats')].sort());
  expect(link.store.owesTries).toBe(false);
});

it('D17: a parked row that finds its place unseen by its delete goes again', async () => {
  await frankfurt.sql(`insert into seats values (${1000 + key}, ${key})`);
  await tokyo.sql(`insert into seats values (${key}, ${key})`);
  await virginia.pull(tokyo);
  await virginia.sql(`delete from seats where id = ${key}`);
  await pull(tokyo, frankfurt, rowsOf.store);
  expect(await frankfurt.value('select count(*) from coregent.parked')).toBe('1');
  await using session = await openSession(frankfurt);
  await session.query('begin');
  await session.query('delete from seats where id > 1000');
  const next = await connect(tokyo, rowsOf.settled);
  const settling = tryAll(next.store);
  await until(() => isBlocked(frankfurt), { what: 'the parked row to wait for its place' });
  const deleting = pull(virginia, frankfurt, deletesOf.store);
  await until(() => deleted('seats'), { what: 'the delete' });
  await session.query('commit');
  await Promise.all([settling, deleting]);
  expect(await frankfurt.value('select count(*) from coregent.parked')).toBe('0');
  expect([await seen('seats'), await deleted('seats')]).toEqual([false, true]);
});

it('what is owed behind a commit and fails at every try ends a test, which says what it is', async () => {
  const tryParked = () => Promise.resolve({ conflicts: [], parked: 0 });
  const inDoubt = new Map([[7, new Error('no')]]);
  await expect(tryAll({ owesTries: true, inDoubt, tryParked })).rejects.toThrow(
    'After 100 tries table 7 is in doubt (no)',
  );
  await expect(tryAll({ owesTries: true, inDoubt: new Map(), tryParked })).rejects.toThrow(
    'After 100 tries parked rows had no turn',
  );
});
