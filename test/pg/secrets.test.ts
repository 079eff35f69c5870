import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Agent, startAgent } from '../../src/agent/agent.ts';
import { runCli } from '../../src/cli/program.ts';
import { parseConfig } from '../../src/config.ts';
import { createLogger } from '../../src/log.ts';
import { literal } from '../../src/quote.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { until } from '../world/until.ts';

/** Part of every password, and of nothing else. */
const CANARY = 'c4n4ry';
/** With letters that end a password wherever somebody forgot to encode it. */
const PASSWORD = `${CANARY}@1 ${CANARY}:2/${CANARY}#3?${CANARY}&4=${CANARY}'5"${CANARY}\\6%${CANARY}`;

let cluster: Cluster;
let folder: string;
const role = (): string => `${cluster.name}_secretive`;
/** All that anybody was told. */
const told: { readonly by: string; readonly text: string }[] = [];
const tell = (by: string, text: string): void => {
  told.push({ by, text });
};

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'coregent-secrets-'));
  cluster = await makeCluster({
    regions: 2,
    tables: 'create table items (id int primary key, v text unique)',
  });
  await cluster.query('tokyo', `create role ${role()} superuser login password ${literal(PASSWORD)}`);
  await cluster.query('frankfurt', `create role ${role()} superuser login password ${literal(PASSWORD)}`);
});
afterAll(async () => {
  await cluster.everywhere(`reassign owned by ${role()} to current_user; drop owned by ${role()}; drop role ${role()}`);
  await cluster[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

/** The region's url with the password that all the world looks for, changed. */
function url(
  region: string,
  change: Partial<Record<'password' | 'port' | 'pathname' | 'search' | 'username', string>> = {},
): string {
  const made = new URL(cluster.url(region));
  made.username = role();
  made.password = encodeURIComponent(change.password ?? PASSWORD);
  if (change.port) made.port = change.port;
  if (change.pathname) made.pathname = change.pathname;
  if (change.search) made.search = change.search;
  if (change.username) made.username = change.username;
  return made.href;
}

const file = (tokyo: string, frankfurt: string, more: Readonly<Record<string, unknown>> = {}): string =>
  JSON.stringify({
    cluster: cluster.name,
    regions: { tokyo: { id: 1, url: tokyo }, frankfurt: { id: 2, url: frankfurt } },
    tables: { 'public.*': {} },
    ...more,
  });

/** Runs a command line, at its wordiest, for people and for machines. */
async function run(text: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<number> {
  let code = 0;
  const path = join(folder, 'coregent.yaml');
  await writeFile(path, text, { mode: 0o600 });
  for (const form of [[], ['--json']]) {
    const stream = (name: string) => ({ write: (said: string) => tell(`${args.join(' ')} (${name})`, said) });
    const io = { env: { COREGENT_DEBUG: '1', ...env }, stdout: stream('stdout'), stderr: stream('stderr') };
    code = await runCli(['--config', path, '--verbose', ...form, ...args], io);
  }
  return code;
}

/** Starts an agent that tells all that it logs. */
async function start(text: string, region: string): Promise<Agent> {
  const log = createLogger({ level: 'debug', region, to: { write: (line) => tell(`agent of ${region}`, line) } });
  return await startAgent(parseConfig(text, { path: 'coregent.yaml', env: {} }), region, { port: 0, log });
}

/** What an agent says to who asks. */
async function ask(agent: Agent): Promise<void> {
  for (const path of ['/livez', '/readyz?verbose', '/metrics', '/v1/status', '/v1/conflicts', `/${CANARY.slice(1)}`]) {
    const response = await fetch(`${agent.url}${path}`);
    tell(`GET ${path}`, `${JSON.stringify([...response.headers])} ${await response.text()}`);
  }
}

/** What the regions keep: the catalog, what is shown of sessions, and the slots. */
async function look(): Promise<void> {
  for (const region of cluster.regions) {
    const { rows } = await cluster.query(
      region,
      `select c.oid::regclass::text as name from pg_class c where relnamespace = 'coregent'::regnamespace and relkind in ('r', 'v')`,
    );
    for (const name of [
      ...rows.map((row) => row.name),
      'pg_stat_activity',
      'pg_replication_slots',
      'pg_replication_origin',
    ]) {
      const { rows: kept } = await cluster.query(region, `select t::text from ${name} t`);
      tell(`${name} of ${region}`, JSON.stringify(kept));
    }
  }
}

const leaks = (): readonly string[] =>
  told.filter(({ text }) => text.includes(CANARY)).map(({ by, text }) => `${by}: ${text}`);
/** Whether somebody was told of this at all. */
const wasTold = (word: string): boolean => told.some(({ text }) => text.includes(word));

const COMMANDS = [
  ['doctor'],
  ['doctor', '--grants'],
  ['apply', '--dry-run'],
  ['apply'],
  ['status'],
  ['verify'],
  ['verify', '--repair'],
  ['conflicts', 'list'],
  ['remove', '--yes'],
];

test('J6: no command says a password of a configuration that is wrong', async () => {
  const good = 'postgres://u:p@127.0.0.1:1/db';
  const raw = `postgres://u:${PASSWORD}@127.0.0.1:1/db`;
  const slash = `postgres://u:1/${CANARY}@127.0.0.1:1/db`;
  const encoded = `postgres://u:${encodeURIComponent(PASSWORD)}@127.0.0.1:1/db`;
  const text = file('$' + '{TOKYO_URL}', good);
  for (const value of [
    raw,
    slash,
    CANARY,
    `mysql://u:${CANARY}@h/db`,
    `postgres://u:${CANARY}@h1,h2/db`,
    `postgres://u:${CANARY}@h`,
  ]) {
    expect(await run(text, ['status'], { TOKYO_URL: value }), value).toBe(2);
  }
  const faulty = [
    `regions:\n  tokyo: { id: 1, url: "${raw} }\n  frankfurt: {}`,
    `regions:\n  tokyo: { id: 1, url: ${raw} }`,
    `regions:\n tokyo:\n   url: '${encoded}'\n  id: 1`,
    `regions:\n  tokyo: ${encoded}\n  frankfurt: [${encoded}]\n  "${encoded}": { id: 1 }`,
    file(good, encoded, {
      password: PASSWORD,
      defaults: { conflict: encoded },
      tables: { [encoded]: {}, 'a.b': { conflict: PASSWORD } },
    }),
    JSON.stringify({
      cluster: encoded,
      regions: { tokyo: { id: encoded, url: encoded, password: PASSWORD }, [encoded]: { id: 2 } },
      [encoded]: 1,
    }),
    file(encoded, encoded, { clock: { max_offset: encoded }, batch: encoded }),
    `\${${encoded}}`,
  ];
  for (const each of faulty) expect(await run(each, ['apply']), each).toBe(2);
  expect(await run(text, ['init', '--region', encoded])).toBe(2);
  for (const region of [`tokyo=${raw}`, `tokyo=${slash}`, `tokyo=${encoded}`]) {
    await run(
      text,
      ['init', '--force', '--out', join(folder, 'written.yaml'), '--region', region, '--region', 'frankfurt'],
      {
        FRANKFURT_URL: encoded,
      },
    );
  }
  for (const args of [
    [encoded],
    ['status', encoded],
    ['start', '--region', encoded],
    ['status', '--config', encoded],
    ['verify', '--table', encoded],
  ]) {
    expect(await run(file(good, encoded), args), `${args}`).not.toBe(0);
  }
  expect(leaks()).toEqual([]);
  expect(wasTold('config_invalid')).toBe(true);
});

test('J6: no command, agent or table says a password, whatever fails', async () => {
  const good = file(url('tokyo'), url('frankfurt'));
  const wrong = [
    url('tokyo', { password: `${CANARY} of another` }),
    url('tokyo', { username: `${role()}_unknown` }),
    url('tokyo', { port: '1' }),
    url('tokyo', { pathname: '/nowhere' }),
    url('tokyo', { search: '?sslmode=verify-full' }),
    url('tokyo', { search: `?sslmode=verify-full&sslrootcert=/nowhere&sslpassword=${CANARY}` }),
    url('tokyo', { search: `?password=${CANARY}+${CANARY}` }),
  ];
  for (const [index, each] of wrong.entries()) {
    for (const args of index === 0 ? COMMANDS : [['doctor'], ['status'], ['apply']])
      await run(file(each, url('frankfurt')), args);
  }

  expect(await run(good, ['apply'])).toBe(0);
  const tokyo = await start(good, 'tokyo');
  let frankfurt = await start(good, 'frankfurt');
  const streams = (agent: Agent): boolean => agent.status().peers.every(({ state }) => state === 'streaming');
  try {
    await until(() => streams(tokyo) && streams(frankfurt), { what: 'both to stream' });
    await cluster.query('tokyo', `insert into items values (1, 'one')`);
    await cluster.query('frankfurt', `insert into items values (2, 'two')`);
    await cluster.converged();
    await frankfurt.stop();
    await cluster.query('tokyo', `update items set v = 'of tokyo' where id = 1`);
    await cluster.query('frankfurt', `update items set v = 'of frankfurt' where id = 1`);
    // One that stays parked: nobody settles what only a check refuses.
    await cluster.query('frankfurt', `alter table items add constraint plain check (v <> 'odd')`);
    await cluster.query('tokyo', `insert into items values (3, 'odd')`);
    for (const each of wrong) {
      frankfurt = await start(file(each, url('frankfurt')), 'frankfurt');
      await until(() => frankfurt.status().peers[0]?.last_error, { what: 'the error to be shown' });
      await ask(frankfurt);
      await frankfurt.stop();
    }
    frankfurt = await start(good.replace('"id":2', `"id":2,"localUrl":${JSON.stringify(wrong[0])}`), 'frankfurt');
    await until(() => wasTold('database.lost'), { what: 'the lost database to be said' });
    await ask(frankfurt);
    await frankfurt.stop();
    frankfurt = await start(good, 'frankfurt');
    await cluster.confirmed();
    for (const each of [tokyo, frankfurt]) await ask(each);
    for (const args of COMMANDS.slice(0, -1)) await run(good, args);
    expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.parked')).toBeGreaterThan(0);
    expect(await cluster.value('frankfurt', 'select count(*)::int from coregent.conflicts')).toBe(1);
    await look();
    // Statements that fail.
    await cluster.everywhere(
      'drop table coregent.conflict_record cascade; alter table coregent.progress rename to progressed',
    );
    for (const args of COMMANDS.slice(0, -1)) await run(good, args);
    await cluster.query('tokyo', `insert into items values (5, 'five')`);
    await until(() => frankfurt.status().peers[0]?.last_error?.code === 'schema_missing', {
      what: 'the missing table to be said',
    });
    await ask(frankfurt);
    await look();
  } finally {
    await Promise.all([tokyo.stop(), frankfurt.stop()]);
  }
  await run(good, ['remove', '--yes']);
  expect(leaks()).toEqual([]);
  for (const code of [
    'peer_denied',
    'peer_unreachable',
    'peer_database_missing',
    'schema_missing',
    'row.parked',
    'conflict.recorded',
    '"level":"debug"',
  ]) {
    expect(wasTold(code), code).toBe(true);
  }
});
