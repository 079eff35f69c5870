import type { Verdict } from './verdict.ts';

/** Error codes of links that no fault here explains. */
const NEVER = ['internal_assert', 'data_corrupt', 'peer_protocol', 'peer_identity', 'schema_missing', 'unknown'];

/** Nobody was told what nobody should ever be told, and no agent ended by itself. */
export function checkAnswers(told: {
  readonly transactions: number;
  /** Answers that no writer should get. */
  readonly faults: readonly string[];
  /** What agents' processes did by themselves. */
  readonly surprises: readonly string[];
  /** Errors of links by code, and how often each was seen. */
  readonly codes: ReadonlyMap<string, number>;
}): Verdict {
  const odd = NEVER.filter((code) => told.codes.has(code)).map(
    (code) => `a link reported ${code} (${told.codes.get(code)} times)`,
  );
  return {
    name: 'answers',
    law: 'writers and links get no error that no fault explains; no agent ends by itself',
    cases: { transactions: told.transactions },
    violations: [...told.faults, ...told.surprises, ...odd],
  };
}
