import { readFileSync } from 'node:fs';
import type pg from 'pg';
import { describe, expect, it } from 'vitest';
import { CoregentError } from '../../src/model/error.ts';
import { Secret } from '../../src/model/secret.ts';
import type { Queryable } from '../../src/pg/connect.ts';
import { clockFindings } from '../../src/pg/doctor.ts';
import { unreachable, versionFindings } from '../../src/pg/doctor-server.ts';
import { guardedTrigger } from '../../src/pg/doctor-tables.ts';
import { findings } from '../../src/pg/findings.ts';
import { grantsText } from '../../src/pg/grants.ts';
import { settingsOf } from '../../src/pg/service.ts';

const read = (file: string): string => readFileSync(new URL(`../../docs/${file}`, import.meta.url), 'utf8');

describe('the documentation', () => {
  it('has every finding, as the table has it', () => {
    const rows = Object.entries(findings).map(([code, { severity, doc }]) => `| \`${code}\` | ${severity} | ${doc} |`);
    const said = read('doctor.md')
      .split('\n')
      .filter((line) => /^\| `/.test(line));
    expect(said).toEqual(rows);
  });

  it('shows the grants as they are printed', () => {
    const grantee = { role: 'coregent', database: 'shop', owners: ['app'], version: 180_000, exists: false };
    expect(read('privileges.md')).toContain(grantsText(grantee));
  });
});

describe('grants', () => {
  const grantee = { role: 'r', database: 'd', owners: ['r', 'o'], version: 140_000, exists: true };
  const apart = { ...grantee, owners: ['o'] };

  it('are only what a tier needs', () => {
    for (const [tier, replica, origins] of [
      ['A', true, true],
      ['B', true, false],
      ['C', false, false],
    ] as const) {
      const text = grantsText(apart, tier);
      expect(text.includes('session_replication_role')).toBe(replica);
      expect(text.includes('pg_replication_origin_create')).toBe(origins);
    }
  });

  it('name no parameter where there is no such grant, and no role to itself', () => {
    const text = grantsText(apart);
    expect(text).not.toContain('on parameter');
    expect(text).toContain('alter role "r" in database "d" set session_replication_role = replica;');
    const owning = grantsText(grantee);
    expect(owning).not.toContain('grant "r" to "r"');
    expect(owning).toContain('grant "o" to "r"');
    // An application may log in as it.
    expect(owning).not.toContain('set session_replication_role');
    expect(owning).toMatch(/^-- tier B takes a role of its own before PostgreSQL 15: "r" owns tables/m);
  });
});

describe('settings', () => {
  it.each([
    [undefined, [`alter system set wal_level = 'logical'`, 'Restart the server.']],
    [
      'rds.logical_replication',
      ['Set rds.logical_replication = 1 in the parameter group (of the cluster, for Aurora), and restart.'],
    ],
    ['cloudsql.logical_decoding', ['Set cloudsql.logical_decoding = on in the flags of the instance, and restart.']],
    ['alloydb.logical_decoding', ['Set alloydb.logical_decoding = on in the flags of the instance, and restart.']],
    ['azure.extensions', ['Set wal_level = logical in the server parameters, and restart.']],
  ])('are changed as a server that knows %s wants it', async (sign, cure) => {
    expect((await settingsOf(knowing(sign)))('wal_level', 'logical', 'restart')).toEqual(cure);
  });

  it.each([
    ['max_slot_wal_keep_size', 51_200, '50GB', '51200'],
    ['max_slot_wal_keep_size', 1_500, '1500MB', '1500'],
    ['wal_sender_timeout', 60_000, '60s', '60000'],
    ['wal_sender_timeout', 1_500, '1500ms', '1500'],
    ['max_wal_senders', 20, '20', '20'],
    ['idle_replication_slot_timeout', 0, '0', '0'],
  ])('%s of %i has a unit in SQL, and is a bare number for services', async (name, value, sql, bare) => {
    const own = await settingsOf(knowing());
    expect(own(name, value, 'reload')).toEqual([`alter system set ${name} = '${sql}'`, 'select pg_reload_conf()']);
    const cloud = await settingsOf(knowing('cloudsql.logical_decoding'));
    expect(cloud(name, value, 'reload')).toEqual([`Set ${name} = ${bare} in the flags of the instance.`]);
  });

  it('that nobody can change have no cure', async () => {
    const azure = await settingsOf(knowing('azure.extensions'));
    expect(azure('max_slot_wal_keep_size', 51_200, 'reload')).toEqual([]);
    expect(azure('wal_sender_timeout', 60_000, 'reload')).toEqual([
      'Set wal_sender_timeout = 60000 in the server parameters.',
    ]);
  });

  /** A server that has this setting of a service. */
  function knowing(sign?: string): Queryable {
    const rows = sign === undefined ? [] : [{ name: sign }];
    return { query: () => Promise.resolve({ rows } as unknown as pg.QueryResult) };
  }
});

describe('a region that lets nobody in', () => {
  const cureOf = (url: string): readonly string[] => {
    const region = { name: 'tokyo', id: 1, url: new Secret(url), localUrl: new Secret(url) };
    return unreachable(new CoregentError('privilege_missing', 'permission denied for database'), region, true).cure;
  };

  it('is cured by a grant where the url names role and database', () => {
    const grant = ['grant connect on database "my shop" to "a%b"'];
    expect(cureOf('postgres://a%25b:x@h/my%20shop')).toEqual(grant);
    // As the driver reads them.
    expect(cureOf('postgres://a%b:x@h/my%20shop')).toEqual(grant);
    expect(cureOf('postgres://%ff@h/shop')).toHaveLength(1);
    expect(cureOf('postgres://other@h/my%20shop?user=a%25b')).toEqual(grant);
  });

  it.each(['postgres://h/shop', 'postgres://r@h', 'postgres://r@h/'])('is not where it is %s', (url) => {
    expect(cureOf(url)).toEqual(['Give the role what `coregent doctor --grants` prints.']);
  });
});

describe('releases', () => {
  it.each([
    [130_020, ['version_unsupported']],
    [140_012, ['version_loses']],
    [140_023, []],
    [160_004, ['version_loses']],
    [160_005, []],
    [170_000, ['version_loses']],
    [180_004, []],
    [190_000, ['version_untested']],
  ])('%s is told of as %j', (version, codes) => {
    expect(versionFindings(version, 'x', 'tokyo').map(({ code }) => code)).toEqual(codes);
  });

  it('name the first one that loses nothing', () => {
    expect(versionFindings(140_005, '14.5', 'tokyo')[0]!.cure[0]).toContain('14.14');
  });
});

describe('clocks', () => {
  const at = (region: string, offsetMs: number, errorMs = 10) => ({
    region,
    nowMs: Date.UTC(2026, 0) + offsetMs,
    offsetMs,
    errorMs,
  });

  it('are told of when they differ by more than may be for certain', () => {
    const found = clockFindings([at('tokyo', 800), at('frankfurt', 100), at('virginia', 615)], 500);
    expect(found.map(({ region, message }) => [region, message])).toEqual([
      ['tokyo', 'its clock is 680 ms ahead of frankfurt’s'],
    ]);
  });

  it('F2: are told of when nothing may be stamped by them, whatever the others say', () => {
    const late = { region: 'virginia', nowMs: Date.UTC(3112, 0), offsetMs: Date.UTC(3112, 0), errorMs: 1 };
    expect(clockFindings([late], 500).map(({ code, region }) => [code, region])).toEqual([
      ['clock_unusable', 'virginia'],
    ]);
    expect(clockFindings([{ ...late, nowMs: Date.UTC(3110, 0) }], 500)).toEqual([]);
  });

  it('are not, while the answers take longer than they differ', () => {
    expect(clockFindings([at('tokyo', 1_000, 300), at('frankfurt', 0, 300)], 500)).toEqual([]);
    expect(clockFindings([], 500)).toEqual([]);
  });
});

describe('a guarded trigger', () => {
  const guard = `pg_catalog.pg_trigger_depth() > 0 or pg_catalog.current_setting('coregent.apply', true) is distinct from 'on'`;
  const made = (definition: string) => guardedTrigger(definition, 'a', '"public"."t"');

  it('keeps its own condition', () => {
    expect(
      made('CREATE TRIGGER a BEFORE UPDATE ON public.t FOR EACH ROW WHEN ((old.v <> new.v)) EXECUTE FUNCTION f()'),
    ).toEqual([
      `CREATE OR REPLACE TRIGGER a BEFORE UPDATE ON public.t FOR EACH ROW WHEN (((old.v <> new.v)) and (${guard})) EXECUTE FUNCTION f()`,
    ]);
    expect(made('CREATE TRIGGER a AFTER INSERT ON public.t FOR EACH STATEMENT EXECUTE FUNCTION f()')).toEqual([
      `CREATE OR REPLACE TRIGGER a AFTER INSERT ON public.t FOR EACH STATEMENT WHEN (${guard}) EXECUTE FUNCTION f()`,
    ]);
  });

  it('is made anew where it cannot be replaced', () => {
    const [drop, create] = made(
      'CREATE CONSTRAINT TRIGGER a AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION f()',
    );
    expect(drop).toBe('drop trigger "a" on "public"."t"');
    expect(create).toMatch(/^CREATE CONSTRAINT TRIGGER a .* WHEN \(pg_catalog/);
  });
});
