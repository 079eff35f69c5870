/** The whole number that the text is, from `least` to `most`; undefined for anything else. */
export function whole(text: string, least: number, most: number): number | undefined {
  const number = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  return number >= least && number <= most ? number : undefined;
}
