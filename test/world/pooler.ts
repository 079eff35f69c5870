import { connect, createServer, type Socket } from 'node:net';

/** What looks like a pooler from outside. */
export interface Pooler {
  readonly port: number;
  close(): void;
}

/**
 * A pooler in what can be seen of one: it lets no replication through, and gives sessions numbers of its own. Else it hands
 * everything on, one connection for one.
 */
export async function startPooler(target: { host: string; port: number }): Promise<Pooler> {
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    sockets.add(client);
    client.on('error', () => {});
    client.once('data', (startup: Buffer) => {
      if (startup.includes('replication\0')) {
        const body = 'SERROR\0C08P01\0Munsupported startup parameter: replication\0\0';
        const message = Buffer.alloc(5 + body.length);
        message.write('E');
        message.writeInt32BE(4 + body.length, 1);
        message.write(body, 5);
        client.end(message);
        return;
      }
      const upstream = connect(target);
      sockets.add(upstream);
      upstream.on('error', () => {});
      upstream.write(startup);
      client.pipe(upstream);
      upstream.on('data', (bytes: Buffer) => {
        const key = bytes.indexOf(Buffer.from([0x4b, 0, 0, 0, 12]));
        if (key >= 0) bytes.writeInt32BE(bytes.readInt32BE(key + 5) + 100_000_000, key + 5);
        client.write(bytes);
      });
      upstream.on('close', () => client.destroy());
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  return {
    port,
    close: () => {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
