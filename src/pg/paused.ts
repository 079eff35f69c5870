import type { Config, RegionConfig } from '../config.ts';
import { formatLsn, type LSN } from '../model/lsn.ts';
import type { Passed } from '../pipe/batch.ts';
import { slotName } from './catalog.ts';
import type { Queryable } from './connect.ts';
import type { Step } from './script.ts';
import { RETRIED } from './steps.ts';

/** A table of a peer that this region owes a join; see `coregent.paused`. */
export interface Owed {
  readonly id: string;
  readonly label: string;
  readonly reason: string;
  readonly since: Date;
  /** The least version to join from; undefined while nothing was passed over. */
  readonly minVersion: bigint | undefined;
  readonly passes: bigint;
  readonly own: boolean;
  readonly joining: boolean;
  readonly rows: number;
}

/** What is owed of one peer, by table id. */
export async function readOwed(client: Queryable, slot: string): Promise<Map<string, Owed>> {
  const { rows } = await client.query(
    `select table_id, table_name, reason, since, min_version::text, passes::text, own, joining, rows_joined::float8 as rows
      from coregent.paused where slot = $1 order by table_name`,
    [slot],
  );
  return new Map(
    rows.map((row) => [
      row.table_id as string,
      {
        id: row.table_id,
        label: row.table_name,
        reason: row.reason,
        since: row.since,
        minVersion: row.min_version === null ? undefined : BigInt(row.min_version),
        passes: BigInt(row.passes),
        own: row.own,
        joining: row.joining,
        rows: row.rows,
      },
    ]),
  );
}

/** A table that pauses in a region, for people. */
export interface Paused {
  readonly peer: string;
  readonly table: string;
  readonly reason: string;
  readonly joining: boolean;
  /** Rows joined so far. */
  readonly rows: number;
}

/** The same as a sentence. */
export function sayPaused(region: string, { peer, table, reason, joining, rows }: Paused): string {
  if (joining) return `${region}: joining ${table} from ${peer}, ${rows} rows so far (${reason})`;
  return `${region}: ${table} of ${peer} is paused: ${reason}`;
}

/** Every table that pauses in a region, or the one with this id. */
export async function readPaused(
  client: Queryable,
  config: Config,
  here: RegionConfig,
  table?: string,
): Promise<Paused[]> {
  const peers = new Map(config.regions.map((peer) => [slotName(config.cluster, peer.id, here.id), peer.name]));
  const { rows } = await client.query(
    `select slot, table_name, reason, joining, rows_joined::float8 as rows from coregent.paused
      where table_id = coalesce($1, table_id) order by table_name, slot`,
    [table ?? null],
  );
  return rows.map((row) => ({
    peer: peers.get(row.slot) ?? row.slot,
    table: row.table_name,
    reason: row.reason,
    joining: row.joining,
    rows: row.rows,
  }));
}

/** To run in the transaction that moves progress past rows: remembers that they were left out. */
export function passSteps(slot: string, passed: ReadonlyMap<string, Passed>): Step[] {
  return [...passed].map(([id, { label, reason, least }]) => ({
    text: `insert into coregent.paused as p (slot, table_id, table_name, reason, min_version, passes)
      values ($1, $2, $3, $4, $5::int8, 1)
      on conflict (slot, table_id) do update
      set reason = excluded.reason, min_version = least(p.min_version, excluded.min_version), passes = p.passes + 1, joining = false`,
    values: [slot, id, label, reason, String(least)],
  }));
}

/**
 * The table pauses: says so in the catalog, without anything passed over yet. With `unsent` the peer does not send all of it:
 * nothing will show what was left out, and the whole table is owed from now on, whoever puts it back.
 */
export async function pauseTable(
  client: Queryable,
  slot: string,
  table: { readonly id: string; readonly label: string; readonly reason: string; readonly unsent: boolean },
): Promise<void> {
  await client.query(
    `insert into coregent.paused as p (slot, table_id, table_name, reason, min_version, passes)
      values ($1, $2, $3, $4, case when $5::bool then 0 end, $5::bool::int)
      on conflict (slot, table_id) do update
      set reason = excluded.reason, min_version = least(p.min_version, excluded.min_version), passes = p.passes + excluded.passes, joining = false
      where p.reason <> excluded.reason or p.joining or $5::bool and p.min_version is distinct from 0`,
    [slot, table.id, table.label, table.reason, table.unsent],
  );
}

/** The table is being joined, and so many rows of it were so far. */
export async function tellJoining(client: Queryable, slot: string, id: string, rows: number): Promise<void> {
  await client.query('update coregent.paused set joining = true, rows_joined = $3 where slot = $1 and table_id = $2', [
    slot,
    id,
    rows,
  ]);
}

/** The table was joined as it was owed; false when more was passed over in the meantime, and it is owed still. */
export async function settleOwed(client: Queryable, slot: string, { id, passes }: Owed): Promise<boolean> {
  const { rowCount } = await client.query(
    `with settled as (delete from coregent.paused where slot = $1 and table_id = $2 and passes = $3::int8 returning 1),
      joined as (insert into coregent.joined (slot, table_id) select $1, $2 from settled on conflict do nothing)
      select from settled`,
    [slot, id, String(passes)],
  );
  return rowCount === 1;
}

/** These tables, which neither region replicates any more, are owed no longer. */
export async function forgetOwed(client: Queryable, slot: string, ids: readonly string[]): Promise<void> {
  await client.query('delete from coregent.paused where slot = $1 and table_id = any($2::text[])', [slot, ids]);
}

/** Every replicated table of the peers of these slots is owed whole. To run in a transaction. */
export async function oweAll(
  client: Queryable,
  slots: readonly string[],
  { reason, own }: { readonly reason: string; readonly own: boolean },
): Promise<void> {
  await client.query(
    `insert into coregent.paused as p (slot, table_id, table_name, reason, min_version, passes, own)
      select s, t.table_id, t.schema_name || '.' || t.table_name, $2, 0, 1, $3::bool
      from unnest($1::text[]) as s cross join coregent.tables t
      on conflict (slot, table_id) do update
      set reason = excluded.reason, min_version = 0, passes = p.passes + 1, own = p.own or excluded.own, joining = false, rows_joined = 0`,
    [slots, reason, own],
  );
}

/** Whether a region that was restored has yet to join this table by this slot. */
export async function owesOwn(client: Queryable, slot: string, id: string): Promise<boolean> {
  const { rows } = await client.query(
    'select exists (select from coregent.paused where slot = $1 and table_id = $2 and own) as owes',
    [slot, id],
  );
  return rows[0].owes;
}

/**
 * Whether a region owes anything of any peer, a table was not joined yet, or a row is parked that is tried again later:
 * then no region may forget a delete.
 */
export async function owesAnything(client: Queryable): Promise<boolean> {
  const { rows } = await client.query(
    `select exists (select from coregent.paused) or exists (select from coregent.parked where sqlstate in (${RETRIED}))
      or exists (select from coregent.progress p cross join coregent.tables t
        where not exists (select from coregent.joined j where j.slot = p.slot and j.table_id = t.table_id)) as owes`,
  );
  return rows[0].owes;
}

/** The slot is to be made anew, perhaps on a server whose positions are others: its stream then has no rows from before a change of a rule. */
export async function forgetBeginnings(client: Queryable, slot: string): Promise<void> {
  await client.query(`update coregent.joined set from_lsn = '0/0' where slot = $1`, [slot]);
}

/**
 * From here on everything of the peer is owed, and its slot is to be made anew: said before the old slot goes,
 * so that a kill at any point is made up. False when progress is not where it was read: another agent was quicker.
 */
export async function beginAnew(client: Queryable, slot: string, from: LSN, reason: string): Promise<boolean> {
  const { rowCount } = await client.query(
    `update coregent.progress set lsn = '0/0' where slot = $1 and lsn = $2::pg_lsn`,
    [slot, formatLsn(from)],
  );
  if (rowCount !== 1) return false;
  await forgetBeginnings(client, slot);
  await oweAll(client, [slot], { reason, own: false });
  return true;
}
