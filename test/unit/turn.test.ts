import { expect, test } from 'vitest';
import { inTurn } from '../../src/pg/turn.ts';

test('pieces of work have their turns in the order asked, one at a time, whatever becomes of those before', async () => {
  const turns = inTurn();
  const said: string[] = [];
  const work = (name: string, fails = false) =>
    turns(async () => {
      said.push(`${name} begins`);
      await Promise.resolve();
      said.push(`${name} ends`);
      if (fails) throw new Error(name);
      return name;
    });
  const all = await Promise.allSettled([work('one'), work('two', true), work('three')]);
  expect(all.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  expect(said).toEqual(['one begins', 'one ends', 'two begins', 'two ends', 'three begins', 'three ends']);
});
