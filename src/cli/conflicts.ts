import { loadConfig } from '../config.ts';
import { CoregentError, EXIT } from '../model/error.ts';
import { closeRegions, openRegions } from '../pg/setup.ts';
import type { Context } from './context.ts';
import { table, toJson, visible } from './print.ts';

/** Options of `coregent conflicts`. */
export interface ConflictsOptions {
  readonly arguments: readonly string[];
  readonly region?: string;
  readonly table?: string;
  readonly limit?: number;
}

interface Listed {
  readonly id: string;
  readonly recorded_at: Date;
  readonly table_name: string;
  readonly key: unknown;
  readonly kind: string;
  readonly outcome: string;
  readonly local_origin: string | null;
  readonly incoming_origin: string | null;
}

/** `coregent conflicts list`: the newest conflicts of every region, or of one. Each region records what it met itself. */
export async function run(options: ConflictsOptions, context: Context): Promise<number> {
  const [verb] = options.arguments;
  if (verb !== 'list') throw new CoregentError('usage', `conflicts knows list, not ${verb}`);
  const config = await loadConfig(context.config, context.env);
  const named = config.regions.filter(({ name }) => options.region === undefined || name === options.region);
  if (named.length === 0)
    throw new CoregentError('usage', `there is no region ${options.region}`, { where: '--region' });
  const open = await openRegions({ ...config, regions: named }, 'conflicts');
  try {
    const limit = options.limit ?? 50;
    const all: (Listed & { region: string })[] = [];
    for (const { region, client } of open) {
      const { rows } = await client.query(
        `select * from coregent.conflicts where $1::text is null or table_name = $1 order by id desc limit $2`,
        [options.table ?? null, limit],
      );
      all.push(...rows.map((row) => ({ region: region.name, ...row })));
    }
    all.sort((a, b) => b.recorded_at.getTime() - a.recorded_at.getTime());
    const shown = all.slice(0, limit);
    if (context.json) {
      context.out(toJson({ schema_version: 1, conflicts: shown }));
    } else if (shown.length === 0) {
      context.out('No conflict is recorded.');
    } else {
      context.out(asTable(shown, context.colour));
    }
    return EXIT.ok;
  } finally {
    await closeRegions(open);
  }
}

function asTable(shown: readonly (Listed & { region: string })[], colour: boolean): string {
  return table(
    ['time', 'region', 'id', 'table', 'key', 'kind', 'here from', 'incoming from', 'outcome'].map((title) => ({
      title,
    })),
    shown.map((row) => [
      row.recorded_at.toISOString(),
      row.region,
      row.id,
      visible(row.table_name),
      visible(JSON.stringify(row.key)),
      row.kind,
      row.local_origin ?? 'before replication',
      row.incoming_origin ?? 'before replication',
      row.outcome === 'apply' ? 'incoming won' : 'local kept',
    ]),
    colour,
  );
}
