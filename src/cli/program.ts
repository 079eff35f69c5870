import { inspect } from 'node:util';
import { Command, CommanderError, Option } from 'commander';
import { CoregentError, classify, EXIT, redact } from '../model/error.ts';
import { VERSION } from '../version.ts';
import { type CommandRow, commands, type OptionRow } from './commands.ts';
import type { Context, Io } from './context.ts';
import { colours, progress, takesColour, toJson, visible } from './print.ts';

interface GlobalOptions {
  readonly config: string;
  readonly json?: boolean;
  readonly verbose?: boolean;
}

/** Runs one command line (without `node` and the script) and gives its exit code; every error is printed, none thrown. */
export async function runCli(args: readonly string[], io: Io, rows: readonly CommandRow[] = commands): Promise<number> {
  const result: { code: number } = { code: EXIT.ok };
  const program = build(io, rows, (code) => {
    result.code = code;
  });
  try {
    if (args.length === 0) {
      io.stderr.write(program.helpInformation());
      return EXIT.usage;
    }
    await program.parseAsync([...args], { from: 'user' });
    return result.code;
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return EXIT.ok;
    const error = thrown instanceof CommanderError ? usage(thrown) : classify(thrown);
    const end = args.indexOf('--');
    printError(error, io, args.slice(0, end < 0 ? undefined : end).includes('--json'));
    return error.exit;
  }
}

function build(io: Io, rows: readonly CommandRow[], finish: (code: number) => void): Command {
  const program = new Command('coregent')
    .description('Active-active, multi-leader replication for ordinary PostgreSQL databases.')
    .option('--config <file>', 'the configuration file', './coregent.yaml')
    .option('--json', 'one JSON document on stdout')
    .option('--verbose', 'say more')
    .version(VERSION, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand(false)
    .addHelpText('before', `Examples:\n${rows.map((row) => `  ${row.example}`).join('\n')}\n`)
    .addHelpText(
      'after',
      '\nExit codes: 0 ok, 1 failed, 2 usage or configuration, 3 findings, 4 unreachable, 5 refused.',
    );
  configure(program, io);
  for (const row of rows) {
    const command = program.command(row.name).summary(row.summary).description(row.summary);
    configure(command, io);
    command.helpOption('-h, --help', 'print this help').addHelpText('before', `Example:\n  ${row.example}\n`);
    for (const argument of row.arguments ?? []) command.argument(argument);
    for (const option of row.options) command.addOption(makeOption(option));
    command.action(async () => {
      const { run } = await row.load();
      const options = { ...command.opts(), ...(row.arguments ? { arguments: command.args } : {}) };
      finish(await run(options as never, makeContext(program.opts<GlobalOptions>(), io)));
    });
  }
  return program;
}

function configure(command: Command, io: Io): void {
  command.exitOverride().configureOutput({
    writeOut: (text) => void io.stdout.write(text),
    // Faults are printed by printError, in one form for all.
    writeErr: () => {},
    getOutHasColors: () => takesColour(io.stdout, io.env),
    getOutHelpWidth: () => io.stdout.columns ?? 100,
  });
}

function makeOption(row: OptionRow): Option {
  const option = new Option(row.flags, row.help);
  if (row.required) option.makeOptionMandatory();
  const read = (text: string) => {
    const value = row.parse ? row.parse(text) : text;
    if (value !== undefined) return value;
    throw new CoregentError('usage', `${option.long} must be ${row.expects ?? 'another value'}`);
  };
  if (row.repeat) option.argParser((text, before?: unknown[]) => [...(before ?? []), read(text)]);
  else if (row.parse) option.argParser(read);
  return option;
}

function makeContext({ config, json = false, verbose = false }: GlobalOptions, io: Io): Context {
  return {
    config,
    json,
    verbose,
    env: io.env,
    colour: takesColour(io.stdout, io.env),
    out: (text) => void io.stdout.write(`${text}\n`),
    note: (text) => void io.stderr.write(`${text}\n`),
    progress: (label, total) => progress(label, total, json ? { write: () => {} } : io.stderr, io.env),
  };
}

function usage(error: CommanderError): CoregentError {
  // Two lines of commander's: what is wrong, and perhaps "(Did you mean --port?)".
  return new CoregentError('usage', error.message.replace(/^error: /, '').replace(/\s*\n\s*/g, ' '));
}

function printError(error: CoregentError, io: Io, json: boolean): void {
  const paint = colours(!json && takesColour(io.stderr, io.env));
  if (json) {
    io.stderr.write(`${toJson({ schema_version: 1, error })}\n`);
  } else {
    const lines = [`${paint.red(error.code)}: ${visible(error.message, '\n')}`];
    if (error.where !== undefined) lines.push(`  at ${visible(error.where)}`);
    io.stderr.write(`${[...lines, `${paint.bold('Cure:')} ${visible(error.cure)}`].join('\n')}\n`);
  }
  if (io.env.COREGENT_DEBUG === '1') io.stderr.write(`${redact(inspect(error))}\n`);
}
