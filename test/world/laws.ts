import type { Named, Query } from './rows.ts';
import type { ContestedWrite, History } from './writers.ts';

/** One violated law, in words. */
export type Violation = string;

/** What the checks met: a check that met nothing has proved nothing. */
export interface Evidence {
  readonly violations: readonly Violation[];
  readonly groups: number;
  readonly deletedGroups: number;
  readonly increments: number;
  readonly contestedWrites: number;
  /** Contested writes that lost. */
  readonly lost: number;
  readonly conflicts: number;
  /** Records of two writes of which one followed the other, by way of a third region: harmless, but no conflict. */
  readonly needless: number;
}

/**
 * Holds what the regions have after everything settled against what the writers were told:
 * every acknowledged insert is there once and whole, every delete stays one, counters have each increment once, contested rows
 * show the write with the greatest version, and no write that lost is without its record.
 */
export async function checkHistory(history: History, regions: readonly Named[]): Promise<Evidence> {
  const violations: Violation[] = history.faults.map((fault) => `a writer got an answer that it should not: ${fault}`);
  for (const { region, query } of regions) {
    const say = (what: string): void => void violations.push(`${region}: ${what}`);
    await checkGroups(history, query, say);
    await checkCounters(history, query, say);
    await checkContested(history, query, say);
    await checkRecords(query, say);
  }
  const { lost, conflicts, needless } = await checkAudit(history, regions, (what) => void violations.push(what));
  return {
    violations,
    groups: history.groups.size,
    deletedGroups: [...history.groups.values()].filter(({ deleted }) => deleted === 'yes').length,
    increments: [...history.counters.values()].reduce((sum, { acknowledged }) => sum + acknowledged, 0),
    contestedWrites: history.contested.length,
    lost,
    conflicts,
    needless,
  };
}

type Say = (what: string) => void;

/** Groups of which a snapshot shows some members but not all (atomic visibility). */
export async function tornGroups(query: Query): Promise<string[]> {
  const { rows } = await query(
    `select grp, count(*) as shown, min(members) as members from entries group by grp having count(*) <> min(members)`,
  );
  return rows.map((row) => `${row.grp}: ${row.shown} of ${row.members} rows`);
}

async function checkGroups({ groups }: History, query: Query, say: Say): Promise<void> {
  const { rows } = await query('select grp, count(*)::int as shown from entries group by grp');
  const shown = new Map(rows.map((row) => [row.grp as string, row.shown as number]));
  for (const [name, { members, inserted, deleted }] of groups) {
    const count = shown.get(name) ?? 0;
    if (count !== 0 && count !== members) say(`group ${name} has ${count} of ${members} rows`);
    if (count === 0 && inserted === 'yes' && deleted === 'no') say(`the acknowledged group ${name} is missing`);
    if (count !== 0 && deleted === 'yes') say(`the deleted group ${name} is back`);
  }
  for (const name of shown.keys()) if (!groups.has(name)) say(`nobody inserted group ${name}`);
}

async function checkCounters({ counters }: History, query: Query, say: Say): Promise<void> {
  const { rows } = await query('select id, n::int from counters');
  const shown = new Map(rows.map((row) => [row.id as number, row.n as number]));
  for (const [id, { acknowledged, unknown }] of counters) {
    const n = shown.get(id);
    if (n === undefined) say(`counter ${id} is missing`);
    else if (n < acknowledged || n > acknowledged + unknown) {
      say(`counter ${id} is ${n} after ${acknowledged} increments${unknown > 0 ? ` and ${unknown} unknown` : ''}`);
    }
  }
}

async function checkContested(history: History, query: Query, say: Say): Promise<void> {
  const { rows } = await query('select id, value, _coregent_version as version from contested');
  const shown = new Map(rows.map((row) => [row.id as number, row as { value: string; version: string }]));
  const maybe = new Set([...history.unanswered].map(({ key, value }) => `${key} ${value}`));
  const winners = winnersOf(history.contested);
  for (const [key, winner] of winners) {
    const row = shown.get(key);
    if (maybe.has(`${key} ${row?.value ?? null}`)) continue;
    if ((row?.value ?? null) !== winner.value) {
      say(
        `row ${key} shows ${row?.value ?? 'nothing'}, but ${winner.value ?? 'a delete'} of ${winner.region} is newest`,
      );
    } else if (row && BigInt(row.version) !== winner.version) {
      say(`row ${key} has the version ${row.version}, but its writer was told ${winner.version}`);
    }
  }
  for (const [key, { value }] of shown) {
    if (!winners.has(key) && !maybe.has(`${key} ${value}`)) say(`nobody wrote row ${key} (${value})`);
  }
}

/** By key, the write with the greatest version. */
function winnersOf(writes: readonly ContestedWrite[]): Map<number, ContestedWrite> {
  const winners = new Map<number, ContestedWrite>();
  for (const write of writes) {
    const most = winners.get(write.key);
    if (!most || write.version > most.version) winners.set(write.key, write);
  }
  return winners;
}

async function checkRecords(query: Query, say: Say): Promise<void> {
  const { rows: twice } = await query(
    `select table_name, key, least(local_version, incoming_version), greatest(local_version, incoming_version),
      count(*) as times, array_agg(kind) as kinds from coregent.conflict_record group by 1, 2, 3, 4 having count(*) > 1`,
  );
  for (const row of twice) {
    say(`a conflict of ${row.table_name} ${JSON.stringify(row.key)} is recorded ${row.times} times (${row.kinds})`);
  }
  const { rows: parked } = await query('select table_name, operation, reason from coregent.parked limit 5');
  for (const row of parked) say(`a row of ${row.table_name} is parked (${row.operation}): ${row.reason}`);
}

/**
 * No update is lost without a trace: a contested write that is not the final one, and that no other write is known to have
 * replaced, is in the record of some region. Deletes are left out: the tombstone that an insert followed may have been reaped.
 * So are rows with a write that nobody answered: it may have replaced another.
 */
async function checkAudit({ contested, unanswered }: History, regions: readonly Named[], say: Say) {
  const name = (key: number, version: bigint | string): string => `${key} ${version}`;
  const writes = new Map(contested.map((write) => [name(write.key, write.version), write]));
  const follows = (key: number, later: string, earlier: string): boolean => {
    for (let at = writes.get(name(key, later)); at; at = writes.get(name(key, at.parent))) {
      if (String(at.parent) === earlier) return true;
    }
    return false;
  };
  const recorded = new Set<string>();
  let conflicts = 0;
  let needless = 0;
  for (const { query } of regions) {
    const { rows } = await query(
      `select key ->> 'id' as key, local_version as l, incoming_version as i from coregent.conflict_record where table_name = 'public.contested'`,
    );
    conflicts += rows.length;
    for (const { key, l, i } of rows) {
      recorded.add(name(key, l)).add(name(key, i));
      if (follows(key, l, i) || follows(key, i, l)) needless++;
    }
  }
  const replaced = new Set(contested.map(({ key, parent }) => name(key, parent)));
  const winners = winnersOf(contested);
  const unclear = new Set([...unanswered].map(({ key }) => key));
  let lost = 0;
  for (const write of contested) {
    const id = name(write.key, write.version);
    if (write.value === null || unclear.has(write.key) || write === winners.get(write.key) || replaced.has(id))
      continue;
    lost++;
    if (!recorded.has(id)) say(`${write.value} of row ${write.key} lost and is recorded nowhere`);
  }
  return { lost, conflicts, needless };
}
