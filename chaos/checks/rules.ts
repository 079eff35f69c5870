import type { Elements, History, VersionWrite } from '../history.ts';
import { wordsOf } from '../load/rules.ts';
import { VERSIONED } from '../tables.ts';
import type { Asked, Verdict } from './verdict.ts';

interface Shown {
  readonly value: string;
  readonly versions: readonly bigint[];
}

async function shownIn({ query }: Asked, table: string): Promise<Map<number, Shown>> {
  const { rows } = await query(
    `select id, value, coalesce((select array_agg(e ->> 'v') from jsonb_array_elements(_coregent_state -> 'set') e),
      array[_coregent_version::text]) as versions from ${table}`,
  );
  return new Map(rows.map(({ id, value, versions }) => [id, { value, versions: (versions as string[]).map(BigInt) }]));
}

/** Writes that were committed: those acknowledged, and those that show themselves by what is there or by who saw them. */
function happened(writes: readonly VersionWrite[], there: ReadonlySet<bigint>): VersionWrite[] {
  const seen = new Set(writes.flatMap(({ saw }) => saw));
  const replacedBy = (version: bigint, but: VersionWrite): boolean =>
    writes.some((write) => write !== but && write.verdict === 'ok' && write.saw.includes(version));
  return writes.filter((write) => {
    if (write.verdict === 'ok' || seen.has(write.version) || there.has(write.version)) return true;
    // What only an unanswered write can have taken away, it has.
    return write.value === null && write.saw.some((version) => !there.has(version) && !replacedBy(version, write));
  });
}

/** What a row shows of its versions, the oldest first. */
const SHOWS = {
  last: (values: readonly string[]) => values.at(-1),
  first: (values: readonly string[]) => values[0],
  all: (values: readonly string[]) => values.join(' + '),
};

/**
 * INV-S: under `siblings`, `fww` and `custom` a row is exactly the writes that nobody had seen when writing or deleting it: none that was replaced is
 * still there, none that was not is missing; and what it shows is the last of them, the first, or what a function makes of all.
 */
export async function checkVersions(regions: readonly Asked[], { versions: writes }: History): Promise<Verdict> {
  const violations: string[] = [];
  const cases = { rows: 0, gone: 0, 'several versions': 0 };
  for (const [table, which] of Object.entries(VERSIONED)) {
    const mine = writes.filter((write) => write.table === table);
    const ids = new Set(mine.map(({ id }) => id));
    for (const region of regions) {
      const shown = await shownIn(region, table);
      for (const id of shown.keys()) if (!ids.has(id)) violations.push(`${region.name}: nobody wrote ${table} ${id}`);
      for (const id of ids) {
        const row = shown.get(id);
        const there = new Set(row?.versions ?? []);
        const all = happened(
          mine.filter((write) => write.id === id),
          there,
        );
        const seen = new Set(all.flatMap(({ saw }) => saw));
        const due = all.filter(({ version, value }) => value !== null && !seen.has(version));
        const missing = due.filter(({ version }) => !there.has(version));
        const known = new Set(due.map(({ version }) => version));
        const further = [...there].filter((version) => !known.has(version));
        for (const { version, region: writer } of missing) {
          violations.push(`${region.name}: ${table} ${id} lacks ${version} of ${writer}, which nobody replaced`);
        }
        for (const version of further) {
          violations.push(
            `${region.name}: ${table} ${id} has ${version}, which ${seen.has(version) ? 'was replaced' : 'nobody wrote'}`,
          );
        }
        if (!row) {
          cases.gone++;
          continue;
        }
        cases.rows++;
        if (there.size > 1) cases['several versions']++;
        const sorted = [...due].sort((a, b) => (a.version < b.version ? -1 : 1));
        const expected = SHOWS[which](sorted.map(({ value }) => value!));
        if (sorted.length > 0 && row.value !== expected) {
          violations.push(`${region.name}: ${table} ${id} shows ${row.value}, not ${expected}`);
        }
      }
    }
  }
  return { name: 'INV-S', law: 'a row is what nobody replaced who had seen it', cases, violations };
}

/** What is there once more, and what is not, against what was added and removed. */
function elementsDiffer(elements: Elements, there: readonly string[]): string[] {
  const differs: string[] = [];
  const left = new Set(there);
  if (left.size !== there.length) differs.push(`has something twice: ${there.join(' ')}`);
  for (const [element, { added, removed }] of elements) {
    if (left.has(element) && removed === 'ok') differs.push(`has ${element}, which was removed`);
    if (!left.delete(element) && added === 'ok' && removed === 'no') {
      differs.push(`lacks ${element}, which nobody removed`);
    }
  }
  return [...differs, ...[...left].map((element) => `has ${element}, which nobody added`)];
}

/** INV-R: counters equal the sum of what was added, sets and texts keep what no remove had seen, the greatest value stays, edits of different columns all survive. */
export async function checkParts(regions: readonly Asked[], { posts, notes, profiles }: History): Promise<Verdict> {
  const violations: string[] = [];
  const cases = { additions: 0, tags: 0, removed: 0, words: 0, peaks: 0, edits: 0 };
  for (const { name, query } of regions) {
    const { rows } = await query('select id, likes::int as likes, peak, tags from posts');
    const shown = new Map(rows.map((row) => [row.id as number, row]));
    for (const [id, { likes, peak, tags }] of posts) {
      const row = shown.get(id);
      if (!row) {
        violations.push(`${name}: post ${id} is gone, and nobody deleted it`);
        continue;
      }
      const least = likes.unknown.reduce((sum, each) => sum + Math.min(each, 0), likes.sum);
      const most = likes.unknown.reduce((sum, each) => sum + Math.max(each, 0), likes.sum);
      cases.additions++;
      if (row.likes < least || row.likes > most) {
        violations.push(`${name}: post ${id} has ${row.likes} likes; ${least} to ${most} were added`);
      }
      if (peak.tried > 0) cases.peaks++;
      if (row.peak < peak.ok || row.peak > peak.tried) {
        violations.push(`${name}: post ${id} has the peak ${row.peak} after ${peak.ok} (tried: ${peak.tried})`);
      }
      cases.tags += tags.size;
      cases.removed += [...tags.values()].filter(({ removed }) => removed === 'ok').length;
      violations.push(...elementsDiffer(tags, row.tags).map((what) => `${name}: post ${id} ${what}`));
    }
    const written = await query('select id, body from notes');
    const texts = new Map(written.rows.map((row) => [row.id as number, wordsOf(row.body)]));
    for (const [id, words] of notes) {
      cases.words += words.size;
      violations.push(...elementsDiffer(words, texts.get(id) ?? []).map((what) => `${name}: note ${id} ${what}`));
    }
    const edited = await query('select * from profiles');
    const counts = new Map(edited.rows.map((row) => [row.id as number, row]));
    for (const [key, { ok, unknown }] of profiles) {
      const [id, column] = key.split(' ') as [string, string];
      const n = counts.get(Number(id))?.[column];
      cases.edits++;
      if (n === undefined || n < ok || n > ok + unknown) {
        violations.push(`${name}: ${column} of profile ${id} is ${n} after ${ok} edits and ${unknown} unanswered ones`);
      }
    }
  }
  return { name: 'INV-R', law: 'what was added is there, edits of different columns all survive', cases, violations };
}
