import { rmSync } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AgentProcess, runCli, type Setting } from './agent.ts';
import type { Processes } from './proc.ts';
import { DATABASE } from './server.ts';
import { eastUrl, Pair, type Side } from './side.ts';

const SLOT = 'coregent_bench_1_2';
const config = (tables: Readonly<Record<string, object>>): string =>
  JSON.stringify({
    cluster: 'bench',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the file's own placeholders
    regions: { east: { id: 1, url: '${EAST_URL}' }, west: { id: 2, url: '${WEST_URL}' } },
    tables: { 'public.*': {}, ...tables },
  });

/** Coregent between two regions, of which only the west's agent runs: rows flow from east to west. */
export class CoregentSide implements Side {
  readonly name = 'coregent';
  readonly pair: Pair;
  readonly #folder: string;
  readonly #setting: Setting;
  readonly #flags: readonly string[];
  #agent: AgentProcess | undefined;

  private constructor(pair: Pair, folder: string, flags: readonly string[]) {
    this.pair = pair;
    this.#folder = folder;
    this.#flags = flags;
    const env = { EAST_URL: pair.east.url(DATABASE), WEST_URL: pair.west.url(DATABASE) };
    this.#setting = { config: join(folder, 'coregent.yaml'), env };
  }

  static async start(flags: readonly string[]): Promise<CoregentSide> {
    const folder = await mkdtemp(join(tmpdir(), 'coregent-bench-'));
    process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
    return new CoregentSide(await Pair.start('coregent'), folder, flags);
  }

  /** With `tables`, as `coregent.yaml` has them: by rules of their own. */
  async prepare(schema: readonly string[], tables: Readonly<Record<string, object>> = {}): Promise<void> {
    await writeFile(this.#setting.config, config(tables));
    await this.pair.recreate(schema);
    await runCli(this.#setting, 'apply');
  }

  async start(port = this.pair.east.port): Promise<void> {
    const env = { ...this.#setting.env, EAST_URL: eastUrl(this.pair, port) };
    const agent = await AgentProcess.start(
      { ...this.#setting, env },
      'west',
      join(this.#folder, 'west.log'),
      this.#flags,
    );
    this.#agent = agent;
    await this.pair.streaming(SLOT).catch(async (error) => {
      await agent.check();
      throw error;
    });
  }

  async stop(): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    await agent?.stop();
    await this.pair.idle(SLOT);
  }

  async processes(): Promise<Processes> {
    const walsender = await this.pair.streaming(SLOT);
    const [control, apply] = await Promise.all(
      [this.pair.eastClient, this.pair.westClient].map(async (client) => {
        const { rows } = await client.query(
          `select pid from pg_stat_activity
            where application_name like 'coregent %' and datname = current_database() and backend_type = 'client backend'`,
        );
        return rows.map((row) => row.pid as number);
      }),
    );
    return new Map([
      ['walsender', [walsender]],
      ['agent', [this.#agent!.pid]],
      ['apply', apply!],
      ['control', control!],
    ]);
  }

  async close(): Promise<void> {
    await this.#agent?.stop();
    await this.pair.close();
  }
}
