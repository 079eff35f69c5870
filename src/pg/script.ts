import type pg from 'pg';

/** One step of a script: a prepared statement with its parameters, or a COPY with its data. */
export interface Step {
  /** SQL; the same text is prepared once per connection. */
  readonly text: string;
  /** Parameters: text, null, or bytes in binary form (several chunks are sent as one value). */
  readonly values?: readonly Value[];
  /** For `COPY … FROM STDIN`: the data. */
  readonly copy?: readonly Buffer[];
}

export type Value = string | null | readonly Buffer[];

/** What a step gave. */
export interface StepResult {
  /** Rows affected or returned. */
  readonly count: number;
  /** First word of the command tag: `COMMIT`, `ROLLBACK`, `INSERT`, … */
  readonly command: string;
  /** Rows returned, each value as text or null. */
  readonly rows: readonly (string | null)[][];
}

/** What a script gave. Steps behind a failed one were not run. */
export interface ScriptResult {
  readonly results: readonly StepResult[];
  /** The server's error at step `results.length`, if any; `code` is its SQLSTATE. */
  readonly error: Error | undefined;
}

interface Wire {
  readonly stream: { cork(): void; uncork(): void; write(bytes: Buffer): boolean };
}

let statements = 0;
const prepared = new WeakMap<pg.Client, Map<string, string>>();

/**
 * Sends all steps at once and waits once: a batch costs one round trip however many statements it has
 * (PostgreSQL, "Pipelining" in the extended query protocol). The server stops at the first error.
 * Rejects only when the connection is lost.
 */
export function runScript(client: pg.Client, steps: readonly Step[]): Promise<ScriptResult> {
  let names = prepared.get(client);
  if (names === undefined) {
    names = new Map();
    prepared.set(client, names);
  }
  const known = names;
  return new Promise((resolve, reject) => {
    const results: StepResult[] = [];
    const parsing: (string | undefined)[] = [];
    let rows: (string | null)[][] = [];
    let failed: Error | undefined;
    const query = {
      submit({ stream }: Wire): undefined {
        stream.cork();
        for (const step of steps) {
          let name = known.get(step.text);
          if (name === undefined) {
            name = `coregent_${++statements}`;
            known.set(step.text, name);
            parsing.push(step.text);
            stream.write(parseMessage(name, step.text));
          } else {
            parsing.push(undefined);
          }
          for (const part of bindMessage(name, step.values ?? [])) stream.write(part);
          stream.write(EXECUTE);
          if (step.copy) {
            for (const part of step.copy) {
              const header = Buffer.allocUnsafe(5);
              header[0] = 0x64;
              header.writeInt32BE(part.length + 4, 1);
              stream.write(header);
              stream.write(part);
            }
            stream.write(COPY_DONE);
          }
        }
        stream.write(SYNC);
        stream.uncork();
        return undefined;
      },
      callback() {},
      handleRowDescription() {},
      handleDataRow({ fields }: { fields: (string | null)[] }) {
        rows.push(fields);
      },
      handleCommandComplete({ text }: { text: string }) {
        const words = text.split(' ');
        results.push({ command: words[0]!, count: Number(words.at(-1)) || 0, rows });
        rows = [];
      },
      handleEmptyQuery() {},
      handlePortalSuspended() {},
      handleCopyInResponse() {},
      handleReadyForQuery() {
        resolve({ results, error: undefined });
      },
      handleError(error: Error & { severity?: string }) {
        if (error.severity === undefined) {
          failed = error;
          reject(failed);
          return;
        }
        // Statements behind the failed step were not prepared; the failed one may not have been.
        for (const text of parsing.slice(results.length)) if (text !== undefined) known.delete(text);
        resolve({ results, error });
      },
    };
    client.query(query as unknown as pg.Query);
  });
}

/** What stands for a transaction's words inside of another one. */
const WITHIN: Readonly<Record<string, string>> = {
  begin: 'savepoint coregent_batch',
  commit: 'release savepoint coregent_batch',
  rollback: 'rollback to savepoint coregent_batch',
};

/** The same inside of a transaction of the caller's: what would be committed is kept, what would be rolled back is undone. */
export async function runWithin(client: pg.Client, steps: readonly Step[]): Promise<ScriptResult> {
  const inner = steps.map((step) => ({ ...step, text: WITHIN[step.text] ?? step.text }));
  const { results, error } = await runScript(client, inner);
  const commits = (index: number): boolean => steps[index]!.text === 'commit';
  return {
    results: results.map((result, index) => (commits(index) ? { ...result, command: 'COMMIT' } : result)),
    error,
  };
}

const EXECUTE = Buffer.from([0x45, 0, 0, 0, 9, 0, 0, 0, 0, 0]);
const SYNC = Buffer.from([0x53, 0, 0, 0, 4]);
const COPY_DONE = Buffer.from([0x63, 0, 0, 0, 4]);

function parseMessage(name: string, text: string): Buffer {
  const body = Buffer.from(`${name}\0${text}\0\0\0`, 'utf8');
  const message = Buffer.allocUnsafe(5 + body.length);
  message[0] = 0x50;
  message.writeInt32BE(4 + body.length, 1);
  body.copy(message, 5);
  return message;
}

function bindMessage(name: string, values: readonly Value[]): Buffer[] {
  const parts: Buffer[] = [];
  const head = Buffer.allocUnsafe(5 + 1 + Buffer.byteLength(name) + 1 + 2 + 2 * values.length + 2);
  parts.push(head);
  head[0] = 0x42;
  head[5] = 0;
  let at = 6 + head.write(name, 6);
  head[at++] = 0;
  at = head.writeInt16BE(values.length, at);
  for (const value of values) at = head.writeInt16BE(typeof value === 'object' && value !== null ? 1 : 0, at);
  head.writeInt16BE(values.length, at);
  let length = head.length - 1;
  for (const value of values) {
    const chunks = value === null ? [] : typeof value === 'string' ? [Buffer.from(value)] : value;
    const size = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    const prefix = Buffer.allocUnsafe(4);
    prefix.writeInt32BE(value === null ? -1 : size, 0);
    parts.push(prefix, ...chunks);
    length += 4 + size;
  }
  parts.push(RESULTS_AS_TEXT);
  head.writeInt32BE(length + 2, 1);
  return parts;
}

const RESULTS_AS_TEXT = Buffer.from([0, 0]);
