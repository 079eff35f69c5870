import { expect, test } from 'vitest';
import { DatabaseClock } from '../../src/agent/clock.ts';
import { Link } from '../../src/agent/link.ts';
import type { Log } from '../../src/log.ts';
import { createMetrics } from '../../src/metrics.ts';
import type { Owed } from '../../src/pg/paused.ts';

const owed = (id: string): Owed => ({
  id,
  label: `public.${id}`,
  reason: 'the peer lacks more',
  since: new Date(),
  minVersion: 1n,
  passes: 1n,
  own: false,
  joining: false,
  rows: 0,
});

function makeLink() {
  const said: string[] = [];
  const log: Log = {
    event: (name, { table, reason = '' } = {}) => said.push(`${name} ${table} ${reason}`.trim()),
    with: () => log,
  };
  const link = new Link({
    peer: { name: 'virginia', id: 3 },
    clock: new DatabaseClock(),
    log,
    metrics: createMetrics('tokyo'),
  });
  return { link, said, pauses: (table: string, reason: string) => link.pauses({ table, label: table, reason }) };
}

test('a pause is logged once until its table is resumed, and again when the reason is another', () => {
  const { link, said, pauses } = makeLink();
  for (let times = 0; times < 3; times++) pauses('items', 'the peer lacks more');
  pauses('others', 'the peer lacks more');
  pauses('items', 'the peer lacks less');
  pauses('items', 'the peer lacks less');
  pauses('items', 'the peer lacks more');
  link.resumed(owed('items'), { rows: 1 });
  pauses('others', 'the peer lacks more');
  pauses('items', 'the peer lacks more');
  expect(said).toEqual([
    'table.paused items the peer lacks more',
    'table.paused others the peer lacks more',
    'table.paused items the peer lacks less',
    'table.paused items the peer lacks more',
    'table.resumed public.items',
    'table.paused items the peer lacks more',
  ]);
});
