/**
 * Loaded into an agent's process ahead of everything else (`node --import`), so that a test can have it killed at a named
 * point: `COREGENT_FAULT=<point>` at the first time, `<point>:3` at the third. The product knows nothing of it.
 *
 * - `decoded`: a batch is taken, nothing of it was sent to the local database.
 * - `part`: a part of a large transaction lies in the open local transaction.
 * - `resolved`: all rows lie in the open local transaction, its commit was not sent. Not for what goes in one round trip.
 * - `sent`: the commit was sent, its answer was not read.
 * - `committed`: the local transaction is committed, nothing of it is confirmed to the peer.
 * - `acknowledging`: it is durable here, and about to be confirmed.
 * - `acknowledged`: it was confirmed.
 */
import { Socket } from 'node:net';
import { Store } from '../../dist/pg/store.js';
import { Acknowledger } from '../../dist/pipe/acknowledge.js';

const [wanted, count = '1'] = process.env.COREGENT_FAULT.split(':');
let left = Number(count);

function reach(point) {
  if (point !== wanted || --left > 0) return;
  process.kill(process.pid, 'SIGKILL');
}

const { apply } = Store.prototype;
Store.prototype.apply = async function (batch) {
  reach('decoded');
  const receipt = await apply.call(this, batch);
  reach(receipt.localLsn === undefined ? 'part' : 'committed');
  return receipt;
};

const { flushed } = Acknowledger.prototype;
Acknowledger.prototype.flushed = function (local) {
  const { awaited } = this;
  const all = awaited !== undefined && local >= awaited;
  if (all) reach('acknowledging');
  flushed.call(this, local);
  // The same tick writes the confirmation to the socket.
  if (all) setImmediate(() => reach('acknowledged'));
};

/** By connection, the names under which `begin` and `commit` are prepared, and which of them the script at hand runs. */
const scripts = new WeakMap();
const PARSE = 0x50;
const BIND = 0x42;
const nameAt = (bytes, at) => bytes.toString('latin1', at, bytes.indexOf(0, at));

const { write, uncork } = Socket.prototype;
Socket.prototype.write = function (bytes, ...rest) {
  if (Buffer.isBuffer(bytes) && this.writableCorked > 0) {
    const script = scripts.get(this) ?? { names: new Map(), runs: new Set() };
    scripts.set(this, script);
    if (bytes[0] === PARSE) {
      const name = nameAt(bytes, 5);
      script.names.set(name, nameAt(bytes, 6 + name.length));
    } else if (bytes[0] === BIND) {
      script.runs.add(script.names.get(nameAt(bytes, 6)));
    }
  }
  return write.call(this, bytes, ...rest);
};
Socket.prototype.uncork = function () {
  const runs = scripts.get(this)?.runs;
  const commits = runs?.has('commit');
  if (commits && !runs.has('begin')) reach('resolved');
  uncork.call(this);
  if (commits) reach('sent');
  runs?.clear();
};
