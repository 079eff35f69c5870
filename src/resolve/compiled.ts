/**
 * The statements that apply a table's rows under its rule, made once per connection.
 * `$1` is always an array of staged rows (`record` form), `rows` or `tombstones` as said.
 *
 * Clean statements apply what is plainly a successor of what is here and say by their count how many rows that was;
 * the careful ones settle the rest and record every conflict. Both decide under the row's lock.
 * An `…All` statement is the clean one that fails unless it settles `$2` rows.
 */
export interface Compiled {
  /** The application's own function that some of the statements call, for people; undefined where none is. */
  readonly calls?: string | undefined;
  /** Of rows that show what the agent makes of several versions; undefined where none does. */
  readonly making?: Making | undefined;
  /** Creates the two row types of this session. */
  readonly session: readonly string[];
  readonly rowType: string;
  readonly tombstoneType: string;
  /** Names of the staged columns of rows and tombstones, version and parent included. */
  readonly rowColumns: readonly string[];
  readonly tombstoneColumns: readonly string[];
  /** `COPY` of rows in `copy` form straight into the table; undefined where a column has no binary form. */
  readonly copyIn: string | undefined;
  /** Whether any tombstone is there. */
  readonly anyTombstone: string;
  /** tombstones: the keys of rows just copied in. Records and removes those that a tombstone forbids. */
  readonly recordRevived: string;
  /** The same behind a commit: records only what `removeBuried` is about to remove. */
  readonly recordCrossedInserts: string;
  readonly removeBuried: string;
  /** Removes every row that is older than its tombstone. */
  readonly removeAllBuried: string;
  /** rows: inserts what is absent and not deleted. Count: rows inserted. */
  readonly insertClean: string;
  readonly insertAll: string;
  /** tombstones: remembers the deletes, and deletes rows that the deleter had seen. Count: rows deleted. */
  readonly deleteClean: string;
  readonly deleteAll: string;
  /** The same where no key has a tombstone yet; fails when one has. */
  readonly deleteNew: string;
  /** tombstones: records deletes that met a write they had not seen; deletes what is older. */
  readonly recordDeletes: string;
  /** The same behind a commit: records only what `deleteOlder` is about to delete. */
  readonly recordCrossedDeletes: string;
  readonly deleteOlder: string;
  /** rows: updates rows that the writer had seen. Count: rows updated. One statement per set of unknown columns. */
  updateClean(unknown: readonly number[]): string;
  updateAll(unknown: readonly number[]): string;
  /**
   * rows; of recordRows `$2` kind; last the versions asked for, or null: records rows that met a tombstone, or another write, that
   * their writer had not seen. A row newer than asked for, which stands in for an older write, is recorded as it arrives itself;
   * until then only what it replaces is.
   */
  readonly recordBuried: string;
  readonly recordRows: string;
  /**
   * rows; `$2`, `$3` as of recordRows: locks every row that is here in another version or other bytes, records what it met, and joins
   * it, all in one. Returns conflicts as kind, outcome, whether the versions were equal, table, and their number; last, with null as
   * their kind, how many rows of another version it locked.
   */
  readonly joinRows: string;
  /** rows: inserts what is absent; counts what neither this nor the join could do. */
  readonly insertAbsent: string;
  readonly unresolved: string;
  /** rows: removes older rows and writes the new ones, so that unique values may change places. */
  readonly vacate: string;
  /** rows: the plain upsert, whose error says why a row can't be applied. */
  readonly force: string;
  /** rows: counts those that are not here as they were written. */
  readonly strangers: string;
  /** rows, tombstones: the places in the array, from 1 on, of those that are not here in the same version (rows: and bytes); undefined where a column has no binary form. */
  readonly newRows: string | undefined;
  readonly newTombstones: string | undefined;
  /** tombstones: reads current rows of this table by key, as base64 of `record_send`, in the order of `columns` (SQL, alias `t`) and the first parent. */
  fetch(columns: string): string;
}

/**
 * Rows that were joined show a stand-in until the agent, within the same transaction, has made what they are to show.
 * Keys travel as JSON objects.
 */
export interface Making {
  /** tombstones: the keys of rows that show a stand-in, and the bytes that each is made of. */
  readonly find: string;
  /** The same of all rows; undefined where a statement that needs it never leaves one. */
  readonly findAll: string | undefined;
  /** `$1` a JSON array of keys: each key again, and what its row is made of, as JSON. */
  readonly read: string;
  /** `$1` a JSON array of `{"key", "made"}`: lets the rows show it. */
  readonly write: string;
}
