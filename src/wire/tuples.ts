import { dataView } from './pgoutput.ts';

/**
 * Rows in PostgreSQL's binary forms, in one growing buffer.
 *
 * `copy` form is the tuple of `COPY … (FORMAT binary)`: int16 count, then per column int32 length and bytes.
 * `record` form is an element of a composite array as `array_recv` reads it: int32 length of the rest, int32 count, then per column
 * int32 type OID, int32 length and bytes.
 * Values are copied as the peer sent them, never parsed.
 */
export class Tuples {
  #bytes: Buffer;
  #view: DataView;
  #length = 0;
  /** End offset of each row. */
  #ends: number[] = [];
  #dead: Set<number> | undefined;

  constructor(capacity = 16_384) {
    this.#bytes = Buffer.allocUnsafe(capacity);
    this.#view = dataView(this.#bytes);
  }

  /** Rows written, the dead ones included. */
  get rows(): number {
    return this.#ends.length;
  }

  /** Rows that still count. */
  get live(): number {
    return this.#ends.length - (this.#dead?.size ?? 0);
  }

  /** Bytes written. */
  get length(): number {
    return this.#length;
  }

  /** Makes room for `more` bytes and returns the buffer to write into at `length`. */
  reserve(more: number): Buffer {
    const need = this.#length + more;
    if (need > this.#bytes.length) {
      const grown = Buffer.allocUnsafe(Math.max(need, this.#bytes.length * 2));
      this.#bytes.copy(grown, 0, 0, this.#length);
      this.#bytes = grown;
      this.#view = dataView(grown);
    }
    return this.#bytes;
  }

  /** The same as a view. */
  reserveView(more: number): DataView {
    this.reserve(more);
    return this.#view;
  }

  /** Ends a row at this offset of the buffer. */
  endRow(at: number): void {
    this.#length = at;
    this.#ends.push(at);
  }

  /** The bytes of one row; a view, valid until the next write. */
  row(index: number): Buffer {
    return this.#bytes.subarray(index === 0 ? 0 : this.#ends[index - 1]!, this.#ends[index]!);
  }

  /** Marks a row as replaced by a later one. */
  kill(index: number): void {
    this.#dead ??= new Set();
    this.#dead.add(index);
  }

  /** Takes a mark back. */
  revive(index: number): void {
    this.#dead?.delete(index);
  }

  isDead(index: number): boolean {
    return this.#dead?.has(index) ?? false;
  }

  /** Forgets all rows from `rows` on. */
  truncate(rows: number): void {
    if (rows >= this.#ends.length) return;
    this.#ends.length = rows;
    this.#length = rows === 0 ? 0 : this.#ends[rows - 1]!;
    if (this.#dead) for (const index of this.#dead) if (index >= rows) this.#dead.delete(index);
  }

  /** All live rows back to back, without a copy where nothing died. */
  bytes(): Buffer {
    const dead = this.#dead;
    if (!dead || dead.size === 0) return this.#bytes.subarray(0, this.#length);
    const parts: Buffer[] = [];
    let from = 0;
    for (const index of [...dead].sort((a, b) => a - b)) {
      const start = index === 0 ? 0 : this.#ends[index - 1]!;
      if (start > from) parts.push(this.#bytes.subarray(from, start));
      from = this.#ends[index]!;
    }
    if (from < this.#length) parts.push(this.#bytes.subarray(from, this.#length));
    return Buffer.concat(parts);
  }

  /** Each live row as a view. */
  *liveRows(): Generator<Buffer> {
    for (let index = 0; index < this.#ends.length; index++) if (!this.isDead(index)) yield this.row(index);
  }
}

const COPY_HEADER = Buffer.from('PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0', 'latin1');
const COPY_TRAILER = Buffer.from([0xff, 0xff]);

/** The chunks of a whole `COPY … FROM STDIN (FORMAT binary)` stream around rows in `copy` form. */
export function copyStream(rows: Buffer): Buffer[] {
  return [COPY_HEADER, rows, COPY_TRAILER];
}

/**
 * The header of a one-dimensional binary array of `count` composites of the type `oid`.
 * Rows in `record` form, back to back, are its body.
 */
export function recordArrayHeader(oid: number, count: number): Buffer {
  const header = Buffer.allocUnsafe(20);
  header.writeInt32BE(1, 0);
  header.writeInt32BE(0, 4);
  header.writeUInt32BE(oid, 8);
  header.writeInt32BE(count, 12);
  header.writeInt32BE(1, 16);
  return header;
}
