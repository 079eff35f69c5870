import type { RegionConfig } from '../config.ts';
import { CoregentError, classify } from '../model/error.ts';
import { connect, drop } from '../pg/connect.ts';
import type { Ending } from './ending.ts';

/** A peer that does not answer for so many ms is lost. */
export const PROBE_TIMEOUT_MS = 15_000;

/** Does the work at intervals; a fault, or work that takes too long, ends the session. */
export function regularly(everyMs: number, work: () => Promise<void>, ended: Ending): NodeJS.Timeout {
  let running = false;
  return setInterval(() => {
    if (running) return;
    running = true;
    const late = setTimeout(
      () => ended.end(new CoregentError('peer_unreachable', `no answer for ${PROBE_TIMEOUT_MS} ms`)),
      PROBE_TIMEOUT_MS,
    );
    work()
      .catch((error) => ended.end(classify(error)))
      .finally(() => {
        clearTimeout(late);
        running = false;
      });
  }, everyMs);
}

/** Whether the peer takes a new connection; throws when it does not. */
export async function answers({ url, name }: RegionConfig): Promise<void> {
  drop(await connect(url, name, { purpose: `look at ${name}` }));
}
