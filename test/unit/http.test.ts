import { request } from 'node:http';
import { connect } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type HttpServer, startHttp } from '../../src/agent/http.ts';
import { createMetrics } from '../../src/metrics.ts';
import type { AgentStatus, PausedTable, PeerStatus } from '../../src/model/api.ts';
import { CoregentError } from '../../src/model/error.ts';

const CANARY = 'cAnArY-7f3';

const peer = (region: string, lag_ms: number | null): PeerStatus => ({
  region,
  id: 2,
  state: 'streaming',
  since: '2026-01-01T00:00:00.000Z',
  received_lsn: '0/2',
  applied_lsn: '0/1',
  durable_lsn: '0/1',
  lag_bytes: 1,
  lag_ms,
  rows_per_second: 0,
  clock_offset_ms: 0,
  transactions: 1,
  rows: 1,
  conflicts: 0,
  paused: [],
  last_error: null,
});

const status: AgentStatus = {
  schema_version: 1,
  cluster: 'shop',
  region: 'tokyo',
  id: 1,
  state: 'active',
  since: '2026-01-01T00:00:00.000Z',
  database: { version: '18.4' },
  tier: 'A',
  peers: [peer('frankfurt', 40), peer('virginia', 900)],
  conflicts: { total: 0, alert: null },
  parked: 0,
};

let now: AgentStatus;
let live: boolean;
let conflicts: (limit: number) => Promise<unknown[]>;
let failures: string[];
let server: HttpServer;

beforeEach(async () => {
  now = status;
  live = true;
  conflicts = async (limit) => [{ limit, version: 9007199254740993n }];
  failures = [];
  const agent = {
    status: () => now,
    live: () => live,
    metricsText: () => createMetrics('tokyo').text(),
    conflicts: (limit: number) => conflicts(limit),
  };
  server = await startHttp({ host: '127.0.0.1', port: 0, agent, onError: (e, path) => failures.push(path + e.code) });
});
afterEach(() => server.close());

interface Answer {
  status: number;
  headers: Record<string, unknown>;
  text: string;
}

function ask(path: string, options: { method?: string; headers?: Record<string, string> } = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = request({ host: '127.0.0.1', port: server.port, path, agent: false, ...options }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (part) => {
        text += part;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text }));
    });
    sent.on('error', reject);
    sent.end();
  });
}

const problemOf = (answer: Answer) => {
  expect(answer.headers['content-type']).toBe('application/problem+json');
  const body = JSON.parse(answer.text);
  expect(body.status).toBe(answer.status);
  return body;
};

describe('/livez', () => {
  it('is 200 while the loops move and 503 when they stand still', async () => {
    expect(await ask('/livez')).toMatchObject({ status: 200, text: 'ok\n' });
    live = false;
    expect(problemOf(await ask('/livez'))).toMatchObject({ status: 503, code: 'stalled' });
  });
});

describe('/readyz', () => {
  const ready = async (path: string) => {
    const answer = await ask(path);
    return { ...answer, body: JSON.parse(answer.text) };
  };

  it('looks at no peer without max-lag: a cut link must not drain every region', async () => {
    now = { ...status, peers: [{ ...peer('frankfurt', null), state: 'waiting' }] };
    expect(await ready('/readyz')).toMatchObject({ status: 200, body: { ready: true, checks: [] } });
  });

  it('compares the worst peer with max-lag', async () => {
    expect((await ready('/readyz?max-lag=1s')).status).toBe(200);
    const late = await ready('/readyz?max-lag=500ms');
    expect(late.status).toBe(503);
    expect(late.headers['retry-after']).toBe('1');
    expect(late.body.checks).toEqual([
      { name: 'lag:virginia', ok: false, detail: 'streaming, lag 900 ms, at most 500 ms' },
    ]);
    now = { ...status, peers: [peer('frankfurt', null)] };
    expect((await ready('/readyz?max-lag=1h')).body.checks[0].detail).toContain('lag not known');
  });

  it('compares tables that pause with max-lag: their rows are as old, however fast the stream is', async () => {
    const pausedFor = (ms: number): PausedTable => ({
      table: 'public.orders',
      state: 'paused',
      reason: 'column v is missing here',
      since: new Date(Date.now() - ms).toISOString(),
      rows: 0,
    });
    now = { ...status, peers: [{ ...peer('frankfurt', 0), paused: [pausedFor(3_600_000)] }] };
    const stale = await ready('/readyz?max-lag=30m');
    expect(stale.status).toBe(503);
    expect(stale.body.checks).toEqual([
      {
        name: 'table:frankfurt:public.orders',
        ok: false,
        detail: expect.stringMatching(/^paused since 20.*, at most/),
      },
    ]);
    expect((await ready('/readyz?max-lag=2h')).status).toBe(200);
    expect((await ready('/readyz')).status).toBe(200);
  });

  it('lists every check with verbose', async () => {
    const names = (await ready('/readyz?verbose&max-lag=1s')).body.checks.map((check: { name: string }) => check.name);
    expect(names).toEqual(['agent', 'database', 'lag:frankfurt', 'lag:virginia']);
  });

  it('tells of too many conflicts, and sends no traffic away for them', async () => {
    const alert = { limit: '10/min', recent: 11, exceeded: true };
    now = { ...status, conflicts: { total: 11, alert } };
    expect(await ready('/readyz')).toMatchObject({ status: 200, body: { ready: true, checks: [] } });
    const check = { name: 'conflicts', ok: false, detail: '11 of late, alert at 10/min', informs: true };
    expect((await ready('/readyz?verbose')).body).toMatchObject({ ready: true });
    expect((await ready('/readyz?verbose')).body.checks.at(-1)).toEqual(check);
    now = { ...status, state: 'standby', conflicts: { total: 11, alert: { ...alert, exceeded: false } } };
    expect((await ready('/readyz?verbose')).body.checks.at(-1)).toMatchObject({ name: 'conflicts', ok: true });
    expect((await ready('/readyz')).status).toBe(503);
  });

  it.each(['starting', 'standby', 'stopping'] as const)('is 503 while %s', async (state) => {
    now = { ...status, state };
    expect(await ready('/readyz')).toMatchObject({ status: 503, body: { checks: [{ name: 'agent', detail: state }] } });
  });

  it('is 503 without the database', async () => {
    now = { ...status, database: { version: null } };
    expect((await ready('/readyz')).body.checks).toEqual([{ name: 'database', ok: false, detail: 'not reachable' }]);
  });

  it.each(['max-lag=1', 'max-lag=', 'max-lag=-1s', 'max_lag=1s', 'token=abc'])(
    'refuses %s, which would else be taken for no bound',
    async (query) => {
      expect(problemOf(await ask(`/readyz?${query}`))).toMatchObject({ status: 400, code: 'bad_parameter' });
    },
  );
});

describe('/v1 and /metrics', () => {
  it('give the status as it is', async () => {
    const answer = await ask('/v1/status');
    expect(JSON.parse(answer.text)).toEqual(status);
    expect(answer.headers).toMatchObject({ 'content-type': 'application/json', 'cache-control': 'no-store' });
  });

  it('give metrics as Prometheus reads them', async () => {
    const answer = await ask('/metrics');
    expect(answer.headers['content-type']).toMatch(/^text\/plain; version=0\.0\.4/);
    expect(answer.text).toMatch(/^coregent_build_info\{.*region="tokyo".*\} 1$/m);
  });

  it('give conflicts up to a limit, and integers beyond 2^53 exactly', async () => {
    expect(JSON.parse((await ask('/v1/conflicts')).text).conflicts[0].limit).toBe(100);
    expect((await ask('/v1/conflicts?limit=7')).text).toContain('"limit":7,"version":"9007199254740993"');
    for (const limit of ['0', '1001', '-1', 'x', '1e2', '']) {
      expect(problemOf(await ask(`/v1/conflicts?limit=${limit}`)).status).toBe(400);
    }
  });

  it('say what failed without a stack or a password', async () => {
    conflicts = () => Promise.reject(new CoregentError('peer_unreachable', `no postgres://a:${CANARY}@h/d`));
    const down = problemOf(await ask('/v1/conflicts'));
    expect(down).toMatchObject({ status: 503, code: 'peer_unreachable' });
    conflicts = () => Promise.reject(new TypeError('x is undefined'));
    const fault = await ask('/v1/conflicts');
    expect(problemOf(fault)).toMatchObject({ status: 500, code: 'unknown' });
    expect(JSON.stringify(down) + fault.text).not.toMatch(/cAnArY|at .*\.ts/);
    expect(failures).toEqual(['/v1/conflictspeer_unreachable', '/v1/conflictsunknown']);
  });
});

describe('every path', () => {
  it('answers HEAD without a body', async () => {
    for (const path of ['/livez', '/readyz', '/metrics', '/v1/status', '/v1/conflicts']) {
      expect(await ask(path, { method: 'HEAD' }), path).toMatchObject({ status: 200, text: '' });
    }
  });

  it('is 404 when unknown and 405 for other methods', async () => {
    expect(problemOf(await ask('/nothing')).code).toBe('not_found');
    expect(problemOf(await ask('/')).status).toBe(404);
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
      const answer = await ask('/v1/status', { method });
      expect(problemOf(answer).status).toBe(405);
      expect(answer.headers.allow).toBe('GET, HEAD');
    }
  });

  it.each([
    ['evil.example', 403],
    ['evil.example:7420', 403],
    ['127.0.0.1.evil.example', 403],
    ['localhost.evil.example', 403],
    ['localhost:7420', 200],
    ['LOCALHOST', 200],
    ['tokyo.localhost', 200],
    ['[::1]:7420', 200],
    ['10.1.2.3:7420', 200],
  ])('answers a browser that asks for %s with %i', async (host, expected) => {
    const answer = await ask('/v1/status', { headers: { host } });
    expect(answer.status).toBe(expected);
    if (expected === 403) expect(answer.text).not.toContain('shop');
  });

  it('refuses pages of other sites', async () => {
    const host = `127.0.0.1:${server.port}`;
    const from = async (origin: string) => (await ask('/v1/status', { headers: { host, origin } })).status;
    expect(await from(`http://${host}`)).toBe(200);
    expect(await from('http://evil.example')).toBe(403);
    expect(await from('http://127.0.0.1:1')).toBe(403);
    expect(await from('null')).toBe(403);
  });

  it('J13: names, values and errors are never read as a page or a script, whatever is in them', async () => {
    const script = '</script><script>alert(1)</script><img src=x onerror=alert(1)>';
    const paused = { table: script, state: 'paused', reason: script, since: status.since, rows: 0 } as const;
    const last_error = { code: 'apply_failed', message: script, at: status.since };
    now = { ...status, peers: [{ ...peer('frankfurt', 1), paused: [paused], last_error }] };
    conflicts = async () => [{ table_name: script, local_row: { v: script } }];
    const said = [];
    for (const path of [
      '/v1/status',
      '/v1/conflicts',
      '/readyz?verbose',
      '/metrics',
      `/${encodeURI(script)}`,
      `/readyz?${encodeURI(script)}`,
    ]) {
      said.push(await ask(path));
    }
    conflicts = async () => Promise.reject(new CoregentError('apply_failed', script));
    said.push(await ask('/v1/conflicts'));
    expect(said.map(({ status }) => status)).toEqual([200, 200, 200, 200, 404, 400, 500]);
    for (const { headers } of said) {
      expect(headers['content-type']).toMatch(/^(application\/(problem\+)?json|text\/plain; version)/);
      expect(headers['x-content-type-options']).toBe('nosniff');
      expect(headers['content-security-policy']).toContain("default-src 'none'");
    }
  });

  it('answers HTTP/1.0 probes that send no Host', async () => {
    const text = await new Promise<string>((resolve, reject) => {
      let got = '';
      const socket = connect(server.port, '127.0.0.1', () => socket.write('GET /livez HTTP/1.0\r\n\r\n'));
      socket.on('data', (part) => {
        got += part;
      });
      socket.on('end', () => resolve(got));
      socket.on('error', reject);
    });
    expect(text).toMatch(/^HTTP\/1\.[01] 200 /);
  });
});

describe('startHttp', () => {
  it('says which port is taken and what to do', async () => {
    const agent = { status: () => now, live: () => true, metricsText: async () => '', conflicts: async () => [] };
    await expect(startHttp({ host: '127.0.0.1', port: server.port, agent })).rejects.toMatchObject({
      code: 'port_unavailable',
      where: `127.0.0.1:${server.port}`,
      cure: expect.stringContaining('--port'),
    });
  });

  it('closes connections that are kept open', async () => {
    const socket = connect(server.port, '127.0.0.1');
    await new Promise((resolve) => socket.on('connect', resolve));
    const ended = new Promise((resolve) => socket.on('close', resolve));
    await server.close();
    await ended;
  });
});
