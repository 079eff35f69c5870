import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type CommandRow, commands } from '../../src/cli/commands.ts';
import type { Context } from '../../src/cli/context.ts';
import { runCli } from '../../src/cli/program.ts';
import { parseConfig } from '../../src/config.ts';
import { CoregentError } from '../../src/model/error.ts';
import { VERSION } from '../../src/version.ts';

const CANARY = 'cAnArY-7f3';
let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'coregent-cli-'));
});
afterEach(() => rm(folder, { recursive: true }));

async function cli(args: string[], env: Record<string, string> = {}, rows: readonly CommandRow[] = commands) {
  const written = { out: '', err: '' };
  const code = await runCli(
    args,
    {
      env,
      stdout: { write: (text) => (written.out += text) },
      stderr: { write: (text) => (written.err += text) },
    },
    rows,
  );
  return { code, ...written };
}

/** A table of one command whose body is the test's. */
const only = (run: (options: Record<string, unknown>, context: Context) => Promise<number>): CommandRow[] => [
  {
    name: 'probe',
    summary: 'a probe',
    arguments: ['[words...]'],
    options: [
      { flags: '--port <n>', help: 'a port', parse: (text) => (text === '1' ? 1 : undefined), expects: 'one' },
      { flags: '--tag <t>', help: 'tags', repeat: true },
    ],
    example: 'coregent probe',
    load: async () => ({ run }),
  },
];

describe('usage', () => {
  it('prints help and version to stdout with exit 0', async () => {
    expect(await cli(['--version'])).toEqual({ code: 0, out: `${VERSION}\n`, err: '' });
    const help = await cli(['--help']);
    expect(help).toMatchObject({ code: 0, err: '' });
    expect(help.out).toMatch(/^Examples:/);
    for (const { name } of commands) expect((await cli([name, '--help'])).code).toBe(0);
  });

  it.each([
    [[], /Usage: coregent/],
    [['strat'], /^usage: unknown command 'strat' \(Did you mean start\?\)\nCure: /],
    [['start'], /required option '--region/],
    [['init', '--forse'], /unknown option '--forse' \(Did you mean --force\?\)/],
    [['start', '--region', 'x', '--port', '65536'], /--port must be a port from 0 to 65535/],
    [['start', '--region', 'x', 'stray'], /too many arguments/],
    [[`postgres://a:${CANARY}@h/d`], /unknown command/],
  ])('%j is a usage fault', async (args, expected) => {
    const { code, out, err } = await cli(args);
    expect(code).toBe(2);
    expect(out).toBe('');
    expect(err).toMatch(expected);
    expect(err).not.toContain(CANARY);
  });
});

describe('a command', () => {
  it('is given its options, the global ones before or after it, and decides the exit code', async () => {
    let seen: unknown[] = [];
    const rows = only(async (options, context) => {
      seen = [options, context.config, context.json, context.verbose];
      context.out('result');
      context.note('remark');
      return 3;
    });
    const words = [
      '--verbose',
      'probe',
      'a',
      'b',
      '--tag',
      'x',
      '--tag',
      'y',
      '--port',
      '1',
      '--json',
      '--config',
      'f',
    ];
    expect(await cli(words, {}, rows)).toEqual({ code: 3, out: 'result\n', err: 'remark\n' });
    expect(seen).toEqual([{ arguments: ['a', 'b'], tag: ['x', 'y'], port: 1 }, 'f', true, true]);
  });

  const failing = only(async () => {
    const cause = new Error(`cannot reach postgres://a:${CANARY}@h/d`);
    throw new CoregentError('peer_unreachable', `no\u001b[2J answer of postgres://a:${CANARY}@h/d`, {
      where: 'tokyo',
      cause,
    });
  });

  it('that fails says what, where and the cure, and never shows a stack or a password', async () => {
    const { code, out, err } = await cli(['probe'], {}, failing);
    expect(code).toBe(4);
    expect(out).toBe('');
    expect(err).toMatch(
      /^peer_unreachable: no\\u001b\[2J answer of postgres:\/\/a:\*\*\*@h\/d\n {2}at tokyo\nCure: .+\n$/,
    );
    const debug = await cli(['probe'], { COREGENT_DEBUG: '1' }, failing);
    expect(debug.err).toMatch(/caused by Error: .*\n +at /);
    expect(debug.err).not.toContain(CANARY);
  });

  it('that fails prints an object with --json', async () => {
    const { code, err } = await cli(['probe', '--json'], {}, failing);
    expect(code).toBe(4);
    expect(JSON.parse(err)).toMatchObject({ schema_version: 1, error: { code: 'peer_unreachable', where: 'tokyo' } });
    expect(err).not.toContain(CANARY);
  });

  it('that throws something unexpected fails with exit 1', async () => {
    const { code, err } = await cli(
      ['probe'],
      {},
      only(() => Promise.reject(new TypeError('x is undefined'))),
    );
    expect(code).toBe(1);
    expect(err).toMatch(/^unknown: x is undefined\nCure: /);
  });
});

describe('init', () => {
  const urls = {
    TOKYO_URL: `postgres://app:${CANARY}@127.0.0.1:1/shop`,
    EU_WEST_URL: `postgres://app:${CANARY}@127.0.0.1:2/shop`,
  };

  it('writes a file without secrets that parses, though no database answers', async () => {
    const out = join(folder, 'coregent.yaml');
    const ran = await cli(['init', '--region', 'tokyo', '--region', 'eu_west', '--out', out], urls);
    expect(ran.code).toBe(0);
    expect(ran.out).toContain("export EU_WEST_URL='postgres://app:***@127.0.0.1:2/shop'");
    expect(ran.out).toContain('ECONNREFUSED');
    const text = await readFile(out, 'utf8');
    expect(text + ran.out + ran.err).not.toContain(CANARY);
    const config = parseConfig(text, { path: out, env: urls });
    expect(config).toMatchObject({ cluster: 'shop', regions: [{ id: 1 }, { id: 2 }], tables: [{ glob: 'public.*' }] });
  });

  it('takes urls, tables and the cluster from flags, and warns of a password in them', async () => {
    const out = join(folder, 'coregent.yaml');
    const ran = await cli([
      ...['init', '--config', out, '--json', '--cluster', 'store', '--table', 'public.*', '--table', '"odd #".x'],
      ...['--region', `tokyo=postgres://app:${CANARY}@127.0.0.1:1/d`, '--region', 'later'],
    ]);
    expect(ran).toMatchObject({ code: 0, err: expect.stringContaining('set TOKYO_URL instead') });
    expect(JSON.parse(ran.out)).toMatchObject({ path: out, tables: ['public.*', '"odd #".x'] });
    expect(ran.out + ran.err + (await readFile(out, 'utf8'))).not.toContain(CANARY);
  });

  it('refuses to overwrite a file without --force', async () => {
    const out = join(folder, 'coregent.yaml');
    await writeFile(out, 'mine');
    const args = ['init', '--region', 'tokyo', '--region', 'eu_west', '--config', out];
    const refused = await cli(args);
    expect(refused).toMatchObject({ code: 5, err: expect.stringContaining('--force') });
    expect(await readFile(out, 'utf8')).toBe('mine');
    expect((await cli([...args, '--force'])).code).toBe(0);
  });

  it.each([
    [['--region', 'tokyo']],
    [['--region', 'tokyo', '--region', 'tokyo']],
    [['--region', `postgres://a:${CANARY}@h/d`, '--region', 'b']],
    [['--region', `a=mysql://a:${CANARY}@h/d`, '--region', 'b']],
    [['--region', 'a', '--region', 'b', '--table', 'orders']],
    [['--region', 'a', '--region', 'b', '--cluster', 'No Name']],
    [['--region', `a=postgres://${CANARY}:${CANARY}#@h/d`, '--region', 'b']],
  ])('%j writes nothing', async (args) => {
    const out = join(folder, 'coregent.yaml');
    const ran = await cli(['init', ...args, '--config', out]);
    expect(ran.code).toBe(2);
    expect(ran.out + ran.err).not.toContain(CANARY);
    await expect(readFile(out)).rejects.toThrow('ENOENT');
  });
});
