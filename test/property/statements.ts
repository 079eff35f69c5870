import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import fc from 'fast-check';
import type pg from 'pg';
import { from as copyFrom } from 'pg-copy-streams';

/** What applications do: statements of every sort over a few keys of tables that refer to each other. */

export const TABLES = ['items', 'owners', 'things'] as const;
export const SCHEMA = `
  create table items (id int primary key, v int not null default 0, note text);
  alter table items alter column note set storage external;
  create table owners (id int primary key, v int not null default 0, note text);
  create table things (id int primary key, v int not null default 0, note text,
    owner int references owners on delete cascade on update cascade)`;

export const key = fc.integer({ min: 1, max: 4 });
const value = fc.nat({ max: 99 });

/** A statement of an application, over a few keys of tables that refer to each other. */
export const statement: fc.Arbitrary<string> = fc.oneof(
  ...[
    (k: number, v: number) => `insert into items values (${k}, ${v})`,
    (k: number, v: number) => `insert into items select g, ${v} from generate_series(${k}, 4) g on conflict do nothing`,
    (k: number, v: number) => `insert into items values (${k}, ${v}) on conflict (id) do update set v = excluded.v`,
    (k: number, v: number) =>
      `insert into items values (${k}, ${v}) on conflict (id) do update set v = items.v + 1 where items.v < ${v}`,
    (k: number, v: number) => `update items set v = ${v} where id = ${k}`,
    (k: number, v: number) => `update items set v = v + ${v} where id >= ${k}`,
    (k: number) => `update items set v = v where id = ${k}`,
    (k: number, v: number) => `update items set note = repeat('${v % 10}', 3000) where id >= ${k}`,
    (k: number, v: number) => `update items set id = ${(v % 4) + 1} where id = ${k}`,
    (k: number) => `delete from items where id = ${k}`,
    (k: number) => `delete from items where id >= ${k}`,
    () => 'truncate items',
    () => 'truncate items, owners restart identity cascade',
    (k: number, v: number) =>
      `with gone as (delete from items where id = ${k} returning *) insert into items select id, ${v} from gone`,
    (k: number, v: number) =>
      `with gone as (delete from items where id <> ${k} returning *) insert into items select ${k}, ${v} where exists (select from gone)`,
    (k: number, v: number) =>
      `merge into items t using (select g as id, ${v} as v from generate_series(1, ${k}) g) s on t.id = s.id
        when matched and t.v > 50 then delete when matched then update set v = s.v when not matched then insert values (s.id, s.v)`,
    (k: number, v: number) => `copy items (id, v) from stdin\n${k}\t${v}\n${(k % 4) + 1}\t${v}\n`,
    (k: number, v: number) => `insert into items (id, _coregent_version, _coregent_parent) values (${k}, ${v}, ${v})`,
    (k: number, v: number) => `update items set _coregent_version = ${v}, _coregent_parent = 1 where id = ${k}`,
    (k: number, v: number) =>
      `insert into items values (${k}, ${v}) on conflict (id) do update set _coregent_version = 1, _coregent_parent = excluded._coregent_parent + 7`,
    (k: number, v: number) => `insert into owners values (${k}, ${v}) on conflict do nothing`,
    (k: number, v: number) => `insert into things select ${k}, ${v}, null, max(id) from owners`,
    (k: number) => `delete from owners where id = ${k}`,
    (k: number, v: number) => `update owners set id = ${(v % 4) + 1} where id = ${k}`,
    (k: number) => `update things set id = id + ${k} where id < 4`,
  ].map((make) => fc.tuple(key, value).map(([k, v]) => make(k, v))),
);

/** Runs a statement; a duplicate key or a missing parent is the application's own fault, and undoes the statement only. */
export async function attempt(client: pg.Client, statement: string, inTransaction: boolean): Promise<void> {
  if (inTransaction) await client.query('savepoint attempt');
  try {
    const [text, ...lines] = statement.split('\n');
    if (!text!.startsWith('copy ')) await client.query(statement);
    else await pipeline(Readable.from([lines.join('\n')]), client.query(copyFrom(text!)));
    if (inTransaction) await client.query('release savepoint attempt');
  } catch (error) {
    const code = (error as { code?: string }).code ?? '';
    const unknown = code === '42601' && statement.startsWith('merge '); // PostgreSQL 14 has no MERGE.
    if (!unknown && !/^(23505|23503|21000)$/.test(code)) throw error;
    if (inTransaction) await client.query('rollback to savepoint attempt');
  }
}
