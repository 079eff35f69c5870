import type { Version } from '../model/version.ts';
import { covers, type Vector } from './vector.ts';

/**
 * JSON documents whose keys are joined one by one, read in memory: the column rule `map`. The specification; `coregent.map_next` is
 * {@link rewritten}, and `coregent.map_join` is {@link joinNodes} with {@link lostNodes}.
 */

/** Objects so many levels down, and below, are values like any other. */
export const MAP_DEPTH = 32;

/** A JSON value: an object whose keys are joined, or the text of anything else. */
export type Doc = string | ReadonlyMap<string, Doc>;

/**
 * What is known of one path of a document. A path holds a value, nothing (it was removed), or an object. To write a value or to remove
 * says something of all that was below; to make an object says nothing of its keys.
 */
export interface MapNode {
  /** The last write of a value, or the last removal. Under an object only its version counts: what is older below is gone. */
  readonly put?: { readonly version: Version; readonly text: string | undefined } | undefined;
  /** It is an object, made by this version. */
  readonly made?: Version | undefined;
  readonly keys: ReadonlyMap<string, MapNode>;
}

const NO_KEYS: ReadonlyMap<string, MapNode> = new Map();
const NONE = -1n;

/** A document all of which one write wrote; undefined (an insert left the column null) says nothing. */
export function plainNode(doc: Doc | undefined, version: Version): MapNode | undefined {
  if (doc === undefined) return undefined;
  if (typeof doc === 'string') return { put: { version, text: doc }, keys: NO_KEYS };
  return { made: version, keys: new Map([...doc].map(([key, each]) => [key, plainNode(each, version)!])) };
}

/** What the column shows. */
export function docOf(node: MapNode | undefined): Doc | undefined {
  if (node?.made === undefined) return node?.put?.text;
  const shown = [...node.keys].map(([key, each]) => [key, docOf(each)] as const);
  return new Map(shown.filter((entry): entry is [string, Doc] => entry[1] !== undefined));
}

/** What is known after a write that made the document this one: the paths that differ are what it wrote. */
export function rewritten(node: MapNode | undefined, doc: Doc | undefined, version: Version): MapNode | undefined {
  return settled(written(node, doc, version), NONE);
}

function written(node: MapNode | undefined, doc: Doc | undefined, version: Version): MapNode | undefined {
  if (textOf(docOf(node)) === textOf(doc)) return node;
  if (doc === undefined || typeof doc === 'string') return { put: { version, text: doc }, keys: NO_KEYS };
  if (node?.made === undefined) return { ...plainNode(doc, version)!, put: node?.put };
  const keys = new Map<string, MapNode>();
  for (const key of new Set([...node.keys.keys(), ...doc.keys()])) {
    const below = written(node.keys.get(key), doc.get(key), version);
    if (below) keys.set(key, below);
  }
  return { ...node, keys };
}

/** The least that knows what both know. */
export function joinNodes(a: MapNode | undefined, b: MapNode | undefined): MapNode | undefined {
  return settled(both(a, b), NONE);
}

function both(a: MapNode | undefined, b: MapNode | undefined): MapNode | undefined {
  if (!a || !b) return a ?? b;
  const keys = new Map(a.keys);
  for (const [key, node] of b.keys) keys.set(key, both(keys.get(key), node)!);
  return { put: laterPut(a.put, b.put), made: later(a.made, b.made), keys };
}

/** The greater version; of equal ones (documents older than replication) the greater text. */
function laterPut(a: MapNode['put'], b: MapNode['put']): MapNode['put'] {
  if (!a || !b) return a ?? b;
  if (a.version !== b.version) return a.version < b.version ? b : a;
  return Buffer.compare(Buffer.from(a.text ?? ''), Buffer.from(b.text ?? '')) < 0 ? b : a;
}

/**
 * Without what is over: `floor` is the last write of a value above. A path is an object if it was made one since its last value, or if
 * anything below is newer than that, removals included.
 */
function settled(node: MapNode | undefined, floor: Version): MapNode | undefined {
  if (!node) return undefined;
  const put = node.put && node.put.version >= floor ? node.put : undefined;
  const over = put?.version ?? floor;
  const keys = new Map<string, MapNode>();
  for (const [key, each] of node.keys) {
    const below = settled(each, over);
    if (below) keys.set(key, below);
  }
  const raises = put !== undefined && put.version > floor;
  if ((node.made ?? NONE - 1n) >= over || keys.size > 0) {
    return {
      put: raises ? { version: put.version, text: undefined } : undefined,
      made: later(node.made, over),
      keys,
    };
  }
  return put && (put.text !== undefined || raises) ? { put, keys } : undefined;
}

/**
 * Whether something that `mine` says of a path is not what `joined` says of it, and `theirs`, who have seen `seen`, had not seen it.
 * Two objects are alike, whatever their keys.
 */
export function lostNodes(
  mine: MapNode | undefined,
  theirs: MapNode | undefined,
  joined: MapNode | undefined,
  seen: Vector,
): boolean {
  if (!mine) return false;
  const at = mine.made ?? mine.put?.version;
  const unseen =
    at !== undefined &&
    (!covers(seen, at) ||
      // Of one version, and yet not the same write: older than replication, or a backup was restored.
      ((theirs?.made ?? theirs?.put?.version) === at &&
        !(theirs?.made !== undefined && (theirs.put?.version ?? NONE) >= at)));
  if (unseen && contentOf(mine) !== contentOf(joined)) return true;
  return [...mine.keys].some(([key, each]) => lostNodes(each, theirs?.keys.get(key), joined?.keys.get(key), seen));
}

function contentOf(node: MapNode | undefined): string {
  return node?.made === undefined ? (node?.put?.text ?? '') : '{}}';
}

/**
 * As it is stored: `v` the version of what is there, left out where it is that of the object around, `f` (of an object) the last value's, `c` what is
 * known of its keys. A key that is not named was written by whoever made the object, or never was.
 */
export interface StoredNode {
  readonly v?: Version;
  readonly f?: Version;
  readonly c?: Readonly<Record<string, StoredNode>>;
}

/** `above`: the version of the object around; of a document the one that its row was inserted with. */
export function storedNode(node: MapNode | undefined, above: Version): StoredNode {
  const put = node?.put;
  if (node?.made === undefined) {
    return put && (put.text === undefined || put.version !== above) ? { v: put.version } : {};
  }
  const { made } = node;
  const keys = [...node.keys]
    .map(([key, each]) => [key, storedNode(each, made)] as const)
    .filter(([, each]) => Object.keys(each).length > 0);
  return {
    ...(made === above ? {} : { v: made }),
    ...(put ? { f: put.version } : {}),
    ...(keys.length > 0 ? { c: Object.fromEntries(keys) } : {}),
  };
}

/** A text that is equal for equal documents. */
export function textOf(doc: Doc | undefined): string | undefined {
  if (doc === undefined || typeof doc === 'string') return doc;
  const keys = [...doc].sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${keys.map(([key, each]) => `${JSON.stringify(key)}:${textOf(each)}`).join()}}`;
}

function later(a: Version | undefined, b: Version | undefined): Version | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  return a < b ? b : a;
}
