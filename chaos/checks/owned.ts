import type { History, Write } from '../history.ts';
import { LEDGER_ROWS } from '../load/owned.ts';
import { LEDGER } from '../tables.ts';
import type { Asked, Verdict } from './verdict.ts';

/**
 * INV-O: what another region owns is never written, so writes of a row follow each other through all regions, and what plain transactions
 * move between rows stays as much as it was. `writes` are settled.
 */
export async function checkOwned(
  regions: readonly Asked[],
  writes: ReadonlyMap<string, readonly Write[]>,
  { owned }: Pick<History, 'owned'>,
  ledger: { readonly perRegion: number; readonly each: number } = LEDGER_ROWS,
): Promise<Verdict> {
  const violations: string[] = [];
  const due = regions.length * ledger.perRegion;
  for (const { name, query } of regions) {
    const { rows } = await query('select count(*)::int as rows, coalesce(sum(n), 0)::int as total from ledger');
    const { rows: count, total } = rows[0];
    if (count !== due || total !== due * ledger.each) {
      violations.push(`${name}: ${count} rows hold ${total}; ${due} held ${due * ledger.each}`);
    }
  }
  let followed = 0;
  for (const [row, list] of writes) {
    if (list[0]?.table !== LEDGER.name) continue;
    const unseen = unseenOf(list);
    followed += list.length - unseen.length;
    violations.push(
      ...unseen.map(({ version, region }) => `${row}: who wrote it last had not seen ${version} of ${region}`),
    );
  }
  return {
    name: 'INV-O',
    law: 'a row is written by its owner alone, and nothing is lost when it changes hands',
    cases: { followed, refused: owned.refused, moved: owned.moved },
    violations,
  };
}

/** Writes that are not among what the last one had seen, directly or by way of others. */
function unseenOf(list: readonly Write[]): Write[] {
  const byVersion = new Map(list.map((write) => [write.version, write]));
  const last = list.reduce((a, b) => (a.version > b.version ? a : b));
  const seen = new Set<bigint>();
  const open = [last.version];
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    if (seen.has(at)) continue;
    seen.add(at);
    open.push(...(byVersion.get(at)?.saw ?? []));
  }
  return list.filter(({ version }) => !seen.has(version));
}
