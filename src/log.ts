import pc from 'picocolors';
import { type DestinationStream, destination, type Level, pino, stdTimeFunctions } from 'pino';
import { CoregentError, redact } from './model/error.ts';

interface EventRow {
  readonly level: 'debug' | 'info' | 'warn' | 'error';
  readonly doc: string;
}

/** Every event an agent logs. Names are stable: searches and alarms match on them. */
export const events = {
  'agent.started': { level: 'info', doc: 'The agent runs and has read its configuration.' },
  'agent.standby': { level: 'info', doc: 'Another agent of this region leads; this one waits to take over.' },
  'agent.takeover': {
    level: 'warn',
    doc: 'The agent that led was silent, stopped or cut off; its sessions were ended, and this one leads.',
  },
  'agent.leading': { level: 'info', doc: 'This agent holds the region’s lock and applies.' },
  'agent.stopping': { level: 'info', doc: 'A stop was asked for; a batch under way is rolled back and comes again.' },
  'agent.stopped': { level: 'info', doc: 'All connections are closed.' },
  'database.connected': { level: 'info', doc: 'The region’s own PostgreSQL answers.' },
  'database.lost': { level: 'warn', doc: 'The region’s own PostgreSQL does not answer; retried.' },

  'peer.connecting': { level: 'info', doc: 'A connection to the peer is being opened.' },
  'peer.streaming': { level: 'info', doc: 'Changes of the peer arrive from the named LSN on.' },
  'peer.retry': { level: 'warn', doc: 'The link failed and is opened again after the named wait.' },
  'peer.failed': { level: 'error', doc: 'The link needs a person; it is still tried now and then, and others go on.' },
  'peer.stopped': { level: 'info', doc: 'The link was closed because the agent stops.' },

  'slot.filling': { level: 'warn', doc: 'A slot of this region keeps more than half, or 80 %, of slots.max_wal.' },
  'slot.dropped': {
    level: 'error',
    doc: 'A slot kept more than slots.max_wal and was dropped; its peer joins when it is back.',
  },
  'slot.unguarded': { level: 'warn', doc: 'The slots of this region could not be looked at; tried again.' },
  'region.promoted': {
    level: 'warn',
    doc: 'This region’s server was promoted; everything of every peer is joined again.',
  },
  'peer.rejoining': { level: 'warn', doc: 'The peer’s slot is made anew, and all its rows are joined again.' },
  'table.paused': {
    level: 'warn',
    doc: 'The table differs in the two regions: its rows are passed over, others go on. Said once for each reason until it is resumed.',
  },
  'table.joining': { level: 'info', doc: 'The table is alike again; what was missed is being copied.' },
  'table.resumed': { level: 'info', doc: 'All that was missed of the table is here.' },
  'tables.changed': {
    level: 'info',
    doc: 'A replicated table was changed; the link begins again with what it is now.',
  },
  'rejoin.retry': { level: 'warn', doc: 'Copying what was missed failed; it is tried again, and the stream goes on.' },
  'slot.freed': {
    level: 'warn',
    doc: 'The peer still served a connection that nobody was at the other end of; it was ended.',
  },

  'tier.found': { level: 'info', doc: 'What the role may do (A, B or C) for rows of this peer, and what that means.' },

  'batch.applied': { level: 'debug', doc: 'A batch was committed here.' },
  'conflict.recorded': { level: 'info', doc: 'Concurrent versions met; the record holds both.' },
  'conflicts.alert': {
    level: 'warn',
    doc: 'More conflicts are recorded than conflicts.alert allows. Said once until there are fewer.',
  },
  'conflicts.calm': { level: 'info', doc: 'No more conflicts are recorded than conflicts.alert allows.' },
  'conflicts.forgotten': {
    level: 'warn',
    doc: 'Records of conflicts went before their retention was over: more than conflicts.limit or conflicts.max_size.',
  },
  'row.parked': { level: 'warn', doc: 'A row could not be applied and is kept with its error.' },
  'keys.mended': {
    level: 'info',
    doc: 'Rows that broke a unique or a foreign key together with rows of other regions were settled, and recorded.',
  },
  'keys.broken': {
    level: 'warn',
    doc: 'What regions broke together cannot be settled for now, for the reason named; it is tried again.',
  },
  'look.failed': {
    level: 'warn',
    doc: 'Rows that crossed a delete cannot be removed from a table, for the error named; it is tried again and again.',
  },
  'version.equal': { level: 'error', doc: 'Two rows have one version but differ: a region was restored or cloned.' },
  'clock.ahead': { level: 'warn', doc: 'A peer’s clock runs ahead of the bound; its rows wait.' },
  'clock.accepted': {
    level: 'warn',
    doc: 'Rows of a clock that was far wrong are taken now that it is right; until the time named they win over all that has not seen them.',
  },
  'clock.unusable': {
    level: 'error',
    doc: 'This region’s clock says the year 3111 or later, and no region could take what it stamps; the agent waits until it is right.',
  },
  'clock.back': { level: 'info', doc: 'A peer’s clock is inside the bound again.' },
  'tombstones.reaped': { level: 'debug', doc: 'Tombstones that every region has confirmed were removed.' },
  'tombstones.kept': { level: 'debug', doc: 'Tombstones stay: not every region has confirmed them.' },

  'http.listening': { level: 'info', doc: 'The HTTP API accepts requests.' },
  'http.exposed': { level: 'warn', doc: 'The HTTP API listens beyond this machine; whoever reaches it may read it.' },
  'http.failed': { level: 'warn', doc: 'A request of the HTTP API could not be answered.' },
} as const satisfies Record<string, EventRow>;

/** The name of an event of the table. */
export type EventName = keyof typeof events;

/** Fields of an event. Any value is fit to be logged: secrets, errors, bigints and bytes are turned into safe text. */
export type Fields = Readonly<Record<string, unknown>>;

/** A logger of typed events. Its text never holds a password. */
export interface Log {
  /** Logs one event at the level of its table row. */
  event(name: EventName, fields?: Fields): void;
  /** The same log with fields added to every event, such as the peer. */
  with(fields: Fields): Log;
}

/** What a log writes and where. */
export interface LogOptions {
  readonly level: 'debug' | 'info' | 'warn' | 'error' | 'silent';
  readonly region?: string;
  /** Where lines go; stderr when not given. */
  readonly to?: DestinationStream;
  /** Lines for people instead of JSON; by default when stderr is a terminal. */
  readonly human?: boolean;
}

/** Makes a log: JSON lines with ISO time, or compact lines for people on a terminal. Writes are synchronous. */
export function createLogger(options: LogOptions): Log {
  const to = options.to ?? destination({ fd: 2, sync: true });
  const human = options.human ?? (options.to === undefined && process.stderr.isTTY === true);
  const colours = pc.createColors(options.to === undefined && pc.isColorSupported);
  const logger = pino(
    {
      level: options.level,
      base: options.region === undefined ? {} : { region: options.region },
      messageKey: 'event',
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    human ? { write: (line: string) => to.write(humanLine(line, colours)) } : to,
  );
  const bind = (bound: Fields): Log => ({
    event(name, fields) {
      const level: Level = events[name].level;
      if (logger.isLevelEnabled(level)) logger[level](safeFields({ ...bound, ...fields }), name);
    },
    with: (fields) => bind({ ...bound, ...fields }),
  });
  return bind({});
}

const ownKeys = new Set(['time', 'level', 'event', 'region']);

function safeFields(fields: Fields): Record<string, unknown> {
  // A field may not stand in for the line's own keys: JSON with a key twice is read differently by each reader.
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [ownKeys.has(key) ? `${key}_` : key, safe(value, 0)]),
  );
}

const DEPTH = 4;
const LENGTH = 2000;

function safe(value: unknown, depth: number): unknown {
  switch (typeof value) {
    case 'string':
      return clip(redact(value));
    case 'bigint':
      return value.toString();
    case 'function':
    case 'symbol':
      return undefined;
    case 'object':
      return value === null ? null : safeObject(value, depth);
    default:
      return value;
  }
}

function safeObject(value: object, depth: number): unknown {
  if (value instanceof CoregentError) {
    const { code, message, where, cure } = value;
    return { code, message: clip(message), ...(where === undefined ? {} : { where }), cure };
  }
  // Only code and text of a foreign error: its other properties may be connection settings.
  if (value instanceof Error) {
    const code = 'code' in value ? safe(value.code, DEPTH) : undefined;
    return { ...(code === undefined ? {} : { code }), message: clip(redact(value.message)) };
  }
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? null : value.toISOString();
  if (ArrayBuffer.isView(value)) return `<${value.byteLength} bytes>`;
  if ('toJSON' in value && typeof value.toJSON === 'function') return safe(value.toJSON(), depth + 1);
  if (depth >= DEPTH) return '…';
  if (Array.isArray(value)) return value.slice(0, 100).map((item) => safe(item, depth + 1));
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [key, /passw|secret/i.test(key) ? '***' : safe(item, depth + 1)]),
  );
}

function clip(text: string): string {
  return text.length > LENGTH ? `${text.slice(0, LENGTH)}… (${text.length} characters)` : text;
}

type Colours = ReturnType<typeof pc.createColors>;

/** `12:03:10.123 info  tokyo peer.streaming peer=frankfurt lsn=0/16B3748` */
function humanLine(json: string, colours: Colours): string {
  const { time, level, region, event, ...fields } = JSON.parse(json) as Record<string, unknown>;
  const paint = { debug: colours.dim, info: colours.green, warn: colours.yellow, error: colours.red }[String(level)];
  const shown = Object.entries(fields).map(([key, value]) => `${colours.dim(`${key}=`)}${word(value)}`);
  const clock = colours.dim(String(time).slice(11, 23));
  const label = (paint ?? String)(String(level).padEnd(5));
  return `${[clock, label, region, colours.bold(String(event)), ...shown].filter((part) => part !== undefined).join(' ')}\n`;
}

function word(value: unknown): string {
  const plain = typeof value === 'string' && /^[^\s"=\p{Cc}\p{Cf}]+$/u.test(value);
  // Control characters of a peer's text must not reach the terminal.
  return plain ? value : JSON.stringify(value).replace(/[\p{Cc}\p{Cf}]/gu, '');
}
