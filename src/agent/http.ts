import { createServer, type Server } from 'node:http';
import { isIP } from 'node:net';
import { getRequestListener } from '@hono/node-server';
import { type Context, Hono } from 'hono';
import { METRICS_CONTENT_TYPE } from '../metrics.ts';
import { type AgentStatus, type Problem, SCHEMA_VERSION } from '../model/api.ts';
import { CoregentError, classify } from '../model/error.ts';
import { parseDuration } from '../model/units.ts';
import { readiness } from './ready.ts';

/** What the HTTP API asks of an agent. All but `conflicts` answer from memory: a probe must not wait for a database. */
export interface HttpAgent {
  status(): AgentStatus;
  /** Whether the agent's loops moved recently. */
  live(): boolean;
  metricsText(): Promise<string>;
  /** The newest conflicts first, at most `limit`. */
  conflicts(limit: number): Promise<unknown[]>;
}

/** Where to listen, and for whom. */
export interface HttpOptions {
  readonly host: string;
  /** 0 picks a free one. */
  readonly port: number;
  readonly agent: HttpAgent;
  /** Told of failures that the client only sees as 500 or 503. */
  readonly onError?: (error: CoregentError, path: string) => void;
}

/** A listening HTTP API. */
export interface HttpServer {
  readonly url: string;
  readonly port: number;
  /** Stops listening and closes every connection. */
  close(): Promise<void>;
}

/** Starts the agent's HTTP API. Fails with `port_unavailable`. */
export async function startHttp(options: HttpOptions): Promise<HttpServer> {
  const app = createApp(options);
  const server = createServer(getRequestListener(app.fetch, { hostname: options.host, overrideGlobalObjects: false }));
  server.headersTimeout = 10_000;
  server.requestTimeout = 30_000;
  await listen(server, options);
  const address = server.address();
  const port = typeof address === 'object' && address ? address.port : options.port;
  const host = options.host.includes(':') ? `[${options.host}]` : options.host;
  return {
    url: `http://${host}:${port}`,
    port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function listen(server: Server, { host, port }: HttpOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const why = error.code === 'EADDRINUSE' ? 'something listens there already' : `cannot listen: ${error.code}`;
      reject(new CoregentError('port_unavailable', why, { where: `${host}:${port}`, cause: error }));
    });
    server.listen(port, host, () => {
      server.removeAllListeners('error');
      resolve();
    });
  });
}

function createApp({ agent, host, onError }: HttpOptions): Hono {
  const app = new Hono();

  app.use((c, next) => {
    c.header('cache-control', 'no-store');
    c.header('x-content-type-options', 'nosniff');
    c.header('content-security-policy', "default-src 'none'; frame-ancestors 'none'");
    const refused = originFault(c.req.header('host'), c.req.header('origin'), host);
    return refused ? Promise.resolve(problem(c, 403, 'forbidden', refused)) : next();
  });

  app.get('/livez', (c) =>
    agent.live() ? c.text('ok\n') : problem(c, 503, 'stalled', 'the agent’s loops stand still'),
  );

  app.get('/readyz', (c) => {
    // An unknown parameter is refused: `?max_lag=1s` taken for `?max-lag=1s` would send traffic to a stale region.
    const unknown = Object.keys(c.req.query()).find((key) => key !== 'max-lag' && key !== 'verbose');
    if (unknown !== undefined) return problem(c, 400, 'bad_parameter', `there is no parameter ${quote(unknown)}`);
    const asked = c.req.query('max-lag');
    const maxLagMs = asked === undefined ? undefined : parseDuration(asked);
    if (asked !== undefined && maxLagMs === undefined) {
      return problem(c, 400, 'bad_parameter', `max-lag must be a duration like 500ms or 5s, not ${quote(asked)}`);
    }
    const verbose = c.req.query('verbose');
    const all = verbose !== undefined && verbose !== 'false' && verbose !== '0';
    const answer = readiness(agent.status(), maxLagMs);
    if (!answer.ready) c.header('retry-after', '1');
    const checks = all ? answer.checks : answer.checks.filter(({ ok, informs }) => !ok && !informs);
    return c.json({ ...answer, checks }, answer.ready ? 200 : 503);
  });

  app.get('/metrics', async (c) => c.body(await agent.metricsText(), 200, { 'content-type': METRICS_CONTENT_TYPE }));

  app.get('/v1/status', (c) => json(c, agent.status()));

  app.get('/v1/conflicts', async (c) => {
    const asked = c.req.query('limit') ?? '100';
    const limit = /^\d{1,4}$/.test(asked) ? Number(asked) : 0;
    if (limit < 1 || limit > 1000) {
      return problem(c, 400, 'bad_parameter', `limit must be from 1 to 1000, not ${quote(asked)}`);
    }
    return json(c, { schema_version: SCHEMA_VERSION, conflicts: await agent.conflicts(limit) });
  });

  app.all('*', (c) => {
    const known = app.routes.some((route) => route.method === 'GET' && route.path === c.req.path);
    if (!known) return problem(c, 404, 'not_found', `there is nothing at ${quote(c.req.path)}`);
    c.header('allow', 'GET, HEAD');
    return problem(c, 405, 'method_not_allowed', `${c.req.path} is for GET and HEAD`);
  });

  app.onError((thrown, c) => {
    const error = classify(thrown);
    onError?.(error, c.req.path);
    return problem(c, error.retry === 'never' || error.code === 'unknown' ? 500 : 503, error.code, error.message);
  });
  return app;
}

/**
 * Guards against DNS rebinding: a page of another site may point its own name at this address, and only the Host
 * header tells. A literal address cannot be rebound, so it is always fit.
 */
function originFault(hostHeader: string | undefined, origin: string | undefined, bound: string): string | undefined {
  // Only HTTP/1.0 probes come without a Host, never a browser.
  if (hostHeader !== undefined && !hostFits(hostHeader, bound)) {
    return 'the Host header is neither an address nor a name that this agent listens on';
  }
  if (origin !== undefined && origin !== `http://${hostHeader}` && origin !== `https://${hostHeader}`) {
    return 'the Origin header is of another site';
  }
  return undefined;
}

function hostFits(header: string, bound: string): boolean {
  const url = `http://${header}`;
  if (!/^[\w.:[\]-]+$/.test(header) || !URL.canParse(url)) return false;
  const name = new URL(url).hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '');
  return name === 'localhost' || name.endsWith('.localhost') || name === bound.toLowerCase() || isIP(name) > 0;
}

function quote(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}

function json(c: Context, value: unknown): Response {
  const text = JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? item.toString() : item));
  return c.body(text, 200, { 'content-type': 'application/json' });
}

function problem(c: Context, status: 400 | 403 | 404 | 405 | 500 | 503, code: string, detail: string): Response {
  const title = code.replaceAll('_', ' ');
  const body: Problem = { type: 'about:blank', title, status, detail, code };
  return c.body(JSON.stringify(body), status, { 'content-type': 'application/problem+json' });
}
