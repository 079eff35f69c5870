interface Version {
  readonly version: bigint;
  readonly row: { readonly n: string | null; readonly v: string } & Readonly<Record<string, unknown>>;
}

/** The version with the greatest `n`, with the words of all: what the function `most` does in SQL. */
export default function most(versions: readonly Version[]): Record<string, unknown> {
  if (versions.some(({ row }) => Number(row.n) < 0)) throw new Error('less than nothing');
  while (versions.some(({ row }) => row.v === 'endless'));
  const amount = ({ row }: Version): number => (row.n === null ? Number.POSITIVE_INFINITY : Number(row.n));
  const [first] = [...versions].sort((a, b) => amount(b) - amount(a) || (a.version < b.version ? -1 : 1));
  const words = versions.map(({ row }) => row.v).sort();
  return { ...first!.row, v: words.join('+'), id: 77 };
}
