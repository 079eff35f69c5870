import { writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { checkEqual } from '../../chaos/checks/equal.ts';
import { checkForeign } from '../../chaos/checks/foreign.ts';
import { checkOnce, checkWhole } from '../../chaos/checks/once.ts';
import { checkOwned } from '../../chaos/checks/owned.ts';
import { checkDisk, checkQuiet } from '../../chaos/checks/quiet.ts';
import { checkRecords } from '../../chaos/checks/registers.ts';
import { checkParts, checkVersions } from '../../chaos/checks/rules.ts';
import { checkValues } from '../../chaos/checks/values.ts';
import { type Asked, passed } from '../../chaos/checks/verdict.ts';
import { type Child, History, type Write } from '../../chaos/history.ts';
import { ANSWERS_BY, MODULE, RULES, tablesWith } from '../../chaos/tables.ts';
import { tornIn } from '../../chaos/watch.ts';
import { documentOf } from '../../src/text.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';

/** Every checker of a storm is shown one violation of its law, planted behind replication's back, and then none. */
let cluster: Cluster;
let regions: Asked[];

beforeAll(async () => {
  cluster = await makeCluster({
    regions: 2,
    tables: tablesWith([]).sql,
    config: { tables: { 'public.*': {}, ...RULES }, tombstones: { interval: '24h' } },
  });
  await writeFile(join(dirname(cluster.configFile), MODULE.file), MODULE.text);
  await cluster.install();
  regions = cluster.regions.map((name) => ({ name, query: (text, values) => cluster.query(name, text, values) }));
  await cluster.startAgents();
  await cluster.query('tokyo', `insert into contested select n, 'x' from generate_series(1, 5) n`);
  await cluster.query('tokyo', 'delete from contested where id = 5');
  await cluster.query('tokyo', `insert into entries values (1, 'tokyo/1', 2, ''), (2, 'tokyo/1', 2, '')`);
  await cluster.query('tokyo', `insert into counters values (0, 3)`);
  await cluster.query('tokyo', `insert into ids select n, 'insert' from generate_series(1, 3) n`);
  await cluster.query('tokyo', `insert into posts values (1, 'a', 3, 7, array['x', 'y'])`);
  await cluster.query('tokyo', 'insert into profiles values (1, 2, 0, 0)');
  await cluster.query('tokyo', `insert into drafts values (1, 'old'), (2, 'alone')`);
  await cluster.query('tokyo', `insert into claims values (1, 'claimed')`);
  await cluster.query('tokyo', `insert into tickets values (1, 'asked')`);
  await cluster.query('tokyo', `insert into preferences values (1, '{"mail": {"daily": "often", "weekly": "often"}}')`);
  await cluster.query('tokyo', `insert into notes values (1, ${bytes('[x][y]')})`);
  await cluster.query('tokyo', `insert into plans values (1, 'planned')`);
  await cluster.query('tokyo', `insert into badges values (1, 'a', 'first'), (2, 'b', 'other')`);
  await cluster.query('tokyo', `insert into ledger values (1, 'tokyo', 5)`);
  await cluster.query('frankfurt', `insert into ledger values (2, 'frankfurt', 5)`);
  await cluster.query('tokyo', 'insert into teams values (1), (2)');
  for (const table of ['players', 'coaches', 'fees']) {
    await cluster.query('tokyo', `insert into ${table} values (1, 1, 'born')`);
  }
  await cluster.query('tokyo', `update drafts set value = 'new' where id = 1`);
  await cluster.converged();
  for (const region of cluster.regions) await cluster.stopAgent(region);
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** A text as a literal of SQL. */
function bytes(text: string): string {
  return `'\\x${Buffer.from(documentOf(text)).toString('hex')}'`;
}

/** Runs statements in frankfurt that no trigger of ours sees, and undoes them at the end. */
async function planted<T>(plant: readonly string[], work: () => Promise<T>, undo: readonly string[]): Promise<T> {
  const session = await cluster.session('frankfurt');
  const run = async (statements: readonly string[]): Promise<void> => {
    await session.query('set session_replication_role = replica');
    for (const text of statements) await session.query(text);
  };
  await run(plant);
  try {
    return await work();
  } finally {
    await run(undo);
    await session.end();
  }
}

function historyOfSetup(): History {
  const history = new History();
  history.groups.entries.set('tokyo/1', { members: 2, inserted: 'ok', deleted: 'no' });
  history.counters.set(0, { ok: 3, unknown: 0 });
  history.ids.push({ first: 1, count: 3, via: 'insert', verdict: 'ok' });
  return history;
}

async function tombstones(): Promise<string> {
  const name = await cluster.value(
    'frankfurt',
    `select 'coregent.tomb_' || table_id from coregent.tables where table_name = 'contested'`,
  );
  return String(name);
}

test('INV-C: a changed, a missing and a further row are found, and a tombstone that differs or is ignored', async () => {
  const check = async (tombstonesStay = true) => (await checkEqual(regions, { tombstonesStay })).violations.join('\n');
  const tombs = await tombstones();
  expect(await check()).toBe('');
  await planted(
    [`update contested set value = 'y' where id = 1`],
    async () => expect(await check()).toMatch(/contested: 2 rows are not alike/),
    [`update contested set value = 'x' where id = 1`],
  );
  await planted(
    ['create temp table kept as select * from contested where id = 2', 'delete from contested where id = 2'],
    async () => expect(await check()).toMatch(/contested: 1 rows are not alike.*\n.*only in tokyo/),
    ['insert into contested select * from kept'],
  );
  await planted([`insert into contested values (5, 'back', 128 + 1)`], async () => {
    expect(await check()).toMatch(/only in frankfurt/);
    expect(await check()).toMatch(/frankfurt: contested \(5\) \(129\) was deleted/);
  }, ['delete from contested where id = 5']);
  await planted(
    [`update ${tombs} set _coregent_version = _coregent_version + 128`],
    async () => expect(await check()).toMatch(/contested \(5\): tombstones differ/),
    [`update ${tombs} set _coregent_version = _coregent_version - 128`],
  );
  await planted([`create temp table kept as select * from ${tombs}`, `delete from ${tombs}`], async () => {
    expect(await check()).toMatch(/contested \(5\): tombstones differ/);
    expect(await check(false)).toBe('');
  }, [`insert into ${tombs} select * from kept`]);
  expect(await check()).toBe('');
});

test('INV-X: a counter, an id and one of nobody that count once too often or too rarely are found', async () => {
  const history = historyOfSetup();
  const check = async () => (await checkOnce(regions, history)).violations.join('\n');
  expect(await check()).toBe('');
  await planted(
    ['update counters set n = n + 1'],
    async () => expect(await check()).toMatch(/frankfurt: counter 0 is 4 after 3 increments/),
    ['update counters set n = n - 1'],
  );
  await planted(
    ['delete from ids where id = 2'],
    async () => expect(await check()).toMatch(/frankfurt: 2 of the 3 ids from 1 on are there/),
    [`insert into ids values (2, 'insert', 0)`],
  );
  await planted(
    [`insert into ids values (9, 'insert', 0)`],
    async () => expect(await check()).toMatch(/nobody inserted 1 ids, such as 9/),
    ['delete from ids where id = 9'],
  );
  const written = (tag: string) => ({ tag, verdict: 'ok' as const });
  await planted([`insert into pairs values (1, 1, 'b', 0)`], async () => {
    history.tags.set(1, [written('a'), written('b')]);
    expect(await check()).toBe('tokyo: set 1 has the tag undefined, not its last one, b');
    history.tags.set(1, [written('b'), written('c')]);
    expect(await check()).toMatch('frankfurt: set 1 has the tag b, not its last one, c');
  }, ['delete from pairs']);
});

test('INV-A: a group of which a part is there, one that is missing and one that is back are found', async () => {
  const history = historyOfSetup();
  const watched = { looked: 1, snapshots: 1, torn: [] as string[] };
  const check = async () => (await checkWhole(regions, history, watched)).violations.join('\n');
  expect(await check()).toBe('');
  await planted(
    ['create temp table kept as select * from entries where id = 1', 'delete from entries where id = 1'],
    async () => expect(await check()).toMatch(/frankfurt, at the end: group tokyo\/1 shows 1 of 2/),
    ['insert into entries select * from kept'],
  );
  await planted(
    ['create temp table kept as select * from entries', 'delete from entries'],
    async () => expect(await check()).toMatch(/frankfurt: entries tokyo\/1 is missing/),
    ['insert into entries select * from kept'],
  );
  await planted(
    [`insert into pairs values (1, 1, 'a', 0), (1, 2, 'b', 0)`],
    async () => expect(await check()).toMatch(/set 1 shows 2 of 1/),
    ['delete from pairs'],
  );
  await planted(
    ['insert into parents values (1, 2, 0)', 'insert into children values (1, 1, null, 0)'],
    async () => expect(await check()).toMatch(/family 1 shows 1 of 2/),
    ['delete from parents', 'delete from children'],
  );
  // Of a table that the region owes it may show a part.
  const frankfurt = regions[1]!;
  await planted(
    [
      'create temp table kept as select * from entries where id = 1',
      'delete from entries where id = 1',
      `insert into coregent.paused (slot, table_id, table_name, reason) values ('s', 't', 'public.entries', 'planted')`,
    ],
    async () => expect((await tornIn(frankfurt.query)).torn).toEqual([]),
    ['insert into entries select * from kept', 'delete from coregent.paused'],
  );
  history.groups.entries.get('tokyo/1')!.deleted = 'ok';
  expect(await check()).toMatch(/entries tokyo\/1 is back/);
});

test('records: one that is there twice, and a parked row, are found', async () => {
  const check = async () => (await checkRecords(regions)).violations.join('\n');
  const record = `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version)
    values ('public.contested', '{"id": 1}', 'insert_exists', 'lww', 'keep', 1, 2)`;
  const park = (table: string, state: string): string =>
    `insert into coregent.parked (peer_id, table_name, operation, version, row_bytes, columns, sqlstate, reason)
      values (1, 'public.${table}', 'insert', 1, '', '[]', '${state}', 'planted')`;
  const undo = ['truncate coregent.conflict_record', 'truncate coregent.parked'];
  expect(await check()).toBe('');
  // The catalog itself would refuse the second.
  const unguarded = 'drop index coregent.conflict_once';
  await planted([unguarded, record, record], async () => expect(await check()).toMatch(/is recorded 2 times/), undo);
  await planted(
    [park('contested', '23505')],
    async () => expect(await check()).toMatch(/is parked: 23505 planted/),
    undo,
  );
  await planted([record], async () => expect(await check()).toBe(''), undo);
});

test('INV-S: a version that is missing, one that was replaced, and another one shown, are found', async () => {
  const { rows } = await cluster.query(
    'tokyo',
    `select 'drafts' as table, id, value, _coregent_version as version, _coregent_parent as parent from drafts
      union all select 'claims', id, value, _coregent_version, _coregent_parent from claims
      union all select 'tickets', id, value, _coregent_version, _coregent_parent from tickets
      union all select 'plans', id, value, _coregent_version, _coregent_parent from plans`,
  );
  const history = new History();
  for (const { table, id, value, version, parent } of rows) {
    const saw = BigInt(parent) > 0n ? [BigInt(parent)] : [];
    const write = { table, id, region: 'tokyo', verdict: 'ok' } as const;
    for (const before of saw) history.versions.push({ ...write, version: before, saw: [], value: 'old' });
    history.versions.push({ ...write, version: BigInt(version), saw, value });
  }
  const check = async () => (await checkVersions(regions, history)).violations.join('\n');
  expect(await check()).toBe('');
  const [draft] = rows.filter(({ parent }) => BigInt(parent) > 0n);
  const set = (version: string): string => `update drafts set _coregent_version = ${version} where id = ${draft!.id}`;
  await planted([set(draft!.parent)], async () => {
    expect(await check()).toMatch(/frankfurt: drafts 1 lacks .* of tokyo, which nobody replaced/);
    expect(await check()).toMatch(/frankfurt: drafts 1 has .*, which was replaced/);
  }, [set(draft!.version)]);
  await planted(
    [`update claims set value = 'stolen'`],
    async () => expect(await check()).toMatch(/frankfurt: claims 1 shows stolen, not claimed/),
    [`update claims set value = 'claimed'`],
  );
  await planted(
    [`update tickets set value = 'asked + asked again'`],
    async () => expect(await check()).toMatch(/frankfurt: tickets 1 shows asked \+ asked again, not asked/),
    [`update tickets set value = 'asked'`],
  );
  history.versions.push({ ...history.versions[0]!, id: 9, version: 1n, saw: [], value: 'gone' });
  expect(await check()).toMatch(/tokyo: drafts 9 lacks 1 of tokyo|tokyo: claims 9 lacks 1 of tokyo/);
});

test('INV-R: an addition, a tag, a peak or an edit that is lost, and a tag that is back, are found', async () => {
  const history = new History();
  const post = history.post(1);
  post.likes.sum = 3;
  post.peak.ok = 7;
  post.peak.tried = 7;
  for (const tag of ['x', 'y']) post.tags.set(tag, { added: 'ok', removed: 'no' });
  post.tags.set('z', { added: 'ok', removed: 'ok' });
  history.profile(1, 'c0').ok = 2;
  for (const word of ['[x]', '[y]']) history.note(1).set(word, { added: 'ok', removed: 'no' });
  const check = async () => (await checkParts(regions, history)).violations.join('\n');
  expect(await check()).toBe('');
  await planted([
    `update posts set likes = 2, peak = 6, tags = array['x', 'z', 'w']`,
    'update profiles set c0 = 1',
    `update notes set body = ${bytes('[x][x]')}`,
  ], async () => {
    const found = await check();
    expect(found).toMatch(/frankfurt: note 1 has something twice: \[x\] \[x\]/);
    expect(found).toMatch(/frankfurt: note 1 lacks \[y\], which nobody removed/);
    expect(found).toMatch(/frankfurt: post 1 has 2 likes; 3 to 3 were added/);
    expect(found).toMatch(/frankfurt: post 1 has the peak 6 after 7/);
    expect(found).toMatch(/frankfurt: post 1 has z, which was removed/);
    expect(found).toMatch(/frankfurt: post 1 lacks y, which nobody removed/);
    expect(found).toMatch(/frankfurt: post 1 has w, which nobody added/);
    expect(found).toMatch(/frankfurt: c0 of profile 1 is 1 after 2 edits/);
  }, [
    `update posts set likes = 3, peak = 7, tags = array['x', 'y']`,
    'update profiles set c0 = 2',
    `update notes set body = ${bytes('[x][y]')}`,
  ]);
  await planted(
    ['create temp table kept as select * from posts', 'delete from posts'],
    async () => expect(await check()).toMatch(/frankfurt: post 1 is gone/),
    ['insert into posts select * from kept'],
  );
});

test('INV-E: a value that vanished is found unless it was replaced or is on record, and one that was replaced and is back', async () => {
  const history = new History();
  const write = { table: 'badges', place: '1', region: 'tokyo', saw: null, verdict: 'ok' } as const;
  history.values.push({ ...write, value: 'first' });
  const check = async () => (await checkValues(regions, history)).violations.join('\n');
  expect(await check()).toMatch(/badges 2 shows other, which nobody wrote/);
  history.values.push({ ...write, place: '2', value: 'other' }, { ...write, table: 'posts', value: 'a' });
  const mail = { ...write, table: 'preferences', value: 'often' };
  history.values.push({ ...mail, place: '1 mail.daily' }, { ...mail, place: '1 mail.weekly' });
  expect(await check()).toBe('');
  await planted([
    'create temp table kept as select * from badges where id = 1',
    'delete from badges where id = 1',
  ], async () => {
    expect(await check()).toBe('frankfurt: first of tokyo in badges 1 vanished without a record');
    history.values.push({ ...write, value: null, saw: 'first', verdict: 'unknown' });
    expect(await check()).toBe('');
    history.values.pop();
  }, ['insert into badges select * from kept']);
  await planted([
    `update badges set note = 'second' where id = 1`,
    `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version, local_row)
        values ('public.badges', '{"id": 1}', 'update_origin_differs', 'columns', 'apply', 1, 2, '{"id": 1, "note": "first"}')`,
  ], async () => {
    expect(await check()).toBe('frankfurt: badges 1 shows second, which nobody wrote');
    history.values.push({ ...write, value: 'second' });
    expect(await check()).toMatch('tokyo: second of tokyo in badges 1 vanished');
    expect(await check()).not.toMatch('first');
    history.values.pop();
  }, [`update badges set note = 'first' where id = 1`, 'truncate coregent.conflict_record']);
  await planted(
    [`update preferences set doc = doc #- '{mail,weekly}'`],
    async () =>
      expect(await check()).toBe('frankfurt: often of tokyo in preferences 1 mail.weekly vanished without a record'),
    [`update preferences set doc = jsonb_set(doc, '{mail,weekly}', '"often"')`],
  );
  history.values.push({ ...write, value: null, saw: 'first' });
  expect(await check()).toMatch(/tokyo: badges 1 shows first, which a delete of tokyo replaced/);
});

test('INV-O: what was lost between rows, and a write by who had not seen the one before, are found', async () => {
  const write = (version: bigint, region: string, saw: bigint[]): Write => {
    return { table: 'ledger', key: '1', region, version, saw, image: 'x', left: false, verdict: 'ok' };
  };
  const check = async (...list: Write[]) => {
    const writes = new Map([['ledger 1', list]]);
    return (await checkOwned(regions, writes, new History(), { perRegion: 1, each: 5 })).violations.join('\n');
  };
  const followed = [write(1n, 'tokyo', []), write(2n, 'frankfurt', [1n])];
  expect(await check(...followed)).toBe('');
  expect(await check(...followed, write(3n, 'tokyo', [1n]))).toBe(
    'ledger 1: who wrote it last had not seen 2 of frankfurt',
  );
  await planted(
    ['update ledger set n = 4 where id = 2'],
    async () => expect(await check()).toBe('frankfurt: 2 rows hold 9; 2 held 10'),
    ['update ledger set n = 5 where id = 2'],
  );
});

test('INV-F: an orphan, a row that went or stayed against its foreign key, and one of nobody are found', async () => {
  const history = new History();
  const bear = (table: string): Child => {
    const states = [{ parent: 1, note: 'born', verdict: 'ok' as const }];
    const child: Child = { table, id: 1, region: 'tokyo', inserted: 'ok', deleted: 'no', states, taken: false };
    history.children.set(`${table} 1`, child);
    return child;
  };
  const [player, coach] = [bear('players'), bear('coaches')];
  const check = async () => (await checkForeign(regions, history)).violations.join('\n');
  expect(await check()).toBe('tokyo: nobody wrote fees 1\nfrankfurt: nobody wrote fees 1');
  bear('fees');
  expect(await check()).toBe('');
  const undo = ['players', 'coaches', 'fees'].map((table) => `insert into ${table} select * from kept_${table}`);
  const gone = ['players', 'coaches', 'fees'].flatMap((table) => [
    `create temp table kept_${table} as select * from ${table}`,
    `delete from ${table}`,
  ]);
  await planted(
    gone,
    async () => {
      expect((await check()).split('\n')).toEqual([
        'frankfurt: players 1 of tokyo went with its parent, and is recorded nowhere',
        'frankfurt: coaches 1 of tokyo is gone, and nobody deleted it',
        'frankfurt: fees 1 of tokyo is gone, and nobody deleted it',
      ]);
      player.taken = true;
      expect(await check()).not.toMatch('players');
    },
    undo,
  );
  await planted([
    'create temp table kept as select * from teams where id = 1',
    'delete from teams where id = 1',
  ], async () => {
    expect((await check()).match(/frankfurt: \w+ 1 refers to nothing/g)).toHaveLength(3);
  }, ['insert into teams select * from kept']);
  await planted(['update players set parent_id = 2', 'update coaches set parent_id = null'], async () => {
    expect(await check()).toBe(
      'frankfurt: players 1 of tokyo shows parent 2 and born, which is not what was written last',
    );
  }, ['update players set parent_id = 1', 'update coaches set parent_id = 1']);
  const notes = ['coaches', 'players'].map((table) => `update ${table} set note = 'older', parent_id = `);
  for (const child of [player, coach]) child.states.unshift({ parent: 2, note: 'older', verdict: 'ok' });
  const older = 'which is not what was written last';
  await planted([`${notes[0]} null`, `${notes[1]} 1`], async () => {
    expect(await check()).toMatch(`frankfurt: coaches 1 of tokyo shows parent null and older, ${older}`);
    await cluster.query(
      'frankfurt',
      `insert into coregent.conflict_record (table_name, key, kind, rule, outcome, local_version, incoming_version)
        select 'public.' || t, '{"id": 1}', 'update_origin_differs', 'lww', 'keep', 1, 2 from unnest(array['players', 'coaches']) t`,
    );
    expect(await check()).toBe(`frankfurt: players 1 of tokyo shows parent 1 and older, ${older}`);
  }, [
    `update players set note = 'born'`,
    `update coaches set note = 'born', parent_id = 1`,
    'truncate coregent.conflict_record',
  ]);
  coach.deleted = 'ok';
  expect(await check()).toBe('tokyo: coaches 1 of tokyo is back\nfrankfurt: coaches 1 of tokyo is back');
});

test('a table for which no law answers is found', async () => {
  const { scratch: _, ...answersBy } = ANSWERS_BY;
  const check = async (by?: typeof ANSWERS_BY) =>
    (await checkEqual(regions, { tombstonesStay: true, ...(by ? { answersBy: by } : {}) })).violations.join('\n');
  expect(await check()).not.toMatch('no law');
  expect(await check(answersBy)).toMatch('scratch: no law answers for what is written to it');
});

test('INV-Q: a region that writes although nobody does is found', async () => {
  let looks = 0;
  const restless = regions.map((region, index) => ({
    ...region,
    query: async (text: string, values?: unknown[]) => {
      // Between the first look at the rows and the second.
      if (index === 1 && /pg_current_wal_insert_lsn\(\) as/.test(text) && looks++ === 0) {
        await region.query(`update counters set n = n + 1`);
      }
      return await region.query(text, values);
    },
  }));
  // The server has other databases, whose tests write: its WAL is never silent.
  const { violations } = await checkQuiet(restless, 50);
  expect(violations.filter((text) => !/bytes of WAL/.test(text))).toEqual([
    'frankfurt: rows changed although nobody wrote',
  ]);
});

test('INV-Q: a region whose WAL grows though no row changes is found', async () => {
  const noisy = regions.map((region, index) => ({
    ...region,
    query: async (text: string, values?: unknown[]) => {
      // Before each second look at the WAL.
      if (index === 1 && /pg_current_wal_insert_lsn\(\) -/.test(text)) {
        await region.query(`select pg_logical_emit_message(false, 'noise', repeat('x', 100000))`);
      }
      return await region.query(text, values);
    },
  }));
  const { violations } = await checkQuiet(noisy, 10);
  expect(violations).toContainEqual(expect.stringMatching(/^frankfurt: \d{6,} bytes of WAL in 0\.01 s of idleness$/));
});

test('INV-D: WAL that is kept for a peer that is away is found, and none once it is back', async () => {
  const limit = { bytes: 4 * 1024 ** 2, waitMs: 0 };
  await cluster.query('frankfurt', `select pg_logical_emit_message(false, 'filler', repeat('x', 6 * 1024 * 1024))`);
  const { violations } = await checkDisk(regions, 1, limit);
  expect(violations).toContainEqual(expect.stringMatching(/^frankfurt still keeps \d+ MiB of WAL$/));
  await cluster.startAgents();
  await cluster.confirmed();
  expect((await checkDisk(regions, 1, { ...limit, waitMs: 60_000 })).violations).toEqual([]);
  expect(passed(await checkDisk(regions, 0, { ...limit, waitMs: 60_000 }))).toBe(false);
});
