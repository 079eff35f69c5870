import type pg from 'pg';
import type { Config, RegionConfig } from '../config.ts';
import type { Tier } from '../model/api.ts';
import { classify, EXIT } from '../model/error.ts';
import { tableId, tableLabel } from '../model/table.ts';
import { LAST_MICROS } from '../model/version.ts';
import { findTier } from './applier.ts';
import { type FoundTable, PUBLICATION, readInstalled } from './catalog.ts';
import { connect } from './connect.ts';
import { examineServer, unreachable } from './doctor-server.ts';
import { examineTables } from './doctor-tables.ts';
import { madeAnew, readLetters } from './encoding.ts';
import { type Finding, finding } from './findings.ts';
import { planRegion } from './install.ts';
import type { OpenRegion } from './setup.ts';
import { readStandings, type Standing } from './standing.ts';
import { NO_TABLES, surveyTables } from './tables.ts';
import { TRIGGERS } from './triggers.ts';
import type { Warning } from './warning.ts';

/** One region as it was found. */
export interface Patient {
  readonly region: string;
  /** Null when it could not be asked. */
  readonly version: string | null;
  readonly tier: Tier | null;
}

/** What `doctor` says. */
export interface Diagnosis {
  readonly cluster: string;
  readonly regions: readonly Patient[];
  /** The worst first. */
  readonly findings: readonly Finding[];
  /** Whether a region could not be reached at all. */
  readonly unreachable: boolean;
}

const TIMEOUT_MS = 5_000;
/** A transaction that is open for longer is told of. */
const PATIENCE_MS = 10 * 60_000;
const CLOCK_READINGS = 5;

/** Examines every region and what they have in common. Reads only; a region that does not answer is a finding. */
export async function examine(config: Config, patienceMs = PATIENCE_MS): Promise<Diagnosis> {
  const findings: Finding[] = [];
  const open: OpenRegion[] = [];
  let away = false;
  const looked = await Promise.all(
    config.regions.map(async (region): Promise<Patient> => {
      const none = { region: region.name, version: null, tier: null };
      let client: pg.Client | undefined;
      try {
        client = await connect(region.url, region.name, { purpose: 'doctor', timeoutMs: TIMEOUT_MS });
        const { rows } = await client.query('show server_version');
        const found = await examineServer(client, config, region, patienceMs);
        findings.push(...found);
        if (found.some(({ code }) => code === 'standby')) {
          await client.end();
          return { ...none, version: rows[0].server_version };
        }
        findings.push(...(await examineTables(client, config, region.name)));
        open.push({ region, client });
        return { ...none, version: rows[0].server_version, tier: await findTier(client) };
      } catch (thrown) {
        client?.end().catch(() => {});
        const error = classify(thrown, region.name);
        if (error.exit === EXIT.unreachable) away = true;
        findings.push(unreachable(error, region, client === undefined));
        return none;
      }
    }),
  );
  try {
    open.sort((a, b) => config.regions.indexOf(a.region) - config.regions.indexOf(b.region));
    if (open.length === config.regions.length) findings.push(...(await ofPlan(config, open)));
    findings.push(
      ...clockFindings(await Promise.all(open.map(readClock)), config.clock.maxOffsetMs),
      ...(await ofEncodings(open)),
    );
  } finally {
    await Promise.all(open.map(({ client }) => client.end().catch(() => {})));
  }
  return { cluster: config.cluster, regions: looked, findings: inOrder(findings, config.regions), unreachable: away };
}

function inOrder(findings: readonly Finding[], regions: readonly RegionConfig[]): Finding[] {
  const severities = ['blocker', 'warning', 'notice'];
  const place = ({ severity, region }: Finding): number =>
    severities.indexOf(severity) * 1_000 + regions.findIndex(({ name }) => name === region);
  return [...findings].sort((a, b) => place(a) - place(b));
}

/** What `apply` would refuse or warn of, for its own reasons. */
async function ofPlan(config: Config, open: readonly OpenRegion[]): Promise<Finding[]> {
  const { tables, faults, warnings } = await surveyTables(config, open);
  const planned = await Promise.all(
    open.map(async ({ client, region }, index): Promise<Finding[]> => {
      const mine = tables.map(({ found, details, rule }) => ({ table: found[index]!, details: details[index]!, rule }));
      try {
        const actions = await planRegion(client, config, region, mine);
        if (!(await readInstalled(client, region.name))) return [];
        const { tables: standings } = await readStandings(client);
        return mine.flatMap(({ table }): Finding[] => {
          const standing = standings.get(tableId(table));
          const changes = actions.some(({ what }) => what === `stamp ${tableLabel(table)}`);
          return changes || standing?.unpublished ? [ofPending(table, standing, region.name)] : [];
        });
      } catch (thrown) {
        const { code, message, cure } = classify(thrown, region.name);
        if (code !== 'refused' && code !== 'schema_too_new') throw thrown;
        return [finding('region_refused', region.name, null, message, ...(cure ? [cure] : []))];
      }
    }),
  );
  return [
    ...planned.flat(),
    ...(tables.length + faults.length === 0
      ? [finding('no_tables', null, null, NO_TABLES.message, NO_TABLES.cure)]
      : []),
    ...faults.map(({ label, region, message, cure }) => finding('table_unfit', region, label, message, ...cure)),
    ...warnings.flatMap(ofWarning),
  ];
}

/** A table that `apply` would change in a region that is installed. */
function ofPending(table: FoundTable, standing: Standing | undefined, here: string): Finding {
  const label = tableLabel(table);
  const cure = 'Run `coregent apply`.';
  if (!standing)
    return finding('apply_needed', here, label, 'is named by the configuration, and not replicated yet', cure);
  const gone = Object.values(TRIGGERS).filter((name) => !table.triggers.includes(name));
  if (gone.length > 0) {
    return finding('triggers_gone', here, label, `lacks ${gone.join(', ')}, or they are disabled`, cure);
  }
  if (standing.unpublished) {
    return finding('unpublished', here, label, `is not all in the publication ${PUBLICATION}`, cure);
  }
  return finding('apply_needed', here, label, 'is not as `apply` would leave it', cure);
}

function ofWarning({ code, object, message, cure }: Warning): Finding[] {
  // Each region's own triggers are looked at there.
  if (code === 'fires_on_apply') return [];
  if (cure.length === 0) return [finding(code, null, object, message)];
  return cure.map(({ region, sql }) => finding(code, region, object, message, sql));
}

/** A server's clock less this machine's, and how far off that may be. */
interface Reading {
  readonly region: string;
  /** What it says, in ms since 1970. */
  readonly nowMs: number;
  readonly offsetMs: number;
  readonly errorMs: number;
}

/** Clocks that are ahead of the slowest one for certain, by more than `maxOffsetMs`, and those that nothing may be stamped by. */
export function clockFindings(readings: readonly Reading[], maxOffsetMs: number): Finding[] {
  const [slowest] = [...readings].sort((a, b) => a.offsetMs - b.offsetMs);
  return readings.flatMap(({ region, nowMs, offsetMs, errorMs }) => {
    if (nowMs * 1000 >= Number(LAST_MICROS)) {
      const says = 'its clock says the year 3111 or later: no other region will ever take what is written there';
      return [
        finding('clock_unusable', region, null, says, 'Set the clock right (NTP, chrony) before the next write.'),
      ];
    }
    const ahead = offsetMs - slowest!.offsetMs - (errorMs + slowest!.errorMs);
    if (ahead <= maxOffsetMs) return [];
    return [
      finding(
        'clock_offset',
        region,
        null,
        `its clock is ${Math.round(ahead)} ms ahead of ${slowest!.region}’s`,
        'Set the clocks right (NTP, chrony); or raise `clock.max_offset` if that is how they are.',
      ),
    ];
  });
}

/** By the quickest of a few answers. */
async function readClock({ client, region }: OpenRegion): Promise<Reading> {
  let best = { region: region.name, nowMs: 0, offsetMs: 0, errorMs: Number.POSITIVE_INFINITY };
  for (let i = 0; i < CLOCK_READINGS; i++) {
    const before = performance.now();
    const { rows } = await client.query(`select (date_part('epoch', clock_timestamp()) * 1000)::float8 as ms`);
    const after = performance.now();
    const errorMs = (after - before) / 2;
    if (errorMs >= best.errorMs) continue;
    const nowMs = rows[0].ms as number;
    best = { region: region.name, nowMs, offsetMs: nowMs - (before + after) / 2, errorMs };
  }
  return best;
}

async function ofEncodings(open: readonly OpenRegion[]): Promise<Finding[]> {
  const all = await Promise.all(open.map(({ client }) => readLetters(client)));
  const [first] = all;
  return all.flatMap(({ encoding, collation }, index) => {
    const here = open[index]!.region.name;
    const there = open[0]!.region.name;
    if (encoding !== first!.encoding) {
      return [
        finding(
          'encoding',
          here,
          null,
          `is ${encoding}, ${there} is ${first!.encoding}`,
          madeAnew(`with encoding ${first!.encoding}`),
        ),
      ];
    }
    if (collation === first!.collation) return [];
    return [
      finding(
        'collation',
        here,
        null,
        `is ${collation}, ${there} is ${first!.collation}`,
        madeAnew(`with lc_collate ${first!.collation}`),
      ),
    ];
  });
}
