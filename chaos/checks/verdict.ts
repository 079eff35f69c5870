import type pg from 'pg';

/** What one invariant came to. */
export interface Verdict {
  /** Its name, such as `INV-C`. */
  readonly name: string;
  readonly law: string;
  /** What put it to the test, and how often; any count of 0 is a failure: a check that met nothing has proved nothing. */
  readonly cases: Readonly<Record<string, number>>;
  /** Further figures, for people. */
  readonly figures?: Readonly<Record<string, number>>;
  readonly violations: readonly string[];
}

/** Whether it holds and was put to the test. */
export function passed({ cases, violations }: Verdict): boolean {
  return violations.length === 0 && Object.values(cases).every((count) => count > 0);
}

/** One region as checks ask it. */
export interface Asked {
  readonly name: string;
  query(text: string, values?: unknown[]): Promise<pg.QueryResult>;
}
