/**
 * Parses JSON that a database wrote without losing a digit: a number that JavaScript cannot hold exactly stays a text.
 * Versions and an application's own int8 and numeric values are such numbers.
 */
export function parseExact(text: string): unknown {
  return JSON.parse(
    text.replace(/"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g, (token) =>
      token.startsWith('"') || String(Number(token)) === token ? token : `"${token}"`,
    ),
  );
}
