import type { Socket } from 'node:net';
import type pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { formatLsn, type LSN, lsnOf } from '../model/lsn.ts';
import { ident, literal } from '../quote.ts';
import { Frames } from '../wire/frames.ts';
import { violation } from '../wire/pgoutput.ts';
import { Pacing } from './pacing.ts';

/** What happens on a replication connection. Callbacks run inside of the socket's read; they must not throw. */
export interface WalReader {
  /** One logical replication message; false asks the reader to stop until {@link Walsender.resume}. */
  message(bytes: Buffer, start: number, end: number): boolean;
  /** The peer's WAL ends here, and all of it that concerns us has been sent before. */
  keepalive(walEnd: LSN): void;
  /** A burst is over: what was held back for a larger batch need not wait for more. */
  drained(): void;
  /** The stream is over; never called twice. */
  closed(error: CoregentError): void;
}

/** A running logical replication stream. */
export interface Walsender {
  /** Bytes received so far. */
  readonly receivedBytes: number;
  /** When the peer was last heard of, in ms of the process's monotonic clock. */
  readonly heardAtMs: number;
  /** Whether the peer sends without a pause: more is on its way at once. */
  readonly bursting: boolean;
  /** Goes on after `message` returned false, and reads at once what waits. */
  resume(): void;
  /** Reports positions; `flushed` lets the peer drop its WAL before it, so it must be durable here. */
  confirm(written: LSN, flushed: LSN): void;
  close(): void;
}

const COPY_DATA = 0x64;
const WAL_DATA = 0x77;
const KEEPALIVE = 0x6b;
/** Kind, two positions and a time, ahead of a message. */
const WAL_HEADER = 25;
const KEEPALIVE_BYTES = 18;
/** A chunk that ends a burst unseen was the last one after all, when nothing came for so many ms. */
const LAST_MS = 4;
/** A chunk of this size is what one read can hold, so the socket holds more. */
const CHUNK_BYTES = 65_536;
const EPOCH_2000_MS = 946_684_800_000;

/**
 * Starts logical replication on a connected replication client and takes its socket over:
 * the driver's parser costs more per message than everything else here does per row.
 * Throws what the server answers (`slot_busy`, `slot_missing`, …).
 */
export async function startWalsender(
  client: pg.Client,
  options: { slot: string; publication: string; start: LSN; origin: 'none' | 'any'; reader: WalReader },
): Promise<Walsender> {
  const { reader } = options;
  const socket = (client as unknown as { connection: { stream: Socket } }).connection.stream;
  socket.removeAllListeners('data');
  // What ends it is told here alone: who waits for the start must hear the server's own reason first.
  client.removeAllListeners('error').removeAllListeners('end');
  const frames = new Frames();
  let receivedBytes = 0;
  let heardAtMs = performance.now();
  let stopped = false;
  let gathering: NodeJS.Timeout | undefined;
  const pacing = new Pacing();
  let over = false;
  let started: { resolve: () => void; reject: (error: unknown) => void } | undefined;

  const end = (error: CoregentError): void => {
    if (over) return;
    over = true;
    clearTimeout(gathering);
    socket.destroy();
    if (started) started.reject(error);
    else reader.closed(error);
  };

  const onMessage = (type: number, bytes: Buffer, start: number, endAt: number): boolean => {
    if (type === COPY_DATA) {
      const kind = bytes[start];
      if (kind === WAL_DATA && endAt - start > WAL_HEADER) return reader.message(bytes, start + WAL_HEADER, endAt);
      if (kind !== KEEPALIVE || endAt - start < KEEPALIVE_BYTES)
        throw violation(`${endAt - start} bytes that are no WAL`);
      reader.keepalive(lsnOf(bytes.readBigUInt64BE(start + 1)));
      if (bytes[start + 17] === 1) report();
      return true;
    }
    switch (String.fromCharCode(type)) {
      case 'W':
        started?.resolve();
        started = undefined;
        return true;
      case 'E':
        end(refusal(serverError(bytes.subarray(start, endAt)), started !== undefined));
        return false;
      case 'c':
        end(new CoregentError('peer_restarting', 'the peer ended the stream'));
        return false;
      default:
        return true;
    }
  };

  const guarded = (step: () => boolean): void => {
    try {
      stopped = !step();
    } catch (error) {
      end(error instanceof RangeError ? new CoregentError('peer_protocol', error.message) : classify(error));
    }
    if (stopped && !over) socket.pause();
  };

  const calm = (): void => {
    gathering = undefined;
    pacing.calm();
    // Whoever asked to go on while the timer ran was left to it.
    if (!stopped && !over) socket.resume();
    reader.drained();
  };
  const readOn = (): void => {
    pacing.paused(performance.now());
    gathering = setTimeout(calm, 1);
    if (!stopped && !over) socket.resume();
  };

  socket.on('data', (chunk: Buffer) => {
    receivedBytes += chunk.length;
    heardAtMs = performance.now();
    pacing.read(chunk.length, heardAtMs);
    clearTimeout(gathering);
    gathering = undefined;
    guarded(() => frames.push(chunk, onMessage));
    if (over) return;
    if (chunk.length >= CHUNK_BYTES) {
      // Should it have been the last one after all, nobody else would say that the burst is over.
      if (pacing.bursting) gathering = setTimeout(calm, LAST_MS);
      return;
    }
    const pauseMs = pacing.emptied();
    if (pauseMs > 0) {
      socket.pause();
      gathering = setTimeout(readOn, pauseMs);
    } else if (pacing.bursting) {
      calm();
    }
  });
  const lost = (error?: Error): void =>
    end(error ? classify(error) : new CoregentError('peer_unreachable', 'the connection to the peer ended'));
  socket.on('error', lost);
  socket.on('close', () => lost());
  client.on('error', lost);

  let written = options.start;
  let flushed = options.start;
  const status = Buffer.alloc(39);
  const report = (): void => {
    if (over || !socket.writable) return;
    status[0] = COPY_DATA;
    status.writeInt32BE(38, 1);
    status[5] = 0x72;
    status.writeBigUInt64BE(written, 6);
    status.writeBigUInt64BE(flushed, 14);
    status.writeBigUInt64BE(flushed, 22);
    status.writeBigInt64BE(BigInt(Math.round((Date.now() - EPOCH_2000_MS) * 1000)), 30);
    status[38] = 0;
    socket.write(Buffer.from(status));
  };

  const settings = [
    // Version 2 streams large transactions while they run (14 and later).
    `proto_version ${literal('2')}`,
    `streaming ${literal('on')}`,
    `publication_names ${literal(ident(options.publication))}`,
    `binary ${literal('true')}`,
    ...(options.origin === 'none' ? [`origin ${literal('none')}`] : []),
  ];
  await new Promise<void>((resolve, reject) => {
    started = { resolve, reject };
    const text = `START_REPLICATION SLOT ${ident(options.slot)} LOGICAL ${formatLsn(options.start)} (${settings.join(', ')})`;
    (client as unknown as { connection: { query(text: string): void } }).connection.query(text);
    socket.resume();
  });

  return {
    get receivedBytes() {
      return receivedBytes;
    },
    get heardAtMs() {
      return heardAtMs;
    },
    get bursting() {
      return pacing.bursting;
    },
    resume() {
      if (over || !stopped) return;
      stopped = false;
      guarded(() => frames.resume(onMessage));
      if (!stopped && !over && gathering === undefined) socket.resume();
    },
    confirm(writtenNow: LSN, flushedNow: LSN) {
      if (flushedNow > writtenNow) throw new CoregentError('internal_assert', 'confirmed is never past received');
      if (flushedNow > flushed) flushed = flushedNow;
      if (writtenNow > written) written = writtenNow;
      report();
    },
    close() {
      over = true;
      clearTimeout(gathering);
      socket.destroy();
    },
  };
}

/** The fields of an ErrorResponse as an error with PostgreSQL's SQLSTATE in `code`. */
function serverError(body: Buffer): Error {
  const fields = new Map<string, string>();
  for (const field of body.toString('utf8').split('\0')) if (field !== '') fields.set(field[0]!, field.slice(1));
  return Object.assign(new Error(fields.get('M') ?? 'unknown error'), { code: fields.get('C') });
}

/** What the server says; of a start it can miss nothing but the slot, which was there a moment ago. */
function refusal(error: Error, starting: boolean): CoregentError {
  const { code } = error as { code?: string };
  if (starting && code === '42704') return new CoregentError('slot_lost', error.message, { cause: error });
  return classify(error);
}
