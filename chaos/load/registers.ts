import { within } from '../../test/world/random.ts';
import { ACCOUNTS, CONTESTED, DOCUMENTS, EVENTS, HANDLES, HITS, SCRATCH } from '../tables.ts';
import { taking } from './families.ts';
import { register } from './register.ts';
import type { Kind, Settle, Work } from './writer.ts';

/** Some rows are written all the time, by all regions at once; most now and then, so that regions see each other's writes. */
const HOT = 8;
const ROWS = 250;
const DOCUMENT_ROWS = 30;
const ACCOUNT_ROWS = 120;
const EMAILS = 30;
const HANDLE_ROWS = 60;
const HANDLE_VALUES = 25;
const SCRATCH_ROWS = 60;

function anyKey(work: Work): number {
  return within(work.random, 1, work.random() < 0.25 ? HOT : ROWS);
}

function value(work: Work): string {
  return `${work.region}/${work.writer}/${work.next()}`;
}

async function upsert(work: Work): Promise<Settle | undefined> {
  const id = anyKey(work);
  return await register(work, CONTESTED, [`${id}`], async () => {
    await work.client.query(
      'insert into contested values ($1, $2) on conflict (id) do update set value = excluded.value',
      [id, value(work)],
    );
  });
}

async function update(work: Work): Promise<Settle | undefined> {
  const ids = [...new Set(Array.from({ length: within(work.random, 1, 4) }, () => anyKey(work)))];
  return await register(work, CONTESTED, ids.map(String), async () => {
    await work.client.query('update contested set value = $2 where id = any ($1)', [ids, value(work)]);
  });
}

async function insertOrLeave(work: Work): Promise<Settle | undefined> {
  const id = anyKey(work);
  return await register(work, CONTESTED, [`${id}`], async () => {
    await work.client.query('insert into contested values ($1, $2) on conflict do nothing', [id, value(work)]);
  });
}

async function remove(work: Work): Promise<Settle | undefined> {
  const id = anyKey(work);
  return await register(work, CONTESTED, [`${id}`], async () => {
    await work.client.query('delete from contested where id = $1', [id]);
  });
}

/** Delete and insert of one key in one transaction, perhaps over and over. */
async function replace(work: Work): Promise<Settle | undefined> {
  const id = anyKey(work);
  return await register(work, CONTESTED, [`${id}`], async () => {
    for (let round = within(work.random, 1, 3); round > 0; round--) {
      await work.client.query('delete from contested where id = $1', [id]);
      await work.client.query('insert into contested values ($1, $2)', [id, value(work)]);
    }
  });
}

async function changeKey(work: Work): Promise<Settle | undefined> {
  const from = anyKey(work);
  const to = anyKey(work);
  return await register(work, CONTESTED, [`${from}`, `${to}`], async () => {
    if (work.random() < 0.5) await work.client.query('delete from contested where id = $1', [to]);
    await work.client.query('update contested set id = $2, value = $3 where id = $1', [from, to, value(work)]);
  });
}

async function merge(work: Work): Promise<Settle | undefined> {
  const ids = [...new Set([anyKey(work), anyKey(work), anyKey(work)])];
  return await register(work, CONTESTED, ids.map(String), async () => {
    await work.client.query(
      `merge into contested t using unnest($1::int[]) s (id) on t.id = s.id
        when matched and s.id % 5 = 0 then delete
        when matched then update set value = $2
        when not matched then insert values (s.id, $2)`,
      [ids, value(work)],
    );
  });
}

/** What a savepoint takes back leaves no trace. */
async function undoInPart(work: Work): Promise<Settle | undefined> {
  const id = anyKey(work);
  const other = anyKey(work);
  return await register(work, CONTESTED, [`${id}`, `${other}`], async () => {
    const { client } = work;
    await client.query('update contested set value = $2 where id = $1', [id, value(work)]);
    await client.query('savepoint s');
    await client.query('delete from contested where id = any ($1)', [[id, other]]);
    await client.query('insert into contested values ($1, $2)', [other, value(work)]);
    await client.query('rollback to s');
    await client.query('update contested set value = $2 where id = $1', [other, value(work)]);
  });
}

async function hit(work: Work): Promise<Settle | undefined> {
  const id = within(work.random, 1, 12);
  return await register(
    work,
    HITS,
    [`${id}`],
    async () => {
      await work.client.query('update hits set n = n + 1, writer = $2 where id = $1', [id, value(work)]);
    },
    { counts: 'n' },
  );
}

/** Text of so many bytes that does not compress, or does. */
function long(work: Work): string {
  const bytes = within(work.random, 10_000, work.random() < 0.1 ? 300_000 : 40_000);
  const seed = `${value(work)}-`;
  return seed.repeat(Math.ceil(bytes / seed.length)).slice(0, bytes);
}

async function document(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  const id = within(random, 1, DOCUMENT_ROWS);
  const dice = random();
  const left = dice < 0.6;
  return await register(
    work,
    DOCUMENTS,
    [`${id}`],
    async () => {
      if (left) {
        await client.query('update documents set title = $2, edits = edits + 1 where id = $1', [id, value(work)]);
      } else if (dice < 0.7) {
        await client.query('update documents set notes = $2, edits = edits + 1 where id = $1', [id, long(work)]);
      } else if (dice < 0.78) {
        await client.query('delete from documents where id = $1', [id]);
      } else {
        await client.query(
          `insert into documents values ($1, $2, 0, $3, $4)
            on conflict (id) do update set title = excluded.title, body = excluded.body`,
          [id, value(work), long(work), random() < 0.5 ? null : long(work)],
        );
      }
    },
    { left },
  );
}

/** Two regions may take one e-mail: one of the two rows gives way, in the middle of changes of its note, and takes along what refers to it. */
async function account(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  const id = within(random, 1, ACCOUNT_ROWS);
  const email = `${within(random, 1, EMAILS)}@example.com`;
  const settle = await register(work, ACCOUNTS, [`${id}`], async () => {
    const dice = random();
    if (dice < 0.25) await client.query('delete from accounts where id = $1', [id]);
    else if (dice < 0.4) await client.query('update accounts set note = $2 where id = $1', [id, value(work)]);
    else if (dice < 0.6) await client.query('update accounts set email = $2 where id = $1', [id, email]);
    else
      await client.query('insert into accounts values ($1, $2, $3) on conflict do nothing', [id, email, value(work)]);
  });
  return await taking(work, ACCOUNTS, settle);
}

/** Two unique values in a row, which rows also swap: a row may meet several others at once. */
async function handle(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  const [id, other] = [within(random, 1, HANDLE_ROWS), within(random, 1, HANDLE_ROWS)];
  const [name, seat] = [`name ${within(random, 1, HANDLE_VALUES)}`, within(random, 1, HANDLE_VALUES)];
  return await register(work, HANDLES, [`${id}`, `${other}`], async () => {
    const dice = random();
    if (dice < 0.2) await client.query('delete from handles where id = $1', [id]);
    else if (dice < 0.55) {
      await client.query(
        `insert into handles select $1::int, $2, $3, $4
          where not exists (select from handles where name = $2 or seat = $3) on conflict (id) do nothing`,
        [id, name, seat, value(work)],
      );
    } else if (dice < 0.7) await client.query('update handles set note = $2 where id = $1', [id, value(work)]);
    else if (dice < 0.85) await client.query('update handles set name = $2, seat = $3 where id = $1', [id, name, seat]);
    else if (id !== other) {
      await client.query(
        `update handles h set seat = o.seat, note = $3 from handles o
          where (h.id, o.id) in (($1::int, $2::int), ($2::int, $1::int))`,
        [id, other, value(work)],
      );
    }
  });
}

async function scratch(work: Work): Promise<Settle | undefined> {
  const id = within(work.random, 1, SCRATCH_ROWS);
  return await register(work, SCRATCH, [`${id}`], async () => {
    await work.client.query(
      'insert into scratch values ($1, $2) on conflict (id) do update set value = excluded.value',
      [id, value(work)],
    );
  });
}

async function truncate(work: Work): Promise<Settle | undefined> {
  await work.client.query('lock table scratch in access exclusive mode');
  const keys = Array.from({ length: SCRATCH_ROWS }, (_, n) => String(n + 1));
  return await register(work, SCRATCH, keys, async () => {
    await work.client.query('truncate scratch');
    for (let id = within(work.random, 0, 2); id > 0; id--) {
      await work.client.query('insert into scratch values ($1, $2)', [id, value(work)]);
    }
  });
}

async function event(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  const [day, other] = [within(random, 0, 9), within(random, 0, 9)];
  const id = within(random, 1, 10);
  return await register(work, EVENTS, [`(${day},${id})`, `(${other},${id})`], async () => {
    const dice = random();
    if (dice < 0.2) await client.query('delete from events where day = $1 and id = $2', [day, id]);
    else if (dice < 0.35) {
      await client.query('delete from events where day = $1 and id = $2', [other, id]);
      await client.query('update events set day = $3 where day = $1 and id = $2', [day, id, other]);
    } else {
      await client.query(
        'insert into events values ($1, $2, $3) on conflict (day, id) do update set value = excluded.value',
        [day, id, value(work)],
      );
    }
  });
}

/** Rows that all regions write. */
export const REGISTERS: readonly Kind[] = [
  { name: 'upsert', weight: 10, run: upsert },
  { name: 'update', weight: 8, run: update },
  { name: 'insert or leave', weight: 3, run: insertOrLeave },
  { name: 'delete', weight: 5, run: remove },
  { name: 'delete and insert', weight: 4, run: replace },
  { name: 'change of key', weight: 3, run: changeKey },
  { name: 'merge', weight: 3, run: merge, since: 15 },
  { name: 'undone in part', weight: 3, run: undoInPart },
  { name: 'hit', weight: 8, run: hit },
  { name: 'document', weight: 6, run: document },
  { name: 'account', weight: 6, run: account },
  { name: 'handle', weight: 6, run: handle },
  { name: 'scratch', weight: 4, run: scratch },
  { name: 'truncate', weight: 0.25, run: truncate },
];

export const PARTITIONED: Kind = { name: 'event', weight: 6, run: event };
