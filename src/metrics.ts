import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { VERSION } from './version.ts';

interface MetricRow {
  readonly name: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly help: string;
  /** Labels besides `region`; `target` is always this region and filled in. */
  readonly labels: readonly string[];
  readonly buckets?: readonly number[];
}

/** Every metric: base units, few labels. `region` is added to all of them. */
export const metrics = {
  buildInfo: {
    name: 'coregent_build_info',
    type: 'gauge',
    help: 'Always 1; the labels tell the versions.',
    labels: ['version', 'node'],
  },
  agentState: {
    name: 'coregent_agent_state',
    type: 'gauge',
    help: '1 for the state that the agent is in, 0 for the others.',
    labels: ['state'],
  },
  lag: {
    name: 'coregent_replication_lag_seconds',
    type: 'gauge',
    help: 'Age of the oldest change that waits here or, while the link is down, may be missing; 0 when nothing does.',
    labels: ['origin', 'target'],
  },
  lagBytes: {
    name: 'coregent_replication_lag_bytes',
    type: 'gauge',
    help: 'WAL of the origin that is not applied here yet.',
    labels: ['origin', 'target'],
  },
  linkUp: {
    name: 'coregent_link_up',
    type: 'gauge',
    help: '1 while changes of the origin stream.',
    labels: ['origin', 'target'],
  },
  confirmedLSN: {
    name: 'coregent_confirmed_lsn_bytes',
    type: 'gauge',
    help: 'Position in the origin’s WAL, in bytes, up to which all is durable here and confirmed.',
    labels: ['origin', 'target'],
  },
  slotRetained: {
    name: 'coregent_slot_retained_bytes',
    type: 'gauge',
    help: 'WAL that a slot of this region keeps from being removed.',
    labels: ['slot'],
  },
  slotSafe: {
    name: 'coregent_slot_safe_bytes',
    type: 'gauge',
    help: 'WAL that may be written before a slot of this region is dropped: by slots.max_wal or max_slot_wal_keep_size.',
    labels: ['slot'],
  },
  transactionsApplied: {
    name: 'coregent_transactions_applied_total',
    type: 'counter',
    help: 'Transactions of the origin committed here.',
    labels: ['origin', 'target'],
  },
  rowsApplied: {
    name: 'coregent_rows_applied_total',
    type: 'counter',
    help: 'Rows of the origin committed here.',
    labels: ['origin', 'target'],
  },
  receivedBytes: {
    name: 'coregent_received_bytes_total',
    type: 'counter',
    help: 'Bytes received from the origin’s walsender.',
    labels: ['origin', 'target'],
  },
  batchRows: {
    name: 'coregent_batch_rows',
    type: 'histogram',
    help: 'Rows in one local transaction.',
    labels: ['origin', 'target'],
    buckets: [1, 10, 100, 1000, 10_000, 100_000],
  },
  applySeconds: {
    name: 'coregent_apply_seconds',
    type: 'histogram',
    help: 'Time from the first statement of a batch to its commit.',
    labels: ['origin', 'target'],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
  },
  applyErrors: {
    name: 'coregent_apply_errors_total',
    type: 'counter',
    help: 'Failed attempts to apply; the reason is an error code.',
    labels: ['origin', 'target', 'reason'],
  },
  conflicts: {
    name: 'coregent_conflicts_total',
    type: 'counter',
    help: 'Concurrent versions that met, by table, kind and outcome.',
    labels: ['table', 'type', 'resolution'],
  },
  conflictAlert: {
    name: 'coregent_conflict_alert',
    type: 'gauge',
    help: '1 while more conflicts are recorded than conflicts.alert allows, else 0; absent without that key.',
    labels: [],
  },
  deadLetters: {
    name: 'coregent_dead_letters',
    type: 'gauge',
    help: 'Rows parked because they could not be applied.',
    labels: [],
  },
  pausedTables: {
    name: 'coregent_paused_tables',
    type: 'gauge',
    help: 'Tables of the origin that pause, or are being joined again.',
    labels: ['origin', 'target'],
  },
  clockSkew: {
    name: 'coregent_clock_skew_seconds',
    type: 'gauge',
    help: 'How far the peer’s clock runs ahead of this region’s; negative when behind.',
    labels: ['peer'],
  },
} as const satisfies Record<string, MetricRow>;

type Table = typeof metrics;
type LabelsOf<M extends MetricRow> = Readonly<Record<Exclude<M['labels'][number], 'target'>, string>>;
type HandleOf<M extends MetricRow> = M['type'] extends 'counter'
  ? { inc(labels: LabelsOf<M>, by?: number): void }
  : M['type'] extends 'gauge'
    ? { set(labels: LabelsOf<M>, value: number): void; remove(labels: LabelsOf<M>): void }
    : { observe(labels: LabelsOf<M>, value: number): void };

/** One handle a metric of the table, and the text that Prometheus reads. */
export type Metrics = { readonly [K in keyof Table]: HandleOf<Table[K]> } & {
  /** All metrics in Prometheus' text format. */
  text(): Promise<string>;
};

/** The content type of `Metrics.text()`. */
export const METRICS_CONTENT_TYPE = Registry.PROMETHEUS_CONTENT_TYPE;

/** Makes the metrics of one agent, on a registry of its own: several agents of one process stay apart. */
export function createMetrics(region: string): Metrics {
  const registry = new Registry();
  registry.setDefaultLabels({ region });
  const handles = Object.entries(metrics).map(([key, row]) => [key, handle(row, region, registry)]);
  const made = { ...Object.fromEntries(handles), text: () => registry.metrics() } as Metrics;
  made.buildInfo.set({ version: VERSION, node: process.versions.node }, 1);
  return made;
}

function handle(row: MetricRow, region: string, registry: Registry) {
  const { name, help } = row;
  const settings = { name, help, labelNames: [...row.labels], registers: [registry] };
  const target = row.labels.includes('target') ? { target: region } : {};
  type Labels = Readonly<Record<string, string>>;
  switch (row.type) {
    case 'counter': {
      const counter = new Counter(settings);
      return { inc: (labels: Labels, by = 1) => counter.inc({ ...labels, ...target }, by) };
    }
    case 'gauge': {
      const gauge = new Gauge(settings);
      return {
        set: (labels: Labels, value: number) => gauge.set({ ...labels, ...target }, value),
        remove: (labels: Labels) => gauge.remove({ ...labels, ...target }),
      };
    }
    case 'histogram': {
      const histogram = new Histogram({ ...settings, buckets: [...(row.buckets ?? [])] });
      return { observe: (labels: Labels, value: number) => histogram.observe({ ...labels, ...target }, value) };
    }
  }
}
