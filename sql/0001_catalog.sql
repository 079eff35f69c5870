-- Coregent's catalog in one region. Users may call functions and read views; tables are private to the agent.
create schema if not exists coregent;

create table coregent.catalog (
  version integer not null
);
insert into coregent.catalog values (1);

-- This region. One row.
create table coregent.this_region (
  id smallint primary key check (id between 1 and 127),
  name text not null,
  cluster text not null,
  -- The server that its agent knew last: another one was restored, one on a later timeline was promoted.
  system_identifier text,
  timeline integer
);

-- Every region of the cluster, this one included.
create table coregent.regions (
  id smallint primary key check (id between 1 and 127),
  name text not null unique
);

-- Replicated tables and the rule of each.
create table coregent.tables (
  table_id text primary key,
  schema_name text not null,
  table_name text not null,
  rule text not null,
  -- Changes when the stamping functions must be made anew.
  stamp text not null,
  -- The number of the table's last column when these were made.
  last_column smallint not null default 0,
  -- The greatest version of a delete that this region has forgotten because every region had confirmed it.
  reaped bigint not null default 0,
  unique (schema_name, table_name)
);

-- How far each peer's WAL is applied here. Moves by compare-and-set in the transaction that applies:
-- exactly-once guard, fence against a second agent, and detector of a restored or promoted peer in one row.
create table coregent.progress (
  slot text primary key,
  peer_id smallint not null unique,
  system_identifier text not null,
  timeline integer not null,
  lsn pg_lsn not null,
  -- Counts changes of tables' rules: what was compiled before one is not committed behind it.
  rule_changes bigint not null default 0,
  transactions bigint not null default 0,
  committed_at timestamptz,
  applied_at timestamptz
) with (fillfactor = 50);

-- Peers' tables of which this region owes a join: rows of them were passed over, or came and went unseen (a lost slot).
-- The row is written in the transaction that moves progress past them, and goes when they have been joined.
create table coregent.paused (
  slot text not null,
  table_id text not null,
  table_name text not null,
  reason text not null,
  since timestamptz not null default clock_timestamp(),
  -- The least version to join from; null while nothing was passed over.
  min_version bigint,
  -- Counts what was passed over: a join that was overtaken is not the last.
  passes bigint not null default 0,
  -- Rows of this region itself may come back from the peer, and travel on from here.
  own boolean not null default false,
  -- Both regions have the table alike again: its rows are being joined, so many so far.
  joining boolean not null default false,
  rows_joined bigint not null default 0,
  primary key (slot, table_id)
);

-- Peers' tables whose existing rows were joined into this region.
create table coregent.joined (
  slot text not null,
  table_id text not null,
  joined_at timestamptz not null default clock_timestamp(),
  -- What the peer committed to the table before this position is here already, or is owed: it is not taken from the stream.
  from_lsn pg_lsn not null default '0/0',
  primary key (slot, table_id)
);

-- Every conflict that this region met: an incoming write and a local one of which neither had seen the other.
create table coregent.conflict_record (
  id bigint generated always as identity primary key,
  recorded_at timestamptz not null default clock_timestamp(),
  table_name text not null,
  key jsonb not null,
  kind text not null,
  rule text not null,
  outcome text not null,
  local_version bigint not null,
  incoming_version bigint not null,
  -- As text: each is written by the thousand, and read once if at all.
  local_row json,
  incoming_row json,
  -- What a person made of it afterwards.
  settled_at timestamptz,
  settled_by text,
  settled_how text,
  -- The version of the write that this was; null when there was nothing to write.
  settled_version bigint
);
create index on coregent.conflict_record (recorded_at, id);
-- Two writes meet once, whichever of them comes second, and however it comes again: streamed, copied or repaired.
create unique index conflict_once on coregent.conflict_record
  (least(local_version, incoming_version), greatest(local_version, incoming_version), table_name, jsonb_hash_extended(key, 0))
  where incoming_version <> local_version;
-- A row that gives way for its unique value does so once, whatever becomes of the other row meanwhile.
create unique index conflict_lost on coregent.conflict_record
  ((case outcome when 'keep' then incoming_version else local_version end), table_name, jsonb_hash_extended(key, 0))
  where rule = 'unique';

-- Rows that could not be applied, whole, with the reason.
create table coregent.parked (
  id bigint generated always as identity primary key,
  parked_at timestamptz not null default clock_timestamp(),
  peer_id smallint not null,
  table_name text not null,
  operation text not null,
  version bigint not null,
  -- As it came, and the names and types of its columns, in order: its table may have others by the time that it fits.
  row_bytes bytea not null,
  columns jsonb not null,
  sqlstate text,
  reason text not null
);
-- A row that comes again (a copy, a repair) is parked once.
create unique index on coregent.parked (version, table_name, operation, md5(row_bytes));

create function coregent.region() returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as 'select name from coregent.this_region';

-- A version's origin and time, for people.
create function coregent.version_region(version bigint) returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as 'select name from coregent.regions where id = (version & 127)';

create function coregent.version_time(version bigint) returns timestamptz
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$select timestamptz 'epoch' + ((version >> 7) / 1000000) * interval '1 second' + ((version >> 7) % 1000000) * interval '1 microsecond'$$;

-- What a state has seen: {"<region>": version}. Nobody's search_path is asked: names are in full, or bound when the function is made.
create function coregent.seen_join(a jsonb, b jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
  -- Not by a query, whose start costs more than all the rest.
  pairs pg_catalog.jsonb;
  region pg_catalog.text;
begin
  if b is null or a operator(pg_catalog.=) b then
    return a;
  end if;
  pairs := pg_catalog.jsonb_path_query_array(b, '$.keyvalue()');
  for i in 0 .. pg_catalog.jsonb_array_length(pairs) operator(pg_catalog.-) 1 loop
    region := pairs operator(pg_catalog.->) i operator(pg_catalog.->>) 'key';
    if coalesce(b operator(pg_catalog.->) region operator(pg_catalog.>) (a operator(pg_catalog.->) region), true) then
      a := a operator(pg_catalog.||) pg_catalog.jsonb_build_object(region, b operator(pg_catalog.->) region);
    end if;
  end loop;
  return a;
end$$;

-- Whether a table has these columns, and none behind those that it had when its stamping functions were made. Asked while a statement
-- is planned, of caches that no snapshot stands before: so it is immutable, for as long as the table's description is.
create function coregent.has_columns(relation regclass, id text, names text[]) returns boolean
language plpgsql immutable parallel safe
as $$
declare
  name pg_catalog.text;
begin
  foreach name in array names loop
    perform pg_catalog.has_column_privilege(relation, name, 'select');
  end loop;
  return (select pg_catalog.has_column_privilege(relation, (t.last_column operator(pg_catalog.+) 1)::pg_catalog.int2, 'select') is null
    from coregent.tables t where t.table_id operator(pg_catalog.=) id);
exception when undefined_column then
  return false;
end$$;

create function coregent.seen_covers(seen jsonb, version bigint) returns boolean
language sql immutable parallel safe
return coalesce((seen ->> (version & 127)::text)::bigint >= version, false);

create function coregent.seen_contains(a jsonb, b jsonb) returns boolean
language sql immutable parallel safe
return not exists (select from jsonb_each(b) as e where coalesce(e.value > a -> e.key, true));

-- Versions side by side. One is {"v": version, "p": parent, "row": texts by column}, and "seen" where version and parent do not tell it.
create function coregent.write_seen(version bigint, parent bigint, seen jsonb) returns jsonb
language sql stable parallel safe
return coalesce(seen, case when parent >= 0 then jsonb_build_object((parent & 127)::text, parent) else '{}' end
  || jsonb_build_object((version & 127)::text, version));

create function coregent.versions_seen(versions jsonb) returns jsonb
language sql stable parallel safe
return (select jsonb_object_agg(s.key, s.value order by s.value) from jsonb_array_elements(versions) as e,
  jsonb_each(coregent.write_seen((e.value ->> 'v')::bigint, (e.value ->> 'p')::bigint, e.value -> 'seen')) as s);

-- What whoever saw this row, or this tombstone, has seen.
create function coregent.row_seen(version bigint, parent bigint, state jsonb) returns jsonb
language sql stable parallel safe
return case when state ? 'set' then coregent.versions_seen(state -> 'set') else coregent.write_seen(version, parent, state -> 'seen') end;

-- The state of a write whose author had seen this much before.
create function coregent.state_after(version bigint, parent bigint, seen jsonb) returns jsonb
language sql stable parallel safe
return case when seen || jsonb_build_object((version & 127)::text, version) <> coregent.write_seen(version, parent, null)
  then jsonb_build_object('seen', seen || jsonb_build_object((version & 127)::text, version)) end;

-- What is left of versions: those that no other one's author had seen, and no deleter.
create function coregent.versions_join(versions jsonb, buried jsonb) returns jsonb
language sql stable parallel safe
begin atomic
  with each as materialized (
    select distinct on (e.v) e.version, e.v, coregent.write_seen(e.v, e.p, e.version -> 'seen') as seen
    from (select value as version, (value ->> 'v')::bigint as v, (value ->> 'p')::bigint as p from jsonb_array_elements(versions)) as e
    order by e.v, (e.version ->> 'row') collate "C" desc, e.version::text collate "C" desc)
  select jsonb_agg(a.version order by a.v) from each as a
  where not coregent.seen_covers(buried, a.v)
    and not exists (select from each as b where b.v <> a.v and coregent.seen_covers(b.seen, a.v));
end;

create function coregent.made_nothing(function text) returns boolean
language plpgsql
as $$begin raise exception '% made no row of these versions', function using errcode = '22004'; end$$;
-- Rows joined part by part; see src/resolve/registers.ts. What joins is called by sessions of ours only, whose search_path is pinned. Shares are {"<region>": [version, share]}: the greater version stays, as in a vector.
create function coregent.counter_value(shares jsonb) returns numeric
language plpgsql immutable parallel safe
as $$
declare
  -- Not by a query, whose start costs more than all the rest.
  addends pg_catalog.jsonb := pg_catalog.jsonb_path_query_array(shares, '$.*[1]');
  total pg_catalog.numeric := 0;
begin
  for i in 0 .. pg_catalog.jsonb_array_length(addends) operator(pg_catalog.-) 1 loop
    total := total operator(pg_catalog.+) (addends operator(pg_catalog.->) i)::pg_catalog.numeric;
  end loop;
  return total;
end$$;

-- A set's elements are {"<element>": [versions of the writes that added it, ascending]}.
create function coregent.set_next(elements jsonb, now text[], version bigint) returns jsonb
language sql immutable parallel safe
return coalesce((select jsonb_object_agg(e, coalesce(elements -> e, jsonb_build_array(version))) from unnest(now) as e where e is not null), '{}');

create function coregent.set_value(elements jsonb) returns text[]
language sql immutable parallel safe
return (select coalesce(array_agg(e.key order by e.value -> 0, e.key collate "C"), '{}') from jsonb_each(elements) as e);

create function coregent.set_join(a jsonb, a_seen jsonb, b jsonb, b_seen jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
  pairs jsonb := jsonb_path_query_array(a || b, '$.keyvalue()');
  element text;
  mine jsonb;
  theirs jsonb;
  adds jsonb;
  joined jsonb := a;
begin
  -- What both have alike stays; of the rest, what the other side has or had not seen.
  for i in 0 .. jsonb_array_length(pairs) - 1 loop
    element := pairs -> i ->> 'key';
    mine := coalesce(a -> element, '[]');
    theirs := coalesce(b -> element, '[]');
    continue when mine = theirs;
    adds := '[]';
    for n in 0 .. jsonb_array_length(mine) - 1 loop
      if theirs @> (mine -> n) or not coregent.seen_covers(b_seen, (mine -> n)::bigint) then
        adds := adds || (mine -> n);
      end if;
    end loop;
    for n in 0 .. jsonb_array_length(theirs) - 1 loop
      if not mine @> (theirs -> n) and not coregent.seen_covers(a_seen, (theirs -> n)::bigint) then
        adds := adds || (theirs -> n);
      end if;
    end loop;
    if jsonb_array_length(adds) > 1 and mine <> '[]' then
      adds := (select jsonb_agg(e order by e) from jsonb_array_elements(adds) as e);
    end if;
    joined := case when adds = '[]' then joined - element else joined || jsonb_build_object(element, adds) end;
  end loop;
  return joined;
end$$;

-- A text's documents are {"<version>": base64 or null}: those that nobody who is known here had seen.
create function coregent.text_join(a jsonb, a_seen jsonb, b jsonb, b_seen jsonb) returns jsonb
language sql immutable parallel safe
return (select coalesce(jsonb_object_agg(q.key, greatest((a ->> q.key) collate "C", (b ->> q.key) collate "C")), a || b)
  from (select jsonb_object_keys(a) union select jsonb_object_keys(b)) as q (key)
  where (a ? q.key or not coregent.seen_covers(a_seen, q.key::bigint)) and (b ? q.key or not coregent.seen_covers(b_seen, q.key::bigint)));

-- The one that was written last.
create function coregent.text_last(documents jsonb) returns bytea
language sql immutable parallel safe
return (select decode(e.value, 'base64') from jsonb_each_text(documents) as e order by e.key::bigint desc limit 1);

-- A single document is in the row itself.
create function coregent.state_stored(state jsonb) returns jsonb
language sql immutable parallel safe
return (state - 't') || coalesce((select jsonb_build_object('t', jsonb_object_agg(e.key, e.value)) from jsonb_each(state -> 't') as e
  where (select count(*) from jsonb_object_keys(e.value)) > 1 having count(*) > 0), '{}');

-- The join of two rows' states, each written out: the later life, or of one life each part by itself.
create function coregent.state_join(a jsonb, b jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
  base jsonb := greatest(a -> 'b', b -> 'b');
  registers jsonb;
  name text;
  part jsonb;
  joined jsonb;
begin
  if a -> 'l' <> b -> 'l' then
    return case when a -> 'l' < b -> 'l' then b else a end;
  end if;
  registers := coregent.seen_join(a -> 'r', b -> 'r');
  if a -> 'b' <> b -> 'b' then
    for name in select jsonb_object_keys(registers) loop
      if registers -> name <= base then
        registers := registers - name;
      end if;
    end loop;
  end if;
  joined := a || jsonb_build_object('b', base, 'r', registers, 'seen', coregent.seen_join(a -> 'seen', b -> 'seen'));
  if b ? 'h' then
    joined := joined || jsonb_build_object('h', greatest(a -> 'h', b -> 'h'));
  end if;
  if a ? 'n' then
    part := a -> 'n';
    for name in select jsonb_object_keys(part) loop
      part := part || jsonb_build_object(name, coregent.seen_join(part -> name, b -> 'n' -> name));
    end loop;
    joined := joined || jsonb_build_object('n', part);
  end if;
  if a ? 's' then
    part := a -> 's';
    for name in select jsonb_object_keys(part) loop
      part := part || jsonb_build_object(name, coregent.set_join(part -> name, a -> 'seen', b -> 's' -> name, b -> 'seen'));
    end loop;
    joined := joined || jsonb_build_object('s', part);
  end if;
  if a ? 't' then
    part := a -> 't';
    for name in select jsonb_object_keys(part) loop
      part := part || jsonb_build_object(name, coregent.text_join(part -> name, a -> 'seen', b -> 't' -> name, b -> 'seen'));
    end loop;
    joined := joined || jsonb_build_object('t', part);
  end if;
  return joined;
end$$;

-- JSON documents whose keys are joined one by one; see src/resolve/maps.ts. What is known of a path is {"v": version of what is there,
-- "f": version of the last value there (of an object), "c": {key: path}}. `above` is the version of the object around, `over` that of the last value above.
-- The path after a write of this version. Nobody's search_path is asked.
create function coregent.map_next(before jsonb, now jsonb, path jsonb, above bigint, over bigint, version bigint, depth integer) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
  at bigint := coalesce((path operator(pg_catalog.->) 'v')::bigint, case when before is not null then above end);
  put bigint := greatest((path operator(pg_catalog.->) 'f')::bigint, over);
  below pg_catalog.jsonb := coalesce(path operator(pg_catalog.->) 'c', '{}');
  written pg_catalog.jsonb;
begin
  if depth operator(pg_catalog.>=) 32 or coalesce(pg_catalog.jsonb_typeof(now) operator(pg_catalog.<>) 'object', true) then
    return pg_catalog.jsonb_build_object('v', version);
  elsif coalesce(pg_catalog.jsonb_typeof(before) operator(pg_catalog.<>) 'object', true) then
    if at operator(pg_catalog.>) coalesce(over, -1) then
      return pg_catalog.jsonb_build_object('v', version, 'f', at);
    end if;
    return pg_catalog.jsonb_build_object('v', version);
  end if;
  select pg_catalog.jsonb_object_agg(k.key, coregent.map_next(k.old, k.new, below operator(pg_catalog.->) k.key, at, put, version, depth operator(pg_catalog.+) 1))
  into written from (
    select coalesce(o.key, n.key) as key, o.value as old, n.value as new
    from pg_catalog.jsonb_each(before) as o full join pg_catalog.jsonb_each(now) as n on o.key operator(pg_catalog.=) n.key
    where row(o.value)::pg_catalog.record operator(pg_catalog.*<>) row(n.value)::pg_catalog.record) as k;
  if written is null then
    return path;
  end if;
  return coalesce(path, '{}') operator(pg_catalog.||) pg_catalog.jsonb_build_object('c', below operator(pg_catalog.||) written);
end$$;

-- The join of a path of two documents: {"d": what is there, "n": what is known of it, "a", "b": something of this side is lost that the other had not seen}.
create function coregent.map_join(
  a jsonb, a_path jsonb, a_above bigint, a_over bigint, a_seen jsonb,
  b jsonb, b_path jsonb, b_above bigint, b_over bigint, b_seen jsonb,
  above bigint, depth integer) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
  over bigint := greatest(a_over, b_over);
  a_object boolean := depth < 32 and coalesce(jsonb_typeof(a) = 'object', false);
  b_object boolean := depth < 32 and coalesce(jsonb_typeof(b) = 'object', false);
  a_at bigint := coalesce((a_path -> 'v')::bigint, case when a is not null then a_above end);
  b_at bigint := coalesce((b_path -> 'v')::bigint, case when b is not null then b_above end);
  a_put bigint := greatest(case when a_object then (a_path -> 'f')::bigint else a_at end, a_over);
  b_put bigint := greatest(case when b_object then (b_path -> 'f')::bigint else b_at end, b_over);
  put bigint := greatest(a_put, b_put, over);
  made bigint := greatest(case when a_object then a_at end, case when b_object then b_at end);
  at bigint := greatest(made, put);
  -- Read out of its place once.
  a_keys jsonb := case when a_object then a || '{}' else '{}' end;
  b_keys jsonb := case when b_object then b || '{}' else '{}' end;
  a_below jsonb := coalesce(a_path -> 'c', '{}');
  b_below jsonb := coalesce(b_path -> 'c', '{}');
  is_object boolean := false;
  a_lost boolean := false;
  b_lost boolean := false;
  doc jsonb;
  path jsonb := '{}';
  below jsonb;
begin
  -- What only one side knows of stays as it is, unless a value above is over it.
  if b is null and b_path is null and a_over is not distinct from over then
    doc := a;
    path := coalesce(a_path, '{}') - 'v';
    at := a_at;
  elsif a is null and a_path is null and b_over is not distinct from over then
    doc := b;
    path := coalesce(b_path, '{}') - 'v';
    at := b_at;
  else
    if made is not null then
      select jsonb_object_agg(k.key, k.joined -> 'd') filter (where k.joined ? 'd'), jsonb_object_agg(k.key, k.joined -> 'n') filter (where k.joined ? 'n'),
        coalesce(bool_or(k.joined ? 'a'), false), coalesce(bool_or(k.joined ? 'b'), false)
      into doc, below, a_lost, b_lost
      from (
        select e.key, case
            when a_at = at and b_at = at and e.mine_path is null and e.theirs_path is null and row(e.mine)::record operator(pg_catalog.*=) row(e.theirs)::record
              then jsonb_build_object('d', e.mine)
            else coregent.map_join(e.mine, e.mine_path, a_at, a_put, a_seen, e.theirs, e.theirs_path, b_at, b_put, b_seen, at, depth + 1) end as joined
        from (
          select u.key, a_keys -> u.key as mine, a_below -> u.key as mine_path, b_keys -> u.key as theirs, b_below -> u.key as theirs_path
          from (select jsonb_object_keys(a_keys) union select jsonb_object_keys(b_keys) union select jsonb_object_keys(a_below) union select jsonb_object_keys(b_below)) as u (key)) as e
        offset 0) as k;
      is_object := coalesce(made >= put, true) or doc is not null or below is not null;
    end if;
    if is_object then
      doc := coalesce(doc, '{}');
      if put > coalesce(over, -1) then
        path := jsonb_build_object('f', put);
      end if;
      if below is not null then
        path := path || jsonb_build_object('c', below);
      end if;
    else
      at := put;
      if not a_object and a_at = put then
        doc := a;
      end if;
      -- Of one version: older than replication, or a backup was restored.
      if not b_object and b_at = put and (doc is null or b::text collate "C" > doc::text collate "C") then
        doc := b;
      end if;
      if doc is null and put = over then
        at := null;
      end if;
    end if;
    a_lost := a_lost or (a_at is not null and (a_object <> is_object or (not a_object and row(a)::record operator(pg_catalog.*<>) row(doc)::record))
      and (not coregent.seen_covers(b_seen, a_at) or coalesce(a_at = b_at and not (b_object and coalesce((b_path -> 'f')::bigint >= a_at, false)), false)));
    b_lost := b_lost or (b_at is not null and (b_object <> is_object or (not b_object and row(b)::record operator(pg_catalog.*<>) row(doc)::record))
      and (not coregent.seen_covers(a_seen, b_at) or coalesce(a_at = b_at and not (a_object and coalesce((a_path -> 'f')::bigint >= b_at, false)), false)));
  end if;
  if at is not null and (doc is null or at <> above) then
    path := path || jsonb_build_object('v', at);
  end if;
  return case when doc is null then '{}' else jsonb_build_object('d', doc) end
    || case when path = '{}' then '{}' else jsonb_build_object('n', path) end
    || case when a_lost then jsonb '{"a": true}' else '{}' end || case when b_lost then jsonb '{"b": true}' else '{}' end;
end$$;

create view coregent.conflicts as
select
  c.id,
  c.recorded_at,
  c.table_name,
  c.key,
  c.kind,
  c.rule,
  c.outcome,
  c.local_version,
  c.incoming_version,
  l.name as local_origin,
  i.name as incoming_origin,
  -- When each side was written, by its writer's clock; null for what was there before replication.
  case when c.local_version > 127 then coregent.version_time(c.local_version) end as local_at,
  case when c.incoming_version > 127 then coregent.version_time(c.incoming_version) end as incoming_at,
  c.local_row::jsonb,
  c.incoming_row::jsonb,
  c.settled_at,
  c.settled_by,
  c.settled_how,
  c.settled_version
from coregent.conflict_record c
left join coregent.regions l on l.id = (c.local_version & 127)
left join coregent.regions i on i.id = (c.incoming_version & 127);

-- Every version of rows that have several, for whoever may read their tables: of one table, or of all.
create function coregent.list_siblings(of_table regclass default null)
returns table (table_name text, key jsonb, version bigint, origin text, written_at timestamptz, "row" jsonb, shown boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  it record;
begin
  for it in
    select r.schema_name || '.' || r.table_name as label, c.oid::regclass as relation,
      case when r.rule like '{%' then r.rule::json ->> 'conflict' else r.rule end as rule,
      -- A json is shown as its text: not every json is a jsonb.
      (select string_agg(format('(v.value -> ''row'' ->> %L)%s as %I', a.attname,
          case when a.atttypid <> 'json'::regtype then '::' || format_type(a.atttypid, a.atttypmod) else '' end, a.attname), ', ' order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and not starts_with(a.attname, '_coregent_')) as columns,
      (select string_agg(format('%L, t.%I', a.attname, a.attname), ', ' order by a.attnum)
        from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey) where i.indrelid = c.oid and i.indisprimary) as key
    from coregent.tables r join pg_namespace n on n.nspname = r.schema_name join pg_class c on c.relnamespace = n.oid and c.relname = r.table_name
    where of_table is null or c.oid = of_table
    order by 1
  loop
    continue when it.rule not in ('fww', 'siblings', 'custom') or not has_table_privilege(it.relation, 'select');
    return query execute format(
      'select %L::text, jsonb_build_object(%s), (v.value ->> ''v'')::bigint, coregent.version_region((v.value ->> ''v'')::bigint),
        coregent.version_time((v.value ->> ''v'')::bigint), to_jsonb(r), %s
      from %s t cross join jsonb_array_elements(t._coregent_state -> ''set'') with ordinality as v (value, nth) cross join lateral (select %s) as r
      where t._coregent_parent = -2',
      it.label, it.key,
      case it.rule when 'fww' then 'v.nth = 1' when 'siblings' then '(v.value ->> ''v'')::bigint = t._coregent_version' else 'false' end,
      it.relation, it.columns);
  end loop;
end $$;

create view coregent.siblings as select * from coregent.list_siblings();

create view coregent.status as
select
  r.name as peer,
  p.slot,
  p.lsn as applied_lsn,
  p.transactions,
  p.committed_at,
  p.applied_at
from coregent.progress p
join coregent.regions r on r.id = p.peer_id;

grant usage on schema coregent to public;
revoke all on all tables in schema coregent from public;
revoke all on all functions in schema coregent from public;
grant execute on function coregent.region(), coregent.list_siblings(regclass), coregent.version_region(bigint), coregent.version_time(bigint) to public;
-- What stamps an application's update runs with the application's rights.
grant execute on function coregent.has_columns(regclass, text, text[]), coregent.set_next(jsonb, text[], bigint), coregent.set_value(jsonb), coregent.counter_value(jsonb),
  coregent.map_next(jsonb, jsonb, jsonb, bigint, bigint, bigint, integer) to public;
grant select on coregent.regions, coregent.this_region, coregent.tables, coregent.status, coregent.siblings to public;
