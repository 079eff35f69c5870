import { editText, textOf } from '#coregent/text.js';
import { within } from '../../test/world/random.ts';
import type { Elements, Verdict, VersionWrite } from '../history.ts';
import { tombstonesOf } from './register.ts';
import type { Kind, Settle, Work } from './writer.ts';

/** Rows of tables that keep versions side by side; few, so that regions meet. */
const VERSIONED_ROWS = 40;
/** Rows of `posts`, `profiles` and `notes` that are never deleted: what was added to them is all there at the end. */
export const KEPT_ROWS = 20;
/** Past this many tags a writer rather takes one away. */
const MANY_TAGS = 12;

interface Versions {
  readonly version: bigint | undefined;
  readonly all: readonly bigint[];
}

/** The versions that a row stands for, those of its tombstone where there is none. */
async function versionsOf(work: Work, table: string, id: number, lock = ''): Promise<Versions> {
  const { rows } = await work.client.query(
    `select t._coregent_version as version, t._coregent_state -> 'set' as versions from ${table} t where id = $1 ${lock}`,
    [id],
  );
  if (!rows[0]) return { version: undefined, all: [] };
  const version = BigInt(rows[0].version);
  const side = rows[0].versions as { v: number }[] | null;
  if (side === null) return { version, all: [version] };
  // Numbers of JSON are too short for versions.
  const { rows: exact } = await work.client.query(
    `select e ->> 'v' as v from ${table} t, jsonb_array_elements(t._coregent_state -> 'set') e where id = $1`,
    [id],
  );
  return { version, all: exact.map(({ v }) => BigInt(v)) };
}

/** A write of a row, or its delete, and which versions it saw: those it replaces, exactly. */
async function writeVersion(work: Work, table: string): Promise<Settle | undefined> {
  const { client, history, random, region } = work;
  const id = within(random, 1, VERSIONED_ROWS);
  // Writers of one region follow each other, so that what each saw is known.
  await client.query('select pg_advisory_xact_lock(hashtext($1), $2)', [table, id]);
  const before = await versionsOf(work, table, id, 'for update');
  const value = `${region}/${work.writer}/${work.next()}`;
  let deletes = false;
  if (before.version === undefined) {
    const { rowCount } = await client.query(`insert into ${table} values ($1, $2) on conflict do nothing`, [id, value]);
    if (rowCount === 0) return undefined;
  } else if (random() < 0.15) {
    deletes = true;
    await client.query(`delete from ${table} where id = $1`, [id]);
  } else {
    await client.query(`update ${table} set value = $2 where id = $1`, [id, value]);
  }
  const { rows } = await client.query(
    `select _coregent_version as version from ${deletes ? await tombstonesOf(client, { name: table }) : table} where id = $1`,
    [id],
  );
  const write: VersionWrite = {
    table,
    id,
    region,
    version: BigInt(rows[0].version),
    saw: before.all,
    value: deletes ? null : value,
    verdict: 'unknown',
  };
  return (end) => {
    if (end === 'no') return;
    write.verdict = end;
    history.versions.push(write);
  };
}

/** Remembers what was put in and taken out. */
function changeElements(
  elements: Elements,
  { added, removed }: { readonly added: string | undefined; readonly removed: string | undefined },
  end: Verdict,
): void {
  if (added !== undefined) elements.set(added, { added: end, removed: elements.get(added)?.removed ?? 'no' });
  if (removed !== undefined) {
    const known = elements.get(removed);
    elements.set(removed, { added: known?.added ?? 'unknown', removed: known?.removed === 'ok' ? 'ok' : end });
  }
}

/** Words are put into a text anywhere between others, and taken out. */
async function note(work: Work): Promise<Settle | undefined> {
  const { client, history, random, region } = work;
  const id = within(random, 1, KEPT_ROWS);
  const { rows } = await client.query('select body from notes where id = $1 for update', [id]);
  if (!rows[0]) return undefined;
  const words = wordsOf(rows[0].body);
  const nth = within(random, 0, words.length);
  const at = words.slice(0, nth).join('').length;
  const removed = words.length > 0 && random() < (words.length > MANY_TAGS ? 0.7 : 0.25) ? words[nth] : undefined;
  const added = removed === undefined ? `[${region}/${work.writer}/${work.next()}]` : undefined;
  const body = editText(rows[0].body, [{ at, remove: removed?.length ?? 0, insert: added ?? '' }]);
  await client.query('update notes set body = $2 where id = $1', [id, Buffer.from(body)]);
  return (end) => {
    if (end !== 'no') changeElements(history.note(id), { added, removed }, end);
  };
}

/** The words of a text; what is between them, too. */
export function wordsOf(body: Buffer | null): string[] {
  return textOf(body).match(/\[[^[\]]*\]|[^[\]]+|[[\]]/g) ?? [];
}

/** Everything that a post is made of, a part of it at a time. */
async function post(work: Work): Promise<Settle | undefined> {
  const { client, history, random, region } = work;
  const id = within(random, 1, KEPT_ROWS);
  const likes = random() < 0.7 ? within(random, -2, 5) : 0;
  const peak = random() < 0.3 ? within(random, 0, 1_000_000) : null;
  const { rows } = await client.query('select tags, title from posts where id = $1 for update', [id]);
  if (!rows[0]) return undefined;
  const tags = rows[0].tags as string[];
  const removed =
    tags.length > 0 && random() < (tags.length > MANY_TAGS ? 0.8 : 0.2)
      ? tags[within(random, 0, tags.length - 1)]
      : undefined;
  const added = removed === undefined && random() < 0.5 ? `${region}-${work.writer}-${work.next()}` : undefined;
  const title = random() < 0.2 ? `${region}/${work.writer}/${work.next()}` : null;
  await client.query(
    `update posts set likes = likes + $2, peak = coalesce($3, peak), title = coalesce($6, title),
      tags = case when $4::text is not null then array_append(tags, $4) when $5::text is not null then array_remove(tags, $5) else tags end
      where id = $1`,
    [id, likes, peak, added ?? null, removed ?? null, title],
  );
  return (end) => {
    if (end === 'no') return;
    const known = history.post(id);
    if (title !== null) {
      history.values.push({ table: 'posts', place: `${id}`, region, value: title, saw: rows[0].title, verdict: end });
    }
    if (end === 'ok') known.likes.sum += likes;
    else known.likes.unknown.push(likes);
    if (peak !== null) {
      known.peak.tried = Math.max(known.peak.tried, peak);
      if (end === 'ok') known.peak.ok = Math.max(known.peak.ok, peak);
    }
    changeElements(known.tags, { added, removed }, end);
  };
}

/** Each region counts in a column of its own, of rows that all write: an edit that is lost is missing there. */
async function profile(work: Work): Promise<Settle | undefined> {
  const { client, history, random, index } = work;
  const id = within(random, 1, KEPT_ROWS);
  const column = `c${index}`;
  const { rowCount } = await client.query(`update profiles set ${column} = ${column} + 1 where id = $1`, [id]);
  if (rowCount === 0) return undefined;
  return (end) => {
    const count = history.profile(id, column);
    if (end === 'ok') count.ok++;
    else if (end === 'unknown') count.unknown++;
  };
}

/** Rows under every rule but the plain one. */
export const RULES: readonly Kind[] = [
  { name: 'sibling', weight: 6, run: (work) => writeVersion(work, 'drafts') },
  { name: 'first write', weight: 4, run: (work) => writeVersion(work, 'claims') },
  { name: 'custom', weight: 4, run: (work) => writeVersion(work, 'tickets') },
  { name: 'custom module', weight: 4, run: (work) => writeVersion(work, 'plans') },
  { name: 'note', weight: 8, run: note },
  { name: 'post', weight: 10, run: post },
  { name: 'profile', weight: 6, run: profile },
];
