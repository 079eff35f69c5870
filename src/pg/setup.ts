import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import { CoregentError, classify } from '../model/error.ts';
import { LSN_ZERO } from '../model/lsn.ts';
import { tableId, tableLabel, tombstoneName } from '../model/table.ts';
import { Modules } from '../modules.ts';
import { qualified } from '../quote.ts';
import { readInstalled, readTables, slotName } from './catalog.ts';
import { changeRules } from './change.ts';
import { planChanges, type RuleChange } from './changes.ts';
import { connect } from './connect.ts';
import { decidersOf } from './deciders.ts';
import { refuseEncodings } from './encoding.ts';
import { parentsFirst, readForeignKeys } from './foreign.ts';
import { readFollowed, readIdentity } from './identity.ts';
import { type Action, planRegion, runAction } from './install.ts';
import { joinTable } from './join.ts';
import { useOrigin } from './origin.ts';
import { readOrphans } from './orphans.ts';
import { planRecreated } from './recreated.ts';
import { refuseStrangers } from './self.ts';
import { Store } from './store.ts';
import { refuseStreamless } from './streamable.ts';
import { chooseTables, listed } from './tables.ts';
import { prepareTargets } from './target.ts';
import type { Warning } from './warning.ts';

/** One region with an open connection. */
export interface OpenRegion {
  readonly region: RegionConfig;
  readonly client: pg.Client;
}

/** Connects to every region. Throws with every unreachable one named. */
export async function openRegions(config: Config, purpose: string): Promise<OpenRegion[]> {
  const settled = await Promise.allSettled(
    config.regions.map(async (region) => ({ region, client: await connect(region.url, region.name, { purpose }) })),
  );
  const open = settled.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
  const failed = settled.flatMap((each) => (each.status === 'rejected' ? [classify(each.reason)] : []));
  if (failed.length === 0) return open;
  await closeRegions(open);
  const [first] = failed;
  if (failed.length === 1) throw first;
  const faults = failed.map((error) => ({ path: error.where ?? '', message: error.message }));
  throw new CoregentError(first!.code, listed('several regions cannot be reached', faults), { faults });
}

export async function closeRegions(open: readonly OpenRegion[]): Promise<void> {
  await Promise.all(open.map(({ client }) => client.end().catch(() => {})));
}

/** One direction between two regions. */
interface Edge {
  readonly from: OpenRegion;
  readonly to: OpenRegion;
  readonly slot: string;
}

/** What `apply` will do. Empty actions, edges and joins: nothing. */
export interface Plan {
  readonly actions: readonly Action[];
  /** Tables whose rule is another one, each in all regions at once. */
  readonly changes: readonly RuleChange[];
  /** Slots to make. */
  readonly edges: readonly Edge[];
  /** Rows to join, known now; new slots add all their tables. */
  readonly joins: readonly { readonly edge: Edge; readonly table: string }[];
  /** What people should know; nothing that `apply` would do. */
  readonly warnings: readonly Warning[];
}

/** Finds out what separates the regions from the configuration. Changes nothing. Throws `peer_identity`, `refused`, and why a region could not be streamed from. */
export async function makePlan(config: Config, open: readonly OpenRegion[]): Promise<Plan> {
  await refuseStrangers(config, open);
  await refuseEncodings(open);
  const { tables: chosen, warnings } = await chooseTables(config, open);
  const planned = await planRecreated(config, open, chosen);
  for (const [index, { region, client }] of open.entries()) {
    const tables = chosen.map(({ found, details, rule }) => ({ table: found[index]!, details: details[index]!, rule }));
    planned.push(...(await planRegion(client, config, region, tables)));
  }
  const { changes, others: actions } = planChanges(open, chosen, planned, await readRules(open));
  const edges: Edge[] = [];
  const joins: { edge: Edge; table: string }[] = [];
  for (const edge of edgesOf(config, open)) {
    const whole = await edgeIsWhole(edge);
    if (!whole) edges.push(edge);
    const joined = whole
      ? (await edge.to.client.query(`select table_id from coregent.joined where slot = $1`, [edge.slot])).rows
      : [];
    const ids = new Set(joined.map((row) => row.table_id as string));
    for (const { found, label } of chosen) if (!ids.has(tableId(found[0]!))) joins.push({ edge, table: label });
  }
  for (const from of new Set(edges.map((edge) => edge.from))) await refuseStreamless(from);
  return { actions, changes, edges, joins, warnings };
}

/** The rules that the regions' tables have now, by region and table. */
async function readRules(open: readonly OpenRegion[]): Promise<Map<string, Map<string, string>>> {
  const found = new Map<string, Map<string, string>>();
  for (const { region, client } of open) {
    const tables = (await readInstalled(client, region.name))?.tables ?? [];
    found.set(region.name, new Map(tables.map((table) => [tableLabel(table), table.rule])));
  }
  return found;
}

function edgesOf(config: Config, open: readonly OpenRegion[]): Edge[] {
  return open.flatMap((from) =>
    open
      .filter((to) => to !== from)
      .map((to) => ({ from, to, slot: slotName(config.cluster, from.region.id, to.region.id) })),
  );
}

async function edgeIsWhole({ from, to, slot }: Edge): Promise<boolean> {
  if (!(await readInstalled(to.client, to.region.name))) return false;
  const followed = await readFollowed(to.client, slot);
  if (!followed) return false;
  // Of a promoted server more is to be made up than a slot, in an order that its agent and the other one keep.
  const now = await readIdentity(from.client);
  if (followed.systemIdentifier === now.systemIdentifier && followed.timeline < now.timeline) return true;
  const { rows: slots } = await from.client.query(
    `select coalesce(wal_status, '') <> 'lost' as usable from pg_replication_slots where slot_name = $1 and database = current_database()`,
    [slot],
  );
  return slots[0]?.usable === true;
}

/** Told what `apply` is doing. */
export interface SetupEvents {
  action(action: Action): void;
  /** A table goes by another rule everywhere; whoever used it waited for so many ms. */
  changed(change: RuleChange, waitedMs: number): void;
  slot(edge: { readonly slot: string; readonly from: string; readonly to: string }): void;
  /** A table's rows are being joined; returns what to call with each further count of rows, and at the end. */
  join(
    table: string,
    from: string,
    to: string,
    estimatedRows: number,
  ): { rows(more: number): void; done(conflicts: number): void };
}

/** Carries the plan out. Every step can be repeated, so an interrupted run is finished by the next. */
export async function carryOut(
  config: Config,
  open: readonly OpenRegion[],
  plan: Plan,
  events: SetupEvents,
): Promise<void> {
  for (const action of plan.actions) {
    events.action(action);
    const { client } = open.find(({ region }) => region.name === action.region)!;
    await runAction(client, action).catch((error) => {
      throw classify(error, `${action.region}: ${action.what}`);
    });
  }
  await changeRules(config, plan.changes, { changed: (change, heldMs) => events.changed(change, heldMs) });
  for (const edge of plan.edges) {
    events.slot({ slot: edge.slot, from: edge.from.region.name, to: edge.to.region.name });
    await makeEdge(edge);
  }
  await joinAll(config, open, events);
}

/** Makes the slot first and then the progress that starts at it; an old slot without its progress is of no use. */
async function makeEdge({ from, to, slot }: Edge): Promise<void> {
  const where = from.region.name;
  try {
    await to.client.query('delete from coregent.progress where slot = $1', [slot]);
    await to.client.query('delete from coregent.joined where slot = $1', [slot]);
    await from.client.query(
      'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1',
      [slot],
    );
    const { rows } = await from.client.query(
      `select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput')`,
      [slot],
    );
    const replication = await connect(from.region.url, where, { purpose: 'apply', replication: true });
    try {
      const { rows: identity } = await replication.query('IDENTIFY_SYSTEM');
      await to.client.query(
        `insert into coregent.progress (slot, peer_id, system_identifier, timeline, lsn) values ($1, $2, $3, $4, $5)`,
        [slot, from.region.id, identity[0].systemid, identity[0].timeline, rows[0].lsn],
      );
    } finally {
      await replication.end().catch(() => {});
    }
  } catch (error) {
    throw classify(error, where);
  }
}

/** Joins every table of every edge that is not joined yet. A table that is empty at its peer needs nothing. */
async function joinAll(config: Config, open: readonly OpenRegion[], events: SetupEvents): Promise<void> {
  const work: { edge: Edge; id: string; label: string; rows: number }[] = [];
  const empty: { edge: Edge; id: string }[] = [];
  for (const edge of edgesOf(config, open)) {
    const tables = await readTables(edge.from.client, edge.from.region.name);
    const { rows } = await edge.to.client.query(`select table_id from coregent.joined where slot = $1`, [edge.slot]);
    const done = new Set(rows.map((row) => row.table_id as string));
    for (const table of tables) {
      const id = tableId(table);
      if (done.has(id)) continue;
      const { rows: there } = await edge.from.client.query(
        `select exists (select from ${qualified(table.schema, table.name)}) or exists (select from ${qualified('coregent', tombstoneName(table))}) as any,
          greatest((select reltuples from pg_class where oid = $1), 0)::float8 as rows`,
        [table.oid],
      );
      if (there[0].any) work.push({ edge, id, label: tableLabel(table), rows: there[0].rows });
      else empty.push({ edge, id });
    }
  }
  // What was empty before any row was joined holds nothing of its own: later writes come by the slot.
  for (const { edge, id } of empty) await markJoined(edge, id);
  const modules = new Modules(config.path);
  try {
    for (const edge of new Set(work.map((each) => each.edge))) {
      await joinEdge(
        edge,
        work.filter((each) => each.edge === edge),
        { events, modules },
      );
    }
  } finally {
    await modules.close();
  }
}

async function joinEdge(
  edge: Edge,
  work: readonly { id: string; label: string; rows: number }[],
  { events, modules }: { readonly events: SetupEvents; readonly modules: Modules },
): Promise<void> {
  const { from, to } = edge;
  const apply = await connect(to.region.url, to.region.name, {
    purpose: `join from ${from.region.name}`,
    applies: true,
  });
  // Not the one by which an agent may be joining another table at this moment.
  const origin = `${edge.slot}_apply`;
  try {
    await useOrigin(apply, origin);
    const tables = await readTables(apply, to.region.name);
    const targets = await prepareTargets(apply, tables);
    const foreign = await readForeignKeys(apply, tables);
    const store = new Store({
      client: apply,
      targets,
      lsn: LSN_ZERO,
      fetch: () => Promise.reject(new CoregentError('internal_assert', 'copied rows are whole')),
      foreign,
      orphans: await readOrphans(apply, tables, foreign),
      deciders: decidersOf(modules),
    });
    const ordered = parentsFirst(targets, foreign);
    const places = new Map(ordered.map(({ staging }, index) => [tableId(staging.table), index]));
    for (const { id, label, rows } of [...work].sort((a, b) => places.get(a.id)! - places.get(b.id)!)) {
      const target = ordered[places.get(id)!]!;
      const progress = events.join(label, from.region.name, to.region.name, rows);
      const joined = await joinTable(from.client, store, target, { onRows: (more) => progress.rows(more) });
      await markJoined(edge, id);
      progress.done(joined.conflicts);
    }
  } finally {
    await apply.end().catch(() => {});
    await to.client
      .query('select pg_replication_origin_drop(roname) from pg_replication_origin where roname = $1', [origin])
      .catch(() => {});
  }
}

async function markJoined({ to, slot }: Edge, id: string): Promise<void> {
  await to.client.query('insert into coregent.joined (slot, table_id) values ($1, $2) on conflict do nothing', [
    slot,
    id,
  ]);
}
