#!/usr/bin/env node
import { runCli } from './program.ts';

// `coregent status | head` closes the pipe early; that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

const code = await runCli(process.argv.slice(2), process);
// What is still queued for a slow pipe is written first; a forgotten timer must not keep the command alive.
process.stdout.write('', () => process.stderr.write('', () => process.exit(code)));
