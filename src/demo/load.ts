import pg from 'pg';
import { CoregentError, classify } from '../model/error.ts';
import { pause } from '../pause.ts';
import { NOT_OWNER } from '../pg/stamp-owner.ts';
import { editText, textOf } from '../text.ts';
import { HOT } from './shop.ts';

/** Transactions and rows that an application committed. */
export interface Written {
  readonly transactions: number;
  readonly rows: number;
  /** Orders of other regions that it tried to write, and was refused. */
  readonly refused: number;
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
/** What may meet a write of another region on its way in: a name that is taken by now, a row that is gone. */
const MET = /^23(001|503|505)$/;
/** A region with more of them adds none: a demo left on overnight must not fill a disk. */
const OPEN_ORDERS = 200;
const SIGNED_UP = 60;
/** Characters of a document, about. */
const DOCUMENT_LENGTH = 600;
/** Names that everyone wants, for so long: two regions that give one away at once meet. */
const NAMES = ['sky', 'river'] as const;
const NAME_MS = 2_000;

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
  readonly written = { transactions: 0, rows: 0, refused: 0 };
  readonly #region: string;
  #skus: string[] = [];
  #customers: string[] = [];
  /** Customers who are online in every region. */
  #regulars: string[] = [];
  /** Orders of this region, the oldest first. */
  #orders: string[] = [];
  /** Customers who signed up here and have bought nothing, the oldest first. */
  #signedUp: string[] = [];
  /** What is done, and how often: shares add up to 1. Each gives the rows that it wrote. */
  readonly #deeds: readonly (readonly [share: number, deed: (client: pg.Client) => Promise<number>])[] = [
    [0.17, (client) => (this.#orders.length > OPEN_ORDERS ? this.#cancel(client) : this.#order(client))],
    [0.12, (client) => this.#advance(client)],
    [0.06, (client) => this.#cancel(client)],
    [0.02, (client) => this.#meddle(client)],
    [0.08, (client) => this.#reprice(client)],
    [0.1, (client) => this.#like(client)],
    [0.08, (client) => this.#visit(client)],
    [0.05, (client) => this.#signUp(client)],
    [0.08, (client) => this.#fillCart(client)],
    [0.06, (client) => this.#book(client)],
    [0.04, (client) => this.#answer(client)],
    [0.05, (client) => this.#note(client)],
    [0.09, (client) => this.#reply(client)],
  ];

  constructor(region: string) {
    this.#region = region;
  }

  /** Learns what is there; also after a lost connection, which leaves open whether the last transaction was committed. */
  async look(client: pg.Client): Promise<void> {
    const ids = async (sql: string, ...values: string[]): Promise<string[]> =>
      (await client.query(sql, values)).rows.map(({ id }) => id);
    this.#skus = await ids('select sku as id from products order by sku');
    this.#customers = await ids('select id from customers where username is null');
    this.#regulars = await ids(
      'select id from customers where username is null order by id limit $1',
      `${HOT.customers}`,
    );
    this.#orders = await ids('select id from orders where region = $1 order by placed_at', this.#region);
    this.#signedUp = await ids(
      'select id from customers where username is not null and home_region = $1',
      this.#region,
    );
    if (this.#skus.length === 0 || this.#customers.length === 0) {
      throw new CoregentError('internal_assert', 'the shop is seeded before its load begins');
    }
  }

  async act(client: pg.Client): Promise<void> {
    let dice = Math.random();
    let at = 0;
    while (at < this.#deeds.length - 1 && dice >= this.#deeds[at]![0]) dice -= this.#deeds[at++]![0];
    const rows = await this.#deeds[at]![1](client).catch(async (error) => {
      if (!MET.test(error.code)) throw error;
      await client.query('rollback');
      return 0;
    });
    if (rows === 0) return;
    this.written.transactions++;
    this.written.rows += rows;
  }

  /** Order, items and what they take from the stock become visible elsewhere together: they are one transaction. */
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
    await client.query(
      'update products p set stock = stock - i.quantity from order_items i where i.order_id = $1 and i.sku = p.sku',
      [rows[0].id],
    );
    await client.query('commit');
    this.#orders.push(rows[0].id);
    return 1 + 2 * bought.length;
  }

  async #advance(client: pg.Client): Promise<number> {
    if (this.#orders.length === 0) return 0;
    return await write(
      client,
      `update orders set status = case status when 'new' then 'paid' else 'shipped' end where id = $1`,
      pick(this.#orders),
    );
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

  /** Somebody changes an order of another region: the database refuses it, and names its owner. */
  async #meddle(client: pg.Client): Promise<number> {
    const others = `select id from orders where region <> $1 order by placed_at desc limit 1`;
    try {
      return await write(client, `update orders set status = 'paid' where id = (${others})`, this.#region);
    } catch (error) {
      if ((error as { code?: unknown }).code !== NOT_OWNER) throw error;
      this.written.refused++;
      return 0;
    }
  }

  /** A new price and new stock, of anything or of what is in fashion. */
  async #reprice(client: pg.Client): Promise<number> {
    const sku = Math.random() < 0.5 ? pick(this.#skus) : this.#hotProduct();
    const price = (5 + Math.random() * 95).toFixed(2);
    return await write(client, 'update products set price = $2, stock = stock + 20 where sku = $1', sku, price);
  }

  async #like(client: pg.Client): Promise<number> {
    const tag = pick(['gift', 'sale', 'new', 'rare', 'eco', 'best']);
    const tagged = pick(['array_append(tags, $2)', 'array_append(tags, $2)', 'array_remove(tags, $2)']);
    const text = `update products set likes = likes + 1, tags = ${tagged} where sku = $1`;
    return await write(client, text, this.#hotProduct(), tag);
  }

  /** A regular is seen, and perhaps moves, changes the name or a setting. */
  async #visit(client: pg.Client): Promise<number> {
    const edit = pick([
      '',
      ', city = $2',
      ', name = $2',
      `, settings = settings || jsonb_build_object('theme', $2::text)`,
    ]);
    const text = `update customers set last_seen = now()${edit} where id = $1`;
    return await write(client, text, pick(this.#regulars), ...(edit ? [`${this.#region} ${Date.now() % 1000}`] : []));
  }

  /** Where two regions give one name away at once, one of the two rows gives way. */
  async #signUp(client: pg.Client): Promise<number> {
    if (this.#signedUp.length > SIGNED_UP) {
      return await write(client, 'delete from customers where id = $1', this.#signedUp.shift()!);
    }
    const { rows } = await client.query(
      `insert into customers (name, username, home_region) values ($1, $1, $2) on conflict (username) do nothing returning id`,
      [`${pick(NAMES)}${Math.floor(Date.now() / NAME_MS) % 1_000_000}`, this.#region],
    );
    this.#signedUp.push(...rows.map(({ id }) => id));
    return rows.length;
  }

  /** One family, one cart, in every region: what was put into several at once is joined by whoever writes next. */
  async #fillCart(client: pg.Client): Promise<number> {
    return await write(
      client,
      `update carts c set items = (
          select array_agg(distinct item) from (
            select jsonb_array_elements_text(s."row" -> 'items') as item
              from coregent.list_siblings('carts') s where (s.key ->> 'id')::int = $1
            union all select unnest(c.items) union all select $2) i)
        where id = $1 and cardinality(items) < 10`,
      1 + Math.floor(Math.random() * HOT.carts),
      pick(this.#skus),
    ).then((rows) => rows || write(client, `update carts set items = '{}' where cardinality(items) >= 10`));
  }

  /** The best seat that is free here; when all are taken, the next show begins. */
  async #book(client: pg.Client): Promise<number> {
    const free = `select id from seats where booked_by is null order by id limit 1`;
    const name = `${this.#region} ${Date.now() % 100_000}`;
    const booked = await write(client, `update seats set booked_by = $1 where id = (${free})`, name);
    return booked || write(client, 'update seats set booked_by = null');
  }

  /** A few words more in a document that everyone writes in; where it grew long, its beginning goes. */
  async #note(client: pg.Client): Promise<number> {
    const id = 1 + Math.floor(Math.random() * HOT.documents);
    await client.query('begin');
    const { rows } = await client.query('select body from documents where id = $1 for update', [id]);
    const { length } = textOf(rows[0].body);
    const edit =
      length > DOCUMENT_LENGTH
        ? { at: 0, remove: length - DOCUMENT_LENGTH / 2 }
        : { at: length, insert: `Written in ${this.#region}. ` };
    const body = Buffer.from(editText(rows[0].body, [edit]));
    const written = await write(client, 'update documents set body = $2 where id = $1', id, body);
    await client.query('commit');
    return written;
  }

  async #answer(client: pg.Client): Promise<number> {
    const edit = pick(['urgency = 1 + (urgency + 1) % 5', 'open = not open', `subject = 'Asked in ${this.#region}'`]);
    return await write(client, `update tickets set ${edit} where id = $1`, this.#ticket());
  }

  /** A reply to a ticket; or it is put away with all that was said, also what is being said elsewhere, and another one takes its place. */
  async #reply(client: pg.Client): Promise<number> {
    const id = this.#ticket();
    const text =
      Math.random() < 0.6
        ? `insert into replies (ticket_id, body) select id, 'From ' || $2 from tickets where id = $1 for key share`
        : `delete from tickets where id = $1 and $2 <> ''`;
    const rows = await write(client, text, id, this.#region);
    const anew = `insert into tickets (id, subject) values ($1, 'Question from ' || $2) on conflict do nothing`;
    return rows || write(client, anew, id, this.#region);
  }

  #hotProduct(): string {
    return pick(this.#skus.slice(0, HOT.products));
  }

  #ticket(): number {
    return 1 + Math.floor(Math.random() * HOT.tickets);
  }
}

/** One statement, which is a transaction; the rows that it wrote. */
async function write(client: pg.Client, text: string, ...values: unknown[]): Promise<number> {
  return (await client.query(text, values)).rowCount ?? 0;
}

function pick<T>(items: readonly T[]): T {
  return items[Math.floor(Math.random() * items.length)]!;
}
