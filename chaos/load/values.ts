import { within } from '../../test/world/random.ts';
import type { ValueWrite } from '../history.ts';
import { leavesOf, VALUES } from '../tables.ts';
import { KEPT_ROWS } from './rules.ts';
import type { Kind, Settle, Work } from './writer.ts';

/** Rows of `posts` that come and go. */
const PASSING_ROWS = 20;
const BADGE_ROWS = 40;
const PREFERENCE_ROWS = 25;
const CODES = 15;

/** A value that nobody else writes. */
function newValue(work: Work): string {
  return `${work.region}/${work.writer}/${work.next()}`;
}

/** What the row shows, under its lock; writers of one region follow each other, also where no row is. */
async function seen<T = string>(work: Work, table: keyof typeof VALUES, id: number): Promise<T | null> {
  await work.client.query('select pg_advisory_xact_lock(hashtext($1), $2)', [table, id]);
  const { rows } = await work.client.query(`select ${VALUES[table]} as value from ${table} where id = $1 for update`, [
    id,
  ]);
  return rows[0]?.value ?? null;
}

function recorded({ history }: Work, ...writes: readonly Omit<ValueWrite, 'verdict'>[]): Settle {
  return (end) => {
    if (end !== 'no') history.values.push(...writes.map((write) => ({ ...write, verdict: end })));
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
  return recorded(work, { table: 'posts', place: `${id}`, region, value, saw });
}

/** One column that everyone writes, beside those that one region has for itself. */
async function nick(work: Work): Promise<Settle | undefined> {
  const id = within(work.random, 1, KEPT_ROWS);
  const saw = await seen(work, 'profiles', id);
  if (saw === null) return undefined;
  const value = newValue(work);
  await work.client.query('update profiles set nick = $2 where id = $1', [id, value]);
  return recorded(work, { table: 'profiles', place: `${id}`, region: work.region, value, saw });
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
  return recorded(work, { table: 'badges', place: `${id}`, region, value, saw });
}

/** Paths of a document, of which some lie in one object. */
const PATHS = ['theme', 'mail.daily', 'mail.weekly', 'view.list.sort'] as const;

/** A document that is written path by path, loses objects whole, and whose row comes and goes. */
async function preference(work: Work): Promise<Settle | undefined> {
  const { client, random, region } = work;
  const id = within(random, 1, PREFERENCE_ROWS);
  const doc = await seen<Record<string, unknown>>(work, 'preferences', id);
  const shown = new Map(doc ? leavesOf(`${id}`, doc) : []);
  const write = (place: string, value: string | null) => {
    return { table: 'preferences', place, region, value, saw: shown.get(place) ?? null };
  };
  const gone = (begin: string) =>
    [...shown.keys()].filter((place) => place.startsWith(begin)).map((at) => write(at, null));
  const dice = random();
  const value = newValue(work);
  if (doc === null) {
    const insert = `insert into preferences values ($1, jsonb_build_object('theme', $2::text)) on conflict do nothing`;
    const { rowCount } = await client.query(insert, [id, value]);
    return rowCount === 0 ? undefined : recorded(work, write(`${id} theme`, value));
  }
  if (dice < 0.08) {
    await client.query('delete from preferences where id = $1', [id]);
    return recorded(work, ...gone(`${id} `));
  }
  if (dice < 0.2) {
    await client.query(`update preferences set doc = doc - 'mail' where id = $1`, [id]);
    return recorded(work, ...gone(`${id} mail.`));
  }
  const path = PATHS[within(random, 0, PATHS.length - 1)]!;
  const place = `${id} ${path}`;
  if (dice < 0.3) {
    await client.query('update preferences set doc = doc #- $2 where id = $1', [id, path.split('.')]);
    return recorded(work, ...gone(place));
  }
  await client.query('update preferences set doc = $2 where id = $1', [id, JSON.stringify(withLeaf(doc, path, value))]);
  return recorded(work, write(place, value));
}

/** The same document with a value at a path, as an application's library writes it back whole. */
function withLeaf(doc: Record<string, unknown>, path: string, value: string): Record<string, unknown> {
  const [first, ...rest] = path.split('.') as [string, ...string[]];
  if (rest.length === 0) return { ...doc, [first]: value };
  return { ...doc, [first]: withLeaf((doc[first] ?? {}) as Record<string, unknown>, rest.join('.'), value) };
}

/** Values in rows that are joined part by part. */
export const NAMED_VALUES: readonly Kind[] = [
  { name: 'passing post', weight: 5, run: passingPost },
  { name: 'nick', weight: 4, run: nick },
  { name: 'badge', weight: 5, run: badge },
  { name: 'preference', weight: 8, run: preference },
];
