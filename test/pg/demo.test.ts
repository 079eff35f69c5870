import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { dirname } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { isFree } from '../../src/demo/port.ts';
import { startWorld, type World, type WorldEvent } from '../../src/demo/world.ts';
import { until } from '../world/until.ts';

const SLOW_MS = 60_000;
/** What the shop's application meets when regions do not hear each other for a while. */
const MET = [
  'public.carts siblings',
  'public.customers columns',
  'public.customers unique',
  'public.products lww',
  'public.replies cascade',
  'public.seats fww',
  'public.tickets custom',
];

async function query(url: string, text: string, values: unknown[] = []) {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {});
  await client.connect();
  try {
    return (await client.query(text, values)).rows;
  } finally {
    await client.end();
  }
}

describe('a world', () => {
  let world: World;
  const events: WorldEvent[] = [];
  const urlOf = (name: string): string => world.regions.find((region) => region.name === name)!.url;
  const addCustomer = async (region: string): Promise<string> => {
    const sql = `insert into customers (name, home_region) values ('by hand', $1) returning id`;
    return (await query(urlOf(region), sql, [region]))[0].id;
  };
  const has = async (region: string, id: string): Promise<boolean> =>
    (await query(urlOf(region), 'select from customers where id = $1', [id])).length === 1;
  const arrives = (region: string, id: string) =>
    until(() => has(region, id), { what: `customer ${id} in ${region}`, deadlineMs: SLOW_MS });

  beforeAll(async () => {
    const onEvent = (event: WorldEvent) => void events.push(event);
    world = await startWorld({ regions: 3, latency: 'none', load: true, transactionsPerSecond: 50, onEvent });
  }, SLOW_MS);
  afterAll(() => world?.stop());

  test('has regions whose seed came from one of them, and an application that writes in each', async () => {
    expect(world.regions.map(({ name, id }) => [name, id])).toEqual([
      ['tokyo', 1],
      ['frankfurt', 2],
      ['virginia', 3],
    ]);
    const view = await until(
      async () => {
        const { regions } = await world.view();
        return regions.every(({ written }) => written.transactions > 20) && regions;
      },
      { what: 'transactions in every region', deadlineMs: SLOW_MS },
    );
    for (const { rows, agent } of view) {
      expect(rows).toBeGreaterThan(700);
      expect(agent?.peers.map(({ state }) => state)).toEqual(['streaming', 'streaming']);
    }
    for (const { agentUrl } of world.regions) expect((await fetch(`${agentUrl}/readyz`)).status).toBe(200);
  });

  test('shows what one region writes in the others', async () => {
    const id = await addCustomer('tokyo');
    await arrives('frankfurt', id);
    await arrives('virginia', id);
  });

  test('keeps a cut link from carrying anything, and no other', async () => {
    await world.cut('tokyo', 'frankfurt');
    const id = await addCustomer('tokyo');
    await arrives('virginia', id);
    expect(await has('frankfurt', id)).toBe(false);
    const { links } = await world.view();
    const cut = links.filter(({ from, to }) => from !== 'virginia' && to !== 'virginia');
    for (const { state } of cut) expect(state).not.toBe('streaming');
    await world.heal('tokyo', 'frankfurt');
    await arrives('frankfurt', id);
  });

  test('goes on without a killed region, which catches up when it is started again', async () => {
    await world.kill('virginia');
    await expect(query(urlOf('virginia'), 'select 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    expect((await world.view()).regions[2]).toMatchObject({ agent: null, rows: null });
    const id = await addCustomer('frankfurt');
    await arrives('tokyo', id);
    await world.start('virginia');
    await arrives('virginia', id);
    const named = ['link.cut', 'link.healed', 'region.killed', 'region.started'];
    expect(events.map(({ event }) => event).filter((event) => named.includes(event))).toEqual(named);
  });

  test(
    'meets conflicts under every rule, and records them',
    async () => {
      const rules = async (): Promise<string[]> => {
        const sql = `select distinct table_name || ' ' || rule as met from coregent.conflicts`;
        const met = await Promise.all(world.regions.map(({ url }) => query(url, sql)));
        return [...new Set(met.flat().map((row) => row.met))].sort();
      };
      const written = async () => (await world.view()).regions.map(({ written }) => written.transactions);
      await until(
        async () => {
          await world.cut('tokyo', 'frankfurt');
          const before = await written();
          const apart = async () => (await written()).every((count, index) => count > before[index]! + 150);
          await until(apart, { what: 'writes of regions that do not hear each other', deadlineMs: SLOW_MS });
          await world.heal('tokyo', 'frankfurt');
          await arrives('frankfurt', await addCustomer('tokyo'));
          await arrives('tokyo', await addCustomer('frankfurt'));
          const found = await rules();
          return MET.every((rule) => found.includes(rule));
        },
        { what: 'a conflict of every rule', deadlineMs: 3 * SLOW_MS },
      );
      expect(await rules()).toEqual(expect.arrayContaining(MET));
      const { regions } = await world.view();
      expect(regions.reduce((sum, region) => sum + region.written.refused, 0)).toBeGreaterThan(0);
      expect(Object.keys(regions[0]!.conflicts_by_table!)).toContain('public.seats');
      expect(events.filter(({ event }) => event === 'load.failed')).toEqual([]);
    },
    4 * SLOW_MS,
  );

  test('has the same rows in every region at the end, and then stops whole', async () => {
    await world.cut('tokyo', 'virginia');
    const verdicts = await world.compare();
    expect(verdicts.map(({ table }) => table)).toEqual([
      'public.carts',
      'public.customers',
      'public.documents',
      'public.order_items',
      'public.orders',
      'public.products',
      'public.replies',
      'public.seats',
      'public.tickets',
    ]);
    for (const { rows, differences } of verdicts) {
      expect(differences).toEqual([]);
      expect(new Set(rows).size).toBe(1);
    }
    const { configFile, regions } = world;
    expect(existsSync(configFile)).toBe(true);
    await world.stop();
    expect(existsSync(configFile)).toBe(false);
    for (const { url, agentUrl } of regions) {
      expect(await isFree(Number(new URL(url).port))).toBe(true);
      expect(await isFree(Number(new URL(agentUrl).port))).toBe(true);
    }
  });

  test('refuses numbers of regions that it has no places for', async () => {
    for (const regions of [1, 9, 2.5]) {
      await expect(startWorld({ regions, latency: 'none', load: false })).rejects.toMatchObject({ code: 'usage' });
    }
  });
});

describe('coregent demo', () => {
  const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

  interface Line {
    readonly event: string;
    // biome-ignore lint/suspicious/noExplicitAny: fields differ from event to event
    readonly [field: string]: any;
  }

  /** The built command, as users run it. */
  function demo(...args: string[]): { child: ChildProcess; lines: Line[]; line(event: string): Promise<Line> } {
    const child = spawn(process.execPath, [main, 'demo', ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    onTestFinished(() => void child.kill('SIGKILL'));
    const lines: Line[] = [];
    createInterface({ input: child.stdout! }).on('line', (text) => lines.push(JSON.parse(text)));
    const line = (event: string) =>
      until(
        () => {
          if (child.exitCode !== null && !lines.some((each) => each.event === event)) throw new Error('it ended');
          return lines.findLast((each) => each.event === event);
        },
        { what: `a line ${event}`, deadlineMs: SLOW_MS },
      );
    return { child, lines, line };
  }

  /** Waits until the process has ended and its servers and folder are gone. */
  async function gone(child: ChildProcess, ready: Line): Promise<number | null> {
    const [code] = child.exitCode === null ? await once(child, 'exit') : [child.exitCode];
    await until(() => !existsSync(dirname(ready.config)), { what: 'its folder to be gone' });
    for (const { url, agent } of ready.regions) {
      for (const address of [url, agent]) expect(await isFree(Number(new URL(address).port))).toBe(true);
    }
    return code;
  }

  test('tells of the WAN’s latency, ends on SIGTERM with equal regions, and leaves nothing behind', async () => {
    const { child, line, lines } = demo('--regions', '2', '--port', '21700');
    const ready = await line('demo.ready');
    expect(ready.round_trip_ms).toEqual([{ between: ['tokyo', 'frankfurt'], ms: 230 }]);
    const lags = await until(
      () => {
        const status = lines.findLast(({ event }) => event === 'demo.status');
        const found: number[] = status?.links.map(({ lag_ms }: { lag_ms: number }) => lag_ms) ?? [];
        return found.length === 2 && found.every((lag) => lag > 0) && found;
      },
      { what: 'a transaction to arrive on every link', deadlineMs: SLOW_MS },
    );
    for (const lag of lags) expect(lag).toBeGreaterThanOrEqual(115);
    child.kill('SIGTERM');
    const ended = await line('demo.ended');
    expect(ended.equal).toBe(true);
    expect(ended.regions[0].written.transactions).toBeGreaterThan(0);
    expect(await gone(child, ready)).toBe(0);
  }, 120_000);

  test('takes the next port when one is taken, and says so', async () => {
    const other = createServer().listen(21_750, '127.0.0.1');
    await once(other, 'listening');
    onTestFinished(() => void other.close());
    const { child, line } = demo('--regions', '2', '--port', '21750', '--no-load');
    expect(await line('port.taken')).toMatchObject({ what: 'the agent of tokyo', wanted: 21_750, port: 21_752 });
    const ready = await line('demo.ready');
    expect(ready.regions.map(({ agent }: { agent: string }) => agent)).toEqual([
      'http://127.0.0.1:21752',
      'http://127.0.0.1:21751',
    ]);
    child.kill('SIGINT');
    expect((await line('demo.ended')).regions[0].written.transactions).toBe(0);
    expect(await gone(child, ready)).toBe(0);
  }, 120_000);
});
