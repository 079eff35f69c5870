/** `ok`: acknowledged. `unknown`: the connection was lost inside of the commit. */
export type Verdict = 'ok' | 'unknown';

/** What one transaction made of one row, read inside of the transaction, under the row's lock. */
export interface Write {
  readonly table: string;
  readonly key: string;
  readonly region: string;
  readonly version: bigint;
  /** Versions that the writer replaced knowingly. */
  readonly saw: readonly bigint[];
  /** Digest of the whole row; null: a delete. */
  readonly image: string | null;
  /** Version of the delete, in the same transaction, over which the row was inserted. */
  readonly deleted?: bigint;
  /** Of an increment: the value before and after. */
  readonly step?: { readonly from: number; readonly to: number };
  /** Whether it left a long value of the row alone. */
  readonly left: boolean;
  verdict: Verdict;
}

/** Rows that were inserted in one transaction and leave in one. */
export interface Group {
  readonly members: number;
  inserted: Verdict | 'no';
  deleted: 'no' | Verdict;
}

/** Ids that one transaction inserted: from `first` on, `count` of them. */
export interface IdRange {
  readonly first: number;
  readonly count: number;
  readonly via: string;
  verdict: Verdict | 'no';
}

/** One write of a row whose table keeps versions side by side. */
export interface VersionWrite {
  readonly table: string;
  readonly id: number;
  readonly region: string;
  readonly version: bigint;
  /** The versions that it replaced. */
  readonly saw: readonly bigint[];
  /** Null: a delete. */
  readonly value: string | null;
  verdict: Verdict;
}

/** One write of a value that nobody else writes, or a delete of it or of its row. */
export interface ValueWrite {
  readonly table: string;
  /** The row's id; in a document, and the path there: `7 mail.daily`. */
  readonly place: string;
  readonly region: string;
  /** Null: a delete. */
  readonly value: string | null;
  /** What the row showed to its writer; null: there was none. */
  readonly saw: string | null;
  verdict: Verdict;
}

/** A row that refers to another one; its own region alone writes it. */
export interface Child {
  readonly table: string;
  readonly id: number;
  readonly region: string;
  inserted: Verdict;
  deleted: 'no' | Verdict;
  /** To whom it referred, in this order, and what stood in its note then. */
  readonly states: { readonly parent: number; readonly note: string; verdict: Verdict }[];
  /** Whether a delete of its parent, in some region, is known to have taken it along there. */
  taken: boolean;
}

/** What was put into a set or a text, and taken out, by what it is. */
export type Elements = Map<string, { readonly added: Verdict; readonly removed: 'no' | Verdict }>;

/** What was done to a post that is never deleted. */
export interface Post {
  readonly likes: { sum: number; readonly unknown: number[] };
  /** The greatest value acknowledged, and the greatest of all that was tried. */
  readonly peak: { ok: number; tried: number };
  readonly tags: Elements;
}

/** What the writers did, as they saw it. */
export class History {
  /** By table and key; see {@link nameOf}. */
  readonly writes = new Map<string, Write[]>();
  /** By table (`entries`, `bulk`, `parents`) and name. */
  readonly groups = {
    entries: new Map<string, Group>(),
    bulk: new Map<string, Group>(),
    parents: new Map<string, Group>(),
  };
  /** Increments of counters that one region owns. */
  readonly counters = new Map<number, { ok: number; unknown: number }>();
  readonly ids: IdRange[] = [];
  /** Tags of sets of rows that one region rewrites together, in their order. */
  readonly tags = new Map<number, { readonly tag: string; verdict: Verdict | 'no' }[]>();
  readonly versions: VersionWrite[] = [];
  readonly values: ValueWrite[] = [];
  /** By table and id. */
  readonly children = new Map<string, Child>();
  /** Writes of rows that another region owns, which were refused, and rows that were given away. */
  readonly owned = { refused: 0, moved: 0 };
  readonly posts = new Map<number, Post>();
  /** Words of texts that are never deleted. */
  readonly notes = new Map<number, Elements>();
  /** Edits by profile and column: `7 c0`. */
  readonly profiles = new Map<string, { ok: number; unknown: number }>();
  /** Moments of acknowledgements by region, in ms of the process's clock. */
  readonly acknowledged = new Map<string, number[]>();
  /** Times that each kind of transaction was acknowledged. */
  readonly kinds = new Map<string, number>();
  unknown = 0;
  /** Transactions that ended with an error that may be: a deadlock, a duplicate key of the region's own. */
  readonly refused = new Map<string, number>();
  /** Answers that no writer should ever get. */
  readonly faults: string[] = [];

  post(id: number): Post {
    const known = this.posts.get(id);
    if (known) return known;
    const post: Post = { likes: { sum: 0, unknown: [] }, peak: { ok: 0, tried: 0 }, tags: new Map() };
    this.posts.set(id, post);
    return post;
  }

  note(id: number): Elements {
    const known: Elements = this.notes.get(id) ?? new Map();
    this.notes.set(id, known);
    return known;
  }

  profile(id: number, column: string): { ok: number; unknown: number } {
    const key = `${id} ${column}`;
    const known = this.profiles.get(key) ?? { ok: 0, unknown: 0 };
    this.profiles.set(key, known);
    return known;
  }

  record(write: Write): void {
    const name = nameOf(write.table, write.key);
    const list = this.writes.get(name);
    if (list) list.push(write);
    else this.writes.set(name, [write]);
  }

  answered(region: string, kind: string): void {
    const list = this.acknowledged.get(region);
    if (list) list.push(performance.now());
    else this.acknowledged.set(region, [performance.now()]);
    this.kinds.set(kind, (this.kinds.get(kind) ?? 0) + 1);
  }

  get transactions(): number {
    return [...this.acknowledged.values()].reduce((sum, { length }) => sum + length, 0);
  }
}

/** A row's name among all tables. */
export function nameOf(table: string, key: string): string {
  return `${table} ${key}`;
}
