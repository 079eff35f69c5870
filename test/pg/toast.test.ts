import { expect, it } from 'vitest';
import { makeCluster } from '../world/cluster.ts';
import { seeded, seedOfRun } from '../world/random.ts';

const WRITES = 250;
const IDS = 4;

/** Each write has a tag of its own in `v`, and leaves what it does not name: long values, mostly. */
const IMAGE = `concat_ws(' ', id, v, md5(big), md5(other))`;

it('C1, C2, INV-W: three regions write different columns of rows with long values: every row seen anywhere is one that somebody wrote', async () => {
  const seed = seedOfRun('toast');
  await using cluster = await makeCluster({
    tables: `create table docs (id int primary key, v text unique, big text, other text);
      alter table docs alter column big set storage external, alter column other set storage external`,
  });
  await cluster.install();
  await cluster.startAgents();
  const written = new Set<string>();
  const seen = new Set<string>();
  let deleted = 0;
  const look = async (region: string): Promise<void> => {
    for (const row of (await cluster.query(region, `select ${IMAGE} as image from docs`)).rows) seen.add(row.image);
  };
  await Promise.all(
    cluster.regions.map(async (region, index) => {
      const random = seeded(seed + index);
      const one = (of: number): number => Math.floor(random() * of);
      const session = await cluster.session(region);
      for (let n = 0; n < WRITES; n++) {
        const id = one(IDS);
        const tag = `${region}-${n}`;
        const long = `repeat('${tag} ', ${500 + one(500)})`;
        const statement = [
          `insert into docs values (${id}, '${tag}', ${long}, ${long}) on conflict (id) do update set v = excluded.v, other = excluded.other`,
          `update docs set v = '${tag}' where id = ${id}`,
          `update docs set v = '${tag}', big = ${long} where id = ${id}`,
          `update docs set v = '${tag}', other = ${long} where id = ${id}`,
          `update docs set v = '${tag}', other = null where id = ${id}`,
          `delete from docs where id = ${id}`,
        ][one(6)]!;
        const { rows } = await session.query(`${statement} returning ${IMAGE} as image`).catch((error) => {
          // Told to try again: its key was deleted while it waited.
          if (error.code !== '40001') throw error;
          return { rows: [] };
        });
        if (statement.startsWith('delete')) deleted += rows.length;
        else for (const row of rows) written.add(row.image);
        if (n % 5 === 0) await look(region);
      }
    }),
  );
  await cluster.converged();
  for (const region of cluster.regions) await look(region);
  expect([...seen].filter((image) => !written.has(image))).toEqual([]);
  expect(deleted).toBeGreaterThan(20);
  const conflicts = await Promise.all(
    cluster.regions.map((region) => cluster.value(region, 'select count(*)::int from coregent.conflict_record')),
  );
  expect(Math.min(...conflicts.map(Number))).toBeGreaterThan(5);
  for (const region of cluster.regions)
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked')).toBe(0);
});
