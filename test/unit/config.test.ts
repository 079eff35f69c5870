// biome-ignore-all lint/suspicious/noTemplateCurlyInString: references to the environment are what is tested
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { loadConfig, parseConfig, ruleFor } from '../../src/config.ts';
import { CoregentError } from '../../src/model/error.ts';
import { formatRate, parseDuration, parseRate, parseSize } from '../../src/model/units.ts';

const CANARY = 'cAnArY-7f3';
const env = {
  TOKYO_URL: `postgres://app:${CANARY}@tokyo.example/shop`,
  FRANKFURT_URL: `postgres://app:${CANARY}@frankfurt.example/shop`,
  WORD: CANARY,
};
const parse = (text: string, variables: Record<string, string> = env) =>
  parseConfig(text, { path: 'coregent.yaml', env: variables });

const good = `
cluster: shop
regions:
  tokyo:     { id: 1, url: "\${TOKYO_URL}" }
  frankfurt: { id: 2, url: "\${FRANKFURT_URL}", localUrl: "postgres://agent@127.0.0.1/shop" }
defaults: { conflict: lww }
tables:
  public.orders:
  public.*: { conflict: lww }
clock: { max_offset: 250ms, settle: 10s }
batch: { rows: 500, bytes: 4MiB }
tombstones: { interval: 1h }
conflicts: { retention: 7d, limit: 5000, max_size: 2MiB, alert: 10/min }
`;

function failure(work: () => unknown): CoregentError {
  try {
    work();
  } catch (error) {
    if (error instanceof CoregentError) return error;
    throw error;
  }
  throw new Error('it was accepted');
}

/** The faults as `line path message`. */
const faults = (text: string, variables?: Record<string, string>) =>
  (failure(() => parse(text, variables)).faults ?? []).map(({ path, line, message }) => `${line} ${path} ${message}`);

describe('a good file', () => {
  it('gives every value', () => {
    const config = parse(good);
    expect(config.cluster).toBe('shop');
    expect(config.regions.map(({ name, id }) => [name, id])).toEqual([
      ['tokyo', 1],
      ['frankfurt', 2],
    ]);
    expect(config.regions[0]!.url.reveal()).toBe(env.TOKYO_URL);
    expect(config.regions[0]!.localUrl.reveal()).toBe(env.TOKYO_URL);
    expect(config.regions[1]!.localUrl.reveal()).toBe('postgres://agent@127.0.0.1/shop');
    expect(config).toMatchObject({
      clock: { maxOffsetMs: 250, settleMs: 10_000 },
      batch: { rows: 500, bytes: 4 * 1024 ** 2 },
      tombstones: { intervalMs: 3_600_000 },
      conflicts: {
        retentionMs: 7 * 86_400_000,
        limit: 5_000,
        maxBytes: 2 * 1024 ** 2,
        alert: { count: 10, windowMs: 60_000 },
      },
      path: 'coregent.yaml',
    });
  });

  it('fills in the defaults', () => {
    const config = parse(good.slice(0, good.indexOf('clock:')));
    expect(config).toMatchObject({ clock: { maxOffsetMs: 500, settleMs: 60_000 }, batch: { rows: 20_000 } });
    expect(config.conflicts).toMatchObject({ maxBytes: 1024 ** 3, alert: undefined });
  });

  it('does not replace variables inside the value of a variable', () => {
    const nested = { ...env, TOKYO_URL: 'postgres://a:%24x@tokyo/$%7BWORD%7D' };
    expect(parse(good, nested).regions[0]!.url.reveal()).toBe(nested.TOKYO_URL);
  });
});

describe('globs', () => {
  const config = parse(good);
  it('name the tables that are replicated', () => {
    expect(ruleFor(config, 'public', 'orders')).toEqual({ conflict: 'lww', columns: {} });
    expect(ruleFor(config, 'public', 'with.dot')).toEqual({ conflict: 'lww', columns: {} });
    expect(ruleFor(config, 'other', 'orders')).toBeUndefined();
    expect(ruleFor(config, 'publicx', 'orders')).toBeUndefined();
    expect(ruleFor(config, 'public', 'orders\n')).toBeDefined();
  });
  it('are ordered from the least to the most exact, wherever they stand', () => {
    expect(config.tables.map(({ glob }) => glob)).toEqual(['public.*', 'public.orders']);
  });
  it('take regular expression characters as they are', () => {
    const odd = parse(good.replace('public.orders:', '"public.a+(b)[c]?":'));
    expect(ruleFor(odd, 'public', 'a+(b)[c]1')).toBeDefined();
    expect(odd.tables.some(({ glob }) => glob === 'public.a+(b)[c]?')).toBe(true);
  });
});

describe('owners', () => {
  const owned = (owner: string): string => good.replace('public.orders:', `public.orders: { owner: ${owner} }`);

  it('are one rule, in whatever order they are written', () => {
    const rule = (owner: string) => ruleFor(parse(owned(owner)), 'public', 'orders');
    expect(rule('{ column: home }')).toEqual({ conflict: 'lww', columns: {}, owner: { column: 'home' } });
    const list = rule('{ list: { tokyo: [JP, 5], frankfurt: [true] }, default: tokyo, column: c }');
    expect(list?.owner).toEqual({
      column: 'c',
      list: { frankfurt: ['true'], tokyo: ['5', 'JP'] },
      default: 'tokyo',
    });
    expect(JSON.stringify(rule('{ column: c, list: { frankfurt: [true], tokyo: [5, JP] }, default: tokyo }'))).toBe(
      JSON.stringify(list),
    );
    expect(rule('{ column: c, range: { tokyo: [null, 5], frankfurt: [5, null] } }')?.owner?.range).toEqual({
      frankfurt: ['5', null],
      tokyo: [null, '5'],
    });
    expect(rule('{ column: c, hash: [tokyo, frankfurt] }')?.owner?.hash).toEqual(['tokyo', 'frankfurt']);
  });

  it.each([
    ['tokyo', ' must be a map, like `{ column: home_region }`'],
    ['{ column: c, colum: c }', '.colum is not a known key; did you mean `column`?'],
    ['{ list: {} }', '.column must be the name of a column'],
    ['{ column: c, hash: [tokyo], range: {} }', '.hash is one too many beside `range`'],
    ['{ column: c, default: tokio }', '.default is not a region; did you mean `tokyo`?'],
    ['{ column: c, hash: [mars] }', '.hash.0 is not a region; there are tokyo, frankfurt'],
    ['{ column: c, hash: [] }', '.hash must be a list of regions'],
    ['{ column: c, hash: [tokyo], default: tokyo }', '.default has no use: a hash leaves nothing over'],
    ['{ column: c, list: { mars: [JP] } }', '.list.mars is not a region; there are tokyo, frankfurt'],
    ['{ column: c, list: { tokyo: JP } }', '.list.tokyo must be a list of values, like `[JP, KR]`'],
    ['{ column: c, list: { tokyo: [JP], frankfurt: [DE, JP] } }', '.list.frankfurt.1 is listed for `tokyo` already'],
    ['{ column: c, list: [JP] }', '.list must be a map of regions to their values, like `tokyo: [JP, KR]`'],
    ['{ column: c, range: { tokyo: [1] } }', '.range.tokyo must be two bounds'],
    ['{ column: c, range: { tokyo: [9, 9] } }', '.range.tokyo is empty'],
    [
      '{ column: c, range: { tokyo: [9, 10], frankfurt: [null, 10] } }',
      '.range.frankfurt overlaps the range of `tokyo`',
    ],
    ['{ column: c, range: { tokyo: ["10", null], frankfurt: ["9", null] } }', '.range.frankfurt overlaps'],
    ['{ column: c, range: 7 }', '.range must be a map of regions to bounds'],
  ])('%s is a fault: %s', (owner, message) => {
    const [fault, ...others] = faults(owned(owner));
    expect(fault).toContain(`8 tables.public.orders.owner${message}`);
    expect(others).toEqual([]);
  });

  it('are no rule of conflicts', () => {
    expect(faults(good.replace('public.orders:', 'public.orders: { conflict: owner }'))[0]).toContain(
      'is a key beside `conflict`',
    );
  });
});

describe('a function', () => {
  const regions = good.slice(0, good.indexOf('defaults:'));

  it('is the rule custom, until a more exact name says another one', () => {
    const config = parse(
      `${regions}tables:\n  public.*: { custom: shop.pick }\n  public.carts: { conflict: siblings }\n  public.stocks: { custom: shop.most }`,
    );
    expect(ruleFor(config, 'public', 'orders')).toEqual({ conflict: 'custom', columns: {}, custom: 'shop.pick' });
    expect(ruleFor(config, 'public', 'stocks')).toMatchObject({ conflict: 'custom', custom: 'shop.most' });
    expect(ruleFor(config, 'public', 'carts')).toEqual({ conflict: 'siblings', columns: {} });
  });

  it('may be a module, as a path from where the file lies', () => {
    const config = parse(`${regions}tables:\n  public.stocks: { custom: ./resolvers/stock.ts }`);
    expect(ruleFor(config, 'public', 'stocks')).toMatchObject({ conflict: 'custom', custom: './resolvers/stock.ts' });
  });

  it('is named with its schema, or as a path', () => {
    for (const name of ['pick', 'resolvers/ticket.ts', './resolvers/ticket', '/ticket.ts', 'a.b.c']) {
      expect(faults(`${regions}tables:\n  public.stocks: { custom: ${name} }`)).toEqual([
        expect.stringContaining('must be a SQL function, schema.function, or a module'),
      ]);
    }
  });
});

describe('faults', () => {
  it('are reported all at once, each with its line and path', () => {
    const text = `cluster: Shop
regions:
  tokyo: { id: 1, url: "\${NOT_SET}" }
  Frankfurt: { id: 1, url: "mysql://x", locaUrl: "y" }
  virginia: { id: 128 }
defualts: { conflict: lww }
tables:
  orders: {}
  public.carts: { conflict: strong }
  public.posts: { columns: { likes: escrow } }
  public.users: { conflict: lwww }
clock: { max_offset: 500 }
batch: { rows: 1.5, bytes: 3 parsecs }
tombstones: { interval: 1ms }
conflicts: { alert: 10, max_size: 1 }
`;
    expect(faults(text)).toEqual([
      expect.stringMatching(/^1 cluster must be lower-case/),
      '3 regions.tokyo.url needs the environment variable NOT_SET, which is not set',
      expect.stringMatching(/^4 regions.Frankfurt.url is not a URL like/),
      '4 regions.Frankfurt.locaUrl is not a known key; did you mean `localUrl`?',
      expect.stringMatching(/^4 regions.Frankfurt the name of a region must be lower-case/),
      '4 regions.Frankfurt.id is the id of `tokyo` too; ids are unique',
      '5 regions.virginia.id must be at most 127',
      '5 regions.virginia.url is missing',
      '6 defualts is not a known key; did you mean `defaults`?',
      '8 tables.orders must name schema and table, like `public.orders` or `public.*`',
      '9 tables.public.carts.conflict the rule `strong` is not yet available; use `lww`, `fww`, `columns`, `siblings`, `custom`',
      '10 tables.public.posts.columns.likes the rule `escrow` is not yet available; use `counter`, `max`, `min`, `set`, `map`, `text`',
      '11 tables.public.users.conflict is not a known rule; did you mean `lww`?',
      '12 clock.max_offset must be a duration like 500ms, 5s, 1h or 7d',
      expect.stringMatching(/^13 batch.rows must be/),
      '13 batch.bytes must be a size like 64MB or 1GiB',
      expect.stringMatching(/^14 tombstones.interval is out of bounds/),
      '15 conflicts.max_size must be a size like 64MB or 1GiB',
      '15 conflicts.alert must be a rate like 10/min (s, min, h or d)',
    ]);
    const error = failure(() => parse(text));
    expect([error.code, error.exit, error.where]).toEqual(['config_invalid', 2, 'coregent.yaml']);
    expect(error.message).toContain('19 faults');
    expect(error.message).toContain('  line 6: defualts is not a known key');
  });

  it.each([
    ['', /must be a map/],
    ['[]', /must be a map/],
    ['cluster: [', /is not valid YAML/],
    ['cluster: a\ncluster: b', /^2 {2}is not valid YAML: Map keys must be unique/],
    ['--- {}\n--- {}', /is not valid YAML/],
    [good.replace(/ {2}frankfurt.*\n/, ''), /^3 regions must name at least two regions; it names 1/],
    [good.replaceAll('FRANKFURT_URL', 'TOKYO_URL'), /^5 regions.frankfurt.url reaches the same database as `tokyo`/],
    [good.replace(/ {2}public.*\n/g, '').replace('tables:', 'tables: {}'), /tables must name a table/],
    [good.replace('public.orders', 'coregent.*'), /^8 tables.coregent.\* is a schema of the system/],
    [good.replace('${TOKYO_URL}', '${TOKYO URL}'), /^4 regions.tokyo.url has a \$-brace reference/],
    [good.replace('${TOKYO_URL}', '${TOKYO_URL'), /^4 regions.tokyo.url has a \$-brace reference/],
    [good.replace('shop', '__proto__'), /^2 cluster must/],
    [good.replace('tokyo: ', '__proto__: '), /regions.__proto__ the name/],
    [good.replace('shop', 'constructor_'.repeat(4)), /^2 cluster must/],
  ])('of %j', (text, expected) => {
    expect(faults(text)[0]).toMatch(expected);
  });

  it('of an empty variable', () => {
    expect(faults(good, { ...env, TOKYO_URL: '' })).toEqual([
      '4 regions.tokyo.url needs the environment variable TOKYO_URL, which is not set',
    ]);
  });

  it('of a file that is not there', async () => {
    await expect(loadConfig('/nonexistent/coregent.yaml', env)).rejects.toMatchObject({ code: 'config_missing' });
  });

  it('never show a secret, wherever it was put by mistake', () => {
    const places = [
      'cluster: "${WORD}"',
      'cluster: "${TOKYO_URL}"',
      'regions: { tokyo: { id: "${WORD}", url: "${WORD}" } }',
      `regions: { tokyo: { id: 1, url: "postgres://app:${CANARY}#x@h/db" } }`,
      `regions: { tokyo: { id: 1, url: "postgres://app:${CANARY}@h1,h2/db" } }`,
      'defaults: { conflict: "${WORD}" }',
      'clock: { max_offset: "${WORD}" }',
      'tables: { "a.b": { conflict: "${TOKYO_URL}" } }',
      `regions: { tokyo: { id: 1, url: "postgres://app:${CANARY}@h/db }`,
      `regions:\n  tokyo:\n    url: postgres://app:${CANARY}@h/db\n   id: 1`,
      `cluster: *${CANARY}`,
      `a: b\n- ${CANARY}`,
      `cluster: !${CANARY} x`,
    ];
    for (const text of places) {
      const error = failure(() => parse(text));
      const shown = [error.message, error.stack, JSON.stringify(error), inspect(error, { depth: 9 })].join('\n');
      expect(shown, text).not.toContain(CANARY);
    }
    const config = parse(good);
    expect(JSON.stringify(config) + inspect(config, { depth: 9, showHidden: true })).not.toContain(CANARY);
  });
});

describe('units', () => {
  it.each([
    ['500ms', 500],
    ['1.5s', 1500],
    ['10m', 600_000],
    ['1h', 3_600_000],
    ['7d', 604_800_000],
    ['500', undefined],
    ['-1s', undefined],
    ['1e3s', undefined],
    ['5 constructor', undefined],
    ['', undefined],
  ])('reads the duration %j as %j', (text, expected) => expect(parseDuration(text)).toBe(expected));

  it.each([
    ['64MB', 64e6],
    ['1GiB', 2 ** 30],
    ['0.5 KiB', 512],
    ['64', undefined],
    ['64mb', undefined],
  ])('reads the size %j as %j', (text, expected) => expect(parseSize(text)).toBe(expected));

  it.each([
    ['10/min', { count: 10, windowMs: 60_000 }],
    ['1 / s', { count: 1, windowMs: 1000 }],
    ['500/h', { count: 500, windowMs: 3_600_000 }],
    ['0/d', { count: 0, windowMs: 86_400_000 }],
    ['10', undefined],
    ['/min', undefined],
    ['1.5/min', undefined],
    ['-1/min', undefined],
    ['10/m', undefined],
  ])('reads the rate %j as %j', (text, expected) => expect(parseRate(text)).toEqual(expected));

  it('writes a rate as it is read', () => {
    for (const text of ['10/min', '1/s', '500/h', '7/d']) expect(formatRate(parseRate(text)!)).toBe(text);
  });
});
