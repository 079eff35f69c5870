import { deletesName, PARENT, type Table, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import type { Version } from '../model/version.ts';
import { ident, literal, qualified } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';
import { ONE_MEETING } from '../resolve/parts.ts';
import { imageJson } from '../resolve/staged.ts';
import { type ForeignKey, refers } from './foreign.ts';
import type { Session } from './mend.ts';
import type { RecordedConflict } from './receipt.ts';
import type { Step } from './script.ts';

/** A row of this region by its key, as JSON. */
export interface RowOf {
  readonly table: Table;
  readonly key: string;
  readonly version: Version;
}

/** Families go so many generations deep. */
const GENERATIONS = 32;

/** A FROM item: the key in `$1`, as JSON, under the alias `k`. */
export function keyGiven(table: Table): string {
  return `jsonb_populate_record(null::${qualified('coregent', tombstoneName(table))}, $1::jsonb) k`;
}

/** The condition that the row of this alias has that key. */
export function hasKey(table: Table, alias: string): string {
  return `exists (select from ${keyGiven(table)} where ${sameKey(table, alias, 'k')})`;
}

/** Of a row of this alias its key as JSON, its version, and the row itself, as texts; of a table that is not replicated no version. */
export function shown(table: Table | undefined, alias: string): string {
  if (!table) return `to_jsonb(${alias}.*)::text, null::text, to_jsonb(${alias}.*)::text`;
  const key = table.key.map((name) => `${literal(name)}, ${alias}.${ident(name)}`).join(', ');
  return `jsonb_build_object(${key})::text, ${alias}.${ident(VERSION)}::text, (${imageJson(table, alias)})::text`;
}

/** A row that refers to another one. */
export interface ChildRow {
  readonly foreign: ForeignKey;
  /** The child's table; undefined where that is not replicated. */
  readonly table: Table | undefined;
  /** As JSON: its key, or where its table is not replicated, the row. */
  readonly key: string;
  /** Undefined where its table is not replicated. */
  readonly version: Version | undefined;
  /** As JSON. */
  readonly row: string;
}

/**
 * The rows that refer to a row by this foreign key. `parent`: a FROM item with the alias `p`, `value` its parameter; without `present`
 * only those to which no row is a parent.
 */
export async function childrenOf(
  session: Session,
  foreign: ForeignKey,
  { parent, value, present }: { readonly parent: string; readonly value: Step['values']; readonly present: boolean },
): Promise<ChildRow[]> {
  const target = [...session.targets.values()].find(({ staging }) => staging.table.oid === foreign.child.oid);
  const table = target?.staging.table;
  const parents = [...session.targets.values()].find(({ staging }) => staging.table.oid === foreign.parent)!.staging
    .table;
  const orphan = `not exists (select from ${qualified(parents.schema, parents.name)} t where ${refers(foreign, 'c', 't')})`;
  const [found] = await session.run([
    {
      text: `select ${shown(table, 'c')} from ${parent}, ${qualified(foreign.child.schema, foreign.child.name)} c
        where ${refers(foreign, 'c', 'p')}${present ? '' : ` and ${orphan}`}`,
      values: value!,
    },
  ]);
  return found!.rows.map(([key, version, row]) => ({
    foreign,
    table,
    key: key!,
    version: version === null ? undefined : BigInt(version!),
    row: row!,
  }));
}

/**
 * Records rows of two keys, or of none, that could not stay together. The two versions may be on record already, from when they met as
 * writes of one key: what became of them is what counts, unless a person has settled it since.
 */
export async function recordConflict(
  { client }: Session,
  conflict: {
    readonly table: string;
    readonly key: string;
    readonly kind: string;
    readonly rule: string;
    readonly outcome: 'apply' | 'keep';
    readonly local: Version;
    readonly incoming: Version;
    readonly localRow: string | null;
    readonly incomingRow: string | null;
  },
): Promise<RecordedConflict[]> {
  const { table, key, kind, rule, outcome, local, incoming, localRow, incomingRow } = conflict;
  const restated = `${ONE_MEETING}
        do update set kind = excluded.kind, rule = excluded.rule, outcome = case
          when conflict_record.local_version = excluded.local_version then excluded.outcome
          when excluded.outcome = 'keep' then 'apply' else 'keep' end
        where conflict_record.kind <> excluded.kind and conflict_record.settled_at is null`;
  const { rows } = await client.query(
    `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version, local_row, incoming_row)
      values ($1, $2::jsonb, $3, $4, $5, $6, $7, $8::jsonb, $9::jsonb)
      on conflict ${rule === 'unique' ? 'do nothing' : restated}
      returning kind, outcome`,
    [table, key, kind, rule, outcome, local, incoming, localRow, incomingRow],
  );
  return rows.map((row) => ({ table, kind: row.kind, outcome: row.outcome, equalVersions: false }));
}

/** The parent went, or goes, taken away by version `by`: the child does what its foreign key says, or goes as well. */
export async function letChildGo(
  session: Session,
  child: ChildRow,
  by: Version,
  generation = 0,
): Promise<RecordedConflict[]> {
  const { foreign, table, key, version } = child;
  const recorded = await recordConflict(session, {
    table: tableLabel(foreign.child),
    key,
    kind: 'delete_referenced',
    rule: foreign.onDelete,
    outcome: 'apply',
    local: version ?? 0n,
    incoming: by,
    localRow: child.row,
    incomingRow: null,
  });
  session.wrote = true;
  if (foreign.onDelete === 'set null' || foreign.onDelete === 'set default') {
    const to = foreign.onDelete === 'set null' ? 'null' : 'default';
    const set = foreign.sets.map((name) => `${ident(name)} = ${to}`).join(', ');
    // Where a column may not be null, or its default refers to nothing, the child goes instead.
    if (!(await session.attempt(async () => void (await onChild(session, child, 'update', set))))) return recorded;
  }
  if (table) return [...recorded, ...(await removeRow(session, { table, key, version: version! }, generation + 1))];
  await onChild(session, child, 'delete');
  return recorded;
}

async function onChild(session: Session, { foreign, table, key }: ChildRow, verb: 'update' | 'delete', set?: string) {
  const name = qualified(foreign.child.schema, foreign.child.name);
  const same = table ? hasKey(table, 'c') : 'to_jsonb(c.*) = $1::jsonb';
  const what = verb === 'update' ? `update ${name} c set ${set}` : `delete from ${name} c`;
  await session.client.query(`${what} where ${same}`, [key]);
}

/**
 * Deletes a row as an application would, and before it the rows that refer to it, each recorded: its foreign keys could not take them
 * along everywhere, or would refuse. What it was, is recorded by the caller.
 */
export async function removeRow(session: Session, row: RowOf, generation = 0): Promise<RecordedConflict[]> {
  const { table, key, version } = row;
  const name = qualified(table.schema, table.name);
  const recorded: RecordedConflict[] = [];
  for (const foreign of session.keys) {
    if (foreign.parent !== table.oid || generation === GENERATIONS) continue;
    const parent = `(select * from ${name} t where ${hasKey(table, 't')}) p`;
    for (const child of await childrenOf(session, foreign, { parent, value: [key], present: true })) {
      if (child.table === table && child.key === key) continue;
      recorded.push(...(await letChildGo(session, child, version, generation)));
    }
  }
  await session.client.query(`delete from ${name} t where ${hasKey(table, 't')}`, [key]);
  await buryAbove(session, row);
  session.wrote = true;
  return recorded;
}

/** A tombstone of this region for a key, greater than the version that it takes away, unless there is one, which a trigger wrote. */
export async function buryAbove({ client, region }: Session, { table, key, version }: RowOf): Promise<void> {
  const tombs = qualified('coregent', tombstoneName(table));
  const names = table.key.map(ident).join(', ');
  const deletes = `${literal(qualified('coregent', deletesName(table)))}::regclass`;
  const now = `(date_part('epoch', clock_timestamp()) * 1000000)::int8`;
  const above = (seen: string): string => `(greatest(${now}, (${seen} >> 7) + 1) << 7) | ${region}`;
  await client.query(`select case when pg_sequence_last_value(${deletes}) is null then nextval(${deletes}) end`);
  await client.query(
    `insert into ${tombs} as x (${names}, ${ident(VERSION)}, ${ident(PARENT)})
      select ${table.key.map((each) => `k.${ident(each)}`).join(', ')}, ${above('$2::int8')}, $2::int8 from ${keyGiven(table)}
      on conflict (${names}) do update set ${ident(PARENT)} = excluded.${ident(PARENT)},
        ${ident(VERSION)} = greatest(excluded.${ident(VERSION)}, ${above(`x.${ident(VERSION)}`)})
      where x.${ident(VERSION)} <= $2::int8`,
    [key, version],
  );
}
