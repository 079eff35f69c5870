import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type FaultProxy, startProxy } from '../../src/demo/proxy.ts';
import { until } from '../world/until.ts';

/** A target that keeps its connections and what each received; a test makes it answer. */
let target: Server;
let accepted: { socket: Socket; received: Buffer[] }[];
let proxy: FaultProxy;
let clients: Socket[];

beforeEach(async () => {
  accepted = [];
  clients = [];
  target = createServer({ allowHalfOpen: true }, (socket) => {
    const received: Buffer[] = [];
    accepted.push({ socket, received });
    socket.on('data', (bytes) => received.push(bytes)).on('error', () => {});
  }).listen(0, '127.0.0.1');
  await once(target, 'listening');
  proxy = await startProxy({ target: { host: '127.0.0.1', port: portOf(target) } });
});

afterEach(async () => {
  for (const client of clients) client.destroy();
  for (const { socket } of accepted) socket.destroy();
  await proxy.close();
  target.close();
});

describe('a healthy link', () => {
  test('carries every byte in order, both ways, under jitter', async () => {
    proxy.setLatency(2, 10);
    const sent = randomBytes(1_000_000);
    const { client, received } = await dial();
    for (let at = 0; at < sent.length; at += 10_007) client.write(sent.subarray(at, at + 10_007));
    const arrived = await until(() => bytesAt(0, sent.length), { what: 'all bytes at the target' });
    expect(arrived.equals(sent)).toBe(true);

    accepted[0]?.socket.write(sent);
    const back = await until(() => whole(received, sent.length), { what: 'all bytes at the client' });
    expect(back.equals(sent)).toBe(true);
  });

  test('passes the end of one direction and leaves the other open', async () => {
    const { client, received } = await dial();
    client.end('question');
    await until(() => accepted[0]?.socket.readableEnded, { what: 'the end at the target' });
    expect(text(accepted[0]?.received)).toBe('question');
    accepted[0]?.socket.end('answer');
    await until(() => client.readableEnded, { what: 'the end at the client' });
    expect(text(received)).toBe('answer');
    await until(() => proxy.connections === 0, { what: 'the proxy to forget the connection' });
  });

  test('ends the client when the target refuses', async () => {
    await new Promise((done) => target.close(done));
    const { client } = await dial();
    await until(() => client.destroyed, { what: 'the end of the client' });
  });
});

describe('a slow link', () => {
  test('delays each direction by at least its latency', async () => {
    const { client, received } = await dial();
    await roundTrip(client, received);
    proxy.setLatency(40);
    const start = performance.now();
    await roundTrip(client, received);
    expect(performance.now() - start).toBeGreaterThanOrEqual(79);
  });

  test('is not made narrow by its latency', async () => {
    // One message at a time would need 200 round trips of 100 ms, twice what the deadline allows.
    proxy.setLatency(50);
    const { client } = await dial();
    const message = Buffer.alloc(20_000, 7);
    for (let i = 0; i < 200; i++) client.write(message);
    await until(() => bytesAt(0, 200 * 20_000), { what: 'all messages' });
  });

  test('carries no more than its bandwidth', async () => {
    proxy.setBandwidth(100_000);
    const { client } = await dial();
    const start = performance.now();
    client.write(Buffer.alloc(30_000));
    await until(() => bytesAt(0, 30_000), { what: 'all bytes' });
    expect(performance.now() - start).toBeGreaterThanOrEqual(299);
  });

  test('makes a sender wait for a slow receiver', async () => {
    const { client } = await dial();
    const connection = await until(() => accepted[0], { what: 'the connection' });
    connection.socket.pause();
    const size = 64 * 1024 * 1024;
    const piece = Buffer.alloc(64 * 1024);
    for (let at = 0; at < size; at += piece.length) client.write(piece);
    // Sockets and the lane take some MiB, then nothing any more.
    let taken = -1;
    while (taken !== size - client.writableLength) {
      taken = size - client.writableLength;
      for (let i = 0; i < 5; i++) await bystander();
    }
    expect(taken).toBeLessThan(size);
    connection.socket.resume();
    await until(() => count(connection.received) === size, { what: 'all bytes after all' });
  });
});

describe('a broken link', () => {
  test('cut ends connections and refuses new ones until heal, on the same port', async () => {
    const { client } = await dial();
    await until(() => accepted.length === 1, { what: 'the connection' });
    await proxy.cut();
    await until(() => client.destroyed && accepted[0]?.socket.readableEnded, { what: 'both ends to end' });
    const refused = track(connect(proxy.port, '127.0.0.1'));
    await expect(once(refused, 'connect')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    await proxy.heal();
    const again = await dial();
    again.client.write('hello');
    await until(() => text(accepted.at(-1)?.received) === 'hello', { what: 'the bytes of a new connection' });
  });

  test('a hole holds bytes and ends, accepts silently, and gives all back on heal', async () => {
    const before = await dial();
    await roundTrip(before.client, before.received);
    proxy.hole();
    before.client.end('lost?');
    const during = await dial();
    during.client.write('hello');
    // Another link carries on meanwhile: when it has answered, a healthy one would have answered too.
    await bystander();
    expect(accepted).toHaveLength(1);
    expect(text(accepted[0]?.received)).toBe('?');
    expect(during.client.destroyed).toBe(false);
    await proxy.heal();
    await until(() => accepted[0]?.socket.readableEnded, { what: 'the end that was held' });
    expect(text(accepted[0]?.received)).toBe('?lost?');
    await until(() => text(accepted[1]?.received) === 'hello', { what: 'the connection made in the hole' });
  });

  test('a hole may be one way', async () => {
    const { client, received } = await dial();
    await roundTrip(client, received);
    proxy.hole('down');
    client.write('more');
    await until(() => text(accepted[0]?.received) === '?more', { what: 'bytes upwards' });
    accepted[0]?.socket.write('unheard');
    await bystander();
    expect(text(received)).toBe('!');
    await proxy.heal();
    await until(() => text(received) === '!unheard', { what: 'bytes downwards after heal' });
  });

  test('a lost connection carries nothing any more and tells nobody; new ones are not affected', async () => {
    const before = await dial();
    await roundTrip(before.client, before.received);
    proxy.lose();
    before.client.write('lost');
    before.client.end();
    await bystander();
    const after = await dial();
    await roundTrip(after.client, after.received, 1);
    expect(text(accepted[0]?.received)).not.toContain('lost');
    expect(accepted[0]?.socket.readableEnded).toBe(false);
  });

  test('new connections may stall in the middle of an answer', async () => {
    proxy.stall(3);
    const { client, received } = await dial();
    const connection = await until(() => accepted[0], { what: 'the connection' });
    connection.socket.write('answer');
    await until(() => text(received) === 'ans', { what: 'what may pass' });
    await bystander();
    expect(text(received)).toBe('ans');
    expect(client.destroyed).toBe(false);
    await proxy.heal();
    const after = await dial();
    await roundTrip(after.client, after.received, 1);
  });

  test('a hole makes its sender wait', async () => {
    const { client, received } = await dial();
    await roundTrip(client, received);
    proxy.hole('up');
    const piece = Buffer.alloc(1024 * 1024);
    for (let i = 0; i < 64; i++) client.write(piece);
    await bystander();
    expect(client.writableLength).toBeGreaterThan(0);
    await proxy.heal();
    await until(() => count(accepted[0]?.received) === 1 + 64 * piece.length, { what: 'all bytes after heal' });
  });

  test('reset breaks both ends', async () => {
    const { client, received } = await dial();
    await roundTrip(client, received);
    proxy.reset();
    await until(() => client.errored && accepted[0]?.socket.errored, { what: 'errors at both ends' });
    expect(client.errored).toMatchObject({ code: 'ECONNRESET' });
    const again = await dial();
    await roundTrip(again.client, again.received, 1);
  });

  test('reset can break in the middle of a message', async () => {
    const { client, received } = await dial();
    await roundTrip(client, received);
    proxy.reset(5);
    client.write('0123456789');
    // libuv may tell a receiver that has just read bytes of an end, where the kernel says reset.
    const broken = () => accepted[0]?.socket.errored || accepted[0]?.socket.readableEnded;
    await until(() => client.errored && broken(), { what: 'both ends to break' });
    expect('?01234'.startsWith(text(accepted[0]?.received))).toBe(true);
  });
});

async function dial(): Promise<{ client: Socket; received: Buffer[] }> {
  const client = track(connect(proxy.port, '127.0.0.1'));
  const received: Buffer[] = [];
  client.on('data', (bytes) => received.push(bytes));
  await once(client, 'connect');
  return { client, received };
}

function track(client: Socket): Socket {
  clients.push(client.on('error', () => {}));
  return client;
}

/** One byte there and one back; `index` says which of the target's connections is the client's. */
async function roundTrip(client: Socket, received: Buffer[], index = 0): Promise<void> {
  const [there, back] = [count(accepted[index]?.received), count(received)];
  client.write('?');
  await until(() => count(accepted[index]?.received) > there, { what: 'a byte at the target' });
  accepted[index]?.socket.write('!');
  await until(() => count(received) > back, { what: 'a byte at the client' });
}

/** A round trip over a healthy proxy of its own: time for the loop to have carried whatever could move. */
async function bystander(): Promise<void> {
  const echo = createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
  await once(echo, 'listening');
  const healthy = await startProxy({ target: { host: '127.0.0.1', port: portOf(echo) }, latencyMs: 20 });
  const client = track(connect(healthy.port, '127.0.0.1'));
  client.write('?');
  await once(client, 'data');
  client.destroy();
  await healthy.close();
  echo.close();
}

function portOf(server: Server): number {
  const address = server.address();
  return typeof address === 'object' && address ? address.port : 0;
}

function count(received: Buffer[] = []): number {
  return received.reduce((sum, bytes) => sum + bytes.length, 0);
}

function whole(received: Buffer[] | undefined, bytes: number): Buffer | undefined {
  return count(received) >= bytes ? Buffer.concat(received ?? []) : undefined;
}

function bytesAt(connection: number, bytes: number): Buffer | undefined {
  return whole(accepted[connection]?.received, bytes);
}

function text(received: Buffer[] = []): string {
  return Buffer.concat(received).toString();
}
