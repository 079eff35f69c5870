import pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { pause } from '../pause.ts';

/**
 * A small shop. No two regions ever hand out the same key: keys are random UUIDs, or given (`sku`), never a sequence.
 * `orders.region` says who may change an order; products may be changed by anyone, and so meet conflicts.
 */
export const SHOP_SCHEMA = `
create table products (
  sku text primary key,
  name text not null,
  price numeric(10, 2) not null check (price > 0),
  changed_at timestamptz not null default now()
);
create table customers (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  home_region text not null,
  joined_at timestamptz not null default now()
);
create table orders (
  id uuid primary key default gen_random_uuid(),
  customer_id uuid not null references customers,
  region text not null,
  status text not null default 'new' check (status in ('new', 'paid', 'shipped')),
  placed_at timestamptz not null default now()
);
create table order_items (
  order_id uuid references orders on delete cascade,
  line smallint,
  sku text not null references products,
  quantity integer not null check (quantity > 0),
  price numeric(10, 2) not null,
  primary key (order_id, line)
);`;

/** The shop's tables, those that others refer to first. */
export const SHOP_TABLES = ['products', 'customers', 'orders', 'order_items'] as const;

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
placed as (
  insert into orders (customer_id, region, status)
  select id, $1, 'shipped' from customer cross join generate_series(1, 2) returning id
)
insert into order_items (order_id, line, sku, quantity, price)
select placed.id, row_number() over (partition by placed.id), sku, 1, price
from placed cross join lateral (select * from product order by md5(sku || placed.id::text) limit 2) bought`;

/** Transactions and rows that an application committed. */
export interface Written {
  readonly transactions: number;
  readonly rows: number;
}

/** One region's application at work. */
export interface Load {
  readonly written: Written;
  /** Finishes the transaction under way and disconnects. Repeatable. */
  stop(): Promise<void>;
}

/** What `startLoad` takes. */
export interface LoadOptions {
  /** Where the shop is. */
  readonly url: string;
  /** Its region's name. */
  readonly region: string;
  /** Mean rate, while the database keeps up. */
  readonly transactionsPerSecond: number;
  /** Told of a fault that ends the load; a database that is away is none, and is asked again. */
  readonly onFault: (error: CoregentError) => void;
}

/** An application that fails to reach its database asks again after this long. */
const RETRY_MS = 500;
const RETRY_SQLSTATES = /^(08|40|57)/;
/** A region with more of them adds none: a demo left on overnight must not fill a disk. */
const OPEN_ORDERS = 200;
const CUSTOMERS = 500;
/** Products whose price every region edits now and then. Two regions at once: a conflict. */
const HOT_PRODUCTS = 2;

/** Starts an ordinary application of one region: it speaks to its own PostgreSQL and knows nothing of the others. */
export function startLoad({ url, region, transactionsPerSecond, onFault }: LoadOptions): Load {
  const stopping = new AbortController();
  const shop = new Shop(region);
  const running = (async (): Promise<void> => {
    while (!stopping.signal.aborted) {
      const client = new pg.Client({ connectionString: url, application_name: `shop ${region}` });
      client.on('error', () => {});
      try {
        await client.connect();
        await shop.look(client);
        while (!stopping.signal.aborted) {
          await shop.act(client);
          // Gaps of a Poisson process: customers don't wait for each other.
          await pause((-Math.log(1 - Math.random()) * 1000) / transactionsPerSecond, stopping.signal);
        }
      } catch (error) {
        if (!isLost(error)) return onFault(classify(error, region));
        await pause(RETRY_MS, stopping.signal);
      } finally {
        await client.end().catch(() => {});
      }
    }
  })();
  return {
    get written() {
      return { ...shop.written };
    },
    async stop() {
      stopping.abort();
      await running;
    },
  };
}

/** Whether the database went away, or asks to be asked again; anything else is a fault of the shop. */
function isLost(error: unknown): boolean {
  const code = (error as { code?: unknown }).code;
  const sqlstate = typeof code === 'string' && /^(?=.*\d)[0-9A-Z]{5}$/.test(code);
  return !sqlstate || RETRY_SQLSTATES.test(code);
}

/** What customers and staff of one region do. */
class Shop {
  readonly written = { transactions: 0, rows: 0 };
  readonly #region: string;
  #skus: string[] = [];
  #customers: string[] = [];
  /** Orders of this region, the oldest first. */
  #orders: string[] = [];
  /** What is done, and how often: shares add up to 1. Each gives the rows that it wrote. */
  readonly #deeds: readonly (readonly [share: number, deed: (client: pg.Client) => Promise<number>])[] = [
    [0.45, (client) => (this.#orders.length > OPEN_ORDERS ? this.#cancel(client) : this.#order(client))],
    [0.2, (client) => this.#advance(client)],
    [0.15, (client) => this.#reprice(client, pick(this.#skus))],
    [0.06, (client) => this.#reprice(client, pick(this.#skus.slice(0, HOT_PRODUCTS)))],
    [0.04, (client) => this.#join(client)],
    [0.1, (client) => this.#cancel(client)],
  ];

  constructor(region: string) {
    this.#region = region;
  }

  /** Learns what is there; also after a lost connection, which leaves open whether the last transaction was committed. */
  async look(client: pg.Client): Promise<void> {
    const ids = async (sql: string, ...values: string[]): Promise<string[]> =>
      (await client.query(sql, values)).rows.map(({ id }) => id);
    this.#skus = await ids('select sku as id from products order by sku');
    this.#customers = await ids('select id from customers');
    this.#orders = await ids('select id from orders where region = $1 order by placed_at', this.#region);
    if (this.#skus.length === 0 || this.#customers.length === 0) {
      throw new CoregentError('internal_assert', 'the shop is seeded before its load begins');
    }
  }

  async act(client: pg.Client): Promise<void> {
    let dice = Math.random();
    let at = 0;
    while (at < this.#deeds.length - 1 && dice >= this.#deeds[at]![0]) dice -= this.#deeds[at++]![0];
    const rows = await this.#deeds[at]![1](client);
    if (rows === 0) return;
    this.written.transactions++;
    this.written.rows += rows;
  }

  /** Order and items become visible elsewhere together: they are one transaction. */
  async #order(client: pg.Client): Promise<number> {
    const bought = [...new Set([pick(this.#skus), pick(this.#skus), pick(this.#skus)])];
    await client.query('begin');
    const { rows } = await client.query('insert into orders (customer_id, region) values ($1, $2) returning id', [
      pick(this.#customers),
      this.#region,
    ]);
    await client.query(
      `insert into order_items (order_id, line, sku, quantity, price)
        select $1, row_number() over (order by sku), sku, 1 + floor(random() * 3)::int, price from products where sku = any ($2)`,
      [rows[0].id, bought],
    );
    await client.query('commit');
    this.#orders.push(rows[0].id);
    return 1 + bought.length;
  }

  async #advance(client: pg.Client): Promise<number> {
    if (this.#orders.length === 0) return 0;
    const { rowCount } = await client.query(
      `update orders set status = case status when 'new' then 'paid' else 'shipped' end where id = $1`,
      [pick(this.#orders)],
    );
    return rowCount ?? 0;
  }

  async #reprice(client: pg.Client, sku: string): Promise<number> {
    const { rowCount } = await client.query('update products set price = $2, changed_at = now() where sku = $1', [
      sku,
      (5 + Math.random() * 95).toFixed(2),
    ]);
    return rowCount ?? 0;
  }

  async #join(client: pg.Client): Promise<number> {
    if (this.#customers.length > CUSTOMERS) return 0;
    const { rows } = await client.query(`insert into customers (name, home_region) values ($1, $2) returning id`, [
      `Customer of ${this.#region} ${this.#customers.length + 1}`,
      this.#region,
    ]);
    this.#customers.push(rows[0].id);
    return 1;
  }

  /** The items go by the foreign key's own `on delete cascade`. */
  async #cancel(client: pg.Client): Promise<number> {
    const id = this.#orders.shift();
    if (id === undefined) return 0;
    const { rows } = await client.query(
      `with items as (select count(*) from order_items where order_id = $1)
        delete from orders where id = $1 returning (select count from items)::int as items`,
      [id],
    );
    return rows[0] ? 1 + rows[0].items : 0;
  }
}

function pick<T>(items: readonly T[]): T {
  return items[Math.floor(Math.random() * items.length)]!;
}
