import { CoregentError } from '../model/error.ts';
import type { Queryable } from './connect.ts';
import type { OpenRegion } from './setup.ts';

/** How a database writes texts, and compares them where nothing else is said. */
export interface Letters {
  readonly encoding: string;
  readonly collation: string;
}

/** Asks the database of a connection. */
export async function readLetters(client: Queryable): Promise<Letters> {
  const { rows } = await client.query(
    `select pg_encoding_to_char(encoding) as encoding,
        trim(datcollate || ' ' || coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale', '')) as collation
      from pg_database d where datname = current_database()`,
  );
  return rows[0];
}

/** What to do with a database of another encoding or collation. */
export function madeAnew(what: string): string {
  return `Make the database anew ${what}, and restore its dump there.`;
}

/** Throws `refused` when databases have different encodings: letters that one has and another lacks could not travel. */
export async function refuseEncodings(open: readonly OpenRegion[]): Promise<void> {
  const [first, ...others] = await Promise.all(open.map(({ client }) => readLetters(client)));
  for (const [index, { encoding }] of others.entries()) {
    if (encoding === first!.encoding) continue;
    const message = `its database is ${encoding}, that of ${open[0]!.region.name} is ${first!.encoding}`;
    throw new CoregentError('refused', message, {
      where: open[index + 1]!.region.name,
      cure: madeAnew(`with encoding ${first!.encoding}`),
    });
  }
}
