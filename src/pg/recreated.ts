import type { Config } from '../config.ts';
import { deletesName, type Table, tableId, tableLabel, tombstoneName } from '../model/table.ts';
import { ident, literal, qualified } from '../quote.ts';
import { type FoundTable, findTables, readInstalled, slotName } from './catalog.ts';
import type { Action } from './install.ts';
import type { OpenRegion } from './setup.ts';
import { readStandings } from './standing.ts';
import type { ChosenTable } from './tables.ts';
import { triggerFunctions } from './triggers.ts';

/** Whether a table that was replicated is another one by now: without our columns, or copied with them and without what fills them. */
export function isRecreated({ stamped, triggers }: FoundTable): boolean {
  return !stamped || triggers.length === 0;
}

/** A statement: the table is owed whole by the slots that the query selects. */
export function oweAgain(table: Table, slots: string, reason = 'the table was created again'): string {
  return `insert into coregent.paused as p (slot, table_id, table_name, reason, min_version, passes)
    select s.slot, ${literal(tableId(table))}, ${literal(tableLabel(table))}, ${literal(reason)}, 0, 1 from (${slots}) s
    on conflict (slot, table_id) do update
    set reason = excluded.reason, min_version = 0, passes = p.passes + 1, joining = false, rows_joined = 0`;
}

/** The statements that take everything of a replicated table that is gone out of a region. */
function forgetSql(table: { readonly schema: string; readonly name: string }): string[] {
  return [
    `drop table if exists ${qualified('coregent', tombstoneName(table))}`,
    `drop sequence if exists ${qualified('coregent', deletesName(table))}`,
    ...triggerFunctions(table).map((name) => `drop function if exists coregent.${ident(name)}()`),
    ...['paused', 'joined', 'tables'].map(
      (name) => `delete from coregent.${ident(name)} where table_id = ${literal(tableId(table))}`,
    ),
    // As long as one waits for its place, no region forgets a delete.
    `delete from coregent.parked where table_name = ${literal(tableLabel(table))}`,
  ];
}

/**
 * What replicated tables take that were created again in some region, or taken out of its publication for a while, or dropped in all.
 * To be carried out before that region's table is stamped and published, by which it is known: an interrupted run is then finished by the next.
 */
export async function planRecreated(
  config: Config,
  open: readonly OpenRegion[],
  chosen: readonly ChosenTable[],
): Promise<Action[]> {
  const actions: Action[] = [];
  const installed = await Promise.all(open.map(({ region, client }) => readInstalled(client, region.name)));
  const standing = new Set<string>();
  for (const { client } of open) for (const table of await findTables(client)) standing.add(tableLabel(table));
  for (const [index, { region, client }] of open.entries()) {
    const standings = installed[index] ? (await readStandings(client)).tables : undefined;
    for (const table of installed[index]?.tables ?? []) {
      const label = tableLabel(table);
      if (!standing.has(label)) {
        actions.push({ region: region.name, what: `forget ${label}, which is gone everywhere`, sql: forgetSql(table) });
      }
      const now = chosen.find((each) => each.label === label)?.found[index];
      const recreated = now !== undefined && isRecreated(now);
      if (!now || !(recreated || standings?.get(tableId(now))?.unpublished)) continue;
      const reason = recreated ? undefined : 'the peer did not send all of it for a while';
      for (const [other, peer] of open.entries()) {
        if (other === index || !installed[other]) continue;
        const slot = slotName(config.cluster, region.id, peer.region.id);
        const sql = [oweAgain(now, `select ${literal(slot)} as slot`, reason)];
        actions.push({ region: peer.region.name, what: `join ${label} of ${region.name} again`, sql });
      }
    }
  }
  return actions;
}
