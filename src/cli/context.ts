import type { Progress } from './print.ts';

/** What every subcommand is given besides its own options. */
export interface Context {
  /** Path of the configuration file. */
  readonly config: string;
  /** Write one JSON document to stdout instead of text for people. */
  readonly json: boolean;
  readonly verbose: boolean;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Whether stdout takes colours. */
  readonly colour: boolean;
  /** Writes the command's result to stdout; a line end is added. */
  out(text: string): void;
  /** Writes a remark to stderr; a line end is added. */
  note(text: string): void;
  /** A progress bar on stderr; silent off a terminal and with --json. */
  progress(label: string, total: number): Progress;
}

/** What a subcommand's module exports. Gives the exit code; failures are thrown as CoregentError. */
export interface Command {
  run(options: never, context: Context): Promise<number>;
}

/** Where the command line reads and writes; the process's own, but for tests. */
export interface Io {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly stdout: Stream;
  readonly stderr: Stream;
}

/** The part of a stream that the command line needs. */
export interface Stream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}
