import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import * as Y from 'yjs';
import { documentOf, editText, mergeTexts, setText, textOf } from '../../src/text.ts';

const bytes = (document: Uint8Array | null): string => Buffer.from(document ?? []).toString('hex');

describe('coregent/text', () => {
  it('reads, begins and edits documents', () => {
    const begun = documentOf('hello');
    expect(textOf(begun)).toBe('hello');
    const edited = editText(begun, [
      { at: 5, insert: ' world' },
      { at: 0, remove: 1, insert: 'J' },
    ]);
    expect(textOf(edited)).toBe('Jello world');
    expect(textOf(documentOf('', 'body'), 'body')).toBe('');
    expect(textOf(editText(null, [{ at: 0, insert: 'x' }], 'body'), 'body')).toBe('x');
  });

  it('takes null and no bytes for a document without content', () => {
    expect(textOf(null)).toBe('');
    expect(textOf(new Uint8Array())).toBe('');
    expect(mergeTexts([null, null])).toBe(null);
    expect(mergeTexts([null, new Uint8Array()])).toEqual(new Uint8Array());
    expect(textOf(mergeTexts([null, documentOf('a')]))).toBe('a');
  });

  it('begins the same document for the same text, so that two beginnings merge into one', () => {
    expect(bytes(documentOf('hello'))).toBe(bytes(documentOf('hello')));
    expect(textOf(mergeTexts([documentOf('hello'), documentOf('hello')]))).toBe('hello');
    expect(bytes(documentOf('hello'))).not.toBe(bytes(documentOf('hello', 'body')));
  });

  it('says what is no document, or an edit outside of one', () => {
    for (const wrong of [Buffer.from('a plain text'), Buffer.from([1]), Buffer.from('{"a":1}')]) {
      expect(() => textOf(wrong)).toThrow(/^no Yjs document \(update format 1\): /);
    }
    const doc = new Y.Doc();
    doc.getText('text').insert(0, 'in format 2');
    expect(() => textOf(Y.encodeStateAsUpdateV2(doc))).toThrow(/no Yjs document/);
    expect(() => editText(documentOf('abc'), [{ at: 2, remove: 2 }])).toThrow(RangeError);
  });

  it('sets a text by what differs, whole characters at a time', () => {
    const text = fc.array(fc.constantFrom('a', 'b', '🌍', '🌎', ' '), { maxLength: 8 }).map((each) => each.join(''));
    fc.assert(
      fc.property(text, text, text, (before, mine, theirs) => {
        const document = documentOf(before);
        expect(textOf(setText(document, mine))).toBe(mine);
        const merged = textOf(mergeTexts([setText(document, mine), setText(document, theirs)]));
        expect(() => encodeURIComponent(merged)).not.toThrow();
      }),
      { numRuns: 200 },
    );
  });
});

/** What three clients do, each on what it has seen. */
const step = fc.record({
  client: fc.nat({ max: 2 }),
  do: fc.constantFrom('insert', 'delete', 'format', 'map', 'array', 'nested', 'hear'),
  at: fc.nat({ max: 20 }),
  from: fc.nat({ max: 2 }),
});

function change(doc: Y.Doc, act: string, at: number): void {
  const text = doc.getText('text');
  const map = doc.getMap('map');
  if (act === 'insert') text.insert(at % (text.length + 1), `<${at}>`);
  else if (act === 'delete') text.delete(0, Math.min(at, text.length));
  else if (act === 'format') text.format(0, text.length, { bold: at % 2 === 0 });
  else if (act === 'map') map.set(`k${at % 3}`, at);
  else if (act === 'nested') map.set('child', new Y.Text(`child ${at}`));
  else doc.getArray('array').insert(0, [at, { at }]);
}

const content = (document: Uint8Array | null): unknown => {
  const doc = new Y.Doc();
  Y.applyUpdate(doc, document!);
  return [doc.getText('text').toDelta(), doc.getMap('map').toJSON(), doc.getArray('array').toJSON()];
};

describe('merging', () => {
  it('gives all edits of all documents, as Yjs does, and the same bytes for the same documents', () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 3, maxLength: 40 }), (steps) => {
        const docs = [1, 2, 3].map((clientID) => Object.assign(new Y.Doc(), { clientID }));
        for (const { client, do: act, at, from } of steps) {
          if (act === 'hear') Y.applyUpdate(docs[client]!, Y.encodeStateAsUpdate(docs[from]!));
          else change(docs[client]!, act, at);
        }
        const written = docs.map((doc) => Y.encodeStateAsUpdate(doc));
        const merged = mergeTexts(written)!;
        expect(bytes(mergeTexts(written.map((each) => Uint8Array.from(each))))).toBe(bytes(merged));
        for (const doc of docs) for (const each of written) Y.applyUpdate(doc, each);
        for (const doc of docs) expect(content(merged)).toEqual(content(Y.encodeStateAsUpdate(doc)));
        // What was merged is a document like any other: merged again with its parts it says the same.
        expect(content(mergeTexts([merged, ...written]))).toEqual(content(merged));
      }),
      { numRuns: 150 },
    );
  });

  it('keeps what waits for another document', () => {
    const doc = new Y.Doc();
    doc.getText('text').insert(0, 'a');
    const first = Y.encodeStateAsUpdate(doc);
    const before = Y.encodeStateVector(doc);
    doc.getText('text').insert(1, 'b');
    const second = Y.encodeStateAsUpdate(doc, before);
    expect(textOf(second)).toBe('');
    const merged = mergeTexts([null, second]);
    expect(textOf(mergeTexts([merged, first]))).toBe('ab');
  });
});
