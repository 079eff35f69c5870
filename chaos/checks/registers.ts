import { nameOf, type Write } from '../history.ts';
import { ACCOUNTS, HANDLES, imageSql, keySql, type RegisterTable, TEAMS } from '../tables.ts';
import type { Asked, Verdict } from './verdict.ts';

/** A row as a region shows it. */
export interface Shown {
  readonly version: bigint;
  readonly image: string;
}

/** What the regions came to, read once. */
export interface Outcome {
  /** By region, then by row name. */
  readonly shown: ReadonlyMap<string, ReadonlyMap<string, Shown>>;
  /** Table and version of every row in any conflict record, as `table version`. */
  readonly recorded: ReadonlySet<string>;
  /** Rows that were written again because others refer to them, as `table key`. */
  readonly revived: ReadonlySet<string>;
  readonly conflicts: number;
}

/** Reads rows of register tables and conflict records of all regions. */
export async function readOutcome(regions: readonly Asked[], tables: readonly RegisterTable[]): Promise<Outcome> {
  const shown = new Map<string, Map<string, Shown>>();
  const recorded = new Set<string>();
  const revived = new Set<string>();
  let conflicts = 0;
  for (const { name, query } of regions) {
    const rows = new Map<string, Shown>();
    shown.set(name, rows);
    for (const table of tables) {
      const found = await query(
        `select ${keySql(table, 't')} as key, t._coregent_version as version, ${imageSql(table, 't')} as image from ${table.name} t`,
      );
      for (const { key, version, image } of found.rows) {
        rows.set(nameOf(table.name, key), { version: BigInt(version), image });
      }
    }
    const records = await query(
      `select table_name, local_version as l, incoming_version as i,
        case when kind = 'delete_referenced' and outcome = 'keep' then key ->> 'id' end as revived from coregent.conflict_record`,
    );
    conflicts += records.rows.length;
    for (const { table_name, l, i, revived: key } of records.rows) {
      const table = table_name.replace(/^public\./, '');
      if (key !== null) revived.add(nameOf(table, key));
      recorded.add(`${table} ${l}`).add(`${table} ${i}`);
    }
  }
  return { shown, recorded, revived, conflicts };
}

/**
 * Which of the unanswered writes were committed after all: those that are shown, that another write replaced, or that are on record.
 * The others count as if they had never been.
 */
export function settled(
  writes: ReadonlyMap<string, readonly Write[]>,
  { shown, recorded }: Outcome,
): Map<string, Write[]> {
  const result = new Map<string, Write[]>();
  for (const [name, list] of writes) {
    if (list.every(({ verdict }) => verdict === 'ok')) {
      result.set(name, [...list]);
      continue;
    }
    const seen = new Set(list.flatMap(({ saw }) => saw));
    const visible = new Set([...shown.values()].map((rows) => rows.get(name)?.version));
    // An unanswered delete shows itself by nothing but the row that is gone.
    const gone = [...shown.values()].some((rows) => !rows.has(name));
    const happened = ({ verdict, version, table, image }: Write): boolean =>
      verdict === 'ok' ||
      seen.has(version) ||
      visible.has(version) ||
      recorded.has(`${table} ${version}`) ||
      (image === null && gone);
    result.set(name, list.filter(happened));
  }
  return result;
}

/** The write with the greatest version. */
export function winnerOf(writes: readonly Write[]): Write | undefined {
  return writes.reduce<Write | undefined>(
    (best, write) => (best && best.version > write.version ? best : write),
    undefined,
  );
}

/** Tables whose rows give way to others with their unique value. */
const GIVE_WAY = [ACCOUNTS, HANDLES].map(({ name }) => name);

/** INV-W: every row is exactly the row that its writer recorded, in every region, and it is the one with the greatest version. */
export function checkWholeRows(writes: ReadonlyMap<string, readonly Write[]>, outcome: Outcome): Verdict {
  const violations: string[] = [];
  let rows = 0;
  let gone = 0;
  let left = 0;
  let gaveWay = 0;
  let revived = 0;
  for (const [region, shown] of outcome.shown) {
    for (const name of shown.keys()) if (!writes.get(name)?.length) violations.push(`${region}: nobody wrote ${name}`);
    for (const [name, list] of writes) {
      const winner = winnerOf(list);
      if (!winner) continue;
      const row = shown.get(name);
      if (row?.version === winner.version || (row === undefined && winner.image === null)) {
        if (row === undefined) gone++;
        else rows++;
        if (winner.left) left++;
        if (row !== undefined && row.image !== winner.image) {
          violations.push(`${region}: ${name} at version ${row.version} is not the row that ${winner.region} wrote`);
        }
      } else if (
        row === undefined &&
        GIVE_WAY.includes(winner.table) &&
        outcome.recorded.has(`${winner.table} ${winner.version}`)
      ) {
        // It gave way to another row with its unique value.
        gaveWay++;
      } else if (row && row.version > winner.version && winner.table === TEAMS.name && outcome.revived.has(name)) {
        // It came back for those that refer to it.
        revived++;
      } else {
        const is = row ? `the version ${row.version}` : 'nothing';
        const due = winner.image === null ? `${winner.region} deleted it` : `${winner.region} wrote the newest`;
        violations.push(`${region}: ${name} shows ${is}, but ${due}: ${winner.version}${verdictOf(winner)}`);
      }
    }
  }
  return {
    name: 'INV-W',
    law: 'every row is exactly what the writer of its greatest version recorded',
    cases: { rows, gone, 'long values left alone': left },
    figures: { 'gave way to a unique value': gaveWay, 'came back for its children': revived },
    violations,
  };
}

function verdictOf({ verdict }: Write): string {
  return verdict === 'ok' ? '' : ' (unanswered)';
}

function maxOf(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}

/** INV-L: a write that vanished was replaced by someone who saw it, or is in a conflict record. */
export function checkLost(
  writes: ReadonlyMap<string, readonly Write[]>,
  outcome: Outcome,
  options: { readonly tombstonesStay: boolean },
): Verdict {
  const violations: string[] = [];
  let lost = 0;
  let seen = 0;
  let steps = 0;
  for (const [name, list] of writes) {
    const winner = winnerOf(list);
    const saw = new Set(list.flatMap((write) => write.saw));
    const byVersion = new Map(list.map((write) => [write.version, write]));
    const lastDelete = list.reduce(
      (most, { image, version, deleted = -1n }) => maxOf(most, image === null ? version : deleted),
      -1n,
    );
    for (const write of list) {
      if (write.step) {
        const before = write.saw.map((version) => byVersion.get(version)).find((each) => each?.step);
        if (before?.step) {
          steps++;
          if (write.step.from !== before.step.to || write.step.to !== write.step.from + 1) {
            violations.push(`${name}: an increment from ${before.step.to} gave ${write.step.to} in ${write.region}`);
          }
        }
      }
      if (write === winner || write.version === winner?.version) continue;
      if (saw.has(write.version)) {
        seen++;
        continue;
      }
      if (write.image === null) {
        // A delete that meets a delete has had its way; one whose tombstone is forgotten was known to all.
        if (write.version < lastDelete || !options.tombstonesStay) continue;
      }
      lost++;
      if (!outcome.recorded.has(`${write.table} ${write.version}`)) {
        const what = write.image === null ? 'a delete' : 'a write';
        violations.push(`${name}: ${what} of ${write.region} (${write.version}) vanished without a record`);
      }
    }
  }
  return {
    name: 'INV-L',
    law: 'a write that vanished was replaced by one that saw it, or is on record',
    cases: { lost, 'replaced knowingly': seen, increments: steps, records: outcome.conflicts },
    violations,
  };
}

/** Nothing is parked at the end, and a conflict is recorded once in a region. */
export async function checkRecords(regions: readonly Asked[]): Promise<Verdict> {
  const violations: string[] = [];
  let records = 0;
  for (const { name, query } of regions) {
    const twice = await query(
      `select table_name, key, least(local_version, incoming_version) as l, greatest(local_version, incoming_version) as i,
        count(*) as times, array_agg(kind) as kinds from coregent.conflict_record group by 1, 2, 3, 4 having count(*) > 1`,
    );
    for (const row of twice.rows) {
      const what = `${row.table_name} ${JSON.stringify(row.key)} (${row.l}, ${row.i})`;
      violations.push(`${name}: a conflict of ${what} is recorded ${row.times} times: ${row.kinds}`);
    }
    const odd = await query('select table_name, operation, version, sqlstate, reason from coregent.parked');
    for (const row of odd.rows) {
      violations.push(
        `${name}: ${row.operation} of ${row.table_name} (${row.version}) is parked: ${row.sqlstate} ${row.reason}`,
      );
    }
    const counts = await query('select count(*)::int as records from coregent.conflict_record');
    records += counts.rows[0].records;
  }
  return {
    name: 'records',
    law: 'a conflict is recorded once in a region, and nothing stays parked',
    cases: { records },
    violations,
  };
}
