/**
 * Runs one piece of work after the other, in the order asked: a connection has one query at a time, and several ask it.
 * A piece of work that fails stops none behind it.
 */
export type Turns = <T>(work: () => Promise<T>) => Promise<T>;

/** Turns of a connection of its own. */
export function inTurn(): Turns {
  let last: Promise<unknown> = Promise.resolve();
  return (work) => {
    const mine = last.then(work, work);
    last = mine;
    return mine;
  };
}
