import { startWorld, type World, type WorldEvent, type WorldView } from '../demo/world.ts';
import { DEFAULT_PORT } from '../model/api.ts';
import { EXIT } from '../model/error.ts';
import { pause } from '../pause.ts';
import { VERSION } from '../version.ts';
import type { Context } from './context.ts';
import { banner, clip, closing, liveBlock, type Sample, type Summary } from './screen.ts';

/** Options of `coregent demo`. */
export interface DemoOptions {
  readonly regions?: number;
  readonly port?: number;
  /** False with `--no-load`. */
  readonly load: boolean;
}

/** Where the demo shows what it does: a terminal, redrawn in place, or a line of JSON for each event and second. */
interface Show {
  event(event: WorldEvent): void;
  ready(world: World, readyMs: number): void;
  view(sample: Sample): void;
  ending(): void;
  ended(summary: Summary): void;
}

const EVERY_MS = 1_000;

/**
 * `coregent demo`: regions of real PostgreSQL on this machine, WAN latency between them, agents, and a small application.
 * Runs until SIGINT, SIGTERM or `q`; then compares the regions and leaves nothing behind. 0 equal, 3 rows differ.
 * A second signal ends it at once.
 */
export async function run({ regions = 3, port = DEFAULT_PORT, load }: DemoOptions, context: Context): Promise<number> {
  const live = process.stdout.isTTY === true && !context.json && context.env.TERM !== 'dumb';
  const keys = live && process.stdin.isTTY === true;
  const show = live ? terminal(context, { regions, keys }) : lines(context);
  const asked = stopSignals();
  const world = await startWorld({ regions, port, latency: 'real', load, onEvent: show.event });
  try {
    // Since the process began: what a person waited for.
    show.ready(world, performance.now());
    asked.gently();
    const startedAt = performance.now();
    const restore = keys ? listen(world, show, asked.stop) : () => {};
    try {
      while (!asked.signal.aborted) {
        show.view({ atMs: performance.now(), view: await world.view() });
        await pause(EVERY_MS, asked.signal);
      }
    } finally {
      restore();
    }
    const elapsedMs = performance.now() - startedAt;
    show.ending();
    const verdicts = await world.compare();
    show.ended({ elapsedMs, view: await world.view(), verdicts });
    return verdicts.every(({ differences }) => differences.length === 0) ? EXIT.ok : EXIT.findings;
  } finally {
    await world.stop();
  }
}

/** Signals end the process at once (its servers end with it) until `gently`; from then on the first one only asks. */
function stopSignals(): { readonly signal: AbortSignal; stop(): void; gently(): void } {
  const controller = new AbortController();
  let gentle = false;
  for (const [name, number] of [['SIGINT', 2] as const, ['SIGTERM', 15] as const]) {
    process.on(name, () => {
      if (!gentle || controller.signal.aborted) process.exit(128 + number);
      controller.abort();
    });
  }
  return {
    signal: controller.signal,
    stop: () => controller.abort(),
    gently: () => {
      gentle = true;
    },
  };
}

/** Hotkeys; returns what gives the keyboard back. Ctrl-C arrives as a key while they are on. */
function listen(world: World, show: Show, quit: () => void): () => void {
  const { stdin } = process;
  const names = world.regions.map(({ name }) => name);
  const links = names.flatMap((a, index) => names.slice(index + 1).map((b) => [a, b] as const));
  let cut = 0;
  let busy = Promise.resolve();
  const later = (work: () => Promise<unknown>): void => {
    busy = busy.then(work).then(
      () => {},
      (error) => show.event({ time: new Date().toISOString(), event: 'demo.failed', error: String(error) }),
    );
  };
  const onKey = (text: Buffer): void => {
    for (const key of text.toString()) {
      if (key === 'q' || key === '\u0003') quit();
      const link = links[cut];
      if (key === 'c' && link) {
        cut++;
        later(() => world.cut(...link));
      }
      if (key === 'h') {
        const healed = links.slice(0, cut);
        cut = 0;
        later(() => Promise.all(healed.map((each) => world.heal(...each))));
      }
    }
  };
  stdin.setRawMode(true).on('data', onKey).resume();
  return () => {
    stdin.setRawMode(false).off('data', onKey).pause();
  };
}

/** NDJSON: one object a line, `time` and `event` first. */
function lines(context: Context): Show {
  const say = (event: string, fields: object): void => {
    context.out(JSON.stringify({ time: new Date().toISOString(), event, ...fields }));
  };
  return {
    event: ({ time, event, ...fields }) => context.out(JSON.stringify({ time, event, ...fields })),
    ready(world, readyMs) {
      const { regions } = world;
      say('demo.ready', {
        ready_ms: Math.round(readyMs),
        version: VERSION,
        node: process.versions.node,
        config: world.configFile,
        regions: regions.map(({ name, id, version, url, agentUrl }) => ({ name, id, version, url, agent: agentUrl })),
        round_trip_ms: regions.flatMap(({ name: a }, index) =>
          regions.slice(index + 1).map(({ name: b }) => ({ between: [a, b], ms: 2 * world.latencyMs(a, b) })),
        ),
      });
    },
    view: ({ view }) => say('demo.status', compact(view)),
    ending: () => say('demo.ending', {}),
    ended: ({ elapsedMs, view, verdicts }) =>
      say('demo.ended', {
        elapsed_ms: Math.round(elapsedMs),
        ...compact(view),
        tables: verdicts.map(({ table, rows, differences }) => ({ table, rows, differing: differences.length })),
        equal: verdicts.every(({ differences }) => differences.length === 0),
      }),
  };
}

/** What an agent says of its peers is in the links already. */
function compact({ regions, links }: WorldView) {
  return {
    regions: regions.map(({ region, agent, rows, conflicts, conflicts_by_table, written }) => {
      return { region, agent: agent?.state ?? null, rows, conflicts, conflicts_by_table, written };
    }),
    links,
  };
}

/** A terminal: the banner once, then the live part over itself. */
function terminal(context: Context, { regions, keys }: { regions: number; keys: boolean }): Show {
  const events: WorldEvent[] = [];
  const { stdout } = process;
  let before: Sample | undefined;
  let drawn = 0;
  const draw = (text: string): void => {
    const fitting = text.split('\n').slice(0, Math.max(1, (stdout.rows ?? 24) - 1));
    const shown = fitting.map((line) => clip(line, (stdout.columns ?? 80) - 1)).join('\n');
    stdout.write(`${drawn > 0 ? `\u001b[${drawn}A\r` : ''}\u001b[J${shown}\n`);
    drawn = fitting.length;
  };
  stdout.write('\u001b[?25l');
  process.once('exit', () => stdout.write('\u001b[?25h'));
  draw(`Starting ${regions} regions of PostgreSQL …`);
  return {
    event(event) {
      events.push(event);
      if (events.length > 200) events.splice(0, 100);
    },
    ready(world, readyMs) {
      const taken = events.filter(({ event }) => event === 'port.taken');
      const notes = taken.map(({ what, wanted, port }) => `Port ${wanted} is taken: ${what} is on ${port}.`);
      stdout.write(`\u001b[${drawn}A\r\u001b[J`);
      context.out([banner(world, { readyMs, keys, colour: context.colour }), ...notes, ''].join('\n'));
      events.length = 0;
      drawn = 0;
    },
    view(sample) {
      draw(liveBlock(sample, before, events, context.colour));
      before = sample;
    },
    ending() {
      drawn = 0;
      context.out('Stopping: the load ends, links heal, rows are compared … (Ctrl-C: at once)');
    },
    ended(summary) {
      context.out(`\n${closing(summary, context.colour)}`);
    },
  };
}
