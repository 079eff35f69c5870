import type { Extra } from './options.ts';

/**
 * A table whose rows are registers: any region writes any row, the greatest version wins, and each write is recorded with the image of
 * the row as its writer left it.
 */
export interface RegisterTable {
  readonly name: string;
  readonly key: readonly string[];
  /** The application's columns; all of them count in the image. */
  readonly columns: readonly string[];
}

export const CONTESTED: RegisterTable = { name: 'contested', key: ['id'], columns: ['id', 'value'] };
export const HITS: RegisterTable = { name: 'hits', key: ['id'], columns: ['id', 'n', 'writer'] };
export const DOCUMENTS: RegisterTable = {
  name: 'documents',
  key: ['id'],
  columns: ['id', 'title', 'edits', 'body', 'notes'],
};
export const SCRATCH: RegisterTable = { name: 'scratch', key: ['id'], columns: ['id', 'value'] };
export const ACCOUNTS: RegisterTable = { name: 'accounts', key: ['id'], columns: ['id', 'email', 'note'] };
export const HANDLES: RegisterTable = { name: 'handles', key: ['id'], columns: ['id', 'name', 'seat', 'note'] };
export const TEAMS: RegisterTable = { name: 'teams', key: ['id'], columns: ['id', 'note'] };
export const LEDGER: RegisterTable = { name: 'ledger', key: ['id'], columns: ['id', 'home', 'n'] };
export const EVENTS: RegisterTable = { name: 'events', key: ['day', 'id'], columns: ['day', 'id', 'value'] };
export const WIDE: RegisterTable = {
  name: 'wide',
  key: ['code', 'part'],
  columns: [
    'code',
    'part',
    'small',
    'big',
    'num',
    'single',
    'dbl',
    'flag',
    'txt',
    'vc',
    'ch',
    'bin',
    'moment',
    'plain',
    'day',
    'clock',
    'span',
    'uid',
    'net',
    'js',
    'doc',
    'nums',
    'texts',
    'matrix',
    'mood',
    'moods',
    'range',
    'ranges',
    'bits',
    'spot',
    'made',
  ],
};

/** The tables that have another rule than the plain one, as `coregent.yaml` says it. */
export const RULES = {
  'public.drafts': { conflict: 'siblings' },
  'public.claims': { conflict: 'fww' },
  'public.posts': { columns: { likes: 'counter', peak: 'max', tags: 'set' } },
  'public.profiles': { conflict: 'columns' },
  'public.badges': { conflict: 'columns' },
  'public.preferences': { columns: { doc: 'map' } },
  'public.tickets': { custom: 'public.settle_ticket' },
  'public.plans': { custom: './settle-plan.mjs' },
  'public.notes': { columns: { body: 'text' } },
  'public.ledger': { owner: { column: 'home' } },
};

/** Of these the tables that keep versions side by side, and which one each shows, or all of them, joined by a function. */
export const VERSIONED = { drafts: 'last', claims: 'first', tickets: 'all', plans: 'all' } as const;

/** The module that lies beside the configuration: it does what the SQL function `settle_ticket` does. */
export const MODULE = {
  file: 'settle-plan.mjs',
  text: `export default (versions) => ({ ...versions.at(-1).row, value: versions.map(({ row }) => row.value).join(' + ') });\n`,
} as const;

/** Columns of tables joined part by part, into which everyone writes values that nobody else writes. */
export const VALUES = { posts: 'title', profiles: 'nick', badges: 'note', preferences: 'doc' } as const;

/** A value and its place; of a document each text in it, and the path there. */
export function leavesOf(place: string, value: unknown): [place: string, value: string][] {
  if (typeof value === 'string') return [[place, value]];
  const separator = place.includes(' ') ? '.' : ' ';
  return Object.entries(value ?? {}).flatMap(([key, inner]) => leavesOf(`${place}${separator}${key}`, inner));
}

/** Tables that refer to others, and what they do when the row goes that they refer to. A row of theirs is written by one region only. */
export const CHILDREN = {
  players: { parent: TEAMS, onDelete: 'cascade' },
  coaches: { parent: TEAMS, onDelete: 'set null' },
  fees: { parent: TEAMS, onDelete: 'restrict' },
  logins: { parent: ACCOUNTS, onDelete: 'cascade' },
} as const;
export type ChildTable = keyof typeof CHILDREN;

/** By which law every table answers for each write that was acknowledged: it is there, was replaced knowingly, or is on record. */
export const ANSWERS_BY: Readonly<Record<string, string>> = {
  ...named(['entries', 'bulk', 'parents', 'children'], 'INV-A'),
  ...named(['counters', 'ids', 'pairs'], 'INV-X'),
  ...named(['contested', 'hits', 'documents', 'scratch', 'wide', 'events', 'accounts', 'handles', 'teams'], 'INV-L'),
  ...named(Object.keys(VERSIONED), 'INV-S'),
  ...named(Object.keys(VALUES), 'INV-E'),
  ...named(['notes'], 'INV-R'),
  ...named(Object.keys(CHILDREN), 'INV-F'),
  ...named(['ledger'], 'INV-O'),
};

function named(tables: readonly string[], law: string): Record<string, string> {
  return Object.fromEntries(tables.map((table) => [table, law]));
}

/** The tables of a run. */
export interface Tables {
  readonly sql: string;
  readonly registers: readonly RegisterTable[];
}

const BASE = `
  -- Rows that come and go together: every snapshot shows all of a group, or none.
  create table entries (id bigint primary key, grp text not null, members int not null, note text not null);
  create table bulk (id bigint primary key, grp text not null, members int not null, note text not null);
  -- Rows of a region that it rewrites together.
  create table pairs (set_id int, part int, tag text not null, primary key (set_id, part));
  -- Rows of one region, incremented there.
  create table counters (id int primary key, n bigint not null);
  create table ids (id bigint primary key, via text not null);
  create table parents (id int primary key, children int not null);
  create table children (id bigint primary key, parent_id int not null references parents on delete cascade, note text);
  create index on children (parent_id);
  create table contested (id int primary key, value text not null);
  create table hits (id int primary key, n bigint not null, writer text not null);
  create table documents (id int primary key, title text not null, edits int not null, body text, notes text);
  alter table documents alter body set storage external, alter notes set storage extended;
  create table scratch (id int primary key, value text not null);
  -- One for each rule; see RULES.
  create table drafts (id int primary key, value text not null);
  create table claims (id int primary key, value text not null);
  create table posts (id int primary key, title text not null default '', likes bigint not null default 0, peak int not null default 0,
    tags text[] not null default '{}');
  create table profiles (id int primary key, c0 int not null default 0, c1 int not null default 0, c2 int not null default 0,
    nick text not null default '');
  create table plans (id int primary key, value text not null);
  create table notes (id int primary key, body bytea);
  create table tickets (id int primary key, value text not null);
  create function settle_ticket(versions tickets[]) returns tickets language plpgsql immutable set search_path = public as $$
  declare
    one tickets := versions[array_upper(versions, 1)];
  begin
    one.value := (select string_agg(v.value, ' + ' order by v.ordinality) from unnest(versions) with ordinality v);
    return one;
  end $$;
  -- Each row has one owner, who may give it away; nothing is lost between the rows.
  create table ledger (id int primary key, home text not null, n bigint not null check (n >= 0));
  -- Two regions may take one value under two keys.
  create table accounts (id int primary key, email text not null unique, note text);
  create table handles (id int primary key, name text not null unique, seat int not null, note text,
    constraint handles_seat unique (seat) deferrable);
  create table preferences (id int primary key, doc jsonb not null default '{}');
  create table badges (id int primary key, code text not null unique, note text not null);
  -- Whose parents other regions delete.
  create table teams (id int primary key, note text);
  create table players (id bigint primary key, parent_id int not null references teams on delete cascade, note text not null);
  create table coaches (id bigint primary key, parent_id int references teams on delete set null, note text not null);
  create table fees (id bigint primary key, parent_id int not null references teams on delete restrict, note text not null);
  create table logins (id bigint primary key, parent_id int not null references accounts on delete cascade, note text not null);
  create index on players (parent_id);
  create index on coaches (parent_id);
  create index on fees (parent_id);
  create index on logins (parent_id);
  create type mood as enum ('low', 'so so', 'high');
  create table wide (
    code text not null, part int not null, small smallint, big bigint, num numeric, single real, dbl double precision, flag boolean,
    txt text, vc varchar(40), ch char(6), bin bytea, moment timestamptz, plain timestamp, day date, clock time, span interval, uid uuid,
    net inet, js jsonb, doc json, nums int[], texts text[], matrix int[][], mood mood, moods mood[], range int4range,
    ranges int4multirange, bits bit(8), spot point, made int generated always as (part * 2) stored,
    primary key (code, part));`;

const EXTRA: Readonly<Record<Extra, string>> = {
  partitions: `
  create table events (day int not null, id int not null, value text not null, primary key (day, id)) partition by range (day);
  create table events_1 partition of events for values from (0) to (5);
  create table events_2 partition of events for values from (5) to (10);`,
};

/** The tables of a run with these extras. */
export function tablesWith(extras: readonly Extra[]): Tables {
  const registers = [CONTESTED, HITS, DOCUMENTS, SCRATCH, ACCOUNTS, HANDLES, TEAMS, LEDGER, WIDE];
  if (extras.includes('partitions')) registers.push(EVENTS);
  return { sql: [BASE, ...extras.map((extra) => EXTRA[extra])].join('\n'), registers };
}

/** The key of a row of alias `t` as text, as histories name it. */
export function keySql({ key }: RegisterTable, t: string): string {
  return key.length === 1 ? `${t}.${key[0]}::text` : `row(${key.map((name) => `${t}.${name}`).join(', ')})::text`;
}

/** A digest of the whole row of alias `t`, version and parent included. */
export function imageSql({ columns }: RegisterTable, t: string): string {
  const all = [...columns, '_coregent_version', '_coregent_parent'].map((name) => `${t}.${name}`);
  return `md5(row(${all.join(', ')})::text)`;
}
