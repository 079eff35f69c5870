import { within } from '../../test/world/random.ts';
import { WIDE } from '../tables.ts';
import { register } from './register.ts';
import type { Kind, Settle, Work } from './writer.ts';

/** Values at the edges of each type, as PostgreSQL reads them. */
const VALUES: Readonly<Record<string, readonly string[]>> = {
  small: ['-32768', '0', '32767'],
  big: ['-9223372036854775808', '9007199254740993', '9223372036854775807'],
  num: [
    'NaN',
    'Infinity',
    '-Infinity',
    '1.0',
    '1.00',
    '-0.000000000000000000000000000001',
    '12345678901234567890123456789012345.67',
  ],
  single: ['NaN', '-0', '1e-45', '3.4028235e38', 'Infinity'],
  dbl: ['NaN', '-0', '5e-324', '1.7976931348623157e308', '-Infinity', '0.1'],
  flag: ['true', 'false'],
  txt: ['', ' ', 'null', '\\N', 'a\tb\nc\\.', 'ẞß ﷽ 𝔘𝔫𝔦', 'quote \' and "', '🦉'.repeat(40)],
  vc: ['', 'forty characters are not too many, no no', 'é'],
  ch: ['', 'a', 'abcdef'],
  bin: ['\\x', '\\x00', '\\xdeadbeef00ff', `\\x${'00ff'.repeat(200)}`],
  moment: [
    'infinity',
    '-infinity',
    '4713-01-01 00:00:00+00 BC',
    '2026-03-29 01:30:00.123456+00',
    '294276-12-31 23:59:59+00',
  ],
  plain: ['1970-01-01', 'infinity', '0044-03-15 12:00:00 BC', '9999-12-31 23:59:59.999999'],
  day: ['infinity', '0001-01-01 BC', '5874897-12-31', '2024-02-29'],
  clock: ['00:00:00', '24:00:00', '12:34:56.789012'],
  span: ['1 mon -1 day 00:00:01', '-178000000 years', '00:00:00', '1 year 2 mons 3 days 04:05:06.789'],
  uid: ['00000000-0000-0000-0000-000000000000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
  net: ['192.168.0.1/24', '::1', '2001:db8::/32'],
  js: ['null', '{}', '{"a": [1, 1.0, 1e400], "": null}', '{"b": 1, "a": 2, "a": 3}', '"\\u00e9\\n"'],
  doc: ['null', '{ "b" : 1,  "a":2, "a":3 }', '[ ]'],
  nums: ['{}', '{1,NULL,3}', '[5:6]={7,8}', '{-2147483648}'],
  texts: ['{}', '{"","NULL",NULL,"a,b","{}"}', '{{a,b},{c,d}}'],
  matrix: ['{}', '{{1,2},{3,4}}', '{{{1}},{{2}}}'],
  mood: ['low', 'so so', 'high'],
  moods: ['{}', '{low,"so so",NULL}', '{high,high}'],
  range: ['empty', '[1,5)', '(,)', '[,10)'],
  ranges: ['{}', '{[1,2),[5,9)}', '{(,)}'],
  bits: ['00000000', '10101010', '11111111'],
  spot: ['(0,-0)', '(1e300,-1e-300)', '(NaN,Infinity)'],
};
const NAMES = Object.keys(VALUES);
const CODES = ['a', 'A', 'ä', 'b c', '', 'ﬁ', 'z'.repeat(50)];

async function wide(work: Work): Promise<Settle | undefined> {
  const { client, random } = work;
  const code = CODES[within(random, 0, CODES.length - 1)]!;
  const part = within(random, -2, 3);
  const { rows } = await client.query('select row($1::text, $2::int)::text as key', [code, part]);
  const pick = (name: string): string | null => {
    const values = VALUES[name]!;
    return random() < 0.1 ? null : values[within(random, 0, values.length - 1)]!;
  };
  return await register(work, WIDE, [rows[0].key], async () => {
    const dice = random();
    if (dice < 0.15) {
      await client.query('delete from wide where code = $1 and part = $2', [code, part]);
      return;
    }
    const names = dice < 0.5 ? NAMES : NAMES.filter(() => random() < 0.2);
    const values = names.map(pick);
    const columns = names.map((name) => `, ${name}`).join('');
    const sets = [...names, 'part'].map((name) => `${name} = excluded.${name}`).join(', ');
    await client.query(
      `insert into wide (code, part${columns}) values ($1, $2${names.map((_, n) => `, $${n + 3}`).join('')})
        on conflict (code, part) do update set ${sets}`,
      [code, part, ...values],
    );
  });
}

/** A row of every type that travels, with the values at its edges. */
export const TYPES: readonly Kind[] = [{ name: 'wide', weight: 6, run: wide }];
