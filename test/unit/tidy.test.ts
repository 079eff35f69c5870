import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { describe, expect, it } from 'vitest';

const SRC = join(import.meta.dirname, '../../src');

/** What each folder may import from, besides itself; `.` is the files that lie in `src` itself. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  model: [],
  '.': ['model'],
  wire: ['model'],
  resolve: ['model', '.'],
  pipe: ['model', 'wire'],
  pg: ['model', 'wire', 'resolve', 'pipe', '.'],
  agent: ['model', 'wire', 'resolve', 'pipe', 'pg', '.'],
  demo: ['model', 'pg', 'agent', '.'],
  cli: ['model', 'pg', 'agent', 'demo', '.'],
};

/** Packages that only one folder may know. */
const ONLY: Readonly<Record<string, readonly string[]>> = {
  pg: ['pg', 'agent', 'demo'],
  'pg-copy-streams': ['pg'],
  hono: ['agent'],
  commander: ['cli'],
  zod: ['.'],
  yaml: ['.', 'cli'],
  'prom-client': ['.'],
  pino: ['.'],
};

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));
const folderOf = (path: string): string => {
  const parts = relative(SRC, path).split(sep);
  return parts.length === 1 ? '.' : parts[0]!;
};
const textOf = (file: string): string => readFileSync(join(SRC, file), 'utf8');
const importsOf = (file: string): string[] =>
  [...textOf(file).matchAll(/(?:from|import\()\s*'([^']+)'/g)].map((match) => match[1]!);

describe('the tree', () => {
  it('has sources to look at', () => {
    expect(files.length).toBeGreaterThan(50);
    for (const file of files) expect(Object.keys(ALLOWED)).toContain(folderOf(join(SRC, file)));
  });

  it.each(files)('%s imports only what its folder may', (file) => {
    const folder = folderOf(join(SRC, file));
    for (const name of importsOf(file)) {
      if (name.startsWith('.')) {
        const target = folderOf(join(SRC, dirname(file), name));
        if (target !== folder) expect(ALLOWED[folder], `${file} imports ${name}`).toContain(target);
      } else if (!name.startsWith('node:')) {
        const [first, second] = name.split('/');
        const only = ONLY[first!.startsWith('@') ? `${first}/${second}` : first!];
        if (only) expect(only, `${file} imports ${name}`).toContain(folder);
      }
    }
  });

  it.each(files)('%s is no longer than a reader can hold', (file) => {
    expect(textOf(file).split('\n').length).toBeLessThanOrEqual(520);
  });

  it('makes SQL names in one place', () => {
    for (const file of files) {
      if (file === 'quote.ts') continue;
      expect(textOf(file), file).not.toMatch(/replaceAll\('"', '""'\)|escapeIdentifier|escapeLiteral/);
    }
  });
});
