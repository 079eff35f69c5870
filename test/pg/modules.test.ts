import { mkdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { documentOf, editText, textOf } from '../../src/text.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

const TABLES = `
  create table notes (id int primary key, body bytea);
  create table tickets (id int primary key, title text, urgency int, seen bigint, tags text[], at timestamptz);
  create table stocks (id int primary key, n int);`;
const most = (over: string): string => `create or replace function most(versions stocks[]) returns stocks
  immutable language plpgsql set search_path = public as $$
  declare
    one stocks := versions[1];
  begin
    one.n := (select max(v.n) from unnest(versions) v) + ${over};
    return one;
  end $$`;
const RULES = {
  'public.notes': { columns: { body: 'text' } },
  'public.tickets': { custom: './resolvers/ticket.ts' },
  'public.stocks': { custom: 'public.most' },
};
const ticket = (comment: string): string => `// ${comment}
interface Version { readonly region: number; readonly row: Readonly<Record<string, any>> }
export default function settle(versions: readonly Version[]) {
  const last = versions.at(-1)!;
  const all = [...versions].sort((a, b) => a.region - b.region);
  return {
    ...last.row,
    title: all.map(({ row }) => row.title).join(' & '),
    urgency: Math.max(...all.map(({ row }) => row.urgency as number)),
    seen: all.reduce((sum, { row }) => sum + BigInt(row.seen), 0n),
    tags: [...new Set(all.flatMap(({ row }) => row.tags as string[]))],
  };
}
`;

async function apart(cluster: Cluster, work: (region: string) => Promise<unknown>): Promise<void> {
  await cluster.cut('tokyo', 'frankfurt');
  await Promise.all(cluster.regions.map(work));
  await cluster.heal();
}

const reasons = (cluster: Cluster, region: string): string[] => {
  const [peer] = cluster.regions.filter((each) => each !== region);
  return cluster.peer(region, peer!).paused.map(({ table, reason }) => `${table}: ${reason}`);
};

test('documents, modules and functions settle what regions write at once; where a rule is not the same it pauses, and goes on', async () => {
  await using cluster = await makeCluster({ regions: 2, tables: TABLES, viaProxy: true, config: { tables: RULES } });
  const folder = join(dirname(cluster.configFile), 'resolvers');
  const file = join(folder, 'ticket.ts');
  await mkdir(folder);

  // Every fault at once, by apply and by doctor.
  await writeFile(file, 'export const settle = 1;');
  const wrong = { ...RULES, 'public.stocks': { columns: { n: 'text' } } };
  for (const command of ['apply', 'doctor']) {
    const { code, out, err } = await cluster.cliWith({ tables: wrong }, command);
    expect(code, out).toBe(command === 'apply' ? 5 : 3);
    const said = (out + err).replace(/\s+/g, ' ');
    expect(said).toContain('has the rule ./resolvers/ticket.ts, and it has no default export that is a function');
    expect(said).toContain('has the column n as integer; the rule text is for what is bytea');
  }
  await rm(file);
  const missing = await cluster.cli('apply');
  expect(missing.code).toBe(5);
  expect(missing.err).toContain('there is no such file: ./resolvers/ticket.ts');
  expect(missing.err).toContain('there is no function public.most(public.stocks[]) that returns public.stocks');

  await writeFile(file, ticket('first'));
  await cluster.everywhere(most('0'));
  await cluster.install();
  await cluster.startAgents();
  await cluster.query('tokyo', 'insert into notes values (1, $1)', [Buffer.from(documentOf('.'))]);
  await cluster.query('tokyo', `insert into tickets values (1, 'ticket', 1, 1, '{}', '2026-01-02 03:04:05.678901+09')`);
  await cluster.query('tokyo', 'insert into stocks values (1, 1)');
  await cluster.converged();

  const writeAll = async (region: string): Promise<void> => {
    const index = cluster.regions.indexOf(region) + 1;
    const body = (await cluster.value(region, 'select body from notes')) as Buffer;
    const edited = editText(body, [{ at: 0, insert: `<${region}>` }]);
    await cluster.query(region, 'update notes set body = $1', [Buffer.from(edited)]);
    await cluster.query(
      region,
      `update tickets set title = $1, urgency = $2, seen = '4611686018427387900', tags = array[$1, 'both']`,
      [region, index],
    );
    await cluster.query(region, 'update stocks set n = $1', [index * 10]);
  };
  await apart(cluster, writeAll);
  await cluster.converged();
  for (const region of cluster.regions) {
    const text = textOf((await cluster.value(region, 'select body from notes')) as Buffer);
    expect(text).toMatch(/^(<tokyo><frankfurt>|<frankfurt><tokyo>)\.$/);
    const { rows } = await cluster.query(
      region,
      `select title, urgency, seen, tags, at = '2026-01-01 18:04:05.678901Z' as exact from tickets`,
    );
    expect(rows).toEqual([
      {
        title: 'tokyo & frankfurt',
        urgency: 2,
        seen: '9223372036854775800',
        tags: ['tokyo', 'both', 'frankfurt'],
        exact: true,
      },
    ]);
    expect(await cluster.value(region, 'select n from stocks')).toBe(20);
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked')).toBe(0);
  }

  // Another module than the regions agreed on, and another function in one of them.
  await writeFile(file, ticket('second'));
  await cluster.query('frankfurt', most('1'));
  const pauses = (): boolean =>
    cluster.regions.every((region) => {
      const said = reasons(cluster, region).join('\n');
      return (
        /tickets: .*is not the one that `coregent apply` was run with/.test(said) &&
        /stocks: the function public\.most/.test(said)
      );
    });
  await until(pauses, { what: 'both tables to pause' });
  await apart(cluster, writeAll);
  const merged = async (): Promise<boolean> => {
    const texts = await Promise.all(cluster.regions.map((region) => cluster.value(region, 'select body from notes')));
    return texts.every((body) => textOf(body as Buffer).length === 2 * '<tokyo><frankfurt>'.length + 1);
  };
  await until(merged, { what: 'the notes to go on' });
  expect(await cluster.value('tokyo', 'select title from tickets')).toBe('tokyo');

  await cluster.query('tokyo', most('1'));
  await cluster.install();
  await cluster.converged();
  for (const region of cluster.regions) {
    expect(await cluster.value(region, 'select title from tickets')).toBe('tokyo & frankfurt');
    expect(await cluster.value(region, 'select n from stocks')).toBe(21);
    expect(await cluster.value(region, 'select count(*)::int from coregent.parked')).toBe(0);
  }
});
