import { type Sources, sources } from '../resolve/staged.ts';
import type { Target } from './target.ts';

/** How rows and tombstones of a table in `$1` are read. */
export function staged({ staging: { table }, compiled }: Pick<Target, 'staging' | 'compiled'>): Sources {
  const { rowType, rowColumns, tombstoneType, tombstoneColumns } = compiled;
  return sources(table, { type: rowType, columns: rowColumns }, { type: tombstoneType, columns: tombstoneColumns });
}

/** Rows in `$1` as `s`. */
export function stagedRows(target: Target): string {
  return staged(target).rows;
}

/** Tombstones in `$1` as `s`. */
export function stagedTombstones(target: Target): string {
  return staged(target).tombstones;
}
