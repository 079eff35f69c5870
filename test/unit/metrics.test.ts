import { expect, it } from 'vitest';
import { createMetrics, metrics } from '../../src/metrics.ts';

it('every metric has a name by the rules, help and few labels', () => {
  for (const row of Object.values(metrics)) {
    expect(row.name).toMatch(/^coregent_[a-z_]+$/);
    expect(row.name.endsWith('_total')).toBe(row.type === 'counter');
    expect(row.help.endsWith('.')).toBe(true);
    expect(row.labels.length).toBeLessThanOrEqual(3);
  }
});

it('handles write what Prometheus reads, with region and target filled in', async () => {
  const made = createMetrics('tokyo');
  made.rowsApplied.inc({ origin: 'frankfurt' }, 5);
  made.rowsApplied.inc({ origin: 'frankfurt' });
  made.lag.set({ origin: 'frankfurt' }, 0.25);
  made.batchRows.observe({ origin: 'frankfurt' }, 50);
  made.deadLetters.set({}, 0);
  const text = await made.text();
  expect(text).toContain('coregent_rows_applied_total{origin="frankfurt",target="tokyo",region="tokyo"} 6');
  expect(text).toContain('coregent_replication_lag_seconds{origin="frankfurt",target="tokyo",region="tokyo"} 0.25');
  expect(text).toMatch(/coregent_batch_rows_bucket\{le="100",.*\} 1/);
  expect(text).toContain('coregent_dead_letters{region="tokyo"} 0');
  made.lag.remove({ origin: 'frankfurt' });
  expect(await made.text()).not.toContain('lag_seconds{');
});

it('agents of one process do not share counts', async () => {
  const [a, b] = [createMetrics('a'), createMetrics('b')];
  a.deadLetters.set({}, 7);
  expect(await b.text()).not.toContain(' 7');
});
