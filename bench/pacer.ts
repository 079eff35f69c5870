// A process that writes single-row transactions at a steady rate: `node pacer.js <rate> <after> <rows> <connections>`,
// URL in DATABASE_URL; rows are numbered from <after> + 1 on.
// Prints one JSON document: the seconds that it took, and the median ms of a commit as the writer sees it.
import pg from 'pg';
import { INSERT_ONE } from './orders.ts';
import { spread } from './statistics.ts';

const [rate, after, rows, connections] = process.argv.slice(2).map(Number) as [number, number, number, number];
const clients = await Promise.all(
  Array.from({ length: connections }, async () => {
    const client = new pg.Client({ connectionString: process.env.DATABASE_URL, application_name: 'bench pacer' });
    await client.connect();
    return client;
  }),
);
const commitMs: number[] = [];
const pending: Promise<void>[] = [];
const began = performance.now();
let written = 0;
while (written < rows) {
  const due = Math.min(rows, Math.floor(((performance.now() - began) / 1000) * rate));
  for (; written < due; written++) pending.push(write(after + written + 1));
  await new Promise((done) => setTimeout(done, 1));
}
await Promise.all(pending);
const seconds = (performance.now() - began) / 1000;
process.stdout.write(JSON.stringify({ seconds, commitMs: spread(commitMs).median }), () => process.exit(0));

async function write(id: number): Promise<void> {
  const client = clients[id % clients.length]!;
  const sent = performance.now();
  await client.query({ name: 'insert', text: INSERT_ONE, values: [id] });
  commitMs.push(performance.now() - sent);
}
