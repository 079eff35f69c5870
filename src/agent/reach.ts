import type { ErrorCode } from '../model/error.ts';

/** The shortest wait before a peer is tried again, and the longest, in ms. */
const SHORTEST_MS = 100;
const LONGEST_MS = 10_000;
/** The longest where a peer is merely away, in ms: together with the attempt that follows, a link that is back is used within 5 s. */
const AWAY_MS = 2_500;
const AWAY: readonly ErrorCode[] = ['peer_unreachable', 'peer_restarting'];
/** An attempt to connect that was not answered for so long, in ms, is joined by another. */
const ANOTHER_MS = 2_000;

/** How long to wait after so many failures in a row (from 1), the last with this error, in ms; up to half of it is at random, in [0, 1). */
export function backoffMs(failures: number, error?: ErrorCode, random = Math.random()): number {
  const most = Math.min(error && AWAY.includes(error) ? AWAY_MS : LONGEST_MS, SHORTEST_MS * 2 ** (failures - 1));
  return most / 2 + (random * most) / 2;
}

/**
 * The outcome of the first attempt that has one. While an attempt hangs, further ones are begun beside it: one whose packets were
 * lost does not hear that the network is back before its TCP tries again, which may take as long as the network was away.
 * The signal of every other attempt is aborted; it then has to drop what it has, or comes to have.
 */
export async function soonest<T>(attempt: (signal: AbortSignal) => Promise<T>, stopping: AbortSignal): Promise<T> {
  const running = new Set<AbortController>();
  let over = false;
  let another: NodeJS.Timeout | undefined;
  let stop = (): void => {};
  try {
    return await new Promise<T>((resolve, reject) => {
      const begin = (): void => {
        const own = new AbortController();
        running.add(own);
        const end = (tell: () => void, won: boolean): void => {
          if (over || !won) own.abort();
          else running.delete(own);
          over = true;
          tell();
        };
        attempt(own.signal).then(
          (result) => end(() => resolve(result), true),
          (error) => end(() => reject(error), false),
        );
      };
      begin();
      another = setInterval(begin, ANOTHER_MS);
      stop = () => reject(stopping.reason);
      stopping.addEventListener('abort', stop);
      if (stopping.aborted) stop();
    });
  } finally {
    over = true;
    clearInterval(another);
    stopping.removeEventListener('abort', stop);
    for (const each of running) each.abort();
  }
}
