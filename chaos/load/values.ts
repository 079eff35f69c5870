import { within } from '../../test/world/random.ts';
import type { ValueWrite } from '../history.ts';
import { VALUES } from '../tables.ts';
import { KEPT_ROWS } from './rules.ts';
import type { Kind, Settle, Work } from './writer.ts';

/** Rows of `posts` that come and go. */
const PASSING_ROWS = 20;
const BADGE_ROWS = 40;
const CODES = 15;

/** A value that nobody else writes. */
function newValue(work: Work): string {
  return `${work.region}/${work.writer}/${work.next()}`;
}

/** What the row shows, under its lock; writers of one region follow each other, also where no row is. */
async function seen(work: Work, table: keyof typeof VALUES, id: number): Promise<string | null> {
  await work.client.query('select pg_advisory_xact_lock(hashtext($1), $2)', [table, id]);
  const { rows } = await work.client.query(`select ${VALUES[table]} as value from ${table} where id = $1 for update`, [
    id,
  ]);
  return rows[0]?.value ?? null;
}

function recorded({ history }: Work, write: Omit<ValueWrite, 'verdict'>): Settle {
  return (end) => {
    if (end !== 'no') history.values.push({ ...write, verdict: end });
  };
}

/** Posts that are deleted and written again, also in the middle of others' changes. */
async function passingPost(work: Work): Promise<Settle | undefined> {
  const { client, random, region } = work;
  const id = KEPT_ROWS + within(random, 1, PASSING_ROWS);
  const saw = await seen(work, 'posts', id);
  const value = saw !== null && random() < 0.25 ? null : newValue(work);
  const given = [id, value, within(random, 0, 1000)];
  if (value === null) await client.query('delete from posts where id = $1', [id]);
  else if (saw === null) {
    const insert = `insert into posts values ($1, $2, 1, $3, array[$2]) on conflict do nothing`;
    const { rowCount } = await client.query(insert, given);
    if (rowCount === 0) return undefined;
  } else {
    await client.query(
      'update posts set title = $2, likes = likes + 1, peak = $3, tags = array_append(tags, $2) where id = $1',
      given,
    );
  }
  return recorded(work, { table: 'posts', id, region, value, saw });
}

/** One column that everyone writes, beside those that one region has for itself. */
async function nick(work: Work): Promise<Settle | undefined> {
  const id = within(work.random, 1, KEPT_ROWS);
  const saw = await seen(work, 'profiles', id);
  if (saw === null) return undefined;
  const value = newValue(work);
  await work.client.query('update profiles set nick = $2 where id = $1', [id, value]);
  return recorded(work, { table: 'profiles', id, region: work.region, value, saw });
}

/** Rows joined column by column that come and go, some of them because another one has their code. */
async function badge(work: Work): Promise<Settle | undefined> {
  const { client, random, region } = work;
  const id = within(random, 1, BADGE_ROWS);
  const saw = await seen(work, 'badges', id);
  const dice = random();
  const value = saw !== null && dice < 0.2 ? null : newValue(work);
  const code = `code ${within(random, 1, CODES)}`;
  if (value === null) await client.query('delete from badges where id = $1', [id]);
  else if (saw === null) {
    const { rowCount } = await client.query('insert into badges values ($1, $2, $3) on conflict do nothing', [
      id,
      code,
      value,
    ]);
    if (rowCount === 0) return undefined;
  } else if (dice < 0.7) await client.query('update badges set note = $2 where id = $1', [id, value]);
  else await client.query('update badges set note = $2, code = $3 where id = $1', [id, value, code]);
  return recorded(work, { table: 'badges', id, region, value, saw });
}

/** Values in rows that are joined part by part. */
export const NAMED_VALUES: readonly Kind[] = [
  { name: 'passing post', weight: 5, run: passingPost },
  { name: 'nick', weight: 4, run: nick },
  { name: 'badge', weight: 5, run: badge },
];
