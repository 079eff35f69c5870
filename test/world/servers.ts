import type { TestProject } from 'vitest/node';
import { type Server, startPostgres } from '../../src/demo/postgres.ts';
import { majorsOf, PACKAGES } from './majors.ts';

/** How many servers a project's tests share: enough for three regions. */
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

/** Projects load this module each on their own, and must share servers nevertheless: the run's own place for them, by major. */
const run = globalThis as { [shared]?: { started: Map<string, Promise<Server>>; users: number } };
const shared = Symbol.for('coregent.test.servers');

/** Starts the servers that a project needs, where another has not done so, and removes all after the last project. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  run[shared] ??= { started: new Map(), users: 0 };
  const use = run[shared];
  use.users += 1;
  const majors = majorsOf(project);
  const servers = Array.from({ length: SERVERS }, (_, index) => {
    const major = majors[index % majors.length]!;
    const name = `test-${major}-${index}`;
    const server = use.started.get(name) ?? startPostgres({ name, settings, major, packages: PACKAGES });
    use.started.set(name, server);
    return server;
  });
  project.provide(
    'servers',
    (await Promise.all(servers)).map((server) => server.url()),
  );
  return async () => {
    use.users -= 1;
    if (use.users > 0) return;
    delete run[shared];
    await Promise.all([...use.started.values()].map(async (server) => await (await server).remove()));
  };
}
