import { loadConfig } from '../config.ts';
import { CoregentError, EXIT } from '../model/error.ts';
import { sayChange } from '../pg/changes.ts';
import { acceptRestored } from '../pg/self.ts';
import { carryOut, closeRegions, makePlan, openRegions, type Plan } from '../pg/setup.ts';
import type { Context } from './context.ts';
import { toJson, visible } from './print.ts';

/** Options of `coregent apply`. */
export interface ApplyOptions {
  readonly dryRun?: boolean;
  /** A region that was restored from a backup, or moved to another server. */
  readonly restored?: string;
}

/** `coregent apply`: brings every region to what the file says. With --dry-run it prints the plan and changes nothing. */
export async function run({ dryRun, restored }: ApplyOptions, context: Context): Promise<number> {
  const config = await loadConfig(context.config, context.env);
  const open = await openRegions(config, 'apply');
  try {
    if (restored !== undefined && dryRun) throw new CoregentError('usage', '--restored has no --dry-run');
    if (restored !== undefined) {
      await acceptRestored(config, open, restored);
      if (context.json) context.out(toJson({ schema_version: 1, restored }));
      else context.out(`${restored}: accepted; agents join everything both ways, as \`coregent status\` shows`);
      return EXIT.ok;
    }
    const plan = await makePlan(config, open);
    const steps = describe(plan);
    const changed = steps.length > 0;
    if (!context.json) for (const warning of plan.warnings) context.note(remark(warning));
    if (dryRun) {
      if (context.json) context.out(toJson(document(plan, false)));
      else context.out(changed ? steps.join('\n') : 'Every region is as the file says.');
      return changed ? EXIT.findings : EXIT.ok;
    }
    const waited: { table: string; waited_ms: number }[] = [];
    const joined: { table: string; from: string; to: string; rows: number; conflicts: number }[] = [];
    const say = (text: string): void => {
      if (!context.json) context.out(text);
    };
    await carryOut(config, open, plan, {
      action: ({ region, what }) => say(`${region}: ${what}`),
      changed: (change, waitedMs) => {
        waited.push({ table: change.label, waited_ms: Math.round(waitedMs) });
        say(`${sayChange(change)}, in every region; whoever used it waited ${(waitedMs / 1000).toFixed(1)} s`);
      },
      slot: ({ slot, from }) => say(`${from}: create slot ${slot}`),
      join: (table, from, to, estimate) => {
        const bar = context.progress(`${table} ${from} → ${to}`, estimate);
        let rows = 0;
        return {
          rows: (more) => {
            rows += more;
            bar.update(rows);
          },
          done: (conflicts) => {
            bar.done();
            joined.push({ table, from, to, rows, conflicts });
            say(
              `${to}: joined ${rows} rows of ${table} from ${from}${conflicts > 0 ? `, ${conflicts} conflicts recorded` : ''}`,
            );
          },
        };
      },
    });
    if (context.json) context.out(toJson({ ...document(plan, true), joined, waited }));
    else
      say(
        changed
          ? 'Done. Start an agent in each region: coregent start --region NAME'
          : 'Every region is as the file says.',
      );
    return EXIT.ok;
  } finally {
    await closeRegions(open);
  }
}

function describe({ actions, changes, edges, joins }: Plan): string[] {
  return [
    ...actions.map(({ region, what }) => `${region}: ${what}`),
    ...changes.map(
      (change) => `${sayChange(change)}, in every region at once; whoever uses it waits for about a second`,
    ),
    ...edges.map(({ from, slot }) => `${from.region.name}: create slot ${slot}`),
    ...joins.map(({ edge, table }) => `${edge.to.region.name}: join rows of ${table} from ${edge.from.region.name}`),
  ];
}

function remark({ object, message, cure }: Plan['warnings'][number]): string {
  const lines = [`Warning: ${object === null ? '' : `${object}: `}${message}`];
  return [...lines, ...cure.map(({ region, sql }) => `  in ${region}: ${sql};`)]
    .map((line) => visible(line))
    .join('\n');
}

function document({ actions, changes, edges, joins, warnings }: Plan, applied: boolean) {
  const all = [...actions, ...changes.flatMap(({ sides }) => sides.flatMap(({ action }) => action ?? []))];
  return {
    schema_version: 1,
    applied,
    warnings,
    changes: [
      ...all.map(({ region, what, sql }) => ({ region, what, sql })),
      ...edges.map(({ from, slot }) => ({ region: from.region.name, what: `create slot ${slot}`, sql: [] })),
      ...joins.map(({ edge, table }) => ({
        region: edge.to.region.name,
        what: `join rows of ${table} from ${edge.from.region.name}`,
        sql: [],
      })),
    ],
  };
}
