import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Rule } from '../../src/model/rule.ts';
import { type GivenRow, Modules } from '../../src/modules.ts';

let directory: string;
let modules: Modules;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'coregent-modules-'));
});
afterEach(() => modules?.close());
afterAll(() => rm(directory, { recursive: true }));

let files = 0;
/** Writes a module, and gives the rule that it carries out. */
async function rule(code: string, suffix = 'ts'): Promise<Rule> {
  const custom = `./m${++files}.${suffix}`;
  await writeFile(join(directory, custom), code);
  modules ??= new Modules(join(directory, 'coregent.yaml'));
  return { conflict: 'custom', columns: {}, custom, hash: await modules.check(custom) };
}

const version = (micros: number, region: number): string => String((BigInt(micros) << 7n) | BigInt(region));
const row = (...rows: Record<string, string | null>[]): GivenRow => ({
  versions: rows.map((each, index) => ({ version: version(1_700_000_000_000_001 + index, index + 1), row: each })),
  columns: Object.keys(rows[0]!),
  key: ['id'],
});

const LAST = 'export default (versions: readonly any[]) => versions.at(-1).row;';

describe('modules', () => {
  it('get versions in their order, with region, time and row, and make a row of them', async () => {
    const ticket = await rule(`
      type Version = { readonly version: bigint; readonly region: number; readonly time: string; readonly row: Record<string, any> };
      export default function settle(versions: readonly Version[]): Record<string, unknown> {
        const last = versions[versions.length - 1]!;
        return { ...last.row, n: Math.max(...versions.map(({ row }) => row.n)), said: versions.map((v) => [String(v.version & 127n), v.region, v.time].join(' ')) };
      }`);
    const given = row({ id: '1', n: '5', said: null }, { id: '1', n: '3', said: null });
    const [made] = await modules.make(ticket, [given]);
    expect(JSON.parse((made as { made: string }).made)).toEqual({
      n: 5,
      said: ['1 1 2023-11-14T22:13:20.000001Z', '2 2 2023-11-14T22:13:20.000002Z'],
    });
  });

  it('lose no digit and no blank of a value that they give back', async () => {
    const last = await rule(LAST);
    const texts = {
      id: '1',
      doc: '{"a":  1.10, "n": 12345678901234567890}',
      big: '"12345678901234567890.50"',
      none: null,
    };
    const [made] = await modules.make(last, [row({ ...texts, doc: '{}' }, texts)]);
    expect(made).toEqual({
      made: '{"doc":{"a":  1.10, "n": 12345678901234567890},"big":"12345678901234567890.50","none":null}',
    });
    const changed = await rule(
      'export default ([{ row }]) => ({ ...row, big: 2n ** 63n, doc: Uint8Array.of(1, 255), none: new Date(0) })',
      'mjs',
    );
    expect(await modules.make(changed, [row(texts, texts)])).toEqual([
      { made: '{"doc":"\\\\x01ff","big":"9223372036854775808","none":"1970-01-01T00:00:00.000Z"}' },
    ]);
  });

  it.each([
    ['null', 'it made no row'],
    ['[versions[0].row]', 'it made no row'],
    ['Promise.resolve(versions[0].row)', 'must not be async'],
    ['({ ...versions[0].row, typo: 1 })', 'the table has no column typo'],
    ['({ id: 1 })', 'the column n is missing'],
    ['({ id: 1, n: NaN })', 'the column n is NaN'],
    ['(versions[0].row.n = 5, versions[0].row)', 'read only'],
    ['versions.push(1)', 'not extensible'],
    ['{ throw new Error("not this one") }', 'not this one'],
    ['{ throw "a text" }', 'a text'],
    ['process.exit(1)', 'ended its thread'],
    ['{ const all = []; for (;;) all.push(new Array(1e6).fill(all.length)) }', /memory|took longer/],
  ])('that give %s are told what is wrong, and go on with the next row', async (body, message) => {
    const odd = await rule(
      `export default (versions) => versions[0].row.n === 1 ? versions[0].row : ${body.startsWith('{') ? `(() => ${body})()` : body}`,
      'js',
    );
    const [bad, good] = await modules.make(odd, [row({ id: '1', n: '0' }), row({ id: '2', n: '1' })]);
    expect((bad as { error: string }).error).toMatch(message);
    expect(good).toEqual({ made: '{"n":1}' });
  });

  it('that never come back are ended, once for each row, and others are made', async () => {
    const endless = await rule('export default ([{ row }]) => { while (row.n === 0); return row; }', 'js');
    const rows = [row({ id: '1', n: '1' }), row({ id: '2', n: '0' }), row({ id: '3', n: '2' })];
    const expected = [{ made: '{"n":1}' }, { error: 'it took longer than 4 s' }, { made: '{"n":2}' }];
    expect(await modules.make(endless, rows)).toEqual(expected);
    // It is remembered, and nothing is waited for again.
    expect(await modules.make(endless, rows)).toEqual(expected);
  });

  it.each([
    ['export const settle = 1', 'no default export'],
    ['export default 7', 'no default export'],
    ['export default (a: number => a', 'Expected'],
    ['enum A { B } export default () => A.B', 'enum'],
    ["import { x } from './other.ts'; export default () => x", 'must be one file'],
    ["import pg from 'pg'; export default () => pg", 'must be one file'],
    ['throw new Error("at once"); export default () => 1', 'at once'],
  ])('%s is refused', async (code, message) => {
    await expect(rule(code)).rejects.toThrow(message);
  });

  it('say when the file is not the one that was agreed on', async () => {
    const agreed = await rule(LAST);
    expect(await modules.fault(agreed)).toBeUndefined();
    await writeFile(join(directory, agreed.custom!), `${LAST} // another`);
    expect(await modules.fault(agreed)).toMatch(/is not the one that `coregent apply` was run with/);
    await rm(join(directory, agreed.custom!));
    expect(await modules.fault(agreed)).toMatch(/there is no such file: .*bring the file/);
    expect(await modules.fault({ conflict: 'lww', columns: {} })).toBeUndefined();
  });
});
