/** The two parts of `schema.table`; the first is empty when there is no dot. A table name may hold dots itself. */
export function splitGlob(glob: string): [schema: string, table: string] {
  const dot = glob.indexOf('.');
  return dot < 0 ? ['', glob] : [glob.slice(0, dot), glob.slice(dot + 1)];
}

/** Whether the glob names this table: `*` stands for any characters of its part, `?` for one. */
export function globMatches(glob: string, schema: string, table: string): boolean {
  const [schemaPart, tablePart] = splitGlob(glob);
  return partMatches(schemaPart, schema) && partMatches(tablePart, table);
}

function partMatches(part: string, text: string): boolean {
  const pattern = part
    .replace(/[\\^$.+()|[\]{}]/g, '\\$&')
    .replace(/\*+/g, '.*')
    .replace(/\?/g, '.');
  return new RegExp(`^${pattern}$`, 'su').test(text);
}

/** How exact a glob is: without wildcards most of all, else by its number of plain characters. */
export function exactness(glob: string): number {
  return /[*?]/.test(glob) ? glob.replace(/[*?]/g, '').length : Number.MAX_SAFE_INTEGER;
}
