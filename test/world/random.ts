/** Numbers in [0, 1) that depend on nothing but the seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The seed of this run: COREGENT_SEED, or a new one. It is printed, so that a failing run can be repeated as far as timing allows. */
export function seedOfRun(what: string): number {
  const seed = Number(process.env.COREGENT_SEED ?? Math.floor(Math.random() * 2 ** 32));
  console.info(`${what}: COREGENT_SEED=${seed}`);
  return seed;
}

/** A whole number from `least` to `most`. */
export function within(random: () => number, least: number, most: number): number {
  return least + Math.floor(random() * (most - least + 1));
}
