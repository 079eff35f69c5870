import { expect, onTestFinished, test } from 'vitest';
import { makeCluster } from '../world/cluster.ts';

const TABLES = `
  create table forms (id int primary key, name text, doc jsonb,
    constraint one check (not (doc ? 'this' and doc ? 'that')));
  create table texts (id int primary key, doc json)`;

test('documents that were there before, are written in two regions at once, are refused, settled, broken and repaired', async () => {
  const cluster = await makeCluster({
    regions: 2,
    tables: TABLES,
    config: { tables: { 'public.forms': { conflict: 'columns', columns: { doc: 'map' } } } },
  });
  onTestFinished(() => cluster[Symbol.asyncDispose]());
  const [tokyo, frankfurt] = ['tokyo', 'frankfurt'];
  const shown = (region: string, id = 1): Promise<unknown> =>
    cluster.value(region, `select doc::text from forms where id = ${id}`);
  const apart = async (write: (region: string) => Promise<unknown>): Promise<void> => {
    await Promise.all(cluster.regions.map((region) => cluster.stopAgent(region)));
    for (const region of cluster.regions) await write(region);
    await cluster.startAgents();
  };

  const wrong = await cluster.cliWith({ tables: { 'public.texts': { columns: { doc: 'map' } } } }, 'apply');
  expect(wrong.code).toBe(5);
  expect(wrong.err.replace(/\s+/g, ' ')).toContain('has the column doc as json; the rule map is for what is jsonb');

  // Rows of before replication, of which one is another in the other region.
  await cluster.query(
    tokyo,
    `insert into forms values (1, 'both', '{"a": 1, "t": 1}'), (2, 'tokyo', '{"n": {"x": 1}}')`,
  );
  await cluster.query(frankfurt, `insert into forms values (1, 'both', '{"a": 2, "f": 1}')`);
  await cluster.install();
  await cluster.startAgents();
  await cluster.converged();
  for (const region of cluster.regions) expect(await shown(region)).toBe('{"a": 2, "f": 1, "t": 1}');

  await apart((region) =>
    cluster.query(region, `update forms set doc = jsonb_set(doc, '{n,${region}}', '1') where id = 2`),
  );
  await cluster.converged();
  expect(await shown(frankfurt, 2)).toBe('{"n": {"x": 1, "tokyo": 1, "frankfurt": 1}}');

  // Of one path the later value stays; the other one can be had from the record.
  await cluster.everywhere('delete from coregent.conflict_record');
  await apart((region) => cluster.query(region, `update forms set doc = doc || '{"a": "${region}"}' where id = 1`));
  await cluster.converged();
  expect(await shown(tokyo)).toBe('{"a": "frankfurt", "f": 1, "t": 1}');
  const { conflicts } = JSON.parse((await cluster.cli('--json', 'conflicts', 'list')).out);
  const met = conflicts.find(({ region }: { region: string }) => region === tokyo);
  expect(met).toMatchObject({ kind: 'update_origin_differs', rule: 'columns', outcome: 'apply' });
  const settled = await cluster.cli('conflicts', 'settle', met.id, '--region', tokyo, '--merge', 'doc=local');
  expect(settled.code, settled.err).toBe(0);
  await cluster.converged();
  expect(await shown(frankfurt)).toBe('{"a": "tokyo", "f": 1, "t": 1}');

  // What the joined document breaks is parked, whole, until somebody takes one of the keys out.
  const keys: Record<string, string> = { tokyo: 'this', frankfurt: 'that' };
  await apart((region) => cluster.query(region, `update forms set doc = doc || '{"${keys[region]}": 1}' where id = 1`));
  await cluster.confirmed();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked')).toBe(1);
  }
  await cluster.query(tokyo, `update forms set doc = doc - 'this' where id = 1`);
  await cluster.confirmed();
  for (const region of cluster.regions) {
    await cluster.cli('conflicts', 'settle', '--retry-all', '--region', region);
  }
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await shown(region)).toBe('{"a": "tokyo", "f": 1, "t": 1, "that": 1}');
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked')).toBe(0);
  }

  // A row that missed an update, as after a restore.
  const session = await cluster.session(frankfurt);
  await session.query(
    `begin; set local session_replication_role = replica; update forms set doc = '{}', _coregent_state = null, _coregent_version = 1, _coregent_parent = -1 where id = 2; commit`,
  );
  expect((await cluster.cli('verify')).code).toBe(3);
  expect((await cluster.cli('verify', '--repair')).code).toBe(0);
  expect((await cluster.cli('verify')).code).toBe(0);
  expect(await shown(frankfurt, 2)).toBe('{"n": {"x": 1, "tokyo": 1, "frankfurt": 1}}');
});
