import { setTimeout as sleep } from 'node:timers/promises';
import type { World } from './world.ts';

/** What was seen while the storm went on. */
export interface Seen {
  /** Snapshots that were looked at. */
  snapshots: number;
  /** Groups, sets and families in them. */
  looked: number;
  /** Those of which a snapshot showed a part. */
  readonly torn: string[];
  /** The most WAL that a server kept for its slots, in bytes. */
  retainedBytes: number;
  /** The most memory of an agent, in MiB. */
  memoryMiB: number;
  readonly codes: Map<string, number>;
}

/** Ms between two looks at a region. */
const SNAPSHOT_MS = 400;
const LARGE_EVERY = 2;
const SAMPLE_MS = 2_000;

/** What a snapshot must show whole: one row each with what it is, how many parts there are, and how many there should be. */
const WHOLES = `
  select 'group ' || grp as what, count(*) as shown, min(members) as due, array['public.entries'] as tables from entries group by grp
  union all
  select 'set ' || set_id, count(distinct tag), 1, array['public.pairs'] from pairs group by set_id
  union all
  select 'family ' || coalesce(p.id, c.parent_id), coalesce(c.n, 0), coalesce(p.children, 0), array['public.parents', 'public.children']
    from parents p full join (select parent_id, count(*) as n from children group by 1) c on c.parent_id = p.id`;
const LARGE = `select 'group ' || grp as what, count(*) as shown, min(members) as due, array['public.bulk'] from bulk group by grp`;
/** While a region owes a table it may show parts: a join brings rows, not transactions. */
const looks = (wholes: string): string =>
  `select what, shown, due from (${wholes}) w where not exists (select from coregent.paused where table_name = any (w.tables))`;

/** Parts of transactions that one snapshot of a region shows (atomic visibility). */
export async function tornIn(
  query: World['regions'][number]['query'],
  large = true,
): Promise<{ looked: number; torn: string[] }> {
  const { rows } = await query(looks(large ? `${WHOLES} union all ${LARGE}` : WHOLES));
  const torn = rows.filter(({ shown, due }) => shown !== String(due));
  return { looked: rows.length, torn: torn.map((row) => `${row.what} shows ${row.shown} of ${row.due}`) };
}

/** Looks at every region again and again until it is stopped. */
export function startWatch(world: World): { readonly seen: Seen; stop(): Promise<Seen> } {
  const stopping = new AbortController();
  const { signal } = stopping;
  const seen: Seen = { snapshots: 0, looked: 0, torn: [], retainedBytes: 0, memoryMiB: 0, codes: new Map() };
  const pause = (ms: number): Promise<void> => sleep(ms, undefined, { signal }).catch(() => {});
  const snapshots = world.regions.map(async ({ name, query }) => {
    for (let round = 0; !signal.aborted; round++) {
      try {
        const { looked, torn } = await tornIn(query, round % LARGE_EVERY === 0);
        seen.snapshots++;
        seen.looked += looked;
        seen.torn.push(...torn.map((what) => `${name}, ${new Date().toISOString()}: ${what}`));
      } catch {
        // The server is down, or a table is locked for long.
      }
      await pause(SNAPSHOT_MS);
    }
  });
  const samples = world.regions.map(async ({ query, keeper }) => {
    while (!signal.aborted) {
      const retained = await retainedBytes(query).catch(() => 0);
      seen.retainedBytes = Math.max(seen.retainedBytes, retained);
      const { agent } = keeper;
      if (agent?.alive) {
        seen.memoryMiB = Math.max(seen.memoryMiB, (await agent.memoryMiB()) ?? 0);
        const status = await agent.status();
        for (const { last_error } of status?.peers ?? []) {
          if (last_error) seen.codes.set(last_error.code, (seen.codes.get(last_error.code) ?? 0) + 1);
        }
      }
      await pause(SAMPLE_MS);
    }
  });
  return {
    seen,
    stop: async () => {
      stopping.abort();
      await Promise.all([...snapshots, ...samples]);
      return seen;
    },
  };
}

/** WAL that a server keeps for its slots, in bytes. */
export async function retainedBytes(query: World['regions'][number]['query']): Promise<number> {
  const { rows } = await query(
    `select coalesce(max(pg_current_wal_lsn() - restart_lsn), 0)::float8 as bytes from pg_replication_slots`,
  );
  return rows[0].bytes;
}
