import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { networkInterfaces } from 'node:os';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { type Server, startPostgres } from '../../src/demo/postgres.ts';
import { until } from '../world/until.ts';

let server: Server;

beforeAll(async () => {
  server = await startPostgres({ name: 'breakable', settings: { shared_buffers: '16MB' } });
  await query(server, 'create table kept (id int primary key)');
});
afterAll(() => server.remove());

test('a server has the settings that replication needs, and what its caller adds', async () => {
  const { rows } = await query(
    server,
    `select name, setting from pg_settings where name in
      ('wal_level', 'max_wal_senders', 'max_replication_slots', 'fsync', 'listen_addresses', 'unix_socket_directories', 'TimeZone', 'shared_buffers')`,
  );
  expect(Object.fromEntries(rows.map(({ name, setting }) => [name, setting]))).toEqual({
    wal_level: 'logical',
    max_wal_senders: '20',
    max_replication_slots: '20',
    fsync: 'on',
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    TimeZone: 'UTC',
    shared_buffers: '2048',
  });
});

test('a server asks for its password and answers on loopback only', async () => {
  const wrong = Object.assign(new URL(server.url()), { password: 'guess' }).href;
  await expect(query(wrong, 'select 1')).rejects.toMatchObject({ code: '28P01' });
  const outside = Object.values(networkInterfaces())
    .flat()
    .find((address) => address?.family === 'IPv4' && !address.internal);
  if (!outside) return;
  await expect(once(connect(server.port, outside.address), 'connect')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
});

test.each(['fast', 'immediate'] as const)(
  'what was committed survives stop %s and start, on the same port',
  async (mode) => {
    const { port } = server;
    const id = mode === 'fast' ? 1 : 2;
    await query(server, `insert into kept values (${id})`);
    const pid = server.pid;
    await server.stop(mode);
    expect(server.pid).toBeUndefined();
    await expect(query(server, 'select 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    await server.start();
    expect(server.port).toBe(port);
    expect(server.pid).not.toBe(pid);
    expect((await query(server, `select from kept where id = ${id}`)).rowCount).toBe(1);
  },
);

test('kill ends every process at once, and what was committed is recovered', async () => {
  await query(server, 'insert into kept values (3)');
  const busy = new pg.Client({ connectionString: server.url() });
  const dropped = new Promise((resolve) => busy.on('error', resolve));
  await busy.connect();
  const { rows } = await busy.query('select pg_backend_pid() as pid');
  busy.query('select sum(n) from generate_series(1, 1e12) n').catch(() => {}); // Too busy to see that its postmaster died.
  const pid = server.pid as number;
  await server.kill();
  await dropped;
  await until(() => !runs(pid) && !runs(rows[0].pid), { what: 'all its processes to be gone' });
  await server.start();
  expect((await query(server, 'select from kept where id = 3')).rowCount).toBe(1);
});

test('stop and start may be said twice', async () => {
  await server.start();
  await server.stop();
  await server.stop();
  await server.kill();
  await server.start();
  await query(server, 'select 1');
});

test('remove takes the data along', async () => {
  const other = await startPostgres();
  const pid = other.pid as number;
  await other.remove();
  expect(existsSync(other.dataDir)).toBe(false);
  await until(() => !runs(pid), { what: 'the server to be gone' });
});

test('a port that is taken is said to be', async () => {
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  onTestFinished(() => void taken.close());
  const { port } = taken.address() as { port: number };
  await expect(startPostgres({ port })).rejects.toMatchObject({ code: 'port_unavailable' });
});

test('a setting that PostgreSQL refuses is named, and nothing is left behind', async () => {
  const folder = dirname(dirname(server.dataDir));
  const before = await readdir(folder);
  const started = startPostgres({ settings: { wal_level: "it's" } });
  await expect(started).rejects.toThrow(/invalid value for parameter "wal_level": "it's"/);
  expect(await readdir(folder)).toEqual(before);
});

test('a missing package is named with its cure', async () => {
  const started = startPostgres({ major: 13 });
  await expect(started).rejects.toMatchObject({ code: 'unsupported', cure: expect.stringContaining('npm install') });
});

test.each(['SIGKILL', 'SIGTERM', 'exit'] as const)('no server outlives its process: %s', async (end) => {
  const owner = spawnOwner();
  const born = await firstLine(owner);
  expect(runs(born.pid)).toBe(true);
  if (end === 'exit') owner.stdin?.end();
  else owner.kill(end);
  await until(() => !runs(born.pid), { what: 'the server to be gone' });
  await until(() => !existsSync(born.folder), { what: 'its folder to be gone' });
});

test.runIf(process.platform === 'linux')('what a killed watchdog leaves is swept at the next start', async () => {
  const owner = spawnOwner();
  const born = await firstLine(owner);
  const watchdog = (await readdir('/proc')).find((pid) => {
    const line = commandLine(Number(pid));
    return line.includes(born.folder) && line.includes('rmSync');
  });
  process.kill(Number(watchdog), 'SIGKILL');
  await until(() => !runs(Number(watchdog)), { what: 'the watchdog to be gone' });
  owner.kill('SIGKILL');
  await once(owner, 'exit');
  expect(runs(born.pid)).toBe(true);

  const next = spawnOwner();
  await firstLine(next);
  await until(() => !runs(born.pid) && !existsSync(born.folder), { what: 'the sweep' });
});

/** A process of its own that starts a server, says where, and exits when its input ends. */
function spawnOwner(): ChildProcess {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const program = `
    const { runnerImport } = await import('vite');
    const { module } = await runnerImport('./src/demo/postgres.ts', { root: process.cwd(), logLevel: 'error' });
    const server = await module.startPostgres();
    process.stdin.on('end', () => process.exit(0)).resume();
    console.log(JSON.stringify({ pid: server.pid, dataDir: server.dataDir }));
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    cwd: root,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  return child;
}

async function firstLine(owner: ChildProcess): Promise<{ pid: number; folder: string }> {
  let text = '';
  owner.stdout?.setEncoding('utf8').on('data', (part) => {
    text += part;
  });
  await until(() => text.includes('\n') || owner.exitCode !== null, {
    what: 'the server to start',
  });
  const { pid, dataDir } = JSON.parse(text);
  return { pid, folder: dirname(dirname(dataDir)) };
}

async function query(where: Server | string, text: string): Promise<pg.QueryResult> {
  const client = new pg.Client({ connectionString: typeof where === 'string' ? where : where.url() });
  client.on('error', () => {});
  await client.connect();
  try {
    return await client.query(text);
  } finally {
    await client.end();
  }
}

/** Whether a process runs; one that has ended and waits for a parent to ask (as under a pid 1 that never does) doesn't. */
function runs(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  return process.platform !== 'linux' || !readProc(pid, 'stat').includes(') Z ');
}

function commandLine(pid: number): string {
  return readProc(pid, 'cmdline');
}

function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return '';
  }
}
