import type { LSN } from '../model/lsn.ts';
import type { FailedLook } from './crossing.ts';

/** A conflict that was recorded: its kind in PostgreSQL 18's names, and whether the incoming write was applied. */
export interface RecordedConflict {
  /** How people write the table's name. */
  readonly table: string;
  readonly kind: string;
  readonly outcome: string;
  /** Both had one version but other bytes: a restored backup, a cloned region, or rows older than replication. */
  readonly equalVersions: boolean;
}

/** What became of rows that were no plain successors. */
export interface Settled {
  readonly conflicts: readonly RecordedConflict[];
  /** Rows parked, less those that found their place after all. */
  readonly parked: number;
  /** Tables whose look for rows that crossed a delete begins to fail. */
  readonly failedLooks?: readonly FailedLook[];
}

/** What applying a batch did. */
export interface Receipt extends Settled {
  /** Local WAL position behind the commit; `undefined` while the local transaction is still open. */
  readonly localLsn: LSN | undefined;
  /** Rows written, of those received. */
  readonly rows: number;
}
