import pc from 'picocolors';
import stringWidth from 'string-width';
import type { Stream } from './context.ts';

/** One column of a table: its heading, and `right` for numbers. */
export interface Column {
  readonly title: string;
  readonly align?: 'left' | 'right';
}

type Env = Readonly<Record<string, string | undefined>>;

/** Whether a stream takes colours: NO_COLOR wins, then FORCE_COLOR, then whether it is a capable terminal. */
export function takesColour(stream: Stream, env: Env): boolean {
  if (env.NO_COLOR) return false;
  if (env.FORCE_COLOR) return env.FORCE_COLOR !== '0';
  return stream.isTTY === true && env.TERM !== 'dumb';
}

/** Painters that do nothing when `on` is false. */
export function colours(on: boolean): ReturnType<typeof pc.createColors> {
  return pc.createColors(on);
}

/**
 * Text from elsewhere (names, values, messages of a server) made safe for a terminal: control characters, which could
 * move the cursor or hide text, are shown as `\u001b`. Colours are added after this, never before.
 */
export function visible(text: string, keep = ''): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (character) =>
    keep.includes(character) ? character : `\\u${character.codePointAt(0)!.toString(16).padStart(4, '0')}`,
  );
}

/** A table aligned by what a terminal shows: 東京 is four cells wide, colours none. No line ends in blanks. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[], colour = false): string {
  const widths = columns.map(({ title }, i) =>
    Math.max(stringWidth(title), ...rows.map((row) => stringWidth(row[i] ?? ''))),
  );
  const line = (cells: readonly string[]) =>
    columns
      .map(({ align }, i) => {
        const cell = cells[i] ?? '';
        const blank = ' '.repeat(widths[i]! - stringWidth(cell));
        return align === 'right' ? blank + cell : cell + blank;
      })
      .join('  ')
      .trimEnd();
  const paint = colours(colour);
  return [paint.bold(line(columns.map(({ title }) => title))), ...rows.map(line)].join('\n');
}

/** A value as one JSON document; bigints become text, as JSON readers lose digits beyond 2^53. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? item.toString() : item), 2);
}

/** `0 B`, `1.5 kB`, `64 MB`: decimal units, three digits. */
export function bytes(count: number): string {
  const names = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let [at, amount] = [0, Math.abs(count)];
  // 999.5 would print as 1000.
  for (; amount >= 999.5 && at < names.length - 1; at++) amount /= 1000;
  return `${count < 0 ? '-' : ''}${digits(amount)} ${names[at]}`;
}

/** `0.4 ms`, `12 ms`, `1.5 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`. */
export function duration(ms: number): string {
  if (ms < 0) return `-${duration(-ms)}`;
  if (ms < 999.5) return `${digits(ms)} ms`;
  if (ms < 59_950) return `${digits(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return pair(seconds, 60, 'min', 's');
  return seconds < 86_400
    ? pair(Math.round(seconds / 60), 60, 'h', 'min')
    : pair(Math.round(seconds / 3600), 24, 'd', 'h');
}

function pair(amount: number, size: number, big: string, small: string): string {
  const rest = amount % size;
  return `${Math.floor(amount / size)} ${big}${rest ? ` ${rest} ${small}` : ''}`;
}

function digits(amount: number): string {
  return amount >= 9.95 ? amount.toFixed(0) : amount.toFixed(1).replace(/\.0$/, '');
}

/** A progress bar under way. */
export interface Progress {
  /** Done so far, of the total. */
  update(done: number): void;
  /** Ends the line. */
  done(): void;
}

/** A progress bar; writes nothing unless the stream is a capable terminal. Redraws only what changed. */
export function progress(
  label: string,
  total: number,
  stream: Stream = process.stderr,
  env: Env = process.env,
): Progress {
  if (!stream.isTTY || env.TERM === 'dumb') return { update: () => {}, done: () => {} };
  let shown = '';
  const draw = (done: number) => {
    const share = total > 0 ? Math.min(1, Math.max(0, done / total)) : 1;
    const width = Math.max(5, Math.min(30, (stream.columns ?? 80) - stringWidth(label) - 30));
    const full = Math.round(share * width);
    const bar = '█'.repeat(full) + '░'.repeat(width - full);
    const text = `${visible(label)} ${bar} ${Math.floor(share * 100)}%  ${done} of ${total}`;
    if (text !== shown) stream.write(`\r\u001b[K${text}`);
    shown = text;
  };
  draw(0);
  return { update: draw, done: () => void stream.write('\n') };
}
