import { within } from '../../test/world/random.ts';
import { type Child, nameOf } from '../history.ts';
import { type ACCOUNTS, CHILDREN, type ChildTable, TEAMS } from '../tables.ts';
import { register, tombstonesOf } from './register.ts';
import type { Kind, Settle, Work } from './writer.ts';

const TEAM_ROWS = 30;
/** Children of each table that a region has at most, about. */
const CHILDREN_ALIVE = 40;
/** A row that others refer to may not go: they may have come while it was about to. */
const REFERRED = ['23503', '23001'] as const;

const TABLES = Object.keys(CHILDREN) as ChildTable[];

/** Children of these tables that this transaction has taken away, as those do that go with their parent. */
async function takenBy({ client, history }: Work, tables: readonly ChildTable[]): Promise<Child[]> {
  const taken: Child[] = [];
  for (const table of tables) {
    const { rows } = await client.query(
      `select id from ${await tombstonesOf(client, { name: table })} where xmin = pg_current_xact_id()::xid`,
    );
    taken.push(...rows.flatMap(({ id }) => history.children.get(nameOf(table, id)) ?? []));
  }
  return taken;
}

/** Deletes of rows that others refer to take these along, and it is known which. */
export async function taking(
  work: Work,
  parent: typeof TEAMS | typeof ACCOUNTS,
  settle: Settle | undefined,
): Promise<Settle | undefined> {
  if (!settle) return undefined;
  const taken = await takenBy(
    work,
    TABLES.filter((table) => CHILDREN[table].parent === parent && CHILDREN[table].onDelete === 'cascade'),
  );
  return (end) => {
    settle(end);
    if (end !== 'no') for (const child of taken) child.taken = true;
  };
}

async function team(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  const id = within(random, 1, TEAM_ROWS);
  const note = `${work.region}/${work.writer}/${work.next()}`;
  const settle = await register(work, TEAMS, [`${id}`], async () => {
    const dice = random();
    if (dice < 0.45) await client.query('insert into teams values ($1, $2) on conflict do nothing', [id, note]);
    else if (dice < 0.6) await client.query('update teams set note = $2 where id = $1', [id, note]);
    else {
      await client.query('delete from teams where id = $1 and not exists (select from fees where parent_id = $1)', [
        id,
      ]);
    }
  });
  return await taking(work, TEAMS, settle);
}

/** A row to refer to, which stays until the transaction ends. */
async function anyParent({ client, random }: Work, table: ChildTable): Promise<number | undefined> {
  const { rows } = await client.query(
    `select id from ${CHILDREN[table].parent.name} order by md5(id || ' ' || $1::float8) limit 1 for key share`,
    [random()],
  );
  return rows[0]?.id;
}

/** Another writer may have taken it out already. */
function remove(alive: number[], id: number): void {
  const at = alive.indexOf(id);
  if (at >= 0) alive.splice(at, 1);
}

/** Inserts, changes and deletes rows of this region that refer to rows of anyone. */
async function child(work: Work): Promise<Settle | undefined> {
  const { client, history, random, region, index, shared } = work;
  const table = TABLES[within(random, 0, TABLES.length - 1)]!;
  const alive = shared.children[table];
  const dice = random();
  const note = `${region}/${work.writer}/${work.next()}`;
  if (alive.length === 0 || (dice < 0.5 && alive.length < CHILDREN_ALIVE)) {
    const parent = await anyParent(work, table);
    if (parent === undefined) return undefined;
    const id = index * 1_000_000_000 + ++shared.nextChild;
    await client.query(`insert into ${table} values ($1, $2, $3)`, [id, parent, note]);
    const born: Child = {
      table,
      id,
      region,
      inserted: 'unknown',
      deleted: 'no',
      states: [{ parent, note, verdict: 'unknown' }],
      taken: false,
    };
    // Its parent may be deleted before this is told how it ended.
    history.children.set(nameOf(table, String(id)), born);
    return (end) => {
      if (end === 'no') history.children.delete(nameOf(table, String(id)));
      else {
        born.inserted = end;
        born.states[0]!.verdict = end;
        alive.push(id);
      }
    };
  }
  const id = alive[within(random, 0, alive.length - 1)]!;
  const known = history.children.get(nameOf(table, String(id)))!;
  if (dice > 0.8 || alive.length >= CHILDREN_ALIVE) {
    const { rowCount } = await client.query(`delete from ${table} where id = $1`, [id]);
    remove(alive, id);
    if (rowCount === 0) return undefined;
    return (end) => {
      known.deleted = end;
      if (end === 'no') alive.push(id);
    };
  }
  // Writers of one region follow each other, so that the order of what they wrote is known.
  const parent = await anyParent(work, table);
  const { rows } = await client.query(`select from ${table} where id = $1 for update`, [id]);
  if (rows.length === 0) remove(alive, id);
  if (rows.length === 0 || parent === undefined) return undefined;
  await client.query(`update ${table} set parent_id = $2, note = $3 where id = $1`, [id, parent, note]);
  const state = { parent, note, verdict: 'unknown' as const };
  known.states.push(state);
  return (end) => {
    if (end === 'no') known.states.splice(known.states.indexOf(state), 1);
    else Object.assign(state, { verdict: end });
  };
}

/** Rows that refer to others, and those that they refer to. */
export const FAMILIES: readonly Kind[] = [
  { name: 'team', weight: 8, run: team, mayEndWith: REFERRED },
  { name: 'child', weight: 14, run: child },
];
