import type { CoregentSide } from './coregent.ts';
import type { Options } from './options.ts';
import { COLUMNS, insertRows, ORDERS } from './orders.ts';
import type { Progress } from './report.ts';
import { PGBENCH, runPgbench } from './writer.ts';

/** One rule under one load, once. */
export interface RuleRun {
  readonly rule: string;
  /** `update`: nothing meets; `conflict`: every row that arrives meets one of this region; `pgbench`: what the writer reaches. */
  readonly load: 'update' | 'conflict' | 'pgbench';
  readonly round: number;
  /** Rows applied a second, or pgbench's transactions. */
  readonly perSecond: number;
}

/** What `coregent.yaml` says of a table, and which column pgbench's accounts would have the rule for. */
interface Measured {
  readonly rule: string;
  readonly orders: object;
  readonly accounts: object | undefined;
}

const RULES: readonly Measured[] = [
  { rule: 'lww', orders: {}, accounts: {} },
  { rule: 'columns', orders: { conflict: 'columns' }, accounts: { conflict: 'columns' } },
  { rule: 'counter', orders: { columns: { quantity: 'counter' } }, accounts: { columns: { abalance: 'counter' } } },
  { rule: 'set', orders: { columns: { tags: 'set' } }, accounts: undefined },
  { rule: 'siblings', orders: { conflict: 'siblings' }, accounts: { conflict: 'siblings' } },
  { rule: 'custom', orders: { custom: 'public.latest' }, accounts: undefined },
];

/** The same rows and the same update under every rule: a text, a count and a set change. Each region writes values of its own, so that every rule records the conflict. */
const SCHEMA = [
  ...ORDERS,
  `alter table orders add column tags text[] not null default '{}'`,
  `create function latest(versions orders[]) returns orders language sql immutable return versions[array_upper(versions, 1)]`,
  `create procedure change_each(first int8, last int8, size int8, region text) language plpgsql as $body$
  begin
    for n in first..last loop
      update orders set status = region, quantity = quantity + 1, tags = array[region || n % 7, 'b']
        where id = 1 + (n * 7919) % size;
      commit;
    end loop;
  end $body$`,
];

/** Measures every rule against plain `lww` in turn: applying, with and without conflicts, and what a writer pays. */
export async function measureRules(side: CoregentSide, options: Options, progress: Progress): Promise<RuleRun[]> {
  const results: RuleRun[] = [];
  const rows = Math.round(options.rows / 2);
  for (let round = 1; round <= options.rounds; round++) {
    for (const measured of round % 2 === 1 ? RULES : [...RULES].reverse()) {
      const { rule, orders, accounts } = measured;
      const add = (load: RuleRun['load'], perSecond: number): void => {
        results.push({ rule, load, round, perSecond });
        progress(`rules, round ${round}, ${rule}, ${load}: ${Math.round(perSecond)} a second`);
      };
      for (const load of ['update', 'conflict'] as const) {
        add(load, await catchUp(side, { orders, rows, conflict: load === 'conflict' }));
      }
      if (accounts) {
        await side.prepare(PGBENCH, { 'public.pgbench_accounts': accounts });
        const { transactionsPerSecond } = await runPgbench(side.pair.east, options.quick ? 3 : 6);
        add('pgbench', transactionsPerSecond);
      }
    }
  }
  return results;
}

/** How fast the west applies one update of each row; with `conflict` it has updated each row itself, unseen by the east. */
async function catchUp(
  side: CoregentSide,
  { orders, rows, conflict }: { readonly orders: object; readonly rows: number; readonly conflict: boolean },
): Promise<number> {
  const { pair } = side;
  await side.prepare(SCHEMA, { 'public.orders': orders });
  await pair.eastClient.query(insertRows(1, rows));
  const before = await pair.mark();
  await side.start();
  await pair.arrived(before);
  await side.stop();
  const writers = [...(conflict ? [['west', pair.westClient] as const] : []), ['east', pair.eastClient] as const];
  for (const [region, client] of writers) {
    await client.query('set synchronous_commit = off');
    await client.query(`call change_each(0, ${rows - 1}, ${rows}, '${region}')`);
    await client.query('reset synchronous_commit');
  }
  const mark = await pair.mark();
  await pair.checkpoint();
  await side.start();
  const began = performance.now();
  await pair.arrived(mark);
  const seconds = (performance.now() - began) / 1000;
  await side.stop();
  if (!conflict) await pair.compare('orders', `${COLUMNS}, tags`);
  return rows / seconds;
}
