import { redact } from './error.ts';

/**
 * A text that may hold a password, such as a database URL. Only `reveal()` gives it away: printing, joining,
 * JSON and `util.inspect` give `***`.
 */
export class Secret {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  /** The text itself; hand it to the driver and nowhere else. */
  reveal(): string {
    return this.#text;
  }

  /** The URL with its password masked, fit for people; `***` when it is not a PostgreSQL URL. */
  display(): string {
    return /^postgres(ql)?:\/\//i.test(this.#text) ? redact(this.#text) : '***';
  }

  toString(): string {
    return '***';
  }

  toJSON(): string {
    return '***';
  }

  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return 'Secret(***)';
  }
}
