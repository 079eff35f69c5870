import { LWW } from '../../src/model/rule.ts';
import { PARENT, type Table, tombstoneName, VERSION } from '../../src/model/table.ts';
import type { Version } from '../../src/model/version.ts';
import {
  asRecords,
  type Batch,
  type Group,
  makeStaging,
  type Passing,
  type Route,
  type Staging,
} from '../../src/pipe/batch.ts';
import { makeRoute, missingColumns } from '../../src/pipe/decode.ts';
import type { Relation } from '../../src/wire/pgoutput.ts';

/** A table with a key and a text. */
export const NOTES: Table = {
  oid: 1,
  schema: 'public',
  name: 'notes',
  columns: [
    { name: 'id', oid: 23, type: 'integer', collation: '', identityAlways: false },
    { name: 'a', oid: 25, type: 'text', collation: '', identityAlways: false },
  ],
  key: ['id'],
  keyEquals: ['='],
  exactKey: true,
  rule: LWW,
};

/** Routes a peer's relations to one table here and to its tombstones, as the agent does; other relations go nowhere. */
export function routeTo(staging: Staging): (relation: Relation) => Route | Passing | undefined {
  const { table } = staging;
  const metadata = [VERSION, PARENT];
  return (relation) => {
    const tombstone = relation.schema === 'coregent';
    if (relation.name !== (tombstone ? tombstoneName(table) : table.name)) return undefined;
    const names = tombstone ? table.key : table.columns.map((column) => column.name);
    const staged = [...names, ...metadata];
    const reason = missingColumns(relation, staged);
    const version = relation.columns.findIndex(({ name }) => name === VERSION);
    if (reason) return { table: table.name, label: table.name, reason, version };
    return makeRoute(relation, staging, tombstone, { staged, version: VERSION, parent: PARENT });
  };
}

/** How a table's rows are staged when its columns have these types. */
export function stagingOf(table: Table): Staging {
  return makeStaging(
    table,
    [...table.columns.map((column) => column.name), VERSION, PARENT],
    [...table.key, VERSION, PARENT],
  );
}

/** One live row or tombstone of a batch, in plain values. */
export interface Staged {
  readonly kind: Group['kind'];
  /** Application columns of a row, key columns of a tombstone; undefined where the value is unknown. */
  readonly values: readonly (Buffer | null | undefined)[];
  readonly version: Version;
  readonly parent: Version;
  /** The version that the first of the collapsed writes replaced. */
  readonly first: Version;
}

/** What a batch would apply to one table: read from the bytes that PostgreSQL would get. */
export function stagedOf(batch: Batch, table: Table): Staged[] {
  const found = batch.tables.get(table.oid);
  if (!found) return [];
  return found.groups.flatMap((group) =>
    [...asRecords(found.staging, group).liveRows()].map((row) => {
      const columns = readRecord(row);
      const values = columns.map(({ value }, index) => (group.unknown.includes(index) ? undefined : value));
      const [version, parent, first] = values.splice(-3).map((value) => value!.readBigInt64BE());
      return { kind: group.kind, values, version: version!, parent: parent!, first: first! };
    }),
  );
}

/** The columns of an element of a composite array, as `record_recv` reads them. */
export function readRecord(row: Buffer): { oid: number; value: Buffer | null }[] {
  if (row.readInt32BE(0) !== row.length - 4) throw new Error('the element’s length is wrong');
  let at = 8;
  const columns = Array.from({ length: row.readInt32BE(4) }, () => {
    const oid = row.readUInt32BE(at);
    const length = row.readInt32BE(at + 4);
    const value = length < 0 ? null : Buffer.from(row.subarray(at + 8, at + 8 + length));
    at += 8 + Math.max(0, length);
    return { oid, value };
  });
  if (at !== row.length) throw new Error('bytes are left behind the last column');
  return columns;
}
