import { createInterface } from 'node:readline/promises';
import { type Config, loadConfig } from '../config.ts';
import { CoregentError, classify, EXIT } from '../model/error.ts';
import { connect } from '../pg/connect.ts';
import { removeRegion, slotsOf } from '../pg/remove.ts';
import type { Context } from './context.ts';
import { toJson } from './print.ts';

/** Options of `coregent remove`. */
export interface RemoveOptions {
  readonly yes?: boolean;
  /** Go on when a region cannot be reached: what is ours there stays until it is removed too. */
  readonly force?: boolean;
}

/**
 * `coregent remove`: takes everything of ours out of every region: slots, origins, publication, triggers, columns, schema.
 * Rows stay as they are. Conflict records go: it asks first, and refuses while an agent runs.
 */
export async function run(options: RemoveOptions, context: Context): Promise<number> {
  const config = await loadConfig(context.config, context.env);
  await confirm(config, options);
  const removed: string[] = [];
  const unreachable: CoregentError[] = [];
  for (const region of config.regions) {
    try {
      const client = await connect(region.url, region.name, { purpose: 'remove' });
      try {
        await removeRegion(client, region.name, slotsOf(config, region));
      } finally {
        await client.end().catch(() => {});
      }
      removed.push(region.name);
      if (!context.json) context.out(`${region.name}: removed`);
    } catch (thrown) {
      const error = classify(thrown, region.name);
      if (!options.force || error.exit !== EXIT.unreachable) throw error;
      unreachable.push(error);
      if (!context.json) context.note(`${region.name}: ${error.message}; what is there stays until it is removed too`);
    }
  }
  if (context.json) context.out(toJson({ schema_version: 1, removed, unreachable }));
  return unreachable.length > 0 ? EXIT.unreachable : EXIT.ok;
}

async function confirm(config: Config, { yes }: RemoveOptions): Promise<void> {
  if (yes) return;
  const what = `replication of cluster ${config.cluster} in ${config.regions.map(({ name }) => name).join(', ')}`;
  if (!process.stdin.isTTY) {
    throw new CoregentError('refused', `this removes ${what}, with its conflict records`, {
      cure: 'Say so with --yes.',
    });
  }
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await lines.question(
      `This removes ${what}, with its conflict records. Type ${config.cluster} to go on: `,
    );
    if (answer.trim() !== config.cluster) throw new CoregentError('refused', 'the answer was not the cluster’s name');
  } finally {
    lines.close();
  }
}
