import { nearest } from './model/nearest.ts';
import { type Bounds, canonicalOwner, type Owner } from './model/owner.ts';

/** A fault of an `owner` in the configuration, and where in it. */
export interface OwnerFault {
  readonly path: readonly string[];
  readonly message: string;
}

const KEYS = ['column', 'list', 'range', 'hash', 'default'];
const WAYS = ['list', 'range', 'hash'] as const;

/** What is wrong with an `owner` as it stands in the file; `regions` are the names that there are. */
export function ownerFaults(value: unknown, regions: readonly string[]): OwnerFault[] {
  const faults: OwnerFault[] = [];
  const fault = (message: string, ...path: string[]): void => void faults.push({ path, message });
  if (!isMap(value)) {
    fault('must be a map, like `{ column: home_region }`');
    return faults;
  }
  for (const key of Object.keys(value)) {
    const near = nearest(key, KEYS);
    if (!KEYS.includes(key))
      fault(`is not a known key; ${near ? `did you mean \`${near}\`?` : `known here: ${KEYS.join(', ')}`}`, key);
  }
  if (typeof value.column !== 'string' || value.column === '') fault('must be the name of a column', 'column');
  const [first, ...others] = WAYS.filter((way) => value[way] !== undefined);
  for (const way of others) fault(`is one too many beside \`${first}\``, way);
  const known = (name: unknown, ...path: string[]): void => {
    if (typeof name === 'string' && regions.includes(name)) return;
    const near = typeof name === 'string' ? nearest(name, [...regions]) : undefined;
    fault(`is not a region; ${near ? `did you mean \`${near}\`?` : `there are ${regions.join(', ')}`}`, ...path);
  };
  if (value.default !== undefined) known(value.default, 'default');
  if (value.hash !== undefined) {
    if (!Array.isArray(value.hash) || value.hash.length < 1) fault('must be a list of regions', 'hash');
    else for (const [index, name] of value.hash.entries()) known(name, 'hash', String(index));
    if (value.default !== undefined) fault('has no use: a hash leaves nothing over', 'default');
  }
  if (value.list !== undefined) listFaults(value.list, known, fault);
  if (value.range !== undefined) rangeFaults(value.range, known, fault);
  return faults;
}

type Known = (name: unknown, ...path: string[]) => void;
type Tell = (message: string, ...path: string[]) => void;

function listFaults(list: unknown, known: Known, fault: Tell): void {
  if (!isMap(list)) {
    fault('must be a map of regions to their values, like `tokyo: [JP, KR]`', 'list');
    return;
  }
  const owners = new Map<string, string>();
  for (const [name, values] of Object.entries(list)) {
    known(name, 'list', name);
    if (!Array.isArray(values) || !values.every(isPlain)) {
      fault('must be a list of values, like `[JP, KR]`', 'list', name);
      continue;
    }
    // A value is never quoted: one that came from a variable may be a secret.
    for (const [index, each] of values.map(String).entries()) {
      const twin = owners.get(each);
      if (twin !== undefined) fault(`is listed for \`${twin}\` already`, 'list', name, String(index));
      owners.set(each, name);
    }
  }
}

function rangeFaults(range: unknown, known: Known, fault: Tell): void {
  if (!isMap(range)) {
    fault('must be a map of regions to bounds, like `tokyo: ["a", "m"]`', 'range');
    return;
  }
  const found: { readonly name: string; readonly from: unknown; readonly to: unknown }[] = [];
  for (const [name, bounds] of Object.entries(range)) {
    known(name, 'range', name);
    if (!Array.isArray(bounds) || bounds.length !== 2 || !bounds.every((each) => each === null || isPlain(each))) {
      fault('must be two bounds, from and to (which is not in it), like `["a", "m"]`; null is no bound', 'range', name);
      continue;
    }
    const [from, to] = bounds;
    if (from !== null && to !== null && compare(from, to) >= 0)
      fault('is empty: its first bound must be less than its second', 'range', name);
    const twin = found.find((each) => below(each.from, to) && below(from, each.to));
    if (twin) fault(`overlaps the range of \`${twin.name}\``, 'range', name);
    found.push({ name, from, to });
  }
}

/** Whether a lower bound is below an upper one. */
function below(from: unknown, to: unknown): boolean {
  return from === null || to === null || compare(from, to) < 0;
}

/** Numbers as numbers, anything else by its bytes, as the trigger will. */
function compare(a: unknown, b: unknown): number {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return Buffer.compare(Buffer.from(String(a)), Buffer.from(String(b)));
}

function isPlain(value: unknown): boolean {
  return ['string', 'number', 'boolean'].includes(typeof value);
}

function isMap(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** An `owner` as it is written, when it has no faults. */
interface Written {
  readonly column: string;
  readonly list?: Readonly<Record<string, readonly Plain[]>>;
  readonly range?: Readonly<Record<string, readonly [Plain | null, Plain | null]>>;
  readonly hash?: readonly string[];
  readonly default?: string;
}

type Plain = string | number | boolean;

/** Reads an `owner` that has no faults. */
export function readOwner(value: unknown): Owner {
  const { list, range, ...rest } = value as Written;
  const bound = (each: Plain | null): string | null => (each === null ? null : String(each));
  return canonicalOwner({
    ...rest,
    ...(list ? { list: mapped(list, (values) => values.map(String)) } : {}),
    ...(range ? { range: mapped(range, ([from, to]): Bounds => [bound(from), bound(to)]) } : {}),
  });
}

function mapped<A, B>(map: Readonly<Record<string, A>>, read: (each: A) => B): Record<string, B> {
  return Object.fromEntries(Object.entries(map).map(([name, each]) => [name, read(each)]));
}
