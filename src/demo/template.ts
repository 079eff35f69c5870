import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { chown, copyFile, mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { CoregentError } from '../model/error.ts';
import { type Binaries, findBinaries, type Owner, serverOwner } from './binaries.ts';
import { openScratch, type Scratch } from './watchdog.ts';

/** An initialized data folder that is copied for each server, and the password in it. */
export interface Template {
  readonly binaries: Binaries;
  readonly owner: Owner | undefined;
  readonly scratch: Scratch;
  readonly folder: string;
  readonly password: string;
}

const templates = new Map<number, Promise<Template>>();

/** The template of `major`, made by one `initdb` for each major version and process. `packages` as for `findBinaries`. */
export function templateOf(major: number, packages?: string): Promise<Template> {
  const known = templates.get(major);
  if (known) return known;
  const made = makeTemplate(major, packages);
  templates.set(major, made);
  made.catch(() => templates.delete(major));
  return made;
}

async function makeTemplate(major: number, packages: string | undefined): Promise<Template> {
  const owner = serverOwner();
  const scratch = await openScratch(owner);
  const binaries = await findBinaries({ major, scratch: scratch.folder, owner, packages });
  const folder = join(scratch.folder, `template-${major}`);
  const password = randomBytes(12).toString('hex');
  const secret = join(scratch.folder, `password-${major}`);
  await mkdir(folder, { mode: 0o700 });
  await writeFile(secret, password, { mode: 0o600 });
  if (owner) await Promise.all([folder, secret].map((path) => chown(path, owner.uid, owner.gid)));
  const args = ['-D', folder, '-U', 'postgres', `--pwfile=${secret}`, '--auth=scram-sha-256', '--encoding=UTF8'];
  const spawning = { ...owner, cwd: folder, env: binaries.env };
  try {
    await promisify(execFile)(binaries.initdb, [...args, '--locale=C', '--no-sync'], spawning);
  } catch (cause) {
    await rm(folder, { recursive: true, force: true });
    throw spawnError(binaries.initdb, cause as NodeJS.ErrnoException & { stderr?: string });
  } finally {
    await rm(secret, { force: true });
  }
  return { binaries, owner, scratch, folder, password };
}

/** An error for a program that could not be run, with the likely cure. */
export function spawnError(program: string, cause: NodeJS.ErrnoException & { stderr?: string }): Error {
  const cures: Record<string, string> = {
    ENOENT:
      'Its dynamic loader may be missing: the npm packages need glibc. Set COREGENT_PG_BIN to a native PostgreSQL.',
    EPERM: 'Root may not change its user here: run as an ordinary user.',
  };
  return new CoregentError('unsupported', `PostgreSQL can't run: ${cause.stderr?.trim() || cause.message}`, {
    where: program,
    cure: cures[cause.code ?? ''] ?? 'Set COREGENT_PG_BIN to the bin folder of a PostgreSQL that runs on this machine.',
    cause,
  });
}

/** Copies a folder; the copy belongs to `owner`. */
export async function copyFolder(from: string, to: string, owner: Owner | undefined): Promise<void> {
  await mkdir(to, { mode: 0o700 });
  if (owner) await chown(to, owner.uid, owner.gid);
  const copies = (await readdir(from, { withFileTypes: true })).map(async (entry) => {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) return await copyFolder(source, target, owner);
    await copyFile(source, target, constants.COPYFILE_FICLONE);
    if (owner) await chown(target, owner.uid, owner.gid);
  });
  await Promise.all(copies);
}
