import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type pg from 'pg';
import { parseConfig } from '../../src/config.ts';
import { CoregentError } from '../../src/model/error.ts';
import { type LSN, LSN_ZERO } from '../../src/model/lsn.ts';
import { LWW, type Rule, ruleText } from '../../src/model/rule.ts';
import { Secret } from '../../src/model/secret.ts';
import { tableLabel } from '../../src/model/table.ts';
import { Modules } from '../../src/modules.ts';
import { findTables, readTables } from '../../src/pg/catalog.ts';
import { connect } from '../../src/pg/connect.ts';
import { decidersOf } from '../../src/pg/deciders.ts';
import { findDetails } from '../../src/pg/details.ts';
import { readKeys } from '../../src/pg/foreign.ts';
import { planRegion, runAction } from '../../src/pg/install.ts';
import { Orphans } from '../../src/pg/orphans.ts';
import type { Receipt, Settled } from '../../src/pg/receipt.ts';
import { Store } from '../../src/pg/store.ts';
import { type FetchRows, prepareTargets, type Target } from '../../src/pg/target.ts';
import type { Batch } from '../../src/pipe/batch.ts';

/** The rule of each table, by name; \`lww\` for all others. */
export type Rules = Readonly<Record<string, Rule>>;

/** Installs a region as `coregent apply` does, over every table of the database, and without peers. */
export async function installRegion(url: string, id = 1, rules: Rules = {}): Promise<void> {
  const other = (id % 127) + 1;
  const config = parseConfig(
    `cluster: spec
regions:
  here: { id: ${id}, url: "${url}" }
  there: { id: ${other}, url: "postgres://there.invalid/none" }
tables:
  "*.*": {}
`,
    { path: 'coregent.yaml', env: {} },
  );
  const client = await connect(new Secret(url), 'here', { purpose: 'install' });
  try {
    const found = (await findTables(client)).filter(({ kind }) => kind !== 'partition');
    const details = await findDetails(
      client,
      found.map(({ oid }) => oid),
    );
    const tables = found.map((table) => {
      const rule = rules[table.name] ?? LWW;
      return { table: { ...table, rule }, details: details.get(table.oid)!, rule: ruleText(rule) };
    });
    for (const action of await planRegion(client, config, config.regions[0]!, tables)) await runAction(client, action);
  } finally {
    await client.end();
  }
}

/** Where modules are looked for: `./resolvers` lies beside it. */
const CONFIG = join(import.meta.dirname, 'coregent.yaml');

/** The rule `custom` by one of the modules in `resolvers`. */
export function moduleRule(name: string): Rule {
  const custom = `./resolvers/${name}.ts`;
  const hash = createHash('sha256')
    .update(readFileSync(join(import.meta.dirname, custom)))
    .digest('hex');
  return { conflict: 'custom', columns: {}, custom, hash };
}

/** A connection that applies, prepared like an agent's, and the tables of its database by label. */
export interface Applier extends AsyncDisposable {
  readonly client: pg.Client;
  readonly targets: ReadonlyMap<string, Target>;
  /** A store for the stream of one peer; without a slot it keeps no progress, as a joining copy. */
  store(options?: {
    readonly slot?: string;
    readonly peerId?: number;
    readonly fetch?: FetchRows;
    readonly lsn?: LSN;
    readonly settled?: Set<number>;
  }): Store;
}

export async function openApplier(url: string): Promise<Applier> {
  const modules = new Modules(CONFIG);
  const deciders = decidersOf(modules);
  const client = await connect(new Secret(url), 'here', { purpose: 'apply', applies: true });
  const tables = await readTables(client, 'here');
  const prepared = await prepareTargets(client, tables);
  const orphans = new Orphans(await readKeys(client, tables), tables);
  const targets = new Map(prepared.map((target) => [tableLabel(target.staging.table), target]));
  return {
    client,
    targets,
    store: ({ slot, peerId = 2, fetch, lsn = LSN_ZERO, settled } = {}) =>
      new Store({
        client,
        targets: prepared,
        lsn,
        orphans,
        deciders,
        ...(settled && { settled }),
        ...(slot === undefined ? {} : { progress: { slot, peerId } }),
        fetch: fetch ?? (() => Promise.reject(new CoregentError('internal_assert', 'nothing to fetch'))),
      }),
    async [Symbol.asyncDispose]() {
      await modules.close();
      await client.end();
    },
  };
}

/**
 * Applies as an agent does: a batch that fails for a row's sake is applied again with faults isolated.
 * Throws when earlier parts of its transaction were rolled back with it: they must be sent again.
 */
export async function applyPatiently(store: Store, batch: Batch): Promise<Receipt> {
  const receipt = await applyOrIsolate(store, batch);
  const conflicts = [...receipt.conflicts];
  let { parked } = receipt;
  for (const tried of await tryAll(store)) {
    conflicts.push(...tried.conflicts);
    parked += tried.parked;
  }
  return { ...receipt, conflicts, parked };
}

/** Far more tries than any test's rows need; what is left after them fails each time. */
const TRIES = 100;

/** Does what is owed behind commits. Throws when so many tries were not enough. */
export async function tryAll(store: Pick<Store, 'owesTries' | 'inDoubt' | 'tryParked'>): Promise<readonly Settled[]> {
  const all: Settled[] = [];
  while (store.owesTries) {
    if (all.length === TRIES) {
      const doubts = [...store.inDoubt].map(
        ([oid, error]) => `table ${oid} is in doubt (${error?.message ?? 'no error'})`,
      );
      throw new Error(`After ${TRIES} tries ${doubts.join(', ') || 'parked rows had no turn'}`);
    }
    all.push(await store.tryParked());
  }
  return all;
}

async function applyOrIsolate(store: Store, batch: Batch): Promise<Receipt> {
  const whole = batch.complete && !store.open;
  try {
    return await store.apply(batch);
  } catch (error) {
    if (!whole || !isRowFault(error)) throw error;
    store.isolateFaults(true);
    try {
      return await store.apply(batch);
    } finally {
      store.isolateFaults(false);
    }
  }
}

/** Whether it is a row that could not be applied, and not the moment. */
export function isRowFault(error: unknown): boolean {
  return error instanceof CoregentError && error.code === 'apply_failed';
}
