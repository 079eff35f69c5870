import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { commandLine } from '../world/agent.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';

let cluster: Cluster;

beforeAll(async () => {
  cluster = await makeCluster({
    regions: 2,
    viaProxy: true,
    tables: `create table items (id bigint primary key, v text);
      create table "odd
name" (id int primary key, v text)`,
  });
  await cluster.install();
  await cluster.startAgents();
  await cluster.cut('tokyo', 'frankfurt');
  for (const region of cluster.regions) {
    await cluster.query(region, `insert into items values (9007199254740993, $1), (2, $1), (3, 'same')`, [region]);
    await cluster.query(region, `insert into "odd\nname" values (1, $1)`, [`${region}\u001b[2J`]);
  }
  await cluster.heal();
  await cluster.converged();
});
afterAll(() => cluster[Symbol.asyncDispose]());

async function conflicts(...args: string[]) {
  const { code, out, err } = await cluster.cli('conflicts', 'list', '--json', ...args);
  expect({ code, err }).toEqual({ code: 0, err: '' });
  return JSON.parse(out).conflicts as Record<string, unknown>[];
}

test('conflicts list has both rows, both origins and the outcome, of every region', async () => {
  const all = await conflicts();
  expect(all).toHaveLength(8);
  const times = all.map(({ recorded_at: at }) => String(at));
  expect(times).toEqual([...times].sort().reverse());
  for (const region of cluster.regions) {
    const [row] = all.filter((each) => each.region === region && JSON.stringify(each.key) === '{"id":2}');
    const other = region === 'tokyo' ? 'frankfurt' : 'tokyo';
    expect(row).toMatchObject({
      table_name: 'public.items',
      kind: 'insert_exists',
      rule: 'lww',
      // The later write won, wherever one looks.
      outcome: region === 'tokyo' ? 'apply' : 'keep',
      local_origin: region,
      incoming_origin: other,
      local_row: { id: 2, v: region },
      incoming_row: { id: 2, v: other },
    });
  }
});

test('numbers too large for JavaScript are printed whole', async () => {
  const { out } = await cluster.cli('conflicts', 'list', '--json');
  expect(out).toContain('9007199254740993');
  expect((await cluster.cli('conflicts', 'list')).out).toContain('9007199254740993');
  const version = await cluster.value('tokyo', 'select local_version::text from coregent.conflict_record limit 1');
  expect(out).toContain(String(version));
});

test('conflicts list is narrowed by region, table and number', async () => {
  expect(await conflicts('--region', 'tokyo')).toHaveLength(4);
  expect(await conflicts('--table', 'public.odd\nname')).toHaveLength(2);
  expect(await conflicts('--table', 'public.items', '--region', 'frankfurt', '--limit', '2')).toHaveLength(2);
  expect((await conflicts('--limit', '3')).every((row) => row.region === 'frankfurt' || row.region === 'tokyo')).toBe(
    true,
  );
  expect(await conflicts('--table', 'public.nothing')).toEqual([]);
  expect((await cluster.cli('conflicts', 'list', '--table', 'public.nothing')).out).toBe('No conflict is recorded.\n');
  for (const args of [
    ['--region', 'mars'],
    ['--limit', '0'],
  ]) {
    expect(await cluster.cli('conflicts', 'list', ...args)).toMatchObject({ code: 2, out: '' });
  }
  expect(await cluster.cli('conflicts', 'forget')).toMatchObject({ code: 2 });
});

test('names and values of the database cannot command the terminal', async () => {
  for (const args of [['conflicts', 'list'], ['status'], ['verify']]) {
    const { out, err } = await cluster.cli(...args);
    for (const raw of ['\u001b', 'odd\nname']) expect((out + err).includes(raw), `${args}`).toBe(false);
  }
});

test('no command prints a password, whatever fails', async () => {
  const url = new URL(cluster.url('tokyo'));
  const secret = url.password;
  expect(secret.length).toBeGreaterThan(8);
  const frankfurt = { id: 2, url: cluster.url('frankfurt') };
  for (const [part, value] of [
    ['pathname', '/nowhere'],
    ['port', '1'],
    ['username', 'nobody'],
  ] as const) {
    const wrong = new URL(url);
    wrong[part] = value;
    const change = { regions: { tokyo: { id: 1, url: wrong.href }, frankfurt } };
    for (const args of [
      ['apply'],
      ['status'],
      ['status', '--json'],
      ['verify'],
      ['conflicts', 'list'],
      ['remove', '--yes'],
    ]) {
      const { code, out, err } = await cluster.cliWith(change, ...args);
      expect(code, `${args} ${err}`).toBe(4);
      expect(out + err).not.toContain(secret);
    }
  }
});

test('the installed command works from a shell: results on stdout, faults on stderr, their exit codes', async () => {
  const [program, args] = commandLine(['--config', cluster.configFile]);
  const run = promisify(execFile);
  const { stdout, stderr } = await run(program, [...args, 'status', '--json']);
  expect(JSON.parse(stdout)).toMatchObject({ cluster: cluster.name, regions: [{ state: 'ok' }, { state: 'ok' }] });
  expect(stderr).toBe('');
  await expect(run(program, [...args, 'start', '--region', 'mars'])).rejects.toMatchObject({
    code: 2,
    stdout: '',
    stderr: expect.stringContaining('there is no region mars'),
  });
});
