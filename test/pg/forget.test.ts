import { getEventListeners } from 'node:events';
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Secret } from '../../src/model/secret.ts';
import { connect } from '../../src/pg/connect.ts';
import { Forgetting } from '../../src/pg/forget.ts';
import { makeDatabase } from '../world/database.ts';
import { until } from '../world/until.ts';

const DAY = 86_400_000;

test('records of conflicts go by age, by number and by size, the oldest first, and only those', async () => {
  await using database = await makeDatabase();
  await database.query(await readFile(new URL('../../sql/0001_catalog.sql', import.meta.url), 'utf8'));
  const client = await connect(new Secret(database.url), 'here', { purpose: 'test' });
  try {
    const record = async (from: number, to: number, bytes: number, age = '0s'): Promise<void> => {
      await database.query(
        `insert into coregent.conflict_record (recorded_at, table_name, key, kind, rule, outcome, local_version, incoming_version, local_row)
          select clock_timestamp() - $4::interval, 'public.items', '{"id": 1}', 'insert_exists', 'lww', 'keep', n, n + 1,
            jsonb_build_object('v', (select string_agg(md5(n || ' ' || m), '') from generate_series(1, $3 / 32) m))
          from generate_series($1::int, $2::int) n`,
        [from, to, bytes, age],
      );
    };
    const left = async (): Promise<unknown> =>
      (
        await database.query(
          'select min(local_version)::int as from, max(local_version)::int as to, count(*)::int as n from coregent.conflict_record',
        )
      ).rows[0];
    const bounds = { retentionMs: 30 * DAY, limit: 10_000, maxBytes: 2 ** 40, alert: undefined };

    await record(1, 6_000, 0, '31 days');
    await record(6_001, 6_500, 0);
    expect(await new Forgetting(bounds).round(client)).toEqual({ byAge: 6_000, byNumber: 0, bySize: 0 });
    expect(await left()).toEqual({ from: 6_001, to: 6_500, n: 500 });

    expect(await new Forgetting({ ...bounds, limit: 100 }).round(client)).toEqual({
      byAge: 0,
      byNumber: 400,
      bySize: 0,
    });
    expect(await left()).toEqual({ from: 6_401, to: 6_500, n: 100 });

    // About 1 MB of rows each time; the file of the table only grows.
    const small = new Forgetting({ ...bounds, maxBytes: 1_500_000 });
    await record(20_001, 20_100, 10_000);
    expect(await small.round(client)).toEqual({ byAge: 0, byNumber: 0, bySize: 0 });
    await record(20_101, 20_200, 10_000);
    const { bySize } = await small.round(client);
    expect(bySize).toBeGreaterThan(100);
    expect(await left()).toMatchObject({ from: 20_001 + bySize - 100, to: 20_200 });
    expect(await small.round(client)).toEqual({ byAge: 0, byNumber: 0, bySize: 0 });
    await record(20_201, 20_210, 10_000);
    expect((await small.round(client)).bySize).toBeLessThan(15);
    expect(await left()).toMatchObject({ to: 20_210 });
    await database.query('truncate coregent.conflict_record');
    expect(await small.round(client)).toEqual({ byAge: 0, byNumber: 0, bySize: 0 });
  } finally {
    await client.end();
  }
});

test('a connection that has ended leaves nothing at the signal that could have ended it', async () => {
  await using database = await makeDatabase();
  const { signal } = new AbortController();
  const waiting = (): number => getEventListeners(signal, 'abort').length;
  const client = await connect(new Secret(database.url), 'here', { purpose: 'test', signal });
  expect(waiting()).toBe(1);
  await client.end();
  expect(waiting()).toBe(0);
  const nowhere = new URL(database.url);
  nowhere.pathname = '/nowhere';
  await expect(connect(new Secret(nowhere.href), 'here', { purpose: 'test', signal })).rejects.toThrow('nowhere');
  await until(() => waiting() === 0, { what: 'the connection that failed to be gone' });
});
