import { onTestFinished } from 'vitest';
import type { Cluster } from './cluster.ts';
import { until } from './until.ts';

/** The table whose rows {@link lockGate} locks. */
export const GATES = 'create table gates (id int primary key, v text);';

/** Waits until a query gives something true in a region. */
export async function seen(cluster: Cluster, region: string, text: string, what: string): Promise<void> {
  await until(() => cluster.value(region, text), { what: `${what} in ${region}` });
}

/** Locks a row of the table gates in a region; what comes from any region for it waits. Call the result to let it pass. */
export async function lockGate(cluster: Cluster, region: string, id: number): Promise<() => Promise<void>> {
  await cluster.query('tokyo', `insert into gates values ($1, 'open')`, [id]);
  await cluster.converged();
  const session = await cluster.session(region);
  const open = async (): Promise<void> => {
    await session.query('commit');
  };
  onTestFinished(open);
  await session.query('begin');
  await session.query('select from gates where id = $1 for update', [id]);
  return open;
}
