import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { Lane, type Weather } from './lane.ts';
import { freePort } from './port.ts';

/** `up` is from the client to the target, `down` is back. */
export type Direction = 'up' | 'down';

/** What `startProxy` takes. */
export interface ProxyOptions {
  readonly target: { readonly host: string; readonly port: number };
  /** Port on 127.0.0.1 to listen on. Default: a free one. */
  readonly port?: number;
  /** Added to each direction, in milliseconds. Default 0. */
  readonly latencyMs?: number;
  /** Up to this much more, at random; order is kept. Default 0. */
  readonly jitterMs?: number;
  /** Where jitter comes from, in [0, 1): a seeded one makes runs alike. Default `Math.random`. */
  readonly random?: () => number;
}

/** One accepted connection: the client's end, the target's end once dialled, and a lane each way. */
interface Pair {
  readonly client: Socket;
  upstream?: Socket;
  readonly lanes: Lane[];
}

/** Starts a TCP proxy on 127.0.0.1 that stands for one link of a WAN: slow, and breakable in the ways that links break. */
export async function startProxy(options: ProxyOptions): Promise<FaultProxy> {
  const proxy = new FaultProxy(options, options.port ?? (await freePort()));
  await proxy.heal();
  return proxy;
}

/** A link with faults. They hold for connections that exist and for new ones, until `heal`. */
export class FaultProxy {
  /** Where clients connect, on 127.0.0.1; the same through `cut` and `heal`. */
  readonly port: number;
  readonly #target: { readonly host: string; readonly port: number };
  readonly #weather: Weather;
  readonly #held = new Set<Direction>();
  readonly #pairs = new Set<Pair>();
  #stallBytes: number | undefined;
  #listener: Server | undefined;

  /** Not for users: `startProxy` makes proxies. */
  constructor({ target, latencyMs = 0, jitterMs = 0, random = Math.random }: ProxyOptions, port: number) {
    this.port = port;
    this.#target = target;
    this.#weather = { latencyMs, jitterMs, bytesPerSecond: Number.POSITIVE_INFINITY, random };
  }

  /** How many client connections are open. */
  get connections(): number {
    return this.#pairs.size;
  }

  /** Destroys all connections with what is under way in them, and refuses new ones. */
  async cut(): Promise<void> {
    const listener = this.#listener;
    this.#listener = undefined;
    const closed = listener && once(listener, 'close');
    listener?.close();
    for (const pair of this.#pairs) this.#end(pair, (socket) => socket.destroy());
    await closed;
  }

  /**
   * A black hole: connections stay open and new ones are accepted, but nothing arrives any more in the given direction, the
   * closing of a connection included. What is sent is held, as a peer's TCP would hold and resend it, and arrives on `heal`;
   * a sender feels backpressure once about 8 MiB are held. New connections don't reach the target before `heal`.
   */
  hole(direction: Direction | 'both' = 'both'): void {
    for (const each of direction === 'both' ? (['up', 'down'] as const) : [direction]) this.#held.add(each);
    this.#refresh();
  }

  /**
   * New connections carry so many bytes down to the client and then nothing more, although they stay open: a network that breaks
   * in the middle of something. What is lost on them stays lost after `heal`.
   */
  stall(afterBytes: number): void {
    this.#stallBytes = afterBytes;
  }

  /**
   * Existing connections carry nothing more, and nobody is told, ever: as after a router that lost its memory of them. Their ends
   * stay open as long as each likes. New ones are not affected.
   */
  lose(): void {
    for (const pair of this.#pairs) for (const lane of pair.lanes) lane.stop();
  }

  /** Ends `cut`, `hole` and `stall`; latency and bandwidth stay as they are set. */
  async heal(): Promise<void> {
    this.#held.clear();
    this.#stallBytes = undefined;
    for (const pair of this.#pairs) if (!pair.upstream) this.#dial(pair);
    this.#refresh();
    if (this.#listener) return;
    const listener = createServer({ allowHalfOpen: true, noDelay: true }, (client) => this.#accept(client));
    listener.listen({ host: '127.0.0.1', port: this.port });
    await once(listener, 'listening');
    this.#listener = listener;
  }

  /** Latency of each direction in milliseconds, and up to `jitterMs` more; also for what is under way now. */
  setLatency(latencyMs: number, jitterMs = 0): void {
    Object.assign(this.#weather, { latencyMs, jitterMs });
    this.#refresh();
  }

  /** Bytes per second, more than 0, that each connection may carry each way; `Infinity` for no limit. Also for what is under way now. */
  setBandwidth(bytesPerSecond: number): void {
    Object.assign(this.#weather, { bytesPerSecond });
    this.#refresh();
  }

  /**
   * Ends all connections that exist now with TCP resets to both ends: at once, or (to break in the middle of a message) after
   * `afterBytes` more bytes have passed in either direction of the connection. New connections are accepted.
   */
  reset(afterBytes = 0): void {
    for (const pair of this.#pairs) {
      const end = () => this.#end(pair, (socket) => socket.resetAndDestroy());
      if (afterBytes === 0) end();
      else for (const lane of pair.lanes) lane.allow(afterBytes, end);
    }
  }

  /** Ends all connections and stops listening, for good. */
  async close(): Promise<void> {
    await this.cut();
  }

  #accept(client: Socket): void {
    const pair: Pair = { client, lanes: [] };
    this.#pairs.add(pair);
    client.on('error', () => {}); // What follows from it is done on 'close'.
    client.once('close', () => {
      if (!pair.upstream) this.#pairs.delete(pair);
    });
    client.pause();
    if (this.#held.size === 0) this.#dial(pair);
  }

  #dial(pair: Pair): void {
    const upstream = connect({ ...this.#target, allowHalfOpen: true, noDelay: true });
    upstream.on('error', () => {});
    pair.upstream = upstream;
    const { client } = pair;
    const up = new Lane({ from: client, to: upstream, weather: this.#weather, held: () => this.#held.has('up') });
    const down = new Lane({ from: upstream, to: client, weather: this.#weather, held: () => this.#held.has('down') });
    pair.lanes.push(up, down);
    if (this.#stallBytes !== undefined) down.allow(this.#stallBytes, () => {});
    const forget = () => {
      if (client.destroyed && upstream.destroyed) this.#pairs.delete(pair);
    };
    client.once('close', forget);
    upstream.once('close', forget);
  }

  #end(pair: Pair, how: (socket: Socket) => void): void {
    this.#pairs.delete(pair);
    for (const lane of pair.lanes) lane.stop();
    how(pair.client);
    if (pair.upstream) how(pair.upstream);
  }

  #refresh(): void {
    for (const pair of this.#pairs) for (const lane of pair.lanes) lane.refresh();
  }
}
