import querystring from 'node:querystring';

function parseUrl(text: string): URL | undefined {
  // URL's own error would carry the text, password included.
  const parsed = URL.canParse(text) ? new URL(text) : undefined;
  return parsed && /^postgres(ql)?:$/.test(parsed.protocol) ? parsed : undefined;
}

/** What is wrong with a database URL, in words that never quote it; undefined when nothing is. */
export function urlFault(text: string): string | undefined {
  const parsed = parseUrl(text);
  if (!parsed) return 'is not a URL like postgres://user:***@host:5432/database (%-encode special characters)';
  if (parsed.hash) return 'has a # in it; write %23 for a # of the password';
  // What stands before a / is then taken for the host, and the rest of the password for the database's name.
  if (parsed.pathname.includes('@')) return 'has an @ behind the host; write %2F for a / of the password';
  if (parsed.hostname.includes(',')) return 'names several hosts; name one';
  if (parsed.pathname.length < 2) return 'names no database; end it with /database';
  return undefined;
}

/** The role and the database that a URL names, decoded; undefined what it leaves to the driver. */
export function loginOf(text: string): { readonly role?: string; readonly database?: string } {
  const parsed = parseUrl(text);
  if (!parsed) return {};
  const role = parsed.searchParams.get('user') || querystring.unescape(parsed.username);
  const database = querystring.unescape(parsed.pathname.slice(1));
  return { ...(role && { role }), ...(database && { database }) };
}

/** Host, port and database of a valid URL: two equal ones reach the same database. */
export function serverOf(text: string): string | undefined {
  const parsed = parseUrl(text);
  if (!parsed || urlFault(text)) return undefined;
  const host = parsed.searchParams.get('host') ?? parsed.hostname;
  return `${host.toLowerCase()}:${parsed.port || (parsed.searchParams.get('port') ?? 5432)}${parsed.pathname}`;
}
