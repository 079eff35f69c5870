import stringWidth from 'string-width';
import { describe, expect, it } from 'vitest';
import { bytes, duration, progress, table, takesColour, toJson, visible } from '../../src/cli/print.ts';

describe('table', () => {
  it('aligns by what a terminal shows', () => {
    const text = table(
      [{ title: 'region' }, { title: 'rows', align: 'right' }, { title: 'note' }],
      [
        ['東京', '5', 'x'],
        ['Zürich', '1234567', ''],
        ['e\u0301le\u0301', '12', 'y'],
      ],
    );
    expect(text).toBe(
      ['region     rows  note', '東京          5  x', 'Zürich  1234567', 'e\u0301le\u0301          12  y'].join('\n'),
    );
    const starts = text.split('\n').flatMap((line) => (/[xy]$/.test(line) ? [stringWidth(line)] : []));
    expect(new Set(starts).size).toBe(1);
  });

  it('does not count colours', () => {
    const plain = table([{ title: 'a' }, { title: 'b' }], [['x', '1']]);
    const painted = table([{ title: 'a' }, { title: 'b' }], [['\u001b[31mx\u001b[39m', '1']], true);
    expect(stringWidth(painted.split('\n')[1]!)).toBe(stringWidth(plain.split('\n')[1]!));
  });
});

it('visible shows control characters instead of sending them', () => {
  expect(visible('a\u001b[2J\u009bb\u202ec\nd')).toBe('a\\u001b[2J\\u009bb\\u202ec\\u000ad');
  expect(visible('a\nb', '\n')).toBe('a\nb');
  expect(visible('東京 é 👍')).toBe('東京 é 👍');
});

it('JSON keeps integers beyond 2^53', () => {
  expect(JSON.parse(toJson({ version: 9007199254740993n }))).toEqual({ version: '9007199254740993' });
});

it.each([
  [0, '0 B'],
  [999, '999 B'],
  [999.6, '1 kB'],
  [1500, '1.5 kB'],
  [9960, '10 kB'],
  [999_499, '999 kB'],
  [999_500, '1 MB'],
  [64e6, '64 MB'],
  [5e18, '5000 PB'],
  [-2048, '-2 kB'],
])('bytes(%d) is %s', (count, text) => expect(bytes(count)).toBe(text));

it.each([
  [0, '0 ms'],
  [0.44, '0.4 ms'],
  [12.4, '12 ms'],
  [999.6, '1 s'],
  [1500, '1.5 s'],
  [59_949, '60 s'],
  [59_950, '1 min'],
  [125_000, '2 min 5 s'],
  [3_599_600, '1 h'],
  [12_000_000, '3 h 20 min'],
  [187_200_000, '2 d 4 h'],
  [-1500, '-1.5 s'],
])('duration(%d) is %s', (ms, text) => expect(duration(ms)).toBe(text));

describe('on a terminal', () => {
  const stream = (isTTY: boolean) => {
    const written: string[] = [];
    return { isTTY, columns: 80, written, write: (text: string) => written.push(text) };
  };

  it('a progress bar redraws what changed, and is silent elsewhere', () => {
    const tty = stream(true);
    const bar = progress('joining', 200, tty, {});
    bar.update(100);
    bar.update(100);
    bar.update(500);
    bar.done();
    expect(tty.written).toHaveLength(4);
    expect(tty.written[1]).toContain('50%  100 of 200');
    expect(tty.written[2]).toContain('100%');
    for (const [silent, env] of [
      [stream(false), {}],
      [stream(true), { TERM: 'dumb' }],
    ] as const) {
      const none = progress('joining', 0, silent, env);
      none.update(1);
      none.done();
      expect(silent.written).toEqual([]);
    }
    expect(() => progress('nothing', 0, stream(true), {}).update(0)).not.toThrow();
  });

  it('NO_COLOR wins, then FORCE_COLOR, then the terminal', () => {
    expect(takesColour(stream(true), {})).toBe(true);
    expect(takesColour(stream(true), { NO_COLOR: '1', FORCE_COLOR: '1' })).toBe(false);
    expect(takesColour(stream(false), { FORCE_COLOR: '1' })).toBe(true);
    expect(takesColour(stream(false), { CI: '1' })).toBe(false);
    expect(takesColour(stream(true), { TERM: 'dumb' })).toBe(false);
  });
});
