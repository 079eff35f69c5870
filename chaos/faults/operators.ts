import { setTimeout as sleep } from 'node:timers/promises';
import { SET_CLOCK } from '../../test/world/clock.ts';
import { within } from '../../test/world/random.ts';
import type { Region } from '../world.ts';
import { anyLink, anyRegion, type Fault, held } from './fault.ts';

/** What must be done in the end is tried for so long: a server may be down, a table locked. */
const INSIST_MS = 90_000;

async function insist(work: () => Promise<unknown>): Promise<void> {
  const deadline = performance.now() + INSIST_MS;
  for (;;) {
    try {
      await work();
      return;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await sleep(200);
    }
  }
}

/** Tables of which no snapshot has to show a transaction whole; while one pauses, it shows what came before. */
const WIDENED = ['contested', 'hits', 'documents', 'scratch'] as const;

/** What people do to regions. */
export const OPERATOR_FAULTS: readonly Fault[] = [
  {
    // A migration that reaches the regions one after the other.
    name: 'column.add',
    weight: 2,
    plan: (world, random) => {
      const table = WIDENED[within(random, 0, WIDENED.length - 1)]!;
      const column = `extra_${within(random, 0, 1e9)} ${random() < 0.5 ? 'int' : `text default 'as before'`}`;
      const start = within(random, 0, world.regions.length - 1);
      const left = [...world.regions.slice(start), ...world.regions.slice(0, start)];
      const alterNext = async (): Promise<void> => {
        await left[0]!.query(`set local lock_timeout = '1s'; alter table ${table} add column if not exists ${column}`);
        left.shift();
      };
      return {
        where: `${table}: ${left.map(({ name }) => name).join(', ')}`,
        holds: [`columns of ${table}`],
        ms: within(random, 0, 6_000),
        begin: alterNext,
        end: async () => {
          while (left.length > 0) await insist(alterNext);
        },
      };
    },
  },
  {
    name: 'slot.drop',
    weight: 1,
    plan: (world, random) => {
      const link = anyLink(world, random);
      const place = (name: string): number => world.regions.findIndex((region) => region.name === name);
      const { query }: Region = world.regions[place(link.from)]!;
      const slot = `coregent_chaos_${place(link.from) + 1}_${place(link.to) + 1}`;
      return {
        where: slot,
        holds: [held.link(link), held.locks(link.from), held.server(link.from)],
        ms: 0,
        begin: async () => {
          const deadline = performance.now() + 5_000;
          for (let dropped = false; !dropped && performance.now() < deadline; ) {
            await query('select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1', [
              slot,
            ]);
            // Its agent may have come back in between.
            dropped = await query('select pg_drop_replication_slot($1)', [slot]).then(
              () => true,
              () => false,
            );
          }
        },
      };
    },
  },
  {
    // A clock that is set wrong, and right again.
    name: 'clock.set',
    weight: 2,
    plan: (world, random) => {
      const { name, query } = anyRegion(world, random);
      const aheadMs = [within(random, 50, 450), within(random, 1_000, 5_000), -within(random, 100, 3_600_000)];
      const chosen = aheadMs[within(random, 0, 2)]!;
      return {
        where: `${name}: ${chosen} ms ahead`,
        holds: [`clock of ${name}`],
        ms: within(random, 500, 8_000),
        begin: async () => {
          await query(SET_CLOCK, [`${chosen} ms`]);
        },
        end: () => insist(() => query(SET_CLOCK, ['0 s'])),
      };
    },
  },
];
