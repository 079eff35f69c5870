import { readFile, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { makeCluster } from '../world/cluster.ts';
import { runCommand } from '../world/command.ts';

test('a table keeps the rule that its rows were written under, and apply says so', async () => {
  await using cluster = await makeCluster({
    regions: 2,
    tables: 'create table likes (id int primary key, n int not null)',
  });
  await cluster.install();
  const before = await readFile(cluster.configFile, 'utf8');
  const after = { ...JSON.parse(before), tables: { 'public.likes': { columns: { n: 'counter' } } } };
  await writeFile(cluster.configFile, JSON.stringify(after));
  const { code, err } = await runCommand(cluster.configFile, ['apply']);
  expect(err).toMatch(/public\.likes settles conflicts by lww, and its rows cannot be carried over to .*counter/);
  expect(code).toBe(5);
  expect(await cluster.value('tokyo', 'select rule from coregent.tables')).toBe('lww');
});
