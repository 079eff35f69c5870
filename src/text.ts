import { createDecoder } from 'lib0/decoding';
import * as Y from 'yjs';

/**
 * Documents of the column rule `text`: a `bytea` that holds a Yjs document, as `Y.encodeStateAsUpdate` writes it (update format 1).
 * SQL null and no bytes at all are a document without content.
 */
export type TextDocument = Uint8Array | null;

/** The shared text of a document that most have but one of. */
const NAME = 'text';

/** An edit: at this place (UTF-16 units from 0) so many are taken out, and this is put in. */
export interface Splice {
  readonly at: number;
  readonly remove?: number;
  readonly insert?: string;
}

/**
 * The text of a document. `name`: which of its shared texts, as in `doc.getText(name)`; formatting is left out.
 * Throws `TypeError` where the bytes are no Yjs document.
 */
export function textOf(document: TextDocument, name: string = NAME): string {
  return read([document]).getText(name).toString();
}

/**
 * A document of this text. The same text gives the same bytes, so that two regions that begin a row with it at once, each for itself,
 * have begun one document. Documents of different texts have nothing in common: merged, they show one text behind the other.
 */
export function documentOf(text: string, name: string = NAME): Uint8Array {
  const doc = new Y.Doc({ gc: false });
  doc.clientID = hash(`${name}\0${text}`);
  doc.getText(name).insert(0, text);
  return Y.encodeStateAsUpdate(doc);
}

/**
 * The document with these edits, each made upon what the ones before it left. To be written in the place of the one that was read.
 * Throws `TypeError` where the bytes are no Yjs document, `RangeError` where an edit lies outside of the text.
 */
export function editText(document: TextDocument, splices: readonly Splice[], name: string = NAME): Uint8Array {
  const doc = read([document]);
  const text = doc.getText(name);
  doc.transact(() => {
    for (const { at, remove = 0, insert = '' } of splices) {
      if (at < 0 || remove < 0 || at + remove > text.length) {
        throw new RangeError(`an edit of ${remove} at ${at} is outside of a text of ${text.length}`);
      }
      text.delete(at, remove);
      text.insert(at, insert);
    }
  });
  return Y.encodeStateAsUpdate(doc);
}

/**
 * The document with this text instead of its own: what lies between the parts that both begin and end with was taken out and put in.
 * For whoever gets a text back as a whole, as from a form; finer edits of one author merge better. Throws as {@link editText}.
 */
export function setText(document: TextDocument, text: string, name: string = NAME): Uint8Array {
  const before = textOf(document, name);
  const most = Math.min(before.length, text.length);
  let start = 0;
  while (start < most && before[start] === text[start]) start++;
  let end = 0;
  while (end < most - start && before.at(-1 - end) === text.at(-1 - end)) end++;
  // Not between the halves of one character.
  if (start > 0 && isHigh(before.charCodeAt(start - 1))) start--;
  if (end > 0 && isHigh(before.charCodeAt(before.length - end - 1))) end--;
  const splice = { at: start, remove: before.length - start - end, insert: text.slice(start, text.length - end) };
  return editText(document, [splice], name);
}

/**
 * One document of several, which has every edit of all. The same documents in the same order give the same bytes.
 * Of several without content the last one. Throws `TypeError` where one is no Yjs document.
 */
export function mergeTexts(documents: readonly TextDocument[]): TextDocument {
  if (documents.every(isEmpty)) return documents.at(-1) ?? null;
  return Y.encodeStateAsUpdate(read(documents));
}

function isEmpty(document: TextDocument): boolean {
  return document === null || document.length === 0;
}

function read(documents: readonly TextDocument[]): Y.Doc {
  // What was deleted stays as the documents have it: whoever wrote them decides about that.
  const doc = new Y.Doc({ gc: false });
  try {
    for (const document of documents) {
      if (isEmpty(document)) continue;
      const decoder = createDecoder(document!);
      Y.readUpdate(decoder, doc, null);
      // Format 2 reads as an empty document of format 1 with something behind it.
      if (decoder.pos < document!.length) throw new Error('there is more behind its end');
    }
  } catch (error) {
    throw new TypeError(`no Yjs document (update format 1): ${(error as Error).message}`, { cause: error });
  }
  return doc;
}

function isHigh(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}

/** 52 bits of a text (FNV-1a, twice), for a client id that no one else draws. */
function hash(text: string): number {
  let [low, high] = [0x811c9dc5, 0x01000193];
  for (const byte of new TextEncoder().encode(text)) {
    low = Math.imul(low ^ byte, 0x01000193);
    high = Math.imul(high ^ byte, 0x85ebca6b) ^ (high >>> 13);
  }
  return (high >>> 12) * 2 ** 32 + (low >>> 0);
}
