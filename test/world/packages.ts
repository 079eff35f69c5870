import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { DEFAULT_MAJOR, packageName, RELEASES } from '../../src/demo/binaries.ts';

/** Installs PostgreSQL of other majors than the default into `folder`, where any is missing: apart from our own packages, so that no user does. */
export async function installMajors(folder: string, majors: readonly number[]): Promise<void> {
  const there = await Promise.all(majors.map((major) => isInstalled(folder, major)));
  if (there.every(Boolean)) return;
  console.info('Installing PostgreSQL of other majors into test/servers, once …');
  // As locked, and without the packages' scripts: they would only make links, and servers don't need those.
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--include=optional'];
  await promisify(execFile)('npm', args, { cwd: folder, shell: process.platform === 'win32' });
}

async function isInstalled(folder: string, major: number): Promise<boolean> {
  if (major === DEFAULT_MAJOR || process.env.COREGENT_PG_BIN) return true;
  const file = join(folder, 'node_modules', packageName(major), 'package.json');
  const text = await readFile(file, 'utf8').catch(() => '{}');
  return JSON.parse(text).version === RELEASES[major];
}
