import { isMap, isScalar, isSeq, LineCounter, type Node, parseDocument } from 'yaml';
import type { Fault } from './model/error.ts';

/** A YAML text read once: its value with `${ENV}` replaced, and where in the text each part stands. */
export interface YamlText {
  readonly value: unknown;
  /** Faults of the syntax and of `${ENV}` references. */
  readonly faults: readonly Fault[];
  /** Line (from 1) of the key at this path, or of its nearest parent that exists. */
  line(path: readonly string[]): number;
  /** The scalar as it was written, before `${ENV}` was replaced: fit to be quoted in a fault. */
  written(path: readonly string[]): unknown;
}

/** Reads YAML 1.2 and replaces `${NAME}` inside string values; never throws, all faults are returned. */
export function readYaml(text: string, env: Readonly<Record<string, string | undefined>>): YamlText {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const lineAt = (offset: number) => Math.max(1, lines.linePos(offset).line);
  const faults: Fault[] = [...document.errors, ...document.warnings].map((error) => ({
    path: '',
    line: lineAt(error.pos[0]),
    // The parser quotes the text it stumbled over after a colon; that may be a password.
    message: `is not valid YAML: ${error.message.split(/[:\n]/, 1)[0]}`,
  }));
  if (document.errors.length > 0) return { value: undefined, faults, line: () => 1, written: () => undefined };

  const root = document.contents as Node | null;
  const line = (path: readonly string[]) => lineAt(offsetOf(root, path));
  const written = (path: readonly string[]) => document.getIn(path, false) as unknown;
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: 100 });
  } catch {
    faults.push({ path: '', line: 1, message: 'uses more YAML aliases than 100' });
  }
  const replaced = replaceEnv(value, env, [], (path, message) => {
    faults.push({ path: path.join('.'), line: line(path), message });
  });
  return { value: replaced, faults, line, written };
}

function offsetOf(root: Node | null, path: readonly string[]): number {
  let offset = root?.range?.[0] ?? 0;
  let at: unknown = root;
  for (const step of path) {
    if (isMap(at)) {
      const pair = at.items.find((item) => isScalar(item.key) && String(item.key.value) === step);
      if (!pair) break;
      offset = (pair.key as Node).range?.[0] ?? offset;
      at = pair.value;
    } else if (isSeq(at)) {
      at = at.items[Number(step)];
      offset = (at as Node | undefined)?.range?.[0] ?? offset;
    } else break;
  }
  return offset;
}

function replaceEnv(
  value: unknown,
  env: Readonly<Record<string, string | undefined>>,
  path: readonly string[],
  fault: (path: readonly string[], message: string) => void,
): unknown {
  if (typeof value === 'string') {
    return value.replace(/\$\{([^}]*)(\}?)/g, (_, name: string, end: string) => {
      if (!end || !/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
        fault(path, 'has a $-brace reference that is not the name of an environment variable');
        return '';
      }
      // An empty variable is a forgotten one: an empty URL would reach whatever server listens by default.
      if (!env[name]) fault(path, `needs the environment variable ${name}, which is not set`);
      return env[name] ?? '';
    });
  }
  if (Array.isArray(value)) return value.map((item, i) => replaceEnv(item, env, [...path, String(i)], fault));
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).map(([key, item]) => [key, replaceEnv(item, env, [...path, key], fault)]);
    return Object.fromEntries(entries);
  }
  return value;
}
