import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

/** What a hostile peer says with; sending resolves once the socket took it, so that whoever does not read slows it down. */
export interface Speaker {
  /** The position that the agent asked for. */
  readonly start: bigint;
  /** False once the agent has hung up. */
  readonly open: boolean;
  /** Bytes as they are. */
  raw(bytes: Buffer): Promise<void>;
  /** Messages of logical replication, each in its frames. */
  say(...messages: readonly Buffer[]): Promise<void>;
  keepalive(walEnd: bigint): Promise<void>;
}

/** What it says instead of its WAL, after START_REPLICATION. */
export type Script = (speaker: Speaker) => Promise<void>;

/** A peer that answers every query as the real server behind it does, but may stream what it likes. */
export interface HostilePeer {
  readonly port: number;
  /** Agents that have asked for a stream since the last {@link turn}. */
  readonly streams: number;
  /** From now on streams are this script; without one, the server's own. Connections that are open end. */
  turn(script?: Script): void;
  close(): Promise<void>;
}

const COPY_BOTH = Buffer.from([0x57, 0, 0, 0, 7, 0, 0, 0]);

/** Starts one in front of the server that `url` reaches. */
export async function startHostilePeer(url: string): Promise<HostilePeer> {
  const { hostname, port } = new URL(url);
  const open = new Set<Socket>();
  let script: Script | undefined;
  let streams = 0;
  const listener = createServer({ noDelay: true }, (client) => {
    const server = connect({ host: hostname, port: Number(port), noDelay: true });
    const mine = script;
    let streaming = false;
    for (const socket of [client, server]) {
      open.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        open.delete(socket);
        client.destroy();
        server.destroy();
      });
    }
    server.on('data', (chunk) => client.write(chunk));
    client.on('data', (chunk) => {
      if (streaming) return;
      const asked = /^Q[\s\S]{4}START_REPLICATION .* LOGICAL ([0-9A-F]+)\/([0-9A-F]+) /.exec(chunk.toString('latin1'));
      if (asked) streams++;
      if (!asked || mine === undefined) {
        server.write(chunk);
        return;
      }
      streaming = true;
      client.write(COPY_BOTH);
      const start = (BigInt(`0x${asked[1]}`) << 32n) | BigInt(`0x${asked[2]}`);
      mine(speakerTo(client, start)).catch(() => {});
    });
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  return {
    port: (listener.address() as AddressInfo).port,
    get streams() {
      return streams;
    },
    turn: (next) => {
      script = next;
      streams = 0;
      for (const socket of open) socket.destroy();
    },
    close: async () => {
      listener.close();
      for (const socket of open) socket.destroy();
      await once(listener, 'close');
    },
  };
}

function speakerTo(client: Socket, start: bigint): Speaker {
  const raw = async (bytes: Buffer): Promise<void> => {
    if (client.destroyed || client.write(bytes)) return;
    const told = new AbortController();
    const { signal } = told;
    await Promise.race([once(client, 'drain', { signal }), once(client, 'close', { signal })]).catch(() => {});
    // The one that did not come takes its listeners with it.
    told.abort();
  };
  return {
    start,
    get open() {
      return !client.destroyed;
    },
    raw,
    say: (...messages) => raw(Buffer.concat(messages.map((message) => framed(message, start)))),
    keepalive: (walEnd) => {
      const body = Buffer.alloc(18);
      body[0] = 0x6b;
      body.writeBigUInt64BE(walEnd, 1);
      return raw(copyData(body));
    },
  };
}

/** A message of logical replication in its frames: CopyData, and XLogData within. */
export function framed(message: Buffer, lsn: bigint): Buffer {
  const header = Buffer.alloc(25);
  header[0] = 0x77;
  header.writeBigUInt64BE(lsn, 1);
  header.writeBigUInt64BE(lsn, 9);
  return copyData(Buffer.concat([header, message]));
}

/** A CopyData frame. */
export function copyData(body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head[0] = 0x64;
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}
