import { STATE, type Table, tableLabel, VERSION } from '../model/table.ts';
import { regionOf } from '../model/version.ts';
import { ident, qualified } from '../quote.ts';
import { imageJson } from '../resolve/staged.ts';
import { meetings, type Uniques } from './claims.ts';
import { hasKey, recordConflict, removeRow } from './give-way.ts';
import type { Session } from './mend.ts';
import type { Hearsay } from './neighbours.ts';
import type { RecordedConflict } from './receipt.ts';
import type { Step } from './script.ts';
import { shapeOf } from './shape.ts';
import { stagedRows } from './staged.ts';
import { arrayOf, tuplesOf } from './steps.ts';
import type { Target } from './target.ts';

/** So many parked rows of a table are looked at together. */
const LOOKED_AT = 10_000;

/** A key's newest version that is known here, which claims the unique values in it. */
interface Claim {
  /** As JSON. */
  readonly key: string;
  readonly version: bigint;
  /** Undefined: it is the row that the table shows. */
  readonly parked: Parked | undefined;
}

interface Parked {
  readonly id: string;
  readonly operation: string;
  /** In `record` form. */
  readonly row: Buffer;
}

/** Two claims on one value. */
interface Meeting {
  readonly smaller: Claim;
  readonly greater: Claim;
  /** Neither writer had seen the other's claim, for sure. */
  readonly certain: boolean;
}

/** A claim that gives way, and one that stays. */
interface Decision {
  readonly loser: Claim;
  readonly winner: Claim;
  readonly kind: string;
}

/**
 * Decides about rows that are parked because another row has their unique value: of two, the row with the smaller primary key stays.
 * The key is all that regions agree about whatever they have heard: versions move with every update. So two regions that decide at
 * the same time never take both away. The other row is deleted as an application would, by the region that wrote it, or by any where
 * that one cannot be reached; every region that met the two records them. Only tombstones are written, which claim nothing:
 * after as many steps as there are claims nothing is left to decide.
 * Returns what was recorded.
 */
export async function mendKeys(session: Session, hearsay: Hearsay): Promise<RecordedConflict[]> {
  const recorded: RecordedConflict[] = [];
  const { rows } = await session.client.query(
    `select distinct table_name from coregent.parked where sqlstate = '23505' and operation in ('insert', 'update')`,
  );
  for (const { table_name: label } of rows) {
    const target = session.targets.get(label);
    const uniques = target && session.uniques.get(target.staging.table.oid);
    if (!uniques) continue;
    await session.guarded(label, async () => {
      // What was in doubt may have been cleared up while the writers were asked: only what is as it was is decided.
      const before = await meet(session, target, uniques, hearsay);
      if (before.length === 0) return;
      const still = new Set((await meet(session, target, uniques, hearsay)).map(nameOf));
      for (const decision of decide(before)) {
        if (still.has(nameOf(meetingOf(decision))))
          recorded.push(...(await carryOut(session, target, decision, hearsay)));
      }
    });
  }
  return recorded;
}

const nameOf = ({ smaller, greater }: Pick<Meeting, 'smaller' | 'greater'>): string =>
  [smaller, greater].map(({ key, version, parked }) => `${key} ${version} ${parked?.id}`).join();

const meetingOf = ({ loser, winner }: Decision): Pick<Meeting, 'smaller' | 'greater'> => ({
  smaller: winner,
  greater: loser,
});

async function meet(session: Session, target: Target, uniques: Uniques, hearsay: Hearsay): Promise<Meeting[]> {
  const { table } = target.staging;
  const { rows } = await session.client.query(
    `select id::text, operation, row_bytes from coregent.parked
      where sqlstate = '23505' and operation in ('insert', 'update') and table_name = $1 and columns = $2::jsonb
      order by id limit ${LOOKED_AT}`,
    [tableLabel(table), shapeOf(target, 'update')],
  );
  const parked = rows.map(({ id, operation, row_bytes: row }): Parked => ({ id, operation, row }));
  const values = [arrayOf(target.rowTypeOid, tuplesOf(parked.map(({ row }) => row)))];
  const found = await session.run([{ text: meetings(table, uniques, target.compiled), values }]);
  const known = new Map<string, Claim>();
  const claim = (nth: string | null, key: string, version: string): Claim => {
    const name = `${nth ?? 'table'} ${key}`;
    const it = known.get(name) ?? {
      key,
      version: BigInt(version),
      parked: nth === null ? undefined : parked[Number(nth) - 1],
    };
    known.set(name, it);
    return it;
  };
  const met: Meeting[] = [];
  for (const [nth, key, version, otherNth, otherKey, otherVersion, isSmaller] of found[0]!.rows) {
    const one = claim(nth!, key!, version!);
    const other = claim(otherNth!, otherKey!, otherVersion!);
    const [smaller, greater] = isSmaller === 't' ? [one, other] : [other, one];
    const certain = (await session.knows(hearsay, one.version)) && (await session.knows(hearsay, other.version));
    met.push({ smaller, greater, certain });
  }
  return met;
}

/** The claims that give way, each to one that stays; not those about which something may still be on its way. */
export function decide(meetings: readonly Meeting[]): Decision[] {
  const above = new Map<Claim, Meeting[]>();
  const count = new Map<Claim, number>();
  for (const meeting of meetings) {
    above.set(meeting.greater, [...(above.get(meeting.greater) ?? []), meeting]);
    for (const each of [meeting.smaller, meeting.greater]) count.set(each, (count.get(each) ?? 0) + 1);
  }
  const fates = new Map<Claim, 'stays' | 'open' | Meeting>();
  // Smaller keys only: it ends.
  const fateOf = (claim: Claim): 'stays' | 'open' | Meeting => {
    const known = fates.get(claim);
    if (known) return known;
    const met = (above.get(claim) ?? []).map((meeting) => ({ meeting, fate: fateOf(meeting.smaller) }));
    const lost = met.find(({ meeting, fate }) => meeting.certain && fate === 'stays')?.meeting;
    const open = met.some(({ meeting, fate }) => fate === 'open' || (fate === 'stays' && !meeting.certain));
    const fate = lost ?? (open ? 'open' : 'stays');
    fates.set(claim, fate);
    return fate;
  };
  return [...count.keys()].flatMap((loser) => {
    const fate = fateOf(loser);
    if (typeof fate === 'string') return [];
    const incoming = loser.parked ? loser : fate.smaller;
    const kind =
      count.get(incoming)! > 1
        ? 'multiple_unique_conflicts'
        : incoming.parked?.operation === 'insert'
          ? 'insert_exists'
          : 'update_exists';
    return [{ loser, winner: fate.smaller, kind }];
  });
}

async function carryOut(
  session: Session,
  target: Target,
  { loser, winner, kind }: Decision,
  hearsay: Hearsay,
): Promise<RecordedConflict[]> {
  const { table } = target.staging;
  const writer = regionOf(loser.version);
  const mine = writer === session.region || !(await hearsay.reaches(writer));
  return await session.transaction(async () => {
    if (!(await stands(session, table, winner)) || !(await stands(session, table, loser))) return [];
    const conflicts = await record(session, target, { loser, winner, kind });
    if (!mine) return conflicts;
    if (loser.parked) return [...conflicts, ...(await bury(session, target, loser, loser.parked))];
    return [...conflicts, ...(await removeRow(session, { table, key: loser.key, version: loser.version }))];
  });
}

/** Whether the claim is still made; until the end of the transaction nobody changes it. */
async function stands({ client }: Session, table: Table, { key, version, parked }: Claim): Promise<boolean> {
  const { rows } = parked
    ? await client.query('select from coregent.parked where id = $1 for update skip locked', [parked.id])
    : await client.query(
        `select from ${qualified(table.schema, table.name)} t where ${hasKey(table, 't')} and t.${ident(VERSION)} = $2 for update`,
        [key, version],
      );
  return rows.length > 0;
}

/** Both rows, as they are now, under the key of the one that gives way. */
async function record(
  session: Session,
  target: Target,
  { loser, winner, kind }: Decision,
): Promise<RecordedConflict[]> {
  const { table } = target.staging;
  const incoming = loser.parked ? loser : winner;
  const local = loser.parked ? winner : loser;
  const show = ({ parked, key }: Claim): Step =>
    parked
      ? {
          text: `select (${imageJson(table, 's')})::text from ${stagedRows(target)}`,
          values: [arrayOf(target.rowTypeOid, tuplesOf([parked.row]))],
        }
      : {
          text: `select (${imageJson(table, 't')})::text from ${qualified(table.schema, table.name)} t where ${hasKey(table, 't')}`,
          values: [key],
        };
  const [theirs, ours] = await session.run([show(incoming), show(local)]);
  return await recordConflict(session, {
    table: tableLabel(table),
    key: loser.key,
    kind,
    rule: 'unique',
    outcome: loser.parked ? 'keep' : 'apply',
    local: local.version,
    incoming: incoming.version,
    localRow: ours!.rows[0]![0]!,
    incomingRow: theirs!.rows[0]![0]!,
  });
}

/** Takes away what is here of the parked row's key, and leaves a tombstone above that row. */
async function bury(session: Session, target: Target, loser: Claim, parked: Parked): Promise<RecordedConflict[]> {
  const { table } = target.staging;
  // What a delete had seen of such a table stands in its tombstone's state, which only its triggers make.
  if (table.columns.some(({ name }) => name === STATE)) return [];
  const { key, version } = loser;
  const removed = await removeRow(session, { table, key, version });
  await session.client.query('delete from coregent.parked where id = $1', [parked.id]);
  session.unparked++;
  return removed;
}
