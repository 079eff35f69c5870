// Loaded ahead of a process's own program: ends the process when whoever started it is gone and its stdin closes.
process.stdin.on('error', () => {}).on('close', () => process.exit(1));
process.stdin.resume();
(process.stdin as typeof process.stdin & { unref?(): void }).unref?.();
