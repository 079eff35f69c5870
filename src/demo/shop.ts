/**
 * A small shop. No two regions ever hand out the same key: keys are random UUIDs, or given (`sku`), never a sequence.
 * Every table says how it settles what two regions write at once: see `SHOP_RULES`.
 */
export const SHOP_SCHEMA = `
create table products (
  sku text primary key,
  name text not null,
  price numeric(10, 2) not null check (price > 0),
  stock integer not null default 100,
  likes integer not null default 0,
  tags text[] not null default '{}'
);
create table customers (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  username text unique,
  city text,
  settings jsonb not null default '{}',
  home_region text not null,
  last_seen timestamptz not null default now()
);
create table carts (
  id integer primary key,
  items text[] not null default '{}'
);
create table seats (
  id integer primary key,
  booked_by text
);
create table documents (
  id integer primary key,
  body bytea
);
create table tickets (
  id integer primary key,
  subject text not null,
  urgency integer not null default 1,
  open boolean not null default true
);
create table replies (
  id uuid primary key default gen_random_uuid(),
  ticket_id integer not null references tickets on delete cascade,
  body text not null
);
create index on replies (ticket_id);
create table orders (
  id uuid primary key default gen_random_uuid(),
  customer_id uuid not null references customers,
  region text not null,
  status text not null default 'new' check (status in ('new', 'paid', 'shipped')),
  placed_at timestamptz not null default now()
);
create index on orders (customer_id);
create table order_items (
  order_id uuid references orders on delete cascade,
  line smallint,
  sku text not null references products,
  quantity integer not null check (quantity > 0),
  price numeric(10, 2) not null,
  primary key (order_id, line)
);
create index on order_items (sku);
-- Of what several regions made of a ticket at once: the last one's words, the greatest urgency, and closed only if all closed it.
create function settle_ticket(versions tickets[]) returns tickets language plpgsql immutable set search_path = public as $$
declare
  one tickets := versions[array_upper(versions, 1)];
begin
  select max(v.urgency), bool_or(v.open) into one.urgency, one.open from unnest(versions) v;
  return one;
end $$;`;

/** How each table settles conflicts, as it stands in `coregent.yaml`. */
export const SHOP_RULES = `tables:
  public.*:         {}                                                                 # the later write stays
  public.products:  { columns: { stock: counter, likes: counter, tags: set } }         # what regions add and take away adds up
  public.customers: { conflict: columns, columns: { last_seen: max, settings: map } }  # edits of different columns, and settings, both stay
  public.carts:     { conflict: siblings }                                             # both carts are kept, the shop joins them
  public.seats:     { conflict: fww }                                                  # who booked first has the seat
  public.documents: { columns: { body: text } }                                        # all that is written is there
  public.tickets:   { custom: public.settle_ticket }                                   # a function of ours decides
  public.orders:    { owner: { column: region } }                                      # only its region may write an order
`;

/** The shop's tables, those that others refer to first. */
export const SHOP_TABLES = [
  'products',
  'customers',
  'carts',
  'seats',
  'documents',
  'tickets',
  'replies',
  'orders',
  'order_items',
] as const;

/** Rows that all regions write all the time. */
export const HOT = { products: 4, carts: 4, seats: 40, documents: 2, tickets: 6, customers: 6 } as const;

/** Fills the shop; for one region only, the others get these rows by replication. `$1` is that region's name. */
export const SHOP_SEED = `
with
product as (
  insert into products (sku, name, price)
  select 'sku-' || lpad(n::text, 3, '0'),
    (array['Red', 'Blue', 'Green', 'Black', 'White'])[1 + n % 5] || ' ' || (array['lamp', 'chair', 'teapot', 'kettle', 'clock', 'vase', 'bowl', 'rug'])[1 + n % 8],
    5 + n * 1.25
  from generate_series(1, 60) n
  returning sku, price
),
customer as (
  insert into customers (name, home_region) select 'Customer ' || n, $1 from generate_series(1, 100) n returning id
),
cart as (insert into carts (id) select generate_series(1, ${HOT.carts})),
seat as (insert into seats (id) select generate_series(1, ${HOT.seats})),
document as (insert into documents (id) select generate_series(1, ${HOT.documents})),
ticket as (insert into tickets (id, subject) select n, 'Question ' || n from generate_series(1, ${HOT.tickets}) n),
placed as (
  insert into orders (customer_id, region, status)
  select id, $1, 'shipped' from customer cross join generate_series(1, 2) returning id
)
insert into order_items (order_id, line, sku, quantity, price)
select placed.id, row_number() over (partition by placed.id), sku, 1, price
from placed cross join lateral (select * from product order by md5(sku || placed.id::text) limit 2) bought`;
