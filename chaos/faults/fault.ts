import { within } from '../../test/world/random.ts';
import type { Link, Region, World } from '../world.ts';

/** One fault as it is about to happen. */
export interface Planned {
  /** What it hits, in words. */
  readonly where: string;
  /** What no other fault may touch meanwhile. */
  readonly holds: readonly string[];
  /** Regions whose own writers it may stop. */
  readonly stops?: readonly string[];
  /** How long it lasts, in ms. */
  readonly ms: number;
  begin(): Promise<void>;
  /** Undoes it; also called when `begin` failed. */
  end?(): Promise<void>;
}

/** A kind of fault. */
export interface Fault {
  readonly name: string;
  readonly weight: number;
  plan(world: World, random: () => number): Planned;
}

export function anyRegion({ regions }: World, random: () => number): Region {
  return regions[within(random, 0, regions.length - 1)]!;
}

export function anyLink({ links }: World, random: () => number): Link {
  return links[within(random, 0, links.length - 1)]!;
}

/** The names under which faults hold things. */
export const held = {
  agent: (region: string): string => `agent of ${region}`,
  server: (region: string): string => `server of ${region}`,
  link: (link: Link): string => `link ${link.from} > ${link.to}`,
  locks: (region: string): string => `locks in ${region}`,
};
