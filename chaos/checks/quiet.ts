import { setTimeout as sleep } from 'node:timers/promises';
import type { Asked, Verdict } from './verdict.ts';

const QUIET_MS = 10_000;
/** WAL that an idle region may write in that time: servers note running transactions, and vacuum what was written before. */
const IDLE_BYTES = 32 * 1024;
/** Tries until vacuum and the forgetting of tombstones have done their work. */
const TRIES = 6;
/** WAL that a server may keep for slots once all is confirmed and a checkpoint was made. */
const RETAINED_BYTES = 48 * 1024 ** 2;
const RETAINED_MS = 90_000;

/** Where every row of the application lies, and which transaction wrote it: any change of any row changes it. */
async function physical({ query }: Asked): Promise<string> {
  const { rows: tables } = await query(
    `select format('%I.%I', schema_name, table_name) as name from coregent.tables order by 1`,
  );
  const each: string[] = [];
  for (const { name } of tables) {
    const { rows } = await query(
      `select count(*) || ' ' || coalesce(sum(hashtextextended(tableoid::text || ctid::text || xmin::text, 0)), 0) as sum from ${name}`,
    );
    each.push(`${name} ${rows[0].sum}`);
  }
  return each.join('\n');
}

/** INV-Q: a region where nobody writes writes nothing. */
export async function checkQuiet(regions: readonly Asked[], quietMs = QUIET_MS): Promise<Verdict> {
  const violations: string[] = [];
  let least: number[] = [];
  let tries = 0;
  for (; tries < TRIES; tries++) {
    const lsn = (region: Asked): Promise<string> =>
      region.query('select pg_current_wal_insert_lsn() as lsn').then(({ rows }) => rows[0].lsn);
    const before = await Promise.all(regions.map(physical));
    const from = await Promise.all(regions.map(lsn));
    await sleep(quietMs);
    const written = await Promise.all(
      regions.map(async ({ query }, index) => {
        const { rows } = await query('select pg_current_wal_insert_lsn() - $1::pg_lsn as bytes', [from[index]]);
        return Number(rows[0].bytes);
      }),
    );
    const after = await Promise.all(regions.map(physical));
    for (const [index, { name }] of regions.entries()) {
      if (after[index] !== before[index]) violations.push(`${name}: rows changed although nobody wrote`);
    }
    least = written.map((bytes, index) => Math.min(bytes, least[index] ?? Number.POSITIVE_INFINITY));
    if (violations.length > 0 || least.every((bytes) => bytes <= IDLE_BYTES)) break;
  }
  for (const [index, { name }] of regions.entries()) {
    if (least[index]! > IDLE_BYTES)
      violations.push(`${name}: ${least[index]} bytes of WAL in ${quietMs / 1000} s of idleness`);
  }
  return {
    name: 'INV-Q',
    law: 'a cluster where nobody writes is quiet',
    cases: { regions: regions.length, looks: Math.min(tries + 1, TRIES) },
    figures: { 'WAL bytes in 10 s, most': Math.max(...least) },
    violations,
  };
}

/** INV-D: WAL that was kept while links were down goes once they are up: within `waitMs`, but for so many bytes. */
export async function checkDisk(
  regions: readonly Asked[],
  peakBytes: number,
  { bytes: limit, waitMs } = { bytes: RETAINED_BYTES, waitMs: RETAINED_MS },
): Promise<Verdict> {
  const violations: string[] = [];
  let most = 0;
  for (const { name, query } of regions) {
    const deadline = performance.now() + waitMs;
    for (;;) {
      await query('checkpoint');
      const { rows } = await query(
        `select coalesce(max(pg_current_wal_lsn() - restart_lsn), 0)::float8 as bytes from pg_replication_slots
          where database = current_database()`,
      );
      const { bytes } = rows[0];
      if (bytes <= limit || performance.now() > deadline) {
        most = Math.max(most, bytes);
        if (bytes > limit) violations.push(`${name} still keeps ${Math.round(bytes / 1024 ** 2)} MiB of WAL`);
        break;
      }
      await sleep(1_000);
    }
  }
  return {
    name: 'INV-D',
    law: 'WAL kept for a peer goes once it is back',
    cases: { 'peak, MiB': Math.round(peakBytes / 1024 ** 2) },
    figures: { 'left, MiB': Math.round(most / 1024 ** 2) },
    violations,
  };
}
