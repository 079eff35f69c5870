import pg from 'pg';
import { expect, onTestFinished, test } from 'vitest';
import { makeDatabase } from '../world/database.ts';

test('three servers are shared, each with logical replication', async () => {
  const systems = new Set<string>();
  for (const server of [0, 1, 2]) {
    const database = await makeDatabase(server);
    onTestFinished(() => database.drop());
    const { rows } = await database.query(
      `select system_identifier, current_setting('wal_level') as level, current_setting('timezone') as zone
         from pg_control_system()`,
    );
    systems.add(rows[0].system_identifier);
    expect(rows[0]).toMatchObject({ level: 'logical', zone: 'UTC' });
  }
  expect(systems.size).toBe(3);
});

test('a dropped database takes its sessions, slots and origins along', async () => {
  const witness = await makeDatabase();
  onTestFinished(() => witness.drop());
  const database = await makeDatabase();
  await database.query("select pg_create_logical_replication_slot('s_' || current_database(), 'pgoutput')");
  await database.query("select pg_replication_origin_create('coregent_' || current_database() || '_2_1')");
  await witness.query("select pg_replication_origin_create('coregent_' || current_database() || '_2_1')");
  // A walsender that streams from the slot, as an agent's would.
  const walsender = new pg.Client({ connectionString: `${database.url}?replication=database` });
  const ended = new Promise<void>((resolve) => walsender.on('error', () => resolve()).on('end', () => resolve()));
  await walsender.connect();
  const streaming = walsender.query(
    `start_replication slot s_${database.name} logical 0/0 (proto_version '1', publication_names 'none')`,
  );
  streaming.catch(() => {});

  await database.drop();
  await ended;
  const left = await witness.query(
    `select (select count(*)::int from pg_database where datname = $1) as databases,
            (select count(*)::int from pg_replication_slots where database = $1) as slots,
            (select count(*)::int from pg_replication_origin where strpos(roname, $1) > 0) as origins,
            (select count(*)::int from pg_replication_origin where strpos(roname, $2) > 0) as others`,
    [database.name, witness.name],
  );
  expect(left.rows[0]).toEqual({ databases: 0, slots: 0, origins: 0, others: 1 });
});
