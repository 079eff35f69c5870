import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Agent, startAgent } from '../../src/agent/agent.ts';
import { parseConfig } from '../../src/config.ts';
import { createLogger } from '../../src/log.ts';
import type { PeerStatus } from '../../src/model/api.ts';
import type { ErrorCode } from '../../src/model/error.ts';
import { begin, commit, insert, int4, int8, relation, text, update } from '../property/encode.ts';
import type { LogLine } from '../world/agent.ts';
import { type Cluster, makeCluster } from '../world/cluster.ts';
import { copyData, framed, type HostilePeer, type Script, type Speaker, startHostilePeer } from '../world/hostile.ts';
import { until } from '../world/until.ts';

const COLUMNS = ['id', 'v', '_coregent_version', '_coregent_parent'];
const TOKYO = 1;
/** The relation of `notes`, as the liar numbers it. */
const NOTES = 5;
const NO_PARENT = int8(-1);
/** What the liar's rows are told by. */
const GARBAGE = 'garbage';

const stamp = (atMs = Date.now(), region = TOKYO): bigint => (BigInt(Math.round(atMs)) * 1000n * 128n) | BigInt(region);
const described = typed(relation(NOTES, 'public', 'notes', COLUMNS));
const row = (version: bigint, id = 1_000): Buffer => insert(NOTES, [int4(id), text(GARBAGE), int8(version), NO_PARENT]);
/** A transaction that ends right behind where the agent wants to go on, and hides nothing of the real WAL. */
const ends = (speaker: Speaker): bigint => speaker.start + 1n;
const cut = (message: Buffer, bytes: number): Buffer => message.subarray(0, message.length - bytes);

let cluster: Cluster;
let hostile: HostilePeer;
let marker = 0;

beforeAll(async () => {
  cluster = await makeCluster({
    tables: 'create table notes (id int primary key, v text)',
    config: { batch: { rows: 1_000 } },
  });
  await cluster.install();
  hostile = await startHostilePeer(cluster.url('tokyo'));
});
afterAll(async () => {
  await hostile.close();
  await cluster[Symbol.asyncDispose]();
});

/** At its end the agent stops and the peer is honest again. */
interface Victim extends AsyncDisposable {
  readonly agent: Agent;
  readonly log: readonly LogLine[];
  peer(name: string): PeerStatus;
}

/** The agent of frankfurt, whose way to tokyo leads through the hostile peer; the way to virginia is an honest one. */
async function startVictim(): Promise<Victim> {
  const file = JSON.parse(await readFile(cluster.configFile, 'utf8'));
  file.regions.tokyo.url = Object.assign(new URL(file.regions.tokyo.url), { port: String(hostile.port) }).href;
  const log: LogLine[] = [];
  const to = { write: (line: string) => log.push(JSON.parse(line)) };
  const config = parseConfig(JSON.stringify(file), { path: cluster.configFile, env: {} });
  const agent = await startAgent(config, 'frankfurt', {
    port: false,
    log: createLogger({ level: 'debug', region: 'frankfurt', to }),
  });
  const peer = (name: string): PeerStatus => agent.status().peers.find(({ region }) => region === name)!;
  const end = async (): Promise<void> => {
    hostile.turn();
    await agent.stop();
  };
  return { agent, log, peer, [Symbol.asyncDispose]: end };
}

/** A new row of a region arrives in frankfurt. */
async function arrives(region: string): Promise<void> {
  const id = ++marker;
  await cluster.query(region, 'insert into notes values ($1, $2)', [id, region]);
  await until(() => cluster.value('frankfurt', 'select true from notes where id = $1', [id]), {
    what: `a row of ${region} to arrive in frankfurt`,
  });
}

async function garbage(): Promise<unknown> {
  return await cluster.value('frankfurt', `select count(*)::int from notes where v like $1 or id >= 1000`, [
    `%${GARBAGE}%`,
  ]);
}

interface Case {
  readonly what: string;
  readonly code: ErrorCode;
  readonly message?: RegExp;
  readonly says: Script;
}

/** Says these messages, which need nothing of the moment. */
const just =
  (...messages: Buffer[]): Script =>
  ({ say }) =>
    say(...messages);
/** Says them within a transaction that ends well, after describing the table. */
const inTransaction =
  (...messages: Buffer[]): Script =>
  async (speaker) => {
    const end = ends(speaker);
    await speaker.say(described, begin(end - 1n), ...messages, commit(end));
  };

const CASES: readonly Case[] = [
  {
    what: 'a frame of negative length',
    code: 'peer_protocol',
    says: ({ raw }) => raw(Buffer.from([0x64, 0xff, 0xff, 0xff, 0xff])),
  },
  { what: 'a frame of length 0', code: 'peer_protocol', says: ({ raw }) => raw(Buffer.from([0x64, 0, 0, 0, 0])) },
  {
    what: 'a frame longer than PostgreSQL ever sends',
    code: 'peer_protocol',
    message: /2147483647/,
    says: ({ raw }) => raw(Buffer.from([0x64, 0x7f, 0xff, 0xff, 0xff])),
  },
  { what: 'an empty message of replication', code: 'peer_protocol', says: ({ raw }) => raw(copyData(Buffer.alloc(0))) },
  { what: 'a keepalive cut short', code: 'peer_protocol', says: ({ raw }) => raw(copyData(Buffer.from('k1'))) },
  { what: 'a message of an unknown kind', code: 'peer_protocol', says: just(Buffer.from('?what')) },
  { what: 'a cut begin', code: 'peer_protocol', says: just(cut(begin(1n), 15)) },
  { what: 'a cut relation', code: 'peer_protocol', says: just(cut(described, 3)) },
  { what: 'a cut row', code: 'peer_protocol', says: inTransaction(cut(row(stamp()), 3)) },
  {
    what: 'a row of a relation that it did not describe',
    code: 'peer_protocol',
    says: (speaker) => speaker.say(begin(ends(speaker)), row(stamp())),
  },
  { what: 'a row outside of a transaction', code: 'peer_protocol', says: just(described, row(stamp())) },
  {
    what: 'a row of too few columns',
    code: 'peer_protocol',
    says: inTransaction(insert(NOTES, [int4(1_000), int8(stamp()), NO_PARENT])),
  },
  {
    what: 'a row of too many columns',
    code: 'peer_protocol',
    says: inTransaction(insert(NOTES, [int4(1_000), text(GARBAGE), int8(stamp()), NO_PARENT, int4(1)])),
  },
  {
    what: 'a column longer than its message',
    code: 'peer_protocol',
    says: async (speaker) => {
      const lying = Buffer.from(row(stamp()));
      lying.writeInt32BE(0x7fffffff, 9);
      await inTransaction(lying)(speaker);
    },
  },
  {
    what: 'a row without its key',
    code: 'peer_protocol',
    says: inTransaction(insert(NOTES, [null, text(GARBAGE), int8(stamp()), NO_PARENT])),
  },
  {
    what: 'a row whose key it left out as unchanged',
    code: 'peer_protocol',
    says: inTransaction(update(NOTES, ['unchanged', text(GARBAGE), int8(stamp()), NO_PARENT])),
  },
  {
    what: 'a row without a version',
    code: 'peer_protocol',
    says: inTransaction(insert(NOTES, [int4(1_000), text(GARBAGE), null, NO_PARENT])),
  },
  {
    what: 'a version of four bytes',
    code: 'peer_protocol',
    says: inTransaction(insert(NOTES, [int4(1_000), text(GARBAGE), int4(1), NO_PARENT])),
  },
  { what: 'J3: a negative version', code: 'peer_protocol', says: inTransaction(row(-(2n ** 63n) + 1n)) },
  { what: 'J3: a negative version near none', code: 'peer_protocol', says: inTransaction(row(-127n)) },
  {
    what: 'A8: the greatest version that there is',
    code: 'clock_unusable',
    says: inTransaction(row(2n ** 63n - 127n)),
  },
  { what: 'F2: a version of the year 2100', code: 'clock_ahead', says: inTransaction(row(stamp(Date.UTC(2100, 0)))) },
  {
    what: 'a transaction inside of a transaction',
    code: 'peer_protocol',
    says: (speaker) => speaker.say(begin(ends(speaker)), begin(ends(speaker))),
  },
  {
    what: 'a commit without a transaction',
    code: 'peer_protocol',
    says: (speaker) => speaker.say(commit(ends(speaker))),
  },
  {
    what: 'J3: a transaction that ends before it is committed',
    code: 'peer_protocol',
    says: (speaker) => speaker.say(described, begin(ends(speaker) + 500n), row(stamp()), commit(ends(speaker))),
  },
  {
    what: 'J3: transactions whose positions go back',
    code: 'peer_protocol',
    says: async (speaker) => {
      const at = speaker.start;
      await speaker.say(described, begin(at + 1n), commit(at + 2n), begin(at), row(stamp()), commit(at + 1n));
    },
  },
  {
    what: 'J3: a position far behind the end of its WAL',
    code: 'peer_protocol',
    says: (speaker) => speaker.say(described, begin(2n ** 62n - 1n), row(stamp()), commit(2n ** 62n)),
  },
  {
    what: 'a streamed part that nobody began, committed',
    code: 'peer_protocol',
    says: just(Buffer.concat([Buffer.from('c'), Buffer.alloc(29)])),
  },
  {
    what: 'a streamed part within a transaction',
    code: 'peer_protocol',
    says: just(begin(1n), Buffer.from([0x53, 0, 0, 0, 7, 1])),
  },
  { what: 'the end of a streamed part that nobody began', code: 'peer_protocol', says: just(Buffer.from('E')) },
  {
    what: 'a transaction within a streamed part',
    code: 'peer_protocol',
    says: just(
      Buffer.from([0x53, 0, 0, 0, 7, 1]),
      Buffer.concat([Buffer.from('B'), Buffer.alloc(24)]),
      Buffer.from('E'),
      Buffer.concat([Buffer.from([0x63, 0, 0, 0, 7]), Buffer.alloc(25)]),
    ),
  },
  {
    what: 'a relation of 30000 columns',
    code: 'peer_protocol',
    says: just(Buffer.concat([described.subarray(0, 19), Buffer.from([0x75, 0x30])])),
  },
  { what: 'the end of the stream', code: 'peer_restarting', says: ({ raw }) => raw(Buffer.from([0x63, 0, 0, 0, 4])) },
  {
    what: 'an error with letters of every kind',
    code: 'unknown',
    says: ({ raw }) => {
      const fields = Buffer.concat([
        Buffer.from('SERROR\0CHZ000\0M'),
        Buffer.from([0xff, 0x1b, 0x5b]),
        Buffer.from('31m\0\0'),
      ]);
      const head = Buffer.from([0x45, 0, 0, 0, fields.length + 4]);
      return raw(Buffer.concat([head, fields]));
    },
  },
];

describe('a peer that says what PostgreSQL would not', () => {
  test.each(CASES)(
    '$what: an error that is shown, nothing of it applied, and the link goes on when the peer is honest again',
    async ({ code, message, says }) => {
      hostile.turn(says);
      await using victim = await startVictim();
      const { log, peer } = victim;
      await until(() => peer('tokyo').last_error?.code === code, {
        what: `${code} to be shown`,
      });
      expect(peer('tokyo').state).not.toBe('streaming');
      if (message) expect(peer('tokyo').last_error!.message).toMatch(message);
      const told = log.find((line) => line.code === code || line.event === 'clock.ahead');
      expect(told).toBeDefined();
      if (!code.startsWith('clock_')) expect(told!.retry_in_ms).toBeGreaterThan(0);
      await arrives('virginia');
      expect(await garbage()).toBe(0);
      hostile.turn();
      await arrives('tokyo');
      await until(() => peer('tokyo').state === 'streaming', { what: 'the link to stream' });
      expect(peer('tokyo').last_error).toBeNull();
      expect(await garbage()).toBe(0);
      // What came of the far future has left no trace in the clock.
      await cluster.query('frankfurt', 'insert into notes values ($1, $2)', [++marker, 'here']);
      const ahead = `select (max(_coregent_version) >> 7) / 1000000 - extract(epoch from clock_timestamp()) < 60 from notes`;
      expect(await cluster.value('frankfurt', ahead)).toBe(true);
    },
  );

  test.each([
    ['whose name is no UTF-8', [Buffer.from([0xff, 0xfe, 0]), Buffer.from([0xc0, 0x80, 0])]],
    ['whose name looks like SQL', [Buffer.from('public\0'), Buffer.from('notes"; drop table notes; --\0')]],
    ['of the catalog', [Buffer.from('coregent\0'), Buffer.from('progress\0')]],
  ])('J8: a relation %s is passed over, and its rows with it', async (_, names) => {
    const other = Buffer.concat([described.subarray(0, 5), ...names, described.subarray(5 + 'public0notes0'.length)]);
    hostile.turn(inTransaction(other, row(stamp())));
    await using _victim = await startVictim();
    await until(() => hostile.streams > 0, { what: 'the stream' });
    await arrives('virginia');
    expect(await garbage()).toBe(0);
    hostile.turn();
    await arrives('tokyo');
    expect(await garbage()).toBe(0);
  });

  test('J3: rows in the name of another region are left out, and said nothing of', async () => {
    hostile.turn(
      inTransaction(row(stamp(Date.now(), 3)), row(stamp(Date.now(), 2), 1_001), row(stamp(Date.now(), 126), 1_002)),
    );
    await using victim = await startVictim();
    const { peer } = victim;
    await until(() => hostile.streams > 0 && peer('tokyo').state === 'streaming', { what: 'the stream' });
    await arrives('virginia');
    expect(await garbage()).toBe(0);
  });

  test('an honest stream in chunks of one byte is understood', async () => {
    const id = ++marker;
    hostile.turn(async (speaker) => {
      const end = ends(speaker);
      const honest = insert(NOTES, [int4(id), text('byte by byte'), int8(stamp()), NO_PARENT]);
      for (const message of [described, begin(end - 1n), honest, commit(end)]) {
        for (const byte of framed(message, speaker.start)) {
          await speaker.raw(Buffer.from([byte]));
          await new Promise((resolve) => setImmediate(resolve));
        }
      }
    });
    await using _victim = await startVictim();
    await until(() => cluster.value('frankfurt', 'select v from notes where id = $1', [id]), { what: 'the row' });
    expect(await cluster.value('frankfurt', 'select v from notes where id = $1', [id])).toBe('byte by byte');
    hostile.turn();
    // Its end was made up: from here on the real WAL is beyond it.
    await arrives('tokyo');
  });

  test('values that are not of the column’s type are refused, and the table stays as it is', async () => {
    hostile.turn(inTransaction(insert(NOTES, [Buffer.from('abc'), text(GARBAGE), int8(stamp()), NO_PARENT])));
    await using victim = await startVictim();
    const { log } = victim;
    await until(() => log.some((line) => line.event === 'row.parked' || line.event === 'peer.retry'), {
      what: 'a word about it',
    });
    await arrives('virginia');
    expect(await garbage()).toBe(0);
    hostile.turn();
    await arrives('tokyo');
    expect(await garbage()).toBe(0);
  });

  test('a transaction without an end takes no more memory than a batch, delays nobody else, and leaves nothing', async () => {
    let said = 0;
    hostile.turn(async (speaker) => {
      await speaker.say(described, begin(ends(speaker)));
      const wide = 'x'.repeat(1_000);
      for (let id = 1_000; speaker.open; id += 500) {
        const rows = Array.from({ length: 500 }, (_, n) =>
          insert(NOTES, [int4(id + n), text(`${GARBAGE} ${wide}`), int8(stamp()), NO_PARENT]),
        );
        await speaker.say(...rows);
        said += 500;
      }
    });
    const before = memoryMiB();
    await using _victim = await startVictim();
    await until(() => said > 100_000, { what: '100 MB of rows to be said' });
    // Garbage counts as well until it is collected; what is held would only grow.
    await until(() => memoryMiB() - before < 60, { what: 'no more than 60 MB to be in use' });
    await arrives('virginia');
    expect(await garbage()).toBe(0);
    hostile.turn();
    await arrives('tokyo');
    expect(await garbage()).toBe(0);
  });

  test('J3: a peer whose WAL ends before what was applied of it is another peer, said with the cure', async () => {
    const slot = await cluster.value('frankfurt', `select slot from coregent.progress where peer_id = 1`);
    const real = await cluster.value('frankfurt', 'select lsn from coregent.progress where slot = $1', [slot]);
    await cluster.query('frankfurt', `update coregent.progress set lsn = 'FF/0' where slot = $1`, [slot]);
    const { agent, peer } = await startVictim();
    try {
      await until(() => peer('tokyo').last_error?.code === 'peer_identity', { what: 'peer_identity to be shown' });
      expect(peer('tokyo').last_error!.message).toMatch(/FF\/0/);
    } finally {
      await agent.stop();
      await cluster.query('frankfurt', 'update coregent.progress set lsn = $2 where slot = $1', [slot, real]);
    }
  });
});

/** The relation with the types that `notes` has. */
function typed(bytes: Buffer): Buffer {
  for (const [name, oid] of Object.entries({ id: 23, v: 25, _coregent_version: 20, _coregent_parent: 20 })) {
    bytes.writeUInt32BE(oid, bytes.indexOf(`\0${name}\0`) + name.length + 2);
  }
  return bytes;
}

/** Memory of values and buffers, garbage included, in MiB. */
function memoryMiB(): number {
  const { heapUsed, external } = process.memoryUsage();
  return (heapUsed + external) / 1024 ** 2;
}
