/** A place in the list: new records come before it, and move nothing behind it. */
export interface Cursor {
  readonly at: string;
  readonly region: string;
  readonly id: string;
}

/** What `--after` takes: `2026-11-21T09:57:55.455123Z,tokyo,12`. */
export function cursorOf({ at, region, id }: Cursor): string {
  return `${at},${region},${id}`;
}

/** Reads {@link cursorOf}; undefined for anything else. */
export function parseCursor(text: string): Cursor | undefined {
  const [, at, region, id] =
    /^(\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z),([a-z][a-z0-9_]*),(\d{1,18})$/.exec(text) ?? [];
  return at !== undefined && !Number.isNaN(Date.parse(at)) ? { at, region: region!, id: id! } : undefined;
}
