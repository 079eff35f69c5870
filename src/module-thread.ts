/**
 * What a thread runs that carries out a rule written as a module: CommonJS, as text, because a thread cannot load TypeScript.
 * It gets `workerData`, the module as a `data:` URL, says `{ ready }` or `{ broken }`, and answers each row with `{ made }` or `{ error }`.
 * A row comes as `{ versions, columns, key }`; each version's `row` has the JSON text of every column.
 */
export const MODULE_THREAD = `
const { parentPort, workerData } = require('node:worker_threads');
const say = (error) => (error instanceof Error ? error.message || error.name : String(error));

const freeze = (value) => {
  if (typeof value !== 'object' || value === null) return value;
  for (const each of Object.values(value)) freeze(each);
  return Object.freeze(value);
};

// A value that comes back as it was given goes back to the byte.
const textOf = (column, value, given) => {
  for (const { row, texts } of given) if (Object.is(row[column], value)) return texts[column] ?? 'null';
  if (value instanceof Uint8Array) return JSON.stringify('\\\\x' + Buffer.from(value).toString('hex'));
  const text = JSON.stringify(value, (_, each) => {
    if (typeof each === 'bigint') return String(each);
    if (typeof each === 'number' && !Number.isFinite(each)) throw new TypeError('the column ' + column + ' is ' + each);
    return each;
  });
  if (text === undefined) throw new TypeError('the column ' + column + ' is ' + (value === undefined ? 'missing' : 'no value'));
  return text;
};

const make = (decide, { versions, columns, key }) => {
  const given = versions.map(({ version, row: texts }) => {
    const stamp = BigInt(version);
    const micros = stamp >> 7n;
    const time = new Date(Number(micros / 1000n)).toISOString().slice(0, -1) + String(micros % 1000n).padStart(3, '0') + 'Z';
    const row = Object.fromEntries(columns.map((name) => [name, texts[name] === null ? null : JSON.parse(texts[name])]));
    return { texts, version: stamp, region: Number(stamp & 127n), time, row };
  });
  const made = decide(freeze(given.map(({ texts, ...version }) => version)));
  if (typeof made !== 'object' || made === null || Array.isArray(made)) throw new TypeError('it made no row of these versions');
  if (typeof made.then === 'function') throw new TypeError('it made a promise, not a row: it must not be async');
  const unknown = Object.keys(made).find((name) => !columns.includes(name));
  if (unknown !== undefined) throw new TypeError('the table has no column ' + unknown);
  const set = columns.filter((name) => !key.includes(name));
  return '{' + set.map((name) => JSON.stringify(name) + ':' + textOf(name, made[name], given)).join(',') + '}';
};

import(workerData).then(
  (module) => {
    if (typeof module.default !== 'function') throw new TypeError('it has no default export that is a function');
    parentPort.on('message', (rows) => {
      for (const row of rows) {
        try {
          parentPort.postMessage({ made: make(module.default, row) });
        } catch (error) {
          parentPort.postMessage({ error: say(error) });
        }
      }
    });
    parentPort.postMessage({ ready: true });
  },
).catch((error) => parentPort.postMessage({ broken: say(error) }));
`;
