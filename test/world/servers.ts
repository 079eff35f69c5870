import type { TestProject } from 'vitest/node';
import { type Server, startPostgres } from '../../src/demo/postgres.ts';

/** How many servers a run of the tests shares: enough for three regions. */
export const SERVERS = 3;

declare module 'vitest' {
  interface ProvidedContext {
    /** URL of the superuser's database `postgres` on each shared server. */
    readonly servers: readonly string[];
  }
}

/** Tests share these, so they are light and forgetful; a test that breaks a server starts its own. */
const settings = {
  fsync: false,
  full_page_writes: false,
  shared_buffers: '32MB',
  max_connections: 200,
  max_wal_senders: 60,
  max_replication_slots: 60,
};

/** Projects load this module each on their own, and must share servers nevertheless: the run's own place for them. */
const run = globalThis as { [shared]?: { started: Promise<Server[]>; users: number } };
const shared = Symbol.for('coregent.test.servers');

/** Starts the servers before the first project that needs them, and removes them after the last. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  run[shared] ??= { started: startAll(), users: 0 };
  const use = run[shared];
  use.users += 1;
  const servers = await use.started;
  project.provide(
    'servers',
    servers.map((server) => server.url()),
  );
  return async () => {
    use.users -= 1;
    if (use.users > 0) return;
    delete run[shared];
    await Promise.all(servers.map((server) => server.remove()));
  };
}

function startAll(): Promise<Server[]> {
  const names = Array.from({ length: SERVERS }, (_, index) => `test-${index}`);
  return Promise.all(names.map((name) => startPostgres({ name, settings })));
}
