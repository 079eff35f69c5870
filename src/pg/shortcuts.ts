import type { ScriptResult, Step, StepResult } from './script.ts';
import { applyError, isUniqueViolation } from './steps.ts';

/** After a shortcut failed, so many batches at most go the other way. */
const BACKOFF_MAX = 64;

/** Ways of applying a batch that are fast, and fail where something is not as it nearly always is. Each has a name. */
export class Shortcuts {
  readonly #run: (steps: readonly Step[]) => Promise<ScriptResult>;
  readonly #pauses = new Map<string, { left: number; next: number }>();

  constructor(run: (steps: readonly Step[]) => Promise<ScriptResult>) {
    this.#run = run;
  }

  /** Whether it may be tried; each failure keeps it away for twice as many batches. */
  may(name: string): boolean {
    const pause = this.#pauses.get(name);
    if (!pause || pause.left === 0) return true;
    pause.left--;
    return false;
  }

  failed(name: string): void {
    const next = Math.min(BACKOFF_MAX, (this.#pauses.get(name)?.next ?? 1) * 2);
    this.#pauses.set(name, { left: next, next });
  }

  worked(name: string): void {
    this.#pauses.delete(name);
  }

  note(name: string, worked: boolean): void {
    if (worked) this.worked(name);
    else this.failed(name);
  }

  /** Runs its steps under a savepoint; undefined, and nothing done, where a key was there already. Throws like `Store.apply`. */
  async attempt(name: string, steps: readonly Step[]): Promise<readonly StepResult[] | undefined> {
    const { results, error } = await this.#run([{ text: 'savepoint tried' }, ...steps, { text: 'release tried' }]);
    if (!error) {
      this.worked(name);
      return results.slice(1);
    }
    if (!isUniqueViolation(error)) throw applyError(error);
    this.failed(name);
    const { error: lost } = await this.#run([{ text: 'rollback to tried' }]);
    if (lost) throw applyError(lost);
    return undefined;
  }
}
