interface Version {
  readonly row: Readonly<Record<string, string | null>>;
}

/** Of all versions something, of the last one the rest: what the function `put_together` does in SQL. */
export default function together(versions: readonly Version[]): Record<string, unknown> {
  return { ...versions.at(-1)!.row, a: versions.map(({ row }) => row.a).join('-') };
}
