import type { Child, History } from '../history.ts';
import { CHILDREN, type ChildTable } from '../tables.ts';
import type { Asked, Verdict } from './verdict.ts';

interface Shown {
  readonly parent: number | null;
  readonly note: string;
}

const TABLES = Object.keys(CHILDREN) as ChildTable[];

async function shownIn({ query }: Asked, table: ChildTable): Promise<Map<number, Shown>> {
  const { rows } = await query(`select id::float8, parent_id as parent, note from ${table}`);
  return new Map(rows.map(({ id, parent, note }) => [id, { parent, note }]));
}

/** Children that are in a conflict record of any region. */
async function recordedIn(regions: readonly Asked[]): Promise<Set<string>> {
  const recorded = new Set<string>();
  for (const { query } of regions) {
    const { rows } = await query(
      `select distinct table_name, key ->> 'id' as id from coregent.conflict_record where table_name = any ($1)`,
      [TABLES.map((table) => `public.${table}`)],
    );
    for (const { table_name, id } of rows) recorded.add(`${table_name.replace('public.', '')} ${id}`);
  }
  return recorded;
}

/** How often each action was carried out for a reference that a delete had not seen. */
async function mended(regions: readonly Asked[]): Promise<Record<string, number>> {
  const counts: Record<string, number> = { cascade: 0, 'set null': 0, restrict: 0 };
  for (const { query } of regions) {
    const { rows } = await query(
      `select rule, count(*)::int as times from coregent.conflict_record where kind = 'delete_referenced' group by 1`,
    );
    for (const { rule, times } of rows) counts[rule] = (counts[rule] ?? 0) + times;
  }
  return counts;
}

/**
 * INV-F: no row refers to one that is not there, and a reference that met a delete ended as its foreign key says: with `restrict` and
 * `set null` every row stays that its own region did not delete; with `cascade` one may go, and is then on record or was seen by who
 * deleted its parent.
 */
export async function checkForeign(
  regions: readonly Asked[],
  { children }: Pick<History, 'children'>,
): Promise<Verdict> {
  const violations: string[] = [];
  const recorded = await recordedIn(regions);
  let there = 0;
  for (const region of regions) {
    for (const table of TABLES) {
      const { parent } = CHILDREN[table];
      const orphans = await region.query(
        `select c.id from ${table} c where parent_id is not null and not exists (select from ${parent.name} p where p.id = c.parent_id)`,
      );
      for (const { id } of orphans.rows) violations.push(`${region.name}: ${table} ${id} refers to nothing`);
      const shown = await shownIn(region, table);
      for (const child of children.values()) {
        if (child.table !== table) continue;
        const row = shown.get(child.id);
        shown.delete(child.id);
        if (row) there++;
        const fault = row
          ? faultOf(child, row, recorded)
          : child.inserted === 'ok'
            ? faultOfGone(child, recorded)
            : undefined;
        if (fault) violations.push(`${region.name}: ${table} ${child.id} of ${child.region} ${fault}`);
      }
      for (const id of shown.keys()) violations.push(`${region.name}: nobody wrote ${table} ${id}`);
    }
  }
  return {
    name: 'INV-F',
    law: 'what refers to a row that was deleted does as its foreign key says',
    cases: { there, ...(await mended(regions)) },
    violations,
  };
}

function faultOf(
  { table, id, deleted, states, inserted }: Child,
  { parent, note }: Shown,
  recorded: ReadonlySet<string>,
): string | undefined {
  // Whoever deletes a parent writes such a row: a newer write than what its own region did meanwhile, which is on record then.
  const nulled = CHILDREN[table as ChildTable].onDelete === 'set null' && parent === null;
  const overwritten = nulled && recorded.has(`${table} ${id}`) && states.some((state) => state.note === note);
  if (overwritten) return undefined;
  if (deleted === 'ok') return 'is back';
  const last = states.findLastIndex(({ verdict }) => verdict === 'ok');
  const fits = states
    .slice(inserted === 'ok' ? last : 0)
    .some((state) => state.note === note && (state.parent === parent || nulled));
  return fits ? undefined : `shows parent ${parent} and ${note}, which is not what was written last`;
}

function faultOfGone({ table, id, deleted, taken }: Child, recorded: ReadonlySet<string>): string | undefined {
  if (deleted !== 'no') return undefined;
  if (CHILDREN[table as ChildTable].onDelete !== 'cascade') return 'is gone, and nobody deleted it';
  return taken || recorded.has(`${table} ${id}`) ? undefined : 'went with its parent, and is recorded nowhere';
}
