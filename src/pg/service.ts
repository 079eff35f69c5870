import type { Queryable } from './connect.ts';

/** A managed service, known by a setting that only it has; there nobody may `alter system`. */
interface Service {
  readonly sign: string;
  /** Where its settings are changed, for people. */
  readonly place: string;
  /** What makes `wal_level` logical. */
  readonly logical: string;
  /** What nobody can change there. */
  readonly fixed?: readonly string[];
}

const SERVICES: readonly Service[] = [
  {
    sign: 'rds.logical_replication',
    place: 'the parameter group (of the cluster, for Aurora)',
    logical: 'rds.logical_replication = 1',
  },
  { sign: 'cloudsql.logical_decoding', place: 'the flags of the instance', logical: 'cloudsql.logical_decoding = on' },
  { sign: 'alloydb.logical_decoding', place: 'the flags of the instance', logical: 'alloydb.logical_decoding = on' },
  {
    sign: 'azure.extensions',
    place: 'the server parameters',
    logical: 'wal_level = logical',
    fixed: ['max_slot_wal_keep_size'],
  },
];

/** What the number of a setting counts, and how many of it make the next larger unit. Services take bare numbers only. */
const UNITS: Readonly<Record<string, { readonly unit: string; readonly many: number; readonly larger: string }>> = {
  max_slot_wal_keep_size: { unit: 'MB', many: 1_024, larger: 'GB' },
  wal_sender_timeout: { unit: 'ms', many: 1_000, larger: 's' },
};

/** Prints what changes a setting of a server; nothing where nobody can. A number is in the setting's own unit, as `pg_settings` has it. */
export type ChangeSetting = (name: string, value: string | number, takes: 'reload' | 'restart') => string[];

/** How settings are changed where this connection leads: by SQL, or in words where a service keeps that to itself. */
export async function settingsOf(client: Queryable): Promise<ChangeSetting> {
  const { rows } = await client.query(
    'select name from unnest($1::text[]) as name where current_setting(name, true) is not null',
    [SERVICES.map(({ sign }) => sign)],
  );
  const service = SERVICES.find(({ sign }) => sign === rows[0]?.name);
  return (name, value, takes) => {
    if (!service) {
      const last = takes === 'reload' ? 'select pg_reload_conf()' : 'Restart the server.';
      return [`alter system set ${name} = '${withUnit(name, value)}'`, last];
    }
    if (service.fixed?.includes(name)) return [];
    const what = name === 'wal_level' ? service.logical : `${name} = ${value}`;
    return [`Set ${what} in ${service.place}${takes === 'reload' ? '.' : ', and restart.'}`];
  };
}

function withUnit(name: string, value: string | number): string {
  const units = UNITS[name];
  if (!units || typeof value === 'string') return String(value);
  const { unit, many, larger } = units;
  return value % many === 0 ? `${value / many}${larger}` : `${value}${unit}`;
}
