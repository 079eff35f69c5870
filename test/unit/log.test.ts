import { describe, expect, it } from 'vitest';
import { createLogger, events, type Fields } from '../../src/log.ts';
import { CoregentError } from '../../src/model/error.ts';
import { Secret } from '../../src/model/secret.ts';

const CANARY = 'cAnArY-7f3';
const URL_TEXT = `postgres://app:${CANARY}@db/shop`;

function capture(human = false) {
  const lines: string[] = [];
  const to = { write: (line: string) => void lines.push(line) };
  return { lines, log: createLogger({ level: 'debug', region: 'tokyo', to, human }) };
}

const driverError = Object.assign(new Error(`cannot reach ${URL_TEXT}`), {
  code: 'ECONNREFUSED',
  connectionString: URL_TEXT,
  parameters: { password: CANARY },
});

const hostile: Fields = {
  url: URL_TEXT,
  secret: new Secret(URL_TEXT),
  error: driverError,
  ours: new CoregentError('peer_unreachable', URL_TEXT, { where: URL_TEXT, cause: driverError }),
  deep: { list: [{ text: `password=${CANARY}` }], password: CANARY, asJson: { toJSON: () => URL_TEXT } },
  bytes: Buffer.from(CANARY),
  settings: new Map([['password', CANARY]]),
};

describe('the log', () => {
  it.each([false, true])('never holds a password (human: %s)', (human) => {
    const { lines, log } = capture(human);
    log.event('peer.retry', hostile);
    log.with(hostile).event('peer.failed');
    expect(lines).toHaveLength(2);
    expect(lines.join('')).not.toContain(CANARY);
    expect(lines.join('')).toContain('ECONNREFUSED');
  });

  it('writes one JSON line an event, with time, level, region and event', () => {
    const { lines, log } = capture();
    log.with({ peer: 'frankfurt' }).event('peer.streaming', { lsn: 5n, at: new Date(0), none: undefined });
    const line = JSON.parse(lines[0]!);
    expect(line).toMatchObject({
      level: 'info',
      region: 'tokyo',
      event: 'peer.streaming',
      peer: 'frankfurt',
      lsn: '5',
      at: '1970-01-01T00:00:00.000Z',
    });
    expect(new Date(line.time).getTime()).toBeGreaterThan(0);
    expect(lines[0]!.endsWith('\n')).toBe(true);
  });

  it('takes the level from the table and is silent below its own', () => {
    const lines: string[] = [];
    const log = createLogger({ level: 'warn', to: { write: (line) => void lines.push(line) } });
    log.event('batch.applied');
    log.event('peer.streaming');
    log.event('clock.ahead');
    expect(lines.map((line) => JSON.parse(line).event)).toEqual(['clock.ahead']);
    expect(events['clock.ahead'].level).toBe('warn');
  });

  it('keeps a field from standing in for the line’s own keys', () => {
    const { lines, log } = capture();
    log.event('peer.streaming', { region: 'other', event: 'x', level: 'fatal', time: 0 });
    expect(lines[0]!.match(/"(region|event|level|time)":/g)).toHaveLength(4);
    expect(JSON.parse(lines[0]!)).toMatchObject({ region: 'tokyo', event: 'peer.streaming', region_: 'other' });
  });

  it('survives cycles, huge text and bad dates', () => {
    const { lines, log } = capture();
    const cycle: Record<string, unknown> = { at: new Date(Number.NaN) };
    cycle.self = cycle;
    log.event('peer.retry', { cycle, text: 'x'.repeat(100_000) });
    expect(lines[0]!.length).toBeLessThan(5000);
  });

  it('shows people one compact line without control characters', () => {
    const { lines, log } = capture(true);
    log.event('peer.retry', { peer: 'frankfurt', wait_ms: 500, text: 'two words', evil: '\u001b[2J\u009b\u202e' });
    expect(lines[0]).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} warn {2}tokyo peer\.retry peer=frankfurt wait_ms=500 text="two words" evil=/,
    );
    expect(lines[0]!.slice(0, -1)).not.toMatch(/[\p{Cc}\p{Cf}]/u);
  });
});
