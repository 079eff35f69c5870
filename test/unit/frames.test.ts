import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Frames } from '../../src/wire/frames.ts';

const message = fc.record({ type: fc.integer({ min: 0, max: 255 }), body: fc.uint8Array({ maxLength: 40 }) });
type Message = { type: number; body: Uint8Array };

function encode(messages: readonly Message[]): Buffer {
  return Buffer.concat(
    messages.map(({ type, body }) => {
      const head = Buffer.from([type, 0, 0, 0, 0]);
      head.writeInt32BE(body.length + 4, 1);
      return Buffer.concat([head, body]);
    }),
  );
}

function cut(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const chunks: Buffer[] = [];
  let at = 0;
  for (let turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length]!;
    chunks.push(Buffer.from(bytes.subarray(at, at + size)));
    at += size;
  }
  return chunks;
}

const sizes = fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 8 });

describe('Frames', () => {
  it('gives the same messages however the bytes are cut', () => {
    fc.assert(
      fc.property(fc.array(message, { maxLength: 12 }), sizes, (messages, chunking) => {
        const frames = new Frames();
        const seen: Message[] = [];
        for (const chunk of cut(encode(messages), chunking)) {
          const more = frames.push(chunk, (type, bytes, start, end) => {
            seen.push({ type, body: Uint8Array.from(bytes.subarray(start, end)) });
            return true;
          });
          expect(more).toBe(true);
        }
        expect(seen).toEqual(messages);
      }),
    );
  });

  it('loses and repeats nothing when the reader stops behind any message and goes on at any time', () => {
    const stops = fc.array(fc.boolean(), { minLength: 1, maxLength: 10 });
    fc.assert(
      fc.property(
        fc.array(message, { maxLength: 12 }),
        sizes,
        stops,
        stops,
        (messages, chunking, stopping, resuming) => {
          const frames = new Frames();
          const seen: Message[] = [];
          let stopped = false;
          const take = (type: number, bytes: Buffer, start: number, end: number): boolean => {
            expect(stopped).toBe(false);
            seen.push({ type, body: Uint8Array.from(bytes.subarray(start, end)) });
            stopped = stopping[seen.length % stopping.length]!;
            return !stopped;
          };
          const resume = (): void => {
            stopped = false;
            expect(frames.resume(take)).toBe(!stopped);
          };
          for (const [turn, chunk] of cut(encode(messages), chunking).entries()) {
            expect(frames.push(chunk, take)).toBe(!stopped);
            if (stopped && resuming[turn % resuming.length]) resume();
          }
          for (let patience = messages.length; stopped && patience >= 0; patience--) resume();
          expect(seen).toEqual(messages);
        },
      ),
    );
  });

  it('hands a message that lies in one chunk on in place', () => {
    const chunk = encode([{ type: 100, body: Uint8Array.of(1, 2, 3) }]);
    const frames = new Frames();
    frames.push(chunk, (_type, bytes) => {
      expect(bytes.buffer).toBe(chunk.buffer);
      return true;
    });
  });

  it('refuses an impossible length', () => {
    const bytes = Buffer.from([100, 0, 0, 0, 3]);
    expect(() => new Frames().push(bytes, () => true)).toThrow(RangeError);
    expect(() => new Frames().push(Buffer.from([100, 255, 255, 255, 255]), () => true)).toThrow(RangeError);
  });
});
