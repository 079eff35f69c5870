import { startAgent } from '../agent/agent.ts';
import { loadConfig } from '../config.ts';
import { createLogger } from '../log.ts';
import { EXIT } from '../model/error.ts';
import type { Context } from './context.ts';

/** Options of `coregent start`. */
export interface StartOptions {
  readonly region: string;
  readonly port?: number;
  readonly host?: string;
}

/** `coregent start`: runs the agent of one region until SIGTERM or SIGINT, then ends cleanly; a second signal forces. */
export async function run({ region, port, host }: StartOptions, context: Context): Promise<number> {
  const config = await loadConfig(context.config, context.env);
  const log = createLogger({
    level: context.verbose ? 'debug' : 'info',
    region,
    ...(context.json ? { human: false } : {}),
  });
  const asked = stopSignal();
  const agent = await startAgent(config, region, {
    log,
    ...(port === undefined ? {} : { port }),
    ...(host === undefined ? {} : { host }),
  });
  if (host !== undefined && !/^(localhost|127\..*|::1)$/.test(host)) log.event('http.exposed', { host });
  await asked;
  await agent.stop();
  return EXIT.ok;
}

function stopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let asked = false;
    for (const [signal, number] of [['SIGINT', 2] as const, ['SIGTERM', 15] as const]) {
      process.on(signal, () => {
        if (asked) process.exit(128 + number);
        asked = true;
        resolve();
      });
    }
  });
}
