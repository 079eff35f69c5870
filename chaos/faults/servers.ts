import type pg from 'pg';
import { within } from '../../test/world/random.ts';
import type { Region } from '../world.ts';
import { anyRegion, type Fault, held } from './fault.ts';

/** A fault that takes a region's server down. */
function down(name: string, weight: number, begin: (region: Region) => Promise<void>): Fault {
  return {
    name,
    weight,
    plan: (world, random) => {
      const region = anyRegion(world, random);
      return {
        where: region.name,
        holds: [held.server(region.name), held.locks(region.name)],
        stops: [region.name],
        ms: random() < 0.6 ? within(random, 0, 500) : within(random, 500, 6_000),
        begin: () => begin(region),
        end: () => region.server.start(),
      };
    },
  };
}

/** One statement that needs no more than a moment. */
function statement(
  name: string,
  weight: number,
  run: (region: Region, random: () => number) => Promise<unknown>,
  stops = false,
): Fault {
  return {
    name,
    weight,
    plan: (world, random) => {
      const region = anyRegion(world, random);
      return {
        where: region.name,
        holds: [held.locks(region.name)],
        ...(stops ? { stops: [region.name] } : {}),
        ms: 0,
        begin: async () => {
          await run(region, random);
        },
      };
    },
  };
}

/** Keeps a transaction open for a while. */
function open(
  name: string,
  weight: number,
  ms: readonly [number, number],
  sql: (random: () => number) => string[],
): Fault {
  return {
    name,
    weight,
    plan: (world, random) => {
      const region = anyRegion(world, random);
      const statements = sql(random);
      let client: pg.Client | undefined;
      return {
        where: `${region.name}: ${statements.at(-1)}`,
        holds: [held.locks(region.name)],
        stops: [region.name],
        ms: within(random, ...ms),
        begin: async () => {
          client = await region.connect();
          for (const text of ['begin', `set local lock_timeout = '5s'`, ...statements]) await client.query(text);
        },
        end: async () => {
          await client?.query('rollback').catch(() => {});
          await client?.end().catch(() => {});
        },
      };
    },
  };
}

/** Signals to one of the agents' sessions, as an operator might send. */
function signalTo(what: string): (region: Region) => Promise<unknown> {
  return (region) =>
    region.query(
      `select ${what}(pid) from (select pid from pg_stat_activity
        where application_name like 'coregent %' and pid <> pg_backend_pid() order by random() limit 1) one`,
    );
}

/** What happens to servers, and in them. */
export const SERVER_FAULTS: readonly Fault[] = [
  down('server.immediate', 2, (region) => region.server.stop('immediate')),
  down('server.kill', 2, (region) => region.server.kill()),
  down('server.restart', 1, (region) => region.server.stop('fast')),
  {
    // All sessions of the server end and it recovers from its WAL.
    name: 'backend.kill',
    weight: 1.5,
    plan: (world, random) => {
      const region = anyRegion(world, random);
      return {
        where: region.name,
        holds: [held.server(region.name), held.locks(region.name)],
        stops: [region.name],
        ms: 500,
        begin: async () => {
          const { rows } = await region.query(
            `select pid from pg_stat_activity where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid() order by random() limit 1`,
          );
          if (rows[0]) process.kill(rows[0].pid, 'SIGKILL');
        },
      };
    },
  },
  statement('session.cancel', 2, signalTo('pg_cancel_backend')),
  statement('session.terminate', 2, signalTo('pg_terminate_backend')),
  statement('checkpoints', 1, async ({ query }) => {
    for (let round = 0; round < 5; round++) await query('checkpoint');
  }),
  statement(
    'vacuum full',
    1,
    async ({ query }, random) => {
      const table = ['counters', 'hits', 'contested', 'pairs'][within(random, 0, 3)];
      await query(`vacuum full ${table}`);
    },
    true,
  ),
  open('locked rows', 2, [1_000, 8_000], () => ['select from contested where id <= 8 for update']),
  open('locked table', 1, [1_000, 4_000], (random) => {
    const mode = ['share', 'access exclusive'][within(random, 0, 1)];
    return [`lock table ${['contested', 'entries', 'hits'][within(random, 0, 2)]} in ${mode} mode`];
  }),
  open('idle in transaction', 1, [5_000, 15_000], () => [
    'set transaction isolation level repeatable read',
    'select count(*) from contested',
    `select pg_logical_emit_message(true, 'chaos', 'idle')`,
  ]),
];
