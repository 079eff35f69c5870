import type { Named } from './rows.ts';
import { until } from './until.ts';

const SLOTS = 'from pg_replication_slots where database = current_database()';

/** Waits until every region has confirmed all that every other committed durably before; the error says which slot holds. */
export async function allConfirmed(regions: readonly Named[], deadlineMs: number): Promise<void> {
  const deadline = performance.now() + deadlineMs;
  const marks = await Promise.all(
    regions.map(async ({ query }) => (await query('select pg_current_wal_flush_lsn() as lsn')).rows[0].lsn as string),
  );
  for (const [index, { region, query }] of regions.entries()) {
    const passed = async (): Promise<boolean> => {
      const values = [regions.length - 1, marks[index]];
      const { rows } = await query(
        `select count(*) = $1 and bool_and(confirmed_flush_lsn >= $2) as all ${SLOTS}`,
        values,
      );
      return rows[0].all;
    };
    const what = `every region to confirm the writes of ${region}`;
    await until(passed, { what, deadlineMs: deadline - performance.now() }).catch(async (cause: Error) => {
      const { rows } = await query(`select slot_name, active, $1::pg_lsn - confirmed_flush_lsn as behind ${SLOTS}`, [
        marks[index],
      ]);
      const slots = rows.map((row) => `  ${row.slot_name}: ${row.behind} bytes behind, active: ${row.active}`);
      throw new Error([cause.message, ...slots].join('\n'), { cause });
    });
  }
}

/**
 * The same, and that no region owes a table that paused: its rows were confirmed as passed over, and a join brings them.
 * Without a table that differs still.
 */
export async function allJoined(regions: readonly Named[], deadlineMs: number): Promise<void> {
  const deadline = performance.now() + deadlineMs;
  await allConfirmed(regions, deadlineMs);
  for (const { region, query } of regions) {
    const owed = async (): Promise<string[]> => {
      const { rows } = await query(`select slot || ' ' || table_name || ': ' || reason as what from coregent.paused`);
      return rows.map((row) => `  ${row.what}`);
    };
    await until(async () => (await owed()).length === 0, {
      what: `${region} to owe no table`,
      deadlineMs: deadline - performance.now(),
    }).catch(async (cause: Error) => {
      throw new Error([cause.message, ...(await owed())].join('\n'), { cause });
    });
  }
  // What was joined may have been a region's own rows, which travel on from there.
  await allConfirmed(regions, deadline - performance.now());
}

/** The same, and that nothing waits for its place any more: what gives way to unique and foreign keys is a write, which travels too. */
export async function allSettled(regions: readonly Named[], deadlineMs: number): Promise<void> {
  const deadline = performance.now() + deadlineMs;
  const parked = async (): Promise<string[]> => {
    const found = regions.map(async ({ region, query }) => {
      const { rows } = await query(
        `select operation || ' of ' || table_name || ': ' || reason as what from coregent.parked`,
      );
      return rows.map(({ what }) => `  ${region}: ${what}`);
    });
    return (await Promise.all(found)).flat();
  };
  for (;;) {
    await allJoined(regions, deadline - performance.now());
    if ((await parked()).length === 0) return;
    await until(async () => (await parked()).length === 0, {
      what: 'every parked row to find its place or to give way',
      deadlineMs: deadline - performance.now(),
    }).catch(async (cause: Error) => {
      throw new Error([cause.message, ...(await parked())].join('\n'), { cause });
    });
  }
}
