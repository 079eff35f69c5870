import { parseRule } from '../model/rule.ts';
import type { Table } from '../model/table.ts';
import type { Action } from './install.ts';
import type { OpenRegion } from './setup.ts';
import type { ChosenTable } from './tables.ts';

/** A table whose rule is another one in some regions. It is changed in all of them at once. */
export interface RuleChange {
  readonly label: string;
  /** As the catalogs hold it; see `ruleText`. */
  readonly after: string;
  /** The regions that replicate the table, by their places among the open ones. */
  readonly sides: readonly {
    readonly at: OpenRegion;
    /** As the region has it, under its rule until now. */
    readonly table: Table;
    /** Its rule until now. */
    readonly before: string;
    /** What puts the new rule in place; undefined where it is. */
    readonly action: Action | undefined;
  }[];
}

/** Finds the tables among `actions` whose rule is to be another one. The other actions come back as they are. */
export function planChanges(
  open: readonly OpenRegion[],
  chosen: readonly ChosenTable[],
  actions: readonly Action[],
  installed: ReadonlyMap<string, ReadonlyMap<string, string>>,
): { readonly changes: readonly RuleChange[]; readonly others: readonly Action[] } {
  const changing = actions.filter(({ changes }) => changes !== undefined);
  const labels = new Set(changing.map(({ changes }) => changes));
  const changes = chosen
    .filter(({ label }) => labels.has(label))
    .map(({ label, rule, found }): RuleChange => {
      const sides = open.flatMap((at, index) => {
        const before = installed.get(at.region.name)?.get(label);
        if (before === undefined) return [];
        const table = { ...found[index]!, rule: parseRule(before) };
        const action = changing.find(({ changes, region }) => changes === label && region === at.region.name);
        return [{ at, table, before, action }];
      });
      return { label, after: rule, sides };
    });
  return { changes, others: actions.filter((action) => !changing.includes(action)) };
}

/** A rule for people. */
export function sayRule(text: string): string {
  const { conflict, columns, custom, owner } = parseRule(text);
  const parts = [
    custom === undefined ? conflict : `${conflict} by ${custom}`,
    ...Object.entries(columns).map(([name, rule]) => `${name} ${rule}`),
    ...(owner ? [`owned by ${owner.column}`] : []),
  ];
  return parts.join(', ');
}

/** The same of a change: `public.posts: lww → columns`. */
export function sayChange({ label, after, sides }: RuleChange): string {
  const before = new Set(sides.filter(({ action }) => action).map((side) => sayRule(side.before)));
  return `${label}: ${[...before].join(' and ')} → ${sayRule(after)}`;
}
