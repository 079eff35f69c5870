import { expect, it } from 'vitest';
import { parseKey, parseMerge, parseTime } from '../../src/cli/conflict-options.ts';
import { cursorOf, parseCursor } from '../../src/pg/cursor.ts';

it.each([
  ['2026-11-21', '2026-11-21T00:00Z'],
  ['2026-11-21T09:57', '2026-11-21T09:57Z'],
  ['2026-11-21 09:57:55.123456Z', '2026-11-21T09:57:55.123456Z'],
  ['2026-11-21T09:57:55+02:00', '2026-11-21T09:57:55+02:00'],
  ['1h', '2026-11-21T09:00:00.000Z'],
  ['90', undefined],
  ['2026-13-01', undefined],
  ['tomorrow', undefined],
])('the time %j is %j', (text, expected) => {
  expect(parseTime(text, Date.parse('2026-11-21T10:00:00Z'))).toBe(expected);
});

it.each([
  ['id=7', { name: 'id', value: '7' }],
  ['a b=c=d', { name: 'a b', value: 'c=d' }],
  ['id=', { name: 'id', value: '' }],
  ['{"id": 7}', { json: '{"id": 7}' }],
  ['{"id": ', undefined],
  ['=7', undefined],
  ['id', undefined],
])('the key %j is %j', (text, expected) => expect(parseKey(text)).toEqual(expected));

it.each([
  ['a=local', [['a', 'local']]],
  [
    'a=local,b c=incoming',
    [
      ['a', 'local'],
      ['b c', 'incoming'],
    ],
  ],
  // Given alone, a column's name may hold anything.
  ['a,b=x=local', [['a,b=x', 'local']]],
  ['a=other', undefined],
  ['=local', undefined],
  ['a', undefined],
])('the merge %j is %j', (text, expected) => expect(parseMerge(text)).toEqual(expected));

it('a place in the list is read back', () => {
  const place = { at: '2026-11-21T09:57:55.123456Z', region: 'tokyo', id: '12' };
  expect(parseCursor(cursorOf(place))).toEqual(place);
  for (const text of ['', '2026-11-21,tokyo,12', '2026-11-21T09:57:55.123456Z,tokyo,x', 'x,tokyo,1']) {
    expect(parseCursor(text)).toBeUndefined();
  }
});
