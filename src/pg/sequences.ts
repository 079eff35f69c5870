import { qualified } from '../quote.ts';
import type { Sequence } from './details.ts';
import type { Warning } from './warning.ts';

/** Numbers left free for what the application takes between the look and the cure. */
const HEADROOM = 1_000n;

/**
 * Warnings for the sequences that fill one key or unique column of a table in several regions and may hand out equal numbers.
 * They don't where all of them step alike, by at least as much as there are regions, from numbers that never meet.
 * `perRegion` is in the order of the regions' names.
 */
export function sequenceWarnings(
  label: string,
  regions: readonly string[],
  perRegion: readonly (readonly Sequence[])[],
): Warning[] {
  const columns = new Set(perRegion.flatMap((sequences) => sequences.map(({ column }) => column)));
  return [...columns].sort().flatMap((column) => {
    const found = perRegion.flatMap((sequences, index) => {
      const sequence = sequences.find((each) => each.column === column);
      return sequence ? [{ ...sequence, region: regions[index]! }] : [];
    });
    if (found.length < 2 || areApart(found)) return [];
    return [warningFor(label, column, found)];
  });
}

function areApart(sequences: readonly Sequence[]): boolean {
  const step = sequences[0]!.increment;
  const size = step < 0n ? -step : step;
  const rests = new Set(sequences.map(({ last }) => ((last % size) + size) % size));
  return sequences.every(({ increment }) => increment === step) && rests.size === sequences.length;
}

function warningFor(label: string, column: string, sequences: readonly (Sequence & { region: string })[]): Warning {
  const step = BigInt(sequences.length);
  const greatest = inOrder([0n, ...sequences.map(({ last }) => last)]).at(-1)!;
  // A multiple of the step above all that was handed out anywhere; each region begins behind it, one apart.
  const base = ((greatest + HEADROOM) / step + 1n) * step;
  const least = inOrder(sequences.map(({ max }) => max))[0]!;
  const left = least > base ? (least - base) / step : 0n;
  const several = `the column ${column} is numbered by a sequence in ${sequences.map(({ region }) => region).join(', ')}, each for itself; equal numbers will be taken for one row`;
  if (left === 0n) {
    return {
      code: 'sequence_collides',
      object: label,
      message: `${several}. Numbers up to ${least} do not suffice to tell the regions apart: make the column bigint, or use uuid`,
      cure: [],
    };
  }
  const small =
    least <= 2_147_483_647n ? `; up to ${least} each region then has ${left} numbers left, so think of bigint` : '';
  return {
    code: 'sequence_collides',
    object: label,
    message: `${several}. Let each count in steps of ${step}${small}`,
    cure: sequences.map(({ region, schema, name }, index) => ({
      region,
      sql: `alter sequence ${qualified(schema, name)} increment by ${step} restart with ${base + BigInt(index)}`,
    })),
  };
}

function inOrder(numbers: readonly bigint[]): bigint[] {
  return [...numbers].sort((a, b) => (a < b ? -1 : Number(a > b)));
}
