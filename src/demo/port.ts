import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { CoregentError } from '../model/error.ts';

/**
 * Where ports are looked for. Below the ephemeral ranges (Linux from 32768, macOS and Windows from 49152), so that a stopped
 * server finds its port free when it starts again, and a client that retries a closed port can't connect to itself.
 */
const RANGE = { from: 20_000, to: 32_000 };
const ATTEMPTS = 200;

/** Whether a TCP listener could bind `port` on 127.0.0.1 right now. Another process may still take it a moment later. */
export async function isFree(port: number): Promise<boolean> {
  const probe = createServer();
  try {
    probe.listen({ host: '127.0.0.1', port, exclusive: true });
    await once(probe, 'listening');
    return true;
  } catch {
    return false;
  } finally {
    probe.close();
  }
}

/** A TCP port on 127.0.0.1 that is free now. Not reserved: who binds it must be ready to ask for another. */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const port = randomInt(RANGE.from, RANGE.to);
    if (await isFree(port)) return port;
  }
  throw new CoregentError('port_unavailable', `no free TCP port from ${RANGE.from} to ${RANGE.to}`, {
    where: '127.0.0.1',
    cure: 'Stop some of the servers on this machine, or choose a port.',
  });
}
