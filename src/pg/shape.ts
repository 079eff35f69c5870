import type pg from 'pg';
import { FIRST, STATE, type Table, tableLabel } from '../model/table.ts';
import { ident } from '../quote.ts';
import { runScript } from './script.ts';
import type { GroupKind } from './steps.ts';
import { prepareTargets, type Target } from './target.ts';

/** Names and types of columns, in order, as `coregent.parked` has them. */
type Shape = readonly (readonly [name: string, type: string])[];

/** A row as it was parked: as it came. Its table may have other columns by the time that it fits. */
export interface ParkedBytes {
  readonly kind: GroupKind['kind'];
  /** In `record` form. */
  readonly row: Buffer;
  readonly columns: Shape;
}

/** The columns that rows of a table are parked with now. */
export function shapeOf(target: Target, kind: GroupKind['kind']): string {
  return JSON.stringify(columnsOf(target, kind));
}

function columnsOf({ staging: { table }, compiled }: Target, kind: GroupKind['kind']): Shape {
  const types = new Map(table.columns.map(({ name, type, asText }) => [name, asText ? 'text' : type]));
  const names = kind === 'tombstone' ? compiled.tombstoneColumns : compiled.rowColumns;
  return [...names, FIRST].map((name) => [name, types.get(name) ?? (name === STATE ? 'jsonb' : 'bigint')]);
}

/** Whether the row has the columns that its table has now. */
export function fits(target: Target, { kind, columns }: Omit<ParkedBytes, 'row'>): boolean {
  return JSON.stringify(columns) === shapeOf(target, kind);
}

/**
 * The row with the columns that its table has now, in `record` form: one that was added has the value that rows have which were there
 * before, one that was dropped is left out, one whose type changed is read from its text. Undefined where it cannot be.
 */
export async function inShape(client: pg.Client, target: Target, parked: ParkedBytes): Promise<Buffer | undefined> {
  const { table } = target.staging;
  const { rows: stored } = await client.query(
    `select a.attname as name, case when a.atthasmissing then quote_literal((a.attmissingval::text::text[])[1]) else pg_get_expr(d.adbin, d.adrelid) end as value
      from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      where a.attrelid = $1 and (a.atthasmissing or a.attnotnull) and a.attnum > 0`,
    [table.oid],
  );
  const before = new Map<string, string | null>(stored.map(({ name, value }) => [name, value]));
  const fields = fieldsOf(parked.row);
  const had = new Map(parked.columns.map(([name], at) => [name, fields[at]]));
  const types = await typesOf(client, fields);
  const values: (readonly Buffer[] | null)[] = [];
  const parts = columnsOf(target, parked.kind).map(([name, type]) => {
    const field = had.get(name);
    if (!field) {
      return `(${before.get(name) ?? 'null'})::${type} as ${ident(name)}`;
    }
    values.push(field.bytes && [field.bytes]);
    const was = types.get(field.oid);
    const same = was === type || type.startsWith(`${was}(`);
    return `${same ? `$${values.length}::${type}` : `$${values.length}::${was}::text::${type}`} as ${ident(name)}`;
  });
  const { results, error } = await runScript(client, [
    {
      text: `select encode(int4send(length(b.bytes)) || b.bytes, 'hex') from (select ${parts.join(', ')}) as r cross join lateral (select record_send(r)) as b (bytes)`,
      values,
    },
  ]);
  return error ? undefined : Buffer.from(results[0]!.rows[0]![0]!, 'hex');
}

interface Field {
  readonly oid: number;
  readonly bytes: Buffer | null;
}

function fieldsOf(row: Buffer): Field[] {
  const fields: Field[] = [];
  for (let at = 8, left = row.readInt32BE(4); left > 0; left--) {
    const length = row.readInt32BE(at + 4);
    fields.push({ oid: row.readUInt32BE(at), bytes: length < 0 ? null : row.subarray(at + 8, at + 8 + length) });
    at += 8 + Math.max(0, length);
  }
  return fields;
}

/** How the server writes these types; without their modifiers, which their values obey already. */
async function typesOf(client: pg.Client, fields: readonly Field[]): Promise<ReadonlyMap<number, string>> {
  const { rows } = await client.query(
    `select t.oid::int8::float8 as oid, format_type(t.oid, null) as type from pg_type t where t.oid = any ($1::oid[])`,
    [[...new Set(fields.map(({ oid }) => oid))]],
  );
  return new Map(rows.map(({ oid, type }) => [Number(oid), type]));
}

/** Prepares a session for applying, and what is parked for it: row types, compiled statements, and rows in the shape of every table. */
export async function prepareToApply(client: pg.Client, tables: readonly Table[]): Promise<Target[]> {
  const targets = await prepareTargets(client, tables);
  await reshapeParked(client, targets);
  return targets;
}

/** Brings parked rows into the shape that their tables have now; what cannot be stays as it is. Throws a lost connection. */
export async function reshapeParked(client: pg.Client, targets: readonly Target[]): Promise<void> {
  if (targets.length === 0) return;
  const shapes = targets.map((target) => ({
    label: tableLabel(target.staging.table),
    row: columnsOf(target, 'update'),
    tombstone: columnsOf(target, 'tombstone'),
  }));
  const { rows } = await client.query(
    `select id::text, operation, row_bytes, columns, s.nth::int from coregent.parked
      join rows from (jsonb_to_recordset($1::jsonb) as (label text, "row" jsonb, tombstone jsonb)) with ordinality as s (label, "row", tombstone, nth)
      on s.label = table_name where columns <> case operation when 'tombstone' then s.tombstone else s."row" end order by id`,
    [JSON.stringify(shapes)],
  );
  for (const { id, operation, row_bytes: row, columns, nth } of rows) {
    const target = targets[nth - 1]!;
    const kind = operation === 'tombstone' ? 'tombstone' : 'update';
    const shaped = await inShape(client, target, { kind, row, columns });
    if (!shaped) continue;
    // One that came again in the new shape is parked already.
    const { rowCount } = await client.query(
      `update coregent.parked p set row_bytes = $2, columns = $3::jsonb where id = $1 and not exists (select from coregent.parked q
        where (q.version, q.table_name, q.operation, md5(q.row_bytes)) = (p.version, p.table_name, p.operation, md5($2::bytea)))`,
      [id, shaped, shapeOf(target, kind)],
    );
    if (rowCount === 0) await client.query('delete from coregent.parked where id = $1', [id]);
  }
}
