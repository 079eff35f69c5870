import { join } from 'node:path';
import type { TestProject } from 'vitest/node';
import { DEFAULT_MAJOR, RELEASES } from '../../src/demo/binaries.ts';
import { installMajors } from './packages.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** PostgreSQL's major version for each region, in turn: one for all, or several in a mixed cluster. */
    readonly majors: readonly number[];
  }
}

/** Where the packages of other majors than the default are: apart from our own, so that no user installs them. */
export const PACKAGES = join(import.meta.dirname, '../servers');

/** The majors that a project of the tests runs on: `COREGENT_TEST_MAJORS`, of the project or of the shell, such as `14` or `14,16,18`. */
export function majorsOf(project: TestProject): readonly number[] {
  const text = project.config.env?.COREGENT_TEST_MAJORS ?? process.env.COREGENT_TEST_MAJORS ?? String(DEFAULT_MAJOR);
  const majors = text.split(',').map(Number);
  for (const major of majors) {
    if (RELEASES[major] === undefined) {
      throw new Error(`COREGENT_TEST_MAJORS=${text}: name some of ${Object.keys(RELEASES).join(', ')}.`);
    }
  }
  return majors;
}

/** Projects load this module each on their own, and must not install at the same time. */
const run = globalThis as { [installing]?: Promise<unknown> };
const installing = Symbol.for('coregent.test.packages');

/** Tells a project's tests their majors, and installs those that are missing. */
export default async function setup(project: TestProject): Promise<void> {
  const majors = majorsOf(project);
  project.provide('majors', majors);
  const before = run[installing] ?? Promise.resolve();
  run[installing] = before.then(() => installMajors(PACKAGES, majors));
  await run[installing];
}
