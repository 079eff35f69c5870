import type { Table } from '../model/table.ts';
import { ident } from '../quote.ts';

/**
 * A condition: the rows of two aliases have one key. By the equality of the primary key's own operator class, because a plain `=`
 * is looked up on the search path, where a type of an extension (`citext`) would silently be compared as the type it casts to.
 */
export function sameKey(table: Table, a: string, b: string): string {
  return table.key
    .map((name, index) => `${a}.${ident(name)} ${table.keyEquals[index]} ${b}.${ident(name)}`)
    .join(' and ');
}
