import { randomBytes } from 'node:crypto';
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { assert } from '../model/error.ts';

/** Of `pg_control`, its struct is shorter than this in every major; the CRC is the struct's last member. */
const CONTROL_BYTES = 512;
/** Where a WAL segment's first page names the system: `XLogLongPageHeaderData.xlp_sysid`. */
const SEGMENT_OFFSET = 24;

/**
 * Gives a cleanly stopped data folder that was copied a system identifier of its own, as `initdb` would. Copies with one
 * identifier would pass for the same server, to everything that tells peers apart by it. What it writes is checked by
 * PostgreSQL itself at the start: the CRC of `global/pg_control`, and the identifier in each WAL segment against it.
 */
export async function giveIdentity(dataDir: string): Promise<void> {
  const made = new BigUint64Array([
    (BigInt(Math.floor(Date.now() / 1000)) << 32n) | BigInt(randomBytes(4).readUInt32LE()),
  ]);
  const fresh = new Uint8Array(made.buffer);

  const control = new Uint8Array(CONTROL_BYTES);
  await patch(join(dataDir, 'global', 'pg_control'), async (file) => {
    await file.read(control, 0, CONTROL_BYTES, 0);
    const end = crcOffset(control);
    control.set(fresh, 0);
    new Uint32Array(control.buffer)[end / 4] = crc32c(control.subarray(0, end));
    await file.write(control, 0, CONTROL_BYTES, 0);
  });

  const wal = join(dataDir, 'pg_wal');
  for (const name of await readdir(wal)) {
    if (!/^[0-9A-F]{24}$/.test(name)) continue;
    await patch(join(wal, name), (file) => file.write(fresh, 0, fresh.length, SEGMENT_OFFSET));
  }
}

type File = Awaited<ReturnType<typeof open>>;

async function patch(path: string, write: (file: File) => Promise<unknown>): Promise<void> {
  const file = await open(path, 'r+');
  try {
    await write(file);
  } finally {
    await file.close();
  }
}

/** The struct's length differs by major; its CRC stands where the CRC of all before it is found. */
function crcOffset(control: Uint8Array): number {
  const words = new Uint32Array(control.buffer);
  for (let at = 64; at < CONTROL_BYTES; at += 4) {
    if (words[at / 4] === crc32c(control.subarray(0, at))) return at;
  }
  assert(false, 'pg_control holds the CRC of what stands before it');
}

/** CRC-32C (Castagnoli), bit by bit: a few hundred bytes once per server need no table. */
function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
