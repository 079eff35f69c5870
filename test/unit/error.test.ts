import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { assert, CoregentError, classify, EXIT, errors, redact } from '../../src/model/error.ts';
import { Secret } from '../../src/model/secret.ts';

const CANARY = 'cAnArY-7f3';

describe('redact', () => {
  const leaking = [
    `postgres://app:${CANARY}@127.0.0.1:5432/shop`,
    `postgresql://:${CANARY}@db/shop`,
    `postgres://app:${CANARY}/with/slash@db/shop`,
    `postgres://app:${CANARY}#hash@db/shop`,
    `postgres://app:x@${CANARY}@db/shop`,
    `two: postgres://a:${CANARY}@h1/x postgres://b:${CANARY}@h2/y`,
    `https://user:${CANARY}@example.org/`,
    `postgres://db/shop?user=app&password=${CANARY}&sslmode=require`,
    `host=db password=${CANARY} dbname=shop`,
    `host=db password='${CANARY} with \\' quote ${CANARY}' dbname=shop`,
    `PGPASSWORD=${CANARY} psql`,
    `{"password":"${CANARY}"}`,
    `password: ${CANARY}`,
    `alter role app password '${CANARY}'`,
    `alter role app PASSWORD E'it''s ${CANARY}'`,
    `Authorization: Bearer ${CANARY}`,
    `passwd=${CANARY}`,
    `sslpassword=${CANARY}`,
  ];
  it.each(leaking)('masks the password of %s', (text) => {
    expect(redact(text)).not.toContain(CANARY);
    expect(redact(text)).toContain('***');
  });

  const harmless = [
    'password authentication failed for user "app"',
    'connect ECONNREFUSED 127.0.0.1:5432',
    'postgres://127.0.0.1:5432/shop',
    'http://127.0.0.1:7420/readyz?max-lag=1s',
    'relation "public.orders" does not exist',
  ];
  it.each(harmless)('leaves %s as it is', (text) => {
    expect(redact(text)).toBe(text);
  });

  it('keeps what helps: user, host and database', () => {
    expect(redact('postgres://app:pw@db.example:5432/shop')).toBe('postgres://app:***@db.example:5432/shop');
  });

  it('uncovers nothing the second time', () => {
    for (const text of leaking) expect(redact(redact(text))).not.toContain(CANARY);
  });

  it('stays fast on long hostile text', () => {
    const started = performance.now();
    for (const part of ['postgres://a:', 'password=', "password '", 'a://b:', 'password ', 'x'.repeat(10)]) {
      redact(part.repeat(Math.ceil(20_000 / part.length)));
    }
    expect(performance.now() - started).toBeLessThan(2000);
  });
});

describe('CoregentError', () => {
  it('shows no password in message, where, cure, faults, JSON or inspect', () => {
    const url = `postgres://app:${CANARY}@db/shop`;
    const cause = Object.assign(new Error(`cannot reach ${url}`), { input: url, connectionString: url });
    const error = new CoregentError('peer_unreachable', `no way to ${url}`, {
      where: url,
      cure: `check ${url}`,
      cause,
      faults: [{ path: 'regions.tokyo.url', message: url }],
    });
    const shown = [String(error), error.stack, JSON.stringify(error), inspect(error, { depth: 9, showHidden: true })];
    expect(shown.join('\n')).not.toContain(CANARY);
    expect(error.cause).toBe(cause);
  });

  it('takes exit code, retry and cure from the table', () => {
    const error = new CoregentError('slot_lost', 'gone');
    expect([error.exit, error.retry, error.cure]).toEqual([1, 'later', errors.slot_lost.cure]);
    expect(new CoregentError('refused', 'no').exit).toBe(EXIT.refused);
  });

  it('names a broken invariant', () => {
    expect(() => assert(1 > 2, 'progress never moves back')).toThrow(
      expect.objectContaining({ code: 'internal_assert', message: 'progress never moves back' }),
    );
  });
});

describe('classify', () => {
  const coded = (code: string) => Object.assign(new Error('text that must not matter: ECONNREFUSED 28P01'), { code });
  it.each([
    ['ECONNREFUSED', 'peer_unreachable'],
    ['EPIPE', 'peer_unreachable'],
    ['EADDRINUSE', 'port_unavailable'],
    ['DEPTH_ZERO_SELF_SIGNED_CERT', 'peer_untrusted'],
    ['ERR_TLS_CERT_ALTNAME_INVALID', 'peer_untrusted'],
    ['28P01', 'peer_denied'],
    ['57P01', 'peer_restarting'],
    ['57014', 'apply_interrupted'],
    ['53400', 'slot_limit'],
    ['53300', 'peer_busy'],
    ['42P01', 'schema_missing'],
    ['42804', 'schema_differs'],
    ['42501', 'privilege_missing'],
    ['58P01', 'slot_lost'],
    ['23514', 'apply_failed'],
    ['40P01', 'apply_interrupted'],
    ['25006', 'peer_read_only'],
    ['constructor', 'unknown'],
    ['', 'unknown'],
  ])('reads %s as %s', (code, expected) => {
    expect(classify(coded(code)).code).toBe(expected);
  });

  it('gives a text to an error that has none', () => {
    const both = new AggregateError([coded('ECONNREFUSED'), new Error('second')]);
    expect(classify(Object.assign(both, { code: 'ECONNREFUSED' })).message).toMatch(/must not matter.*; second/);
    expect(classify('thrown text').message).toBe('thrown text');
  });

  it.each([
    ['Connection terminated unexpectedly', 'peer_unreachable'],
    ['Client has encountered a connection error and is not queryable', 'peer_unreachable'],
    ['Client was closed and is not queryable', 'peer_unreachable'],
    ['The Connection terminated', 'unknown'],
  ])('reads what node-postgres says by words alone: %s', (text, expected) => {
    expect(classify(new Error(text)).code).toBe(expected);
    expect(classify(Object.assign(new Error(text), { code: '42P01' })).code).toBe('schema_missing');
  });

  it('hands a CoregentError through', () => {
    const error = new CoregentError('refused', 'no');
    expect(classify(error, 'tokyo')).toBe(error);
  });
});

describe('Secret', () => {
  it('is given away by reveal() only', () => {
    const secret = new Secret(`postgres://app:${CANARY}@db/shop`);
    const shown = [
      `${secret}`,
      JSON.stringify({ secret }),
      inspect({ secret }, { showHidden: true }),
      secret.display(),
    ];
    expect(shown.join('\n')).not.toContain(CANARY);
    expect(secret.display()).toBe('postgres://app:***@db/shop');
    expect(new Secret(CANARY).display()).toBe('***');
    expect(secret.reveal()).toContain(CANARY);
  });
});
