import type { LSN } from '../model/lsn.ts';

/**
 * Decides what may be confirmed to a peer: only what is durable here.
 * Apply commits are asynchronous, so a commit counts once the local WAL is flushed past it;
 * a confirmed position must survive a crash of the local server, because the peer drops its WAL before it.
 * The two LSNs of an entry belong to different servers and are never compared with each other.
 */
export class Acknowledger {
  /** Applied and not yet durable, oldest first. */
  readonly #pending: { readonly peer: LSN; readonly local: LSN }[] = [];
  #durable: LSN;

  constructor(start: LSN) {
    this.#durable = start;
  }

  /** The peer's position up to which everything is durable here. Never moves back. */
  get durable(): LSN {
    return this.#durable;
  }

  /** The local position that must be flushed before all that was applied is durable; undefined when it is. */
  get awaited(): LSN | undefined {
    return this.#pending.at(-1)?.local;
  }

  /** The peer's WAL up to `peer` was applied by a commit that ends at `local` in the local WAL. */
  applied(peer: LSN, local: LSN): void {
    const last = this.#pending.at(-1);
    // One flush covers many commits; the queue stays short however fast batches come.
    if (last && this.#pending.length >= 64) this.#pending.pop();
    this.#pending.push({ peer, local: last && last.local > local ? last.local : local });
  }

  /** The local WAL is flushed up to `local`. */
  flushed(local: LSN): void {
    while (this.#pending.length > 0 && this.#pending[0]!.local <= local) this.#durable = this.#pending.shift()!.peer;
  }

  /** Nothing is in flight, and nothing before `position` concerns this region: idle WAL is released too. */
  idle(position: LSN): void {
    if (this.#pending.length === 0 && position > this.#durable) this.#durable = position;
  }
}
