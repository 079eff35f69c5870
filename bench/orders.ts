/** The application's columns of `orders`: an int8 key and ten mixed ones, about 200 bytes a row. */
export const COLUMNS =
  'id, customer_id, status, amount, quantity, paid, created_at, written_at, reference, note, details';

const values = (id: string): string => `
  ${id}, (${id} * 7919) % 100003, (array['new', 'packed', 'sent', 'returned'])[1 + ${id} % 4],
  (${id} % 1000000)::numeric / 100, (${id} % 17)::int4, ${id} % 3 = 0,
  timestamptz '2024-01-01' + ${id} * interval '1 second', clock_timestamp(),
  md5(${id}::text)::uuid, 'leave it at the door of house ' || ${id},
  jsonb_build_object('sku', 'A-' || ${id} % 1000, 'tags', jsonb_build_array('a', 'b'), 'weight', ${id} % 50)`;

/** The statement that inserts the rows from `first` to `last`. */
export const insertRows = (first: string | number, last: string | number): string =>
  `insert into orders (${COLUMNS}) select ${values('i')} from generate_series(${first}::int8, ${last}::int8) i`;

/** The statement that inserts one row; its id is the parameter $1. */
export const INSERT_ONE = `insert into orders (${COLUMNS}) values (${values('$1::int8')})`;

const loop = (name: string, body: string): string => `
  create procedure ${name}(first int8, last int8, size int8) language plpgsql as $body$
  begin
    for n in first..last loop
      ${body}
      commit;
    end loop;
  end $body$`;

/**
 * The table, and procedures that write small transactions fast: `n` counts transactions, `size` is the size of the table
 * or of a transaction. Rows are picked in an order that looks random and is the same each time.
 */
export const ORDERS = [
  `create table orders (
    id int8 primary key,
    customer_id int8 not null,
    status text not null,
    amount numeric(12, 2) not null,
    quantity int4 not null,
    paid boolean not null,
    created_at timestamptz not null,
    written_at timestamptz not null,
    reference uuid not null,
    note text not null,
    details jsonb not null
  )`,
  loop('insert_each', `insert into orders (${COLUMNS}) values (${values('n')});`),
  loop('insert_many', `${insertRows('n * size + 1', 'n * size + size')};`),
  loop(
    'update_each',
    `update orders set status = 'sent', amount = amount + 1, quantity = quantity + 1, written_at = clock_timestamp()
      where id = 1 + (hashint8extended(n, 7) & 1073741823) % size;`,
  ),
  loop('delete_each', 'delete from orders where id = 1 + (n * 7919) % size;'),
];
