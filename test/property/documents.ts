import fc from 'fast-check';
import { literal } from '../../src/quote.ts';
import { type Doc, MAP_DEPTH } from '../../src/resolve/maps.ts';

/** JSON documents as an application changes them, and as the specification reads them. */

const KEYS = ['a', 'b', 'v', 'c', '', 'ü"\\\u{1F600}'];
const VALUES = [
  '1',
  '1.0',
  '1e0',
  '"x"',
  '""',
  'null',
  'true',
  '[1,{"a":2}]',
  '{}',
  '{"a":1}',
  '{"b":{"c":2},"a":1.00}',
];

const key = fc.constantFrom('a', 'a', 'b', ...KEYS);
const path = fc.array(key, { minLength: 1, maxLength: 3, size: 'max' });
const value = fc.constantFrom(...VALUES);
/** Something whose paths may be written: there is no key in a value, and none but a number in an array. */
const OBJECT = `case when jsonb_typeof(doc) = 'object' and not jsonb_path_exists(doc, 'strict $.** ? (@.type() == "array")') then doc else '{}' end`;
const array = (keys: readonly string[]): string => `array[${keys.map(literal).join(', ')}]`;

/** What an application sets the column `doc` to, as SQL. */
export const docChanges: fc.Arbitrary<string> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.tuple(path, value).map(([at, to]) => `jsonb_set(${OBJECT}, ${array(at)}, ${literal(to)})`),
  },
  { weight: 4, arbitrary: path.map((at) => `(${OBJECT}) #- ${array(at)}`) },
  {
    weight: 3,
    arbitrary: fc
      .tuple(key, value)
      .map(([at, to]) => `(${OBJECT}) || jsonb_build_object(${literal(at)}, ${literal(to)}::jsonb)`),
  },
  { weight: 1, arbitrary: value.map((to) => `${literal(to)}::jsonb`) },
  { weight: 1, arbitrary: fc.constant('null::jsonb') },
);

/** A jsonb's text, read without a loss of digits. */
export function parseDoc(text: string | null): Doc | undefined {
  if (text === null) return undefined;
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g)!;
  let at = 0;
  const read = (depth: number): Doc => {
    const first = tokens[at++]!;
    if (first !== '{' && first !== '[') return first;
    const close = first === '{' ? '}' : ']';
    const keys = new Map<string, Doc>();
    const begin = at - 1;
    for (let index = 0; tokens[at] !== close; index++) {
      const name = first === '{' ? (JSON.parse(tokens[at]!) as string) : String(index);
      if (first === '{') at += 2;
      keys.set(name, read(depth + 1));
      if (tokens[at] === ',') at++;
    }
    at++;
    return first === '{' && depth < MAP_DEPTH ? keys : tokens.slice(begin, at).join('');
  };
  return read(0);
}
