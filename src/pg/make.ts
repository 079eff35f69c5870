import { CoregentError } from '../model/error.ts';
import { type Table, tableLabel } from '../model/table.ts';
import { mergeTexts } from '../text.ts';
import type { Tuples } from '../wire/tuples.ts';
import type { CarefulWays } from './careful.ts';
import { arrayOf } from './steps.ts';
import type { Target } from './target.ts';

/** So much is made at a time: rows, and bytes that they are made of. */
const CHUNK_ROWS = 500;
const CHUNK_BYTES = 8 * 2 ** 20;

/** A row that is to be made: its key, and what it is made of, both as JSON. */
export interface Unmade {
  readonly key: string;
  readonly of: string;
}

/** Carries out rules that are modules: see `pg/deciders.ts`. */
export interface Deciders {
  /** What each row is to show, as JSON. Throws `apply_failed` for the first that cannot be made. */
  make(table: Table, rows: readonly Unmade[]): Promise<readonly string[]>;
}

/**
 * Makes what rows show of several versions, where SQL cannot: within the transaction that joined them, so that nobody sees a stand-in.
 * `keys`: the rows' keys as tombstones; undefined: all rows that show a stand-in.
 * Throws `apply_failed` where one cannot be made.
 */
export async function makeRows(
  target: Target,
  options: {
    readonly keys: Tuples | undefined;
    readonly must: CarefulWays['must'];
    readonly deciders: Deciders | undefined;
  },
): Promise<void> {
  const { keys, must, deciders } = options;
  const { making } = target.compiled;
  if (!making) return;
  const find = keys
    ? { text: making.find, values: [arrayOf(target.tombstoneTypeOid, keys)] }
    : { text: making.findAll ?? '' };
  if (find.text === '') return;
  const [found] = await must([find]);
  const { table } = target.staging;
  for (const some of chunks(found!.rows)) {
    const [read] = await must([{ text: making.read, values: [`[${some.join(',')}]`] }]);
    const rows = read!.rows.map(([key, of]): Unmade => ({ key: key!, of: of! }));
    const made =
      table.rule.conflict === 'custom' ? await demand(deciders, table).make(table, rows) : rows.map(mergedBy(table));
    const written = rows.map(({ key }, index) => `{"key":${key},"made":${made[index]}}`);
    await must([{ text: making.write, values: [`[${written.join(',')}]`] }]);
  }
}

function demand(deciders: Deciders | undefined, table: Table): Deciders {
  if (deciders) return deciders;
  throw new CoregentError('internal_assert', `nothing here carries out the rule of ${tableLabel(table)}`);
}

/** Keys of so many rows that all they are made of fits into the memory that a chunk may take. */
function* chunks(found: readonly (readonly (string | null)[])[]): Generator<readonly string[]> {
  let some: string[] = [];
  let bytes = 0;
  for (const [key, size] of found) {
    if (some.length === CHUNK_ROWS || (some.length > 0 && bytes + Number(size) > CHUNK_BYTES)) {
      yield some;
      some = [];
      bytes = 0;
    }
    some.push(key!);
    bytes += Number(size);
  }
  if (some.length > 0) yield some;
}

/** Each text's documents `{"<version>": base64 or null}` as one. */
function mergedBy(table: Table): (row: Unmade) => string {
  return ({ key, of }) => {
    const made: Record<string, string | null> = {};
    for (const [column, documents] of Object.entries(JSON.parse(of) as Record<string, Record<string, string | null>>)) {
      const inOrder = Object.entries(documents).sort(([a], [b]) => (BigInt(a) < BigInt(b) ? -1 : 1));
      try {
        const bytes = inOrder.map(([, document]) => (document === null ? null : Buffer.from(document, 'base64')));
        const merged = mergeTexts(bytes);
        made[column] = merged && Buffer.from(merged).toString('base64');
      } catch (error) {
        // 22P03: a value in binary form that is none of its type.
        const cause = Object.assign(new Error((error as Error).message), { code: '22P03' });
        throw new CoregentError(
          'apply_failed',
          `what regions wrote into ${column} at once cannot be merged: ${cause.message}; let the region that has it write a document into it (${tableLabel(table)} ${key}), and retry`,
          { cause },
        );
      }
    }
    return JSON.stringify(made);
  };
}
