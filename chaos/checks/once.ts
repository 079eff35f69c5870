import type { Group, History } from '../history.ts';
import { tornIn } from '../watch.ts';
import type { Asked, Verdict } from './verdict.ts';

/** INV-X: counters show each increment once, ids that were acknowledged are there, and nobody else's; a set has its last tag. */
export async function checkOnce(regions: readonly Asked[], { counters, ids, tags }: History): Promise<Verdict> {
  const violations: string[] = [];
  for (const { name, query } of regions) {
    const { rows } = await query('select id, n::int from counters');
    const shown = new Map(rows.map((row) => [row.id as number, row.n as number]));
    for (const [id, { ok, unknown }] of counters) {
      const n = shown.get(id);
      if (n === undefined || n < ok || n > ok + unknown) {
        violations.push(`${name}: counter ${id} is ${n} after ${ok} increments and ${unknown} unanswered ones`);
      }
    }
    const found = await query('select id, via from ids');
    const left = new Map(found.rows.map((row) => [Number(row.id), row.via as string]));
    for (const { first, count, via, verdict } of ids) {
      let here = 0;
      for (let id = first; id < first + count; id++) if (left.delete(id)) here++;
      const due = verdict === 'ok' ? [count] : verdict === 'no' ? [0] : [0, count];
      if (!due.includes(here)) {
        violations.push(
          `${name}: ${here} of the ${count} ids from ${first} on are there (${via}, answered: ${verdict})`,
        );
      }
    }
    const pairs = await query('select set_id, min(tag) as tag from pairs group by 1');
    const tagged = new Map(pairs.rows.map((row) => [row.set_id as number, row.tag as string]));
    for (const [set, written] of tags) {
      const last = written.findLastIndex(({ verdict }) => verdict === 'ok');
      const due = written.slice(Math.max(last, 0)).filter(({ verdict }) => verdict !== 'no');
      if (last >= 0 && !due.some(({ tag }) => tag === tagged.get(set))) {
        violations.push(`${name}: set ${set} has the tag ${tagged.get(set)}, not its last one, ${due[0]!.tag}`);
      }
    }
    if (left.size > 0) violations.push(`${name}: nobody inserted ${left.size} ids, such as ${[...left.keys()][0]}`);
  }
  const increments = [...counters.values()].reduce((sum, { ok }) => sum + ok, 0);
  const counted = (verdict: string): number => ids.filter((range) => range.verdict === verdict).length;
  return {
    name: 'INV-X',
    law: 'every acknowledged write counts once, one that was rolled back never',
    cases: { increments, sets: tags.size, 'id ranges': counted('ok'), 'rolled back': counted('no') },
    violations,
  };
}

const GROUP_TABLES = { entries: ['entries', 'grp'], bulk: ['bulk', 'grp'], parents: ['children', 'note'] } as const;

/** INV-A: groups are whole or gone, in every snapshot that was looked at and at the end. */
export async function checkWhole(
  regions: readonly Asked[],
  history: History,
  watched: { readonly looked: number; readonly snapshots: number; readonly torn: readonly string[] },
): Promise<Verdict> {
  const violations = [...watched.torn];
  const cases: Record<string, number> = { snapshots: watched.snapshots, 'looked at': watched.looked };
  for (const { name, query } of regions) {
    violations.push(...(await tornIn(query)).torn.map((what) => `${name}, at the end: ${what}`));
    for (const [kind, [table, column]] of Object.entries(GROUP_TABLES)) {
      const groups: Map<string, Group> = history.groups[kind as keyof typeof GROUP_TABLES];
      const { rows } = await query(`select ${column} as name, count(*)::int as shown from ${table} group by 1`);
      const shown = new Map(rows.map((row) => [row.name as string, row.shown as number]));
      for (const [group, { members, inserted, deleted }] of groups) {
        const count = shown.get(group) ?? 0;
        const what = `${name}: ${kind} ${group}`;
        if (count !== 0 && count !== members) violations.push(`${what} has ${count} of ${members} rows`);
        if (count === 0 && inserted === 'ok' && deleted === 'no') violations.push(`${what} is missing`);
        if (count !== 0 && deleted === 'ok') violations.push(`${what} is back`);
        if (count !== 0 && inserted === 'no') violations.push(`${what} was rolled back`);
      }
      for (const group of shown.keys())
        if (!groups.has(group)) violations.push(`${name}: nobody inserted ${kind} ${group}`);
    }
  }
  const all = Object.values(history.groups).flatMap((groups) => [...groups.values()]);
  cases.groups = all.length;
  cases.deleted = all.filter(({ deleted }) => deleted === 'ok').length;
  cases.large = history.groups.bulk.size;
  cases.cascades = [...history.groups.parents.values()].filter(({ deleted }) => deleted === 'ok').length;
  return { name: 'INV-A', law: 'a transaction is visible whole or not at all', cases, violations };
}
