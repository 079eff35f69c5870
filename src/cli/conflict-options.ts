import { parseDuration } from '../model/units.ts';
import { parseCursor } from '../pg/cursor.ts';
import type { Side } from '../pg/settle.ts';
import type { OptionRow } from './commands.ts';
import { whole } from './whole.ts';

/** What `--key` says: the values of some columns as text, or JSON. */
export type KeyFilter = { readonly name: string; readonly value: string } | { readonly json: string };

/** The options of `coregent conflicts`, of all its verbs. */
export const conflictOptions: readonly OptionRow[] = [
  { flags: '--region <name>', help: 'what this region recorded; by default all' },
  { flags: '--parked', help: 'list, show: rows that could not be applied and wait' },
  { flags: '--table <glob>', help: 'list: only these tables, like public.orders or public.*' },
  { flags: '--kind <kind>', help: 'list: only this kind, like update_origin_differs', repeat: true },
  { flags: '--key <column=value>', help: 'list: only rows with this key; or JSON', repeat: true, ...keyOption() },
  { flags: '--since <time>', help: 'list: recorded then or later: a time, or 1h for an hour ago', ...timeOption() },
  { flags: '--until <time>', help: 'list: recorded before', ...timeOption() },
  { flags: '--unsettled', help: 'list: only those that nobody has settled' },
  {
    flags: '--limit <number>',
    help: 'list: at most so many, the newest first (default: 50)',
    parse: (text) => whole(text, 1, 100_000),
    expects: 'a number from 1 to 100000',
  },
  {
    flags: '--after <place>',
    help: 'list: those behind this place, as a full list ends with it',
    parse: parseCursor,
    expects: 'a place that `conflicts list` printed',
  },
  {
    flags: '--keep <side>',
    help: 'settle: write the row of the other side, or of `local` or `incoming`',
    parse: (text) => (['other', 'local', 'incoming'].includes(text) ? text : undefined),
    expects: 'other, local or incoming',
  },
  {
    flags: '--merge <column=side>',
    help: 'settle: take columns from a side each: title=local,body=incoming',
    repeat: true,
    parse: parseMerge,
    expects: 'column=local or column=incoming, several by commas',
  },
  { flags: '--file <file>', help: 'settle: write what this JSON object says' },
  { flags: '--by <name>', help: 'settle: who settles; by default this machine’s user' },
  { flags: '--force', help: 'settle: although the row changed since, or was settled before' },
  { flags: '--dry-run', help: 'settle: print the SQL and change nothing' },
  { flags: '--retry <id>', help: 'settle: try this parked row again', repeat: true, ...idOption() },
  { flags: '--retry-all', help: 'settle: try every parked row again' },
  { flags: '--discard <id>', help: 'settle: give this parked row up; the conflict record keeps it', ...idOption() },
];

function idOption(): Pick<OptionRow, 'parse' | 'expects'> {
  return { parse: parseId, expects: 'the number of a row, as `conflicts list --parked` prints it' };
}

/** A record's number; undefined for anything else. */
export function parseId(text: string): string | undefined {
  return /^\d{1,18}$/.test(text) ? text : undefined;
}

function timeOption(): Pick<OptionRow, 'parse' | 'expects'> {
  return { parse: parseTime, expects: 'a time like 2026-11-21T09:57Z, or how long ago, like 15m, 1h or 7d' };
}

/** `2026-11-21`, `2026-11-21T09:57:55Z` (without a zone: UTC), or how long ago, as PostgreSQL reads it; undefined for anything else. */
export function parseTime(text: string, now = Date.now()): string | undefined {
  const ago = parseDuration(text);
  if (ago !== undefined) return new Date(now - ago).toISOString();
  const [, day, time = '00:00', zone = 'Z'] =
    /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(Z|[+-]\d\d:\d\d)?)?$/.exec(text) ?? [];
  const at = `${day}T${time}${zone}`;
  // JavaScript's dates have no microseconds: the text itself goes on.
  return day === undefined || Number.isNaN(Date.parse(at)) ? undefined : at;
}

function keyOption(): Pick<OptionRow, 'parse' | 'expects'> {
  return { parse: parseKey, expects: 'a column and its value, like id=7, or a JSON object like {"id": 7}' };
}

/** Undefined for anything but `column=value` and a JSON object. */
export function parseKey(text: string): KeyFilter | undefined {
  if (text.trimStart().startsWith('{')) {
    try {
      JSON.parse(text);
      return { json: text };
    } catch {
      return undefined;
    }
  }
  const at = text.indexOf('=');
  return at > 0 ? { name: text.slice(0, at), value: text.slice(at + 1) } : undefined;
}

/** Undefined for anything but `column=side`, several by commas. */
export function parseMerge(text: string): readonly (readonly [string, Side])[] | undefined {
  const found = /^[^=,]+=(local|incoming)(,[^=,]+=(local|incoming))*$/.test(text) ? text.split(',') : [text];
  const parts = found.map((part) => {
    const at = part.lastIndexOf('=');
    return [part.slice(0, Math.max(at, 0)), part.slice(at + 1)] as const;
  });
  const right = parts.every(([name, side]) => name !== '' && (side === 'local' || side === 'incoming'));
  return right ? (parts as (readonly [string, Side])[]) : undefined;
}
