import { describe, expect, it } from 'vitest';
import { checkAnswers } from '../../chaos/checks/answers.ts';
import { checkAvailable } from '../../chaos/checks/available.ts';
import { checkLost, checkWholeRows, type Outcome, settled } from '../../chaos/checks/registers.ts';
import { passed } from '../../chaos/checks/verdict.ts';
import type { Happened } from '../../chaos/faults/storm.ts';
import { History, type Write } from '../../chaos/history.ts';
import { readOptions } from '../../chaos/options.ts';

const REGIONS = ['tokyo', 'frankfurt', 'virginia'];

function write(version: bigint, more: Partial<Write> = {}): Write {
  return {
    table: 'contested',
    key: '1',
    region: 'tokyo',
    version,
    saw: [],
    image: `image ${version}`,
    left: false,
    verdict: 'ok',
    ...more,
  };
}

function historyOf(...writes: Write[]): Map<string, Write[]> {
  const history = new History();
  for (const each of writes) history.record(each);
  return history.writes;
}

/** What the regions show: `rows` in all of them, `but` in the one named. */
function outcome(
  rows: Record<string, { version: bigint; image: string }>,
  {
    recorded = [],
    revived = [],
    but = {},
  }: { recorded?: string[]; revived?: string[]; but?: Record<string, typeof rows> } = {},
): Outcome {
  return {
    shown: new Map(REGIONS.map((region) => [region, new Map(Object.entries(but[region] ?? rows))])),
    recorded: new Set(recorded),
    revived: new Set(revived),
    conflicts: recorded.length,
  };
}

const row = (version: bigint, image = `image ${version}`) => ({ 'contested 1': { version, image } });

describe('INV-W', () => {
  const writes = historyOf(write(1n), write(2n, { saw: [1n] }));

  it('holds where all regions show the newest write as it was written', () => {
    expect(checkWholeRows(writes, outcome(row(2n))).violations).toEqual([]);
  });

  it.each([
    ['a row that is not as its writer left it', outcome(row(2n, 'mixed')), /is not the row that tokyo wrote/],
    [
      'a region that shows an older write',
      outcome(row(2n), { but: { virginia: row(1n) } }),
      /virginia: contested 1 shows the version 1/,
    ],
    ['a row that is missing', outcome(row(2n), { but: { frankfurt: {} } }), /frankfurt: contested 1 shows nothing/],
    ['a version that nobody wrote', outcome(row(3n)), /shows the version 3/],
    [
      'a row that nobody wrote',
      outcome({ ...row(2n), 'contested 9': { version: 2n, image: 'x' } }),
      /nobody wrote contested 9/,
    ],
  ])('finds %s', (_, found, message) => {
    expect(checkWholeRows(writes, found).violations.join('\n')).toMatch(message);
  });

  it('finds a deleted row that is back', () => {
    const deleted = historyOf(write(1n), write(2n, { saw: [1n], image: null }));
    expect(checkWholeRows(deleted, outcome({})).violations).toEqual([]);
    expect(checkWholeRows(deleted, outcome(row(1n))).violations.join()).toMatch(/tokyo deleted it/);
  });

  it('takes a row that gave way for a reason only where unique values may meet, and only on record', () => {
    const recorded = ['accounts 2', 'contested 2'];
    const account = historyOf(write(2n, { table: 'accounts' }));
    const older = { 'accounts 1': { version: 1n, image: 'image 1' } };
    expect(checkWholeRows(account, outcome({}, { recorded })).violations).toEqual([]);
    expect(checkWholeRows(account, outcome({})).violations).toHaveLength(3);
    expect(checkWholeRows(account, outcome(older, { recorded })).violations).toHaveLength(3);
    expect(checkWholeRows(writes, outcome({}, { recorded })).violations).toHaveLength(3);
  });

  it('takes a row that nobody wrote for one that came back only on record, and where others refer to it', () => {
    const deleted = historyOf(write(2n, { table: 'teams', image: null }));
    const back = { 'teams 1': { version: 3n, image: 'image 3' } };
    expect(checkWholeRows(deleted, outcome(back, { revived: ['teams 1'] })).violations).toEqual([]);
    expect(checkWholeRows(deleted, outcome(back)).violations).toHaveLength(3);
    expect(
      checkWholeRows(historyOf(write(2n)), outcome(row(3n), { revived: ['contested 1'] })).violations,
    ).toHaveLength(3);
  });

  it('is untested without a row that was contested', () => {
    expect(passed(checkWholeRows(historyOf(), outcome({})))).toBe(false);
  });
});

describe('INV-L', () => {
  const lost = (writes: Map<string, Write[]>, found: Outcome, tombstonesStay = true) =>
    checkLost(writes, found, { tombstonesStay }).violations;

  it('finds a write that vanished, unless it was seen or is on record', () => {
    const unseen = historyOf(write(1n), write(2n, { region: 'virginia' }));
    expect(lost(unseen, outcome(row(2n)))).toEqual([expect.stringMatching(/a write of tokyo \(1\) vanished/)]);
    expect(lost(unseen, outcome(row(2n), { recorded: ['contested 1'] }))).toEqual([]);
    expect(lost(unseen, outcome(row(2n), { recorded: ['hits 1'] }))).toHaveLength(1);
    expect(lost(historyOf(write(1n), write(2n, { saw: [1n] })), outcome(row(2n)))).toEqual([]);
  });

  it('finds a delete that vanished, unless another delete followed or its tombstone may be forgotten', () => {
    const deleted = historyOf(write(1n, { image: null }), write(2n));
    expect(lost(deleted, outcome(row(2n)))).toEqual([expect.stringMatching(/a delete of tokyo \(1\) vanished/)]);
    expect(lost(deleted, outcome(row(2n)), false)).toEqual([]);
    expect(lost(historyOf(write(1n, { image: null }), write(2n, { image: null })), outcome({}))).toEqual([]);
    // The other deleted the row too, and inserted it anew in the same transaction.
    const anew = write(5n, { deleted: 4n });
    expect(lost(historyOf(write(3n, { image: null }), anew), outcome(row(5n)))).toEqual([]);
    expect(lost(historyOf(write(3n, { image: null }), { ...anew, deleted: 2n }), outcome(row(5n)))).toHaveLength(1);
  });

  it('finds an increment that was applied twice, or to a value that nobody had', () => {
    const step = (from: number, to: number) => ({ step: { from, to } });
    const chain = (from: number, to: number) =>
      historyOf(write(1n, step(0, 1)), write(2n, { saw: [1n], ...step(from, to) }));
    expect(lost(chain(1, 2), outcome(row(2n)))).toEqual([]);
    expect(lost(chain(1, 3), outcome(row(2n)))).toHaveLength(1);
    expect(lost(chain(2, 3), outcome(row(2n)))).toHaveLength(1);
  });
});

describe('unanswered writes', () => {
  it('count only if they show, were seen, or are on record', () => {
    const unanswered = write(2n, { verdict: 'unknown' });
    const versions = (writes: Map<string, Write[]>, found: Outcome) =>
      settled(writes, found)
        .get('contested 1')!
        .map(({ version }) => version);
    expect(versions(historyOf(write(1n), unanswered), outcome(row(1n)))).toEqual([1n]);
    expect(versions(historyOf(write(1n), unanswered), outcome(row(2n)))).toEqual([1n, 2n]);
    expect(versions(historyOf(write(1n), unanswered, write(3n, { saw: [2n] })), outcome(row(3n)))).toEqual([
      1n,
      2n,
      3n,
    ]);
    expect(versions(historyOf(write(1n), unanswered), outcome(row(1n), { recorded: ['contested 2'] }))).toEqual([
      1n,
      2n,
    ]);
  });
});

describe('INV-V', () => {
  const cut: Happened = { name: 'link.cut', where: 'tokyo > virginia', stops: [], from: 1_000, to: 9_000 };
  const check = (
    { tokyo, beats = [2_000, 8_000] }: { tokyo: number[]; beats?: [number, number] },
    ...more: Happened[]
  ) => {
    const history = new History();
    history.acknowledged.set('tokyo', tokyo);
    const moments = Array.from({ length: 12 }, (_, n) => beats[0] + ((beats[1] - beats[0]) / 11) * n);
    const happened = [cut, ...more];
    return checkAvailable({ regions: ['tokyo'], history, beats: new Map([['tokyo', moments]]), happened });
  };

  it('finds a region that acknowledged nothing while something else was broken', () => {
    expect(check({ tokyo: [500, 9_500] }).violations).toEqual([
      'tokyo acknowledged nothing in 8000 ms of link.cut (tokyo > virginia)',
    ]);
    expect(check({ tokyo: [500, 5_000] })).toMatchObject({ violations: [], cases: { windows: 1 } });
  });

  it('expects nothing of a server that takes no other write either', () => {
    expect(check({ tokyo: [500, 9_500], beats: [9_100, 9_500] })).toMatchObject({
      violations: [],
      cases: { windows: 0 },
    });
  });

  it('expects nothing of a region whose own server is down', () => {
    const down = { name: 'server.kill', where: 'tokyo', stops: ['tokyo'], from: 2_000, to: 3_000 };
    expect(check({ tokyo: [] }, down)).toMatchObject({ violations: [], cases: { windows: 0 } });
  });
});

describe('answers', () => {
  const check = (told: Partial<Parameters<typeof checkAnswers>[0]>) =>
    checkAnswers({ transactions: 1, faults: [], surprises: [], codes: new Map(), ...told });

  it('finds what a writer was told, an agent that ended by itself, and an error of a link that nothing explains', () => {
    expect(passed(check({ codes: new Map([['peer_unreachable', 9]]) }))).toBe(true);
    expect(check({ faults: ['upsert in tokyo: 42P01 no table'] }).violations).toEqual([
      'upsert in tokyo: 42P01 no table',
    ]);
    expect(check({ surprises: ['the agent of tokyo ended by itself (1)'] }).violations).toHaveLength(1);
    expect(check({ codes: new Map([['internal_assert', 2]]) }).violations).toEqual([
      'a link reported internal_assert (2 times)',
    ]);
  });

  it('is untested where nobody wrote', () => {
    expect(passed(check({ transactions: 0 }))).toBe(false);
  });
});

describe('the options', () => {
  it('take the seed of the environment, and one of the command line before it', () => {
    expect(readOptions([], { COREGENT_SEED: '7' }).seed).toBe(7);
    expect(readOptions(['--seed', '8'], { COREGENT_SEED: '7' }).seed).toBe(8);
  });

  it.each([
    [['--major', '13'], /--major takes/],
    [['--with', 'everything'], /--with takes/],
    [['--minutes', 'ten'], /--minutes takes a number/],
  ])('refuse %j', (args, message) => {
    expect(() => readOptions(args)).toThrow(message);
  });
});
