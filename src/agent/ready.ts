import { type AgentStatus, type Readiness, type ReadyCheck, SCHEMA_VERSION } from '../model/api.ts';

/**
 * Whether a region may be sent traffic. Without `maxLagMs` no peer matters: else one cut link would drain every
 * region at once. With it the worst peer decides, and a lag that is not known counts as too much. So does a table whose
 * changes have been passed over for longer: its rows are that stale.
 */
export function readiness(status: AgentStatus, maxLagMs?: number): Readiness {
  const checks: ReadyCheck[] = [
    { name: 'agent', ok: status.state === 'active', detail: status.state },
    {
      name: 'database',
      ok: status.database.version !== null,
      detail: status.database.version === null ? 'not reachable' : `PostgreSQL ${status.database.version}`,
    },
  ];
  if (maxLagMs !== undefined) {
    for (const { region, state, lag_ms, paused } of status.peers) {
      const lag = lag_ms === null ? 'lag not known' : `lag ${Math.round(lag_ms)} ms`;
      checks.push({
        name: `lag:${region}`,
        ok: lag_ms !== null && lag_ms <= maxLagMs,
        detail: `${state}, ${lag}, at most ${maxLagMs} ms`,
      });
      for (const { table, state, since } of paused) {
        checks.push({
          name: `table:${region}:${table}`,
          ok: Date.now() - Date.parse(since) <= maxLagMs,
          detail: `${state} since ${since}, at most ${maxLagMs} ms`,
        });
      }
    }
  }
  if (status.conflicts.alert) {
    const { limit, recent, exceeded } = status.conflicts.alert;
    checks.push({ name: 'conflicts', ok: !exceeded, detail: `${recent} of late, alert at ${limit}`, informs: true });
  }
  const ready = checks.every(({ ok, informs }) => ok || informs);
  return { schema_version: SCHEMA_VERSION, ready, checks };
}
