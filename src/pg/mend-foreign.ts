import { PARENT, STATE, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import { regionOf, type Version } from '../model/version.ts';
import { ident, qualified } from '../quote.ts';
import { sameKey } from '../resolve/key.ts';
import { type ForeignKey, refers } from './foreign.ts';
import { type ChildRow, childrenOf, hasKey, letChildGo, recordConflict, shown } from './give-way.ts';
import type { Session } from './mend.ts';
import type { Hearsay } from './neighbours.ts';
import { ORPHANING } from './orphans.ts';
import type { RecordedConflict } from './receipt.ts';
import { fits, shapeOf } from './shape.ts';
import { stagedRows, stagedTombstones } from './staged.ts';
import { arrayOf, tuplesOf } from './steps.ts';
import type { Target } from './target.ts';

/** A parent that another region's delete took away while rows of this region referred to it, whole as it was. */
interface Image {
  readonly id: string;
  readonly target: Target;
  readonly version: Version;
  /** In `record` form. */
  readonly row: Buffer;
  /** The tombstone's. */
  readonly deleted: Version;
}

const GENERATIONS = 32;

/** Settles what deletes of parents left behind. Returns what was recorded. */
export async function mendForeign(session: Session, hearsay: Hearsay): Promise<RecordedConflict[]> {
  const recorded: RecordedConflict[] = [];
  const { rows } = await session.client.query(
    `select id::text, table_name, version::text, row_bytes, columns from coregent.parked where operation = $1 order by id`,
    [ORPHANING],
  );
  for (const { id, table_name: label, version, row_bytes: row, columns } of rows) {
    const target = session.targets.get(label);
    if (!target || !fits(target, { kind: 'update', columns })) continue;
    await session.guarded(label, async () => {
      const image = await withTombstone(session, { id, target, version: BigInt(version), row });
      recorded.push(...(await mendImage(session, hearsay, image)));
    });
  }
  return [...recorded, ...(await mendHeld(session, hearsay))];
}

/**
 * Where foreign keys fire (tier C), a delete that children hold is parked. Once it is certain that they do, the parent is written again
 * as it is: that is newer than the delete, here and wherever the delete was carried out.
 */
async function mendHeld(session: Session, hearsay: Hearsay): Promise<RecordedConflict[]> {
  const recorded: RecordedConflict[] = [];
  const { rows } = await session.client.query(
    `select id::text, table_name, version::text, row_bytes, columns from coregent.parked
      where operation = 'tombstone' and sqlstate in ('23503', '23001') order by id`,
  );
  for (const { id, table_name: label, version, row_bytes: row, columns } of rows) {
    const target = session.targets.get(label);
    if (!target || !fits(target, { kind: 'tombstone', columns })) continue;
    await session.guarded(label, async () => {
      recorded.push(...(await holdParent(session, hearsay, { id, target, row, deleted: BigInt(version) })));
    });
  }
  return recorded;
}

async function holdParent(
  session: Session,
  hearsay: Hearsay,
  { id, target, row, deleted }: Pick<Image, 'id' | 'target' | 'row' | 'deleted'>,
): Promise<RecordedConflict[]> {
  const { table } = target.staging;
  const name = qualified(table.schema, table.name);
  const tombstone = [arrayOf(target.tombstoneTypeOid, tuplesOf([row]))];
  const [found] = await session.run([
    {
      text: `select ${shown(table, 't')} from ${name} t, ${stagedTombstones(target)}
        where ${sameKey(table, 't', 's')} and t.${ident(VERSION)} <= s.${ident(VERSION)}`,
      values: tombstone,
    },
  ]);
  const [key, version, image] = found!.rows[0] ?? [];
  if (!key) return [];
  const parent = `(select * from ${name} t where ${hasKey(table, 't')}) p`;
  const children: ChildRow[] = [];
  for (const foreign of session.keys) {
    if (foreign.parent !== table.oid || !holds(foreign)) continue;
    children.push(...(await childrenOf(session, foreign, { parent, value: [key], present: true })));
  }
  if (children.length === 0) return [];
  const writers = children.flatMap((child) => child.version ?? []);
  for (const each of [deleted, ...writers]) if (!(await session.knows(hearsay, each))) return [];
  let mine = writers.length === 0;
  for (const each of writers) mine ||= regionOf(each) === session.region || !(await hearsay.reaches(regionOf(each)));
  if (!mine) return [];
  return await session.transaction(async () => {
    const { rowCount } = await session.client.query(
      `update ${name} t set ${ident(PARENT)} = ${ident(PARENT)} where ${hasKey(table, 't')} and t.${ident(VERSION)} = $2`,
      [key, version],
    );
    if (rowCount === 0) return [];
    // The delete is carried out by that: it is remembered, and was too late.
    await session.run([{ text: target.compiled.deleteClean, values: tombstone }]);
    await session.client.query('delete from coregent.parked where id = $1', [id]);
    session.unparked++;
    session.wrote = true;
    return await recordConflict(session, {
      table: tableLabel(table),
      key,
      kind: 'delete_referenced',
      rule: children[0]!.foreign.onDelete,
      outcome: 'keep',
      local: BigInt(version!),
      incoming: deleted,
      localRow: image!,
      incomingRow: null,
    });
  });
}

const holds = ({ onDelete }: ForeignKey): boolean => onDelete === 'restrict' || onDelete === 'no action';

async function withTombstone(session: Session, image: Omit<Image, 'deleted'>): Promise<Image> {
  const { table } = image.target.staging;
  const [found] = await session.run([
    {
      text: `select x.${ident(VERSION)}::text from ${stagedRows(image.target)}, ${qualified('coregent', tombstoneName(table))} x where ${sameKey(table, 'x', 's')}`,
      values: [imageOf(image)],
    },
  ]);
  return { ...image, deleted: BigInt(found!.rows[0]?.[0] ?? image.version) };
}

const imageOf = ({ target, row }: Pick<Image, 'target' | 'row'>): Buffer[] =>
  arrayOf(target.rowTypeOid, tuplesOf([row]));

async function orphansOf(session: Session, image: Image): Promise<ChildRow[]> {
  const orphans: ChildRow[] = [];
  const { oid } = image.target.staging.table;
  const parent = `(select * from ${stagedRows(image.target)}) p`;
  for (const foreign of session.keys) {
    if (foreign.parent !== oid) continue;
    orphans.push(...(await childrenOf(session, foreign, { parent, value: [imageOf(image)], present: false })));
  }
  return orphans;
}

async function mendImage(session: Session, hearsay: Hearsay, image: Image): Promise<RecordedConflict[]> {
  const before = await orphansOf(session, image);
  if (before.length > 0) {
    for (const version of [image.deleted, ...before.flatMap((child) => child.version ?? [])]) {
      if (!(await session.knows(hearsay, version))) return [];
    }
    if (!(await isMine(session, hearsay, image, before))) return [];
  }
  return await session.transaction(async () => {
    const { rowCount } = await session.client.query(
      'select from coregent.parked where id = $1 for update skip locked',
      [image.id],
    );
    if (rowCount === 0) return [];
    const recorded: RecordedConflict[] = [];
    const orphans = await orphansOf(session, image);
    const holding = orphans.find(({ foreign }) => holds(foreign))?.foreign.onDelete;
    const revived = holding !== undefined && (await revive(session, image, holding, recorded));
    if (!revived) for (const child of orphans) recorded.push(...(await letChildGo(session, child, image.deleted)));
    await forget(session, image);
    return recorded;
  });
}

/**
 * Whether this region is to mend it: it wrote one of the rows, or a region that did cannot, since it is not reached or does not have the
 * parent any more. Two regions that both do harm nothing.
 */
async function isMine(
  session: Session,
  hearsay: Hearsay,
  image: Image,
  orphans: readonly ChildRow[],
): Promise<boolean> {
  const { table } = image.target.staging;
  const writers = new Set(orphans.map(({ version }) => (version === undefined ? session.region : regionOf(version))));
  if (writers.has(session.region)) return true;
  for (const writer of writers) {
    if (!(await hearsay.reaches(writer))) return true;
    const has = await session.neighbours.ask(
      writer,
      `select exists (select from coregent.parked where operation = $1 and table_name = $2 and version = $3)
        or not exists (select from ${qualified('coregent', tombstoneName(table))} where ${ident(VERSION)} = $4) as has`,
      [ORPHANING, tableLabel(table), image.version, image.deleted],
    );
    if (has?.[0]?.has === false) return true;
  }
  return false;
}

async function forget(session: Session, { id }: Image): Promise<void> {
  await session.client.query('delete from coregent.parked where id = $1', [id]);
}

/** Writes the parent again, as an application would, and before it the parents that it needs itself. False when it finds no place any more. */
async function revive(
  session: Session,
  image: Image,
  rule: string,
  recorded: RecordedConflict[],
  generation = 0,
): Promise<boolean> {
  const { table } = image.target.staging;
  const mine: RecordedConflict[] = [];
  const failure = await session.attempt(async () => {
    for (const above of await missingParents(session, image)) {
      if (generation < GENERATIONS) await revive(session, above, rule, mine, generation + 1);
    }
    const names = table.columns.filter(({ name }) => name !== STATE).map(({ name }) => ident(name));
    const stamp = `(greatest((date_part('epoch', clock_timestamp()) * 1000000)::int8, (${image.deleted} >> 7) + 1) << 7) | ${session.region}`;
    const [, found] = await session.run([
      {
        text: `insert into ${qualified(table.schema, table.name)} (${[...names, ident(VERSION), ident(PARENT)].join(', ')}) overriding system value
          select ${names.map((name) => `s.${name}`).join(', ')}, ${stamp}, ${image.deleted} from ${stagedRows(image.target)}
          where not exists (select from ${qualified(table.schema, table.name)} t where ${sameKey(table, 't', 's')})`,
        values: [imageOf(image)],
      },
      {
        text: `select ${shown(table, 's')} from ${stagedRows(image.target)}`,
        values: [imageOf(image)],
      },
    ]);
    const [key, , row] = found!.rows[0]!;
    mine.push(
      ...(await recordConflict(session, {
        table: tableLabel(table),
        key: key!,
        kind: 'delete_referenced',
        rule,
        outcome: 'keep',
        local: image.version,
        incoming: image.deleted,
        localRow: row!,
        incomingRow: null,
      })),
    );
  });
  if (failure) return false;
  recorded.push(...mine);
  session.wrote = true;
  return true;
}

/** Images of the rows that this one refers to and that are not there. */
async function missingParents(session: Session, image: Image): Promise<Image[]> {
  const { oid } = image.target.staging.table;
  const missing: Image[] = [];
  for (const foreign of session.keys) {
    if (foreign.child.oid !== oid) continue;
    const target = [...session.targets.values()].find(({ staging }) => staging.table.oid === foreign.parent)!;
    const { rows } = await session.client.query(
      `select id::text, version::text, row_bytes from coregent.parked
        where operation = $1 and table_name = $2 and id <> $3 and columns = $4::jsonb`,
      [ORPHANING, tableLabel(target.staging.table), image.id, shapeOf(target, 'update')],
    );
    for (const { id, version, row_bytes: row } of rows) {
      const above = { id, target, version: BigInt(version), row };
      const [found] = await session.run([
        {
          text: `select 1 from (select * from ${stagedRows(image.target)}) c, ${stagedRows(target)
            .replaceAll('$1', '$2')
            .replace(/ as s$/, ' as p')} where ${refers(foreign, 'c', 'p')}
            and not exists (select from ${qualified(target.staging.table.schema, target.staging.table.name)} t where ${refers(foreign, 'c', 't')})`,
          values: [imageOf(image), imageOf(above)],
        },
      ]);
      if (found!.rows.length > 0) missing.push(await withTombstone(session, above));
    }
  }
  return missing;
}
