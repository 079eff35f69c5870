import type pg from 'pg';
import type { Config } from '../config.ts';
import { CoregentError, classify } from '../model/error.ts';
import { formatLsn, type LSN, LSN_ZERO, parseLsn } from '../model/lsn.ts';
import { familyOf, parseRule, type Rule, ruleText, settlingText } from '../model/rule.ts';
import { deletesName, type Table, tableId, tableLabel, tombstoneName, VERSION } from '../model/table.ts';
import type { Version } from '../model/version.ts';
import { Modules } from '../modules.ts';
import { pause } from '../pause.ts';
import { ident, literal, qualified } from '../quote.ts';
import { compile } from '../resolve/compile.ts';
import { flatten, forgetOutlived, lastDelete, recordHidden } from '../resolve/hidden.ts';
import { barrier } from './barrier.ts';
import { readTables, slotName } from './catalog.ts';
import { type RuleChange, sayRule } from './changes.ts';
import { connect } from './connect.ts';
import { decidersOf } from './deciders.ts';
import { type ForeignKeys, readForeignKeys } from './foreign.ts';
import type { Action } from './install.ts';
import { type JoinOptions, joinTable } from './join.ts';
import { yieldInDeadlocks } from './origin.ts';
import { type Orphans, readOrphans } from './orphans.ts';
import { oweAgain } from './recreated.ts';
import type { OpenRegion } from './setup.ts';
import { Store } from './store.ts';
import { prepareTargets, type Target } from './target.ts';

/** How long `apply` tries to get hold of a table, in ms, each time for a short while only. */
const PATIENCE_MS = 30_000;
const LOCK_TIMEOUT_MS = 2_000;
const RETRY_MS = 300;

/** One region while the table changes there. */
interface Side {
  readonly at: OpenRegion;
  /** Applies, and holds the table. */
  readonly client: pg.Client;
  /** Under the rule until now. */
  readonly table: Table;
  readonly before: string;
  readonly action: Action | undefined;
  /** Whether its rows mean something else from now on. */
  readonly converts: boolean;
  readonly target: Target;
  readonly foreign: ForeignKeys | undefined;
  readonly orphans: Orphans | undefined;
}

/** Why it cannot be done at this moment. */
class NotNow extends Error {
  readonly where: string;
  constructor(message: string, where: string) {
    super(message);
    this.where = where;
  }
}

/** How changes are carried out. */
interface ChangeOptions {
  /** Told of each table that goes by its new rule, and how long it was held, in ms. */
  readonly changed: (change: RuleChange, heldMs: number) => void;
  readonly patienceMs?: number;
}

/**
 * Changes tables' rules, each in all regions together, while agents run and applications write, of which none sees an error: they wait.
 *
 * Every region's table is locked. What a region has committed and another does not have yet is then few rows, and is joined by this session
 * itself, so that all have the same rows and deletes. Each row becomes what one write made, the new rule is put in place, and all commit.
 * Streams begin behind that point; statements that agents compiled before it are refused by `coregent.progress`.
 *
 * Throws `refused` where a table cannot be had in time, a row of it is parked or it pauses, and `apply_interrupted` if only some regions
 * committed: the table then pauses between them until the next run finishes it.
 */
export async function changeRules(
  config: Config,
  changes: readonly RuleChange[],
  { changed, patienceMs = PATIENCE_MS }: ChangeOptions,
): Promise<void> {
  const clients = new Map<OpenRegion, pg.Client>();
  const modules = new Modules(config.path);
  try {
    const works: { readonly change: RuleChange; readonly work: Change }[] = [];
    for (const change of changes) {
      const after = parseRule(change.after);
      const sides: Side[] = [];
      for (const { at, table, before, action } of change.sides) {
        const client =
          clients.get(at) ?? (await connect(at.region.url, at.region.name, { purpose: 'change', applies: true }));
        if (!clients.has(at)) await yieldInDeadlocks(client);
        clients.set(at, client);
        const converts = settlingText(parseRule(before)) !== settlingText(after);
        // Ahead of the transaction, whose end would take the row types away again.
        const [target] = await prepareTargets(client, [table]);
        const tables = await readTables(client, at.region.name);
        const foreign = await readForeignKeys(client, tables);
        const orphans = await readOrphans(client, tables, foreign);
        sides.push({ at, client, table, before, action, converts, target: target!, foreign, orphans });
      }
      const work = new Change({ config, modules }, change.label, after, sides);
      await work.refuse();
      works.push({ change, work });
    }
    const followed: boolean[] = [];
    for (const { work } of works) followed.push(await work.followed());
    if (followed.length > 0 && followed.every(Boolean)) {
      for (const { work } of works) await patiently(work, patienceMs, () => work.mark());
      await barrier(
        config,
        changes[0]!.sides.map(({ at }) => at),
      );
    }
    for (const { change, work } of works) changed(change, await patiently(work, patienceMs, () => work.attempt()));
  } finally {
    await modules.close();
    await Promise.all([...clients.values()].map((client) => client.end().catch(() => {})));
  }
}

/** Tries until it can be done, or patience (in ms) is over. */
async function patiently<T>(work: Change, patienceMs: number, attempt: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + patienceMs;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof NotNow)) throw error;
      await work.refuse();
      if (performance.now() > deadline) throw work.refusal(error.message, error.where);
      await pause(RETRY_MS);
    }
  }
}

/** A change under way. */
class Change {
  readonly #config: Config;
  readonly #modules: Modules;
  readonly #label: string;
  readonly #after: Rule;
  readonly #sides: readonly Side[];
  /** Regions that go by one rule still, by it: all that one has written, the others take as their own rule says. */
  readonly #groups: readonly (readonly Side[])[];
  #mark: Mark | undefined;

  constructor(
    { config, modules }: { readonly config: Config; readonly modules: Modules },
    label: string,
    after: Rule,
    sides: readonly Side[],
  ) {
    this.#config = config;
    this.#modules = modules;
    this.#label = label;
    this.#after = after;
    this.#sides = sides;
    const rules = new Set(sides.map(({ before }) => before));
    this.#groups = [...rules].map((rule) => sides.filter(({ before }) => before === rule));
  }

  #slot(from: Side, to: Side): string {
    return slotName(this.#config.cluster, from.at.region.id, to.at.region.id);
  }

  /** The regions that have its rule, too, and whose rows are to be had before it changes. */
  #peers(side: Side): Side[] {
    if (!side.action) return [];
    return this.#sides.filter((other) => other !== side && other.before === side.before);
  }

  /** Throws `refused` for what does not end by itself. */
  async refuse(): Promise<void> {
    for (const side of this.#sides) {
      const why = await this.#standing(side);
      if (why === undefined) continue;
      throw this.refusal(why, side.at.region.name);
    }
  }

  refusal(why: string, where: string): CoregentError {
    return new CoregentError('refused', `the rule of ${this.#label} cannot be changed now: ${why}`, {
      where,
      cure: 'Its rule is as it was. End what stands in the way (`coregent status`, `coregent conflicts list --parked`), and run `coregent apply` again.',
    });
  }

  /** What keeps the rows of a region from being carried over. */
  async #standing(side: Side): Promise<string | undefined> {
    const { rows } = await side.client.query(
      `select (select rule from coregent.tables where table_id = $1) as rule,
        (select count(*)::int from coregent.parked where table_name = $2) as parked,
        (select min(reason) from coregent.paused where table_id = $1 and slot = any ($3)) as paused`,
      [tableId(side.table), this.#label, this.#peers(side).map((peer) => this.#slot(peer, side))],
    );
    const { rule, parked, paused } = rows[0];
    if (rule !== side.before) return 'somebody else changed it meanwhile';
    if (side.converts && parked > 0) return `${parked} rows of it are parked`;
    return paused === null ? undefined : `it pauses: ${paused}`;
  }

  /** Throws {@link NotNow} where the next attempt may go better. Nothing is held or changed then. */
  async attempt(): Promise<number> {
    await this.#all((side) => this.#hold(side));
    const heldAt = performance.now();
    try {
      const ends = await this.#looks();
      for (const group of this.#groups) await this.#level(group);
      await this.#all((side) => this.#prepare(side, ends));
    } catch (error) {
      await this.#rollback();
      throw hindrance(error, this.#label);
    }
    await this.#commit();
    return performance.now() - heldAt;
  }

  /** Whether every region's agent follows every other one: then few rows are to be joined. */
  async followed(): Promise<boolean> {
    for (const from of this.#sides) {
      const slots = this.#sides.filter((to) => to !== from).map((to) => this.#slot(from, to));
      const { rows } = await from.client.query(
        'select count(*)::int as active from pg_replication_slots where slot_name = any ($1) and active',
        [slots],
      );
      if (rows[0].active < this.#config.regions.length - 1) return false;
      for (const peer of this.#peers(from)) {
        const { rows: joined } = await from.client.query(
          'select exists (select from coregent.joined where slot = $1 and table_id = $2) as there',
          [this.#slot(peer, from), tableId(from.table)],
        );
        if (!joined[0].there) return false;
      }
    }
    return true;
  }

  /**
   * Takes a version below all that is written from now on: while nobody writes, since a write is stamped before it is anywhere.
   * Once every region has confirmed what was there before, only later versions can be missing anywhere.
   */
  async mark(): Promise<void> {
    const clocks = await this.#all(async (side) => {
      const target = qualified(side.table.schema, side.table.name);
      await side.client.query('begin');
      await side.client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
      await side.client.query(`lock table ${target} in share row exclusive mode`);
      const clock = await readMicros(side.client);
      await side.client.query('rollback');
      return clock;
    });
    const [first] = [...clocks].sort((a, b) => Number(a - b));
    this.#mark = { clocks, least: (first! << 7n) as Version };
  }

  /** Locks the table in a transaction: whoever writes has ended, and whoever comes waits. */
  async #hold({ client, table }: Side): Promise<void> {
    const names = [qualified(table.schema, table.name), qualified('coregent', tombstoneName(table))];
    await client.query('begin');
    await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
    await client.query('set local synchronous_commit = on');
    await client.query(`lock table ${names.join(', ')} in access exclusive mode`);
  }

  /** Looks once more, now that nothing moves; gives where each region's writes of the table end in its WAL. */
  async #looks(): Promise<ReadonlyMap<Side, LSN>> {
    const ends = new Map<Side, LSN>();
    for (const [index, side] of this.#sides.entries()) {
      const { name } = side.at.region;
      const why = await this.#standing(side);
      if (why !== undefined) throw new NotNow(why, name);
      const clock = this.#mark?.clocks[index];
      if (clock !== undefined && (await readMicros(side.client)) < clock) {
        // A version may be less than was thought: all rows are compared.
        this.#mark = undefined;
        throw new NotNow('its clock was set back', name);
      }
      const { rows } = await side.client.query('select pg_current_wal_insert_lsn()::text as lsn');
      ends.set(side, parseLsn(rows[0].lsn));
    }
    return ends;
  }

  /** Joins what these regions have of each other, by the rule until now: of versions from the mark on, or all. */
  async #level(group: readonly Side[]): Promise<void> {
    if (!group[0]!.action) return;
    const source = await this.#recent(group);
    for (const to of group) {
      const { client, target, foreign, orphans } = to;
      const fetch = (): Promise<never> => Promise.reject(new CoregentError('internal_assert', 'copied rows are whole'));
      const store = new Store({
        client,
        targets: [target],
        lsn: LSN_ZERO,
        foreign,
        orphans,
        fetch,
        within: true,
        deciders: decidersOf(this.#modules),
      });
      for (const from of group) {
        if (from === to) continue;
        await joinTable(from.client, store, target, { known: client, ...(source ? { source } : {}) });
      }
    }
    for (const side of group) {
      const why = await this.#standing(side);
      if (why !== undefined) throw new NotNow(why, side.at.region.name);
    }
  }

  /** Puts what is from the mark on aside, in all regions at once: one look at each table is all that takes time. */
  async #recent(group: readonly Side[]): Promise<JoinOptions['source']> {
    const least = this.#mark?.least;
    if (least === undefined) return undefined;
    await Promise.all(
      group.map(async ({ client, table }) => {
        const from = [qualified(table.schema, table.name), qualified('coregent', tombstoneName(table))];
        for (const [index, name] of RECENT.entries()) {
          await client.query(
            `create temporary table ${name} on commit drop as select * from ${from[index]} where ${ident(VERSION)} >= ${least}`,
          );
        }
      }),
    );
    const [rows, tombstones] = RECENT;
    return { rows: `pg_temp.${rows}`, tombstones: `pg_temp.${tombstones}` };
  }

  /** Everything but the commit. */
  async #prepare(side: Side, ends: ReadonlyMap<Side, LSN>): Promise<void> {
    const { client, table, action } = side;
    const id = tableId(table);
    const peers = this.#sides.filter((peer) => peer !== side);
    // Deferred checks of rows that were joined must not be due when the table is altered.
    await client.query('set constraints all immediate');
    if (side.converts) await this.#convert(side);
    for (const statement of action?.sql ?? []) await client.query(statement);
    await client.query('update coregent.progress set rule_changes = rule_changes + 1');
    for (const peer of peers) {
      const other = peer.before !== side.before;
      // Two that had the new rule already are none of this.
      if (!other && !action) continue;
      const slot = this.#slot(peer, side);
      await client.query(
        `insert into coregent.joined as j (slot, table_id, from_lsn) select slot, $2, $3 from coregent.progress where slot = $1
          on conflict (slot, table_id) do update set from_lsn = excluded.from_lsn`,
        [slot, id, formatLsn(ends.get(peer)!)],
      );
      if (other) {
        const slots = `select slot from coregent.progress where slot = ${literal(slot)}`;
        await client.query(oweAgain(table, slots, 'its rule was changed in one of the two regions first'));
      }
    }
  }

  /** Makes every row, and every tombstone that stays, one write's. */
  async #convert(side: Side): Promise<void> {
    const { client, table } = side;
    const tombs = qualified('coregent', tombstoneName(table));
    const deletes = qualified('coregent', deletesName(table));
    // What crossed its delete in two sessions a moment ago.
    const { removeAllBuried, anyTombstone } = compile(table);
    const { rows: any } = await client.query(`${anyTombstone} as there`);
    if (any[0].there) await client.query(removeAllBuried);
    const hidden = recordHidden(table);
    // All of a group have the same: one of them records it.
    if (
      hidden !== undefined &&
      this.#peers(side).every((peer) => this.#sides.indexOf(peer) > this.#sides.indexOf(side))
    ) {
      await client.query(hidden);
    }
    if (this.#groups.length > 1) {
      await client.query(forgetOutlived(table));
    } else {
      // Every region knows all of them, and no older write can come any more.
      const { rows } = await client.query(`${lastDelete(table)} as last`);
      const [{ last }] = rows as [{ last: string | null }];
      if (last !== null) {
        await client.query('update coregent.tables set reaped = greatest(reaped, $2::int8) where table_id = $1', [
          tableId(table),
          last,
        ]);
        await client.query('select setval($1, greatest($2::int8, pg_sequence_last_value($1)))', [deletes, last]);
        await client.query(`truncate ${tombs}`);
      }
    }
    for (const statement of flatten(table, { merges: familyOf(this.#after) !== 'rows' })) await client.query(statement);
  }

  async #commit(): Promise<void> {
    const settled = await Promise.allSettled(this.#sides.map(({ client }) => client.query('commit')));
    const names = (status: 'fulfilled' | 'rejected'): string =>
      this.#sides
        .filter((_, index) => settled[index]!.status === status)
        .map(({ at }) => at.region.name)
        .join(', ');
    const failed = settled.find((each) => each.status === 'rejected');
    if (!failed) return;
    await this.#rollback();
    const error = classify(failed.reason, names('rejected'));
    if (settled.every(({ status }) => status === 'rejected')) throw error;
    throw new CoregentError(
      'apply_interrupted',
      `${this.#label} goes by ${sayRule(ruleText(this.#after))} in ${names('fulfilled')}, and not yet in ${names('rejected')}: ${error.message}`,
      {
        where: names('rejected'),
        cure: 'Run `coregent apply` again: it finishes the change. Until then the table pauses between these regions; all of them take writes.',
        cause: failed.reason,
      },
    );
  }

  async #rollback(): Promise<void> {
    await Promise.all(this.#sides.map(({ client }) => client.query('rollback').catch(() => {})));
  }

  /** The same in all regions at once; if it fails in one, nothing is left held in any. */
  async #all<T>(work: (side: Side) => Promise<T>): Promise<T[]> {
    const settled = await Promise.allSettled(this.#sides.map(work));
    const failed = settled.findIndex(({ status }) => status === 'rejected');
    if (failed < 0) return settled.map((each) => (each as PromiseFulfilledResult<T>).value);
    await this.#rollback();
    const side = this.#sides[failed]!;
    const { reason } = settled[failed] as PromiseRejectedResult;
    if (!isBusy(reason)) throw classify(reason, side.at.region.name);
    throw new NotNow(await holders(side), side.at.region.name);
  }
}

const RECENT = ['coregent_recent_rows', 'coregent_recent_tombstones'] as const;

/** A moment before which all that was written is everywhere. */
interface Mark {
  /** Each region's clock, in microseconds since 1970. */
  readonly clocks: readonly bigint[];
  readonly least: Version;
}

async function readMicros(client: pg.Client): Promise<bigint> {
  const { rows } = await client.query(`select (extract(epoch from clock_timestamp()) * 1000000)::int8::text as micros`);
  return BigInt(rows[0].micros);
}

/** No lock in time, or a deadlock of which PostgreSQL ended our side. */
function isBusy(error: unknown): boolean {
  const { code } = error as { code?: string };
  return code === '55P03' || code === '40P01';
}

function hindrance(error: unknown, where: string): unknown {
  return isBusy((error as Error).cause ?? error) ? new NotNow((error as Error).message, where) : error;
}

/** Who has the table, for people. */
async function holders({ client, table }: Side): Promise<string> {
  const { rows } = await client.query(
    `select distinct l.pid, a.application_name as application, a.state,
        extract(epoch from clock_timestamp() - a.xact_start)::int as seconds
      from pg_locks l join pg_stat_activity a using (pid)
      where l.relation = $1 and l.granted and l.pid <> pg_backend_pid()
        and l.database = (select oid from pg_database where datname = current_database()) order by seconds desc nulls last limit 3`,
    [table.oid],
  );
  if (rows.length === 0) return `${tableLabel(table)} was in use`;
  const each = rows.map(
    ({ pid, application, state, seconds }) =>
      `pid ${pid}${application ? ` (${application})` : ''}, ${state ?? 'active'}, for ${seconds ?? 0} s`,
  );
  return `${tableLabel(table)} is in use by ${each.join('; ')}`;
}
