/** Minor versions that lose or repeat changes in logical decoding: those of `major` below `fixed`. */
export const KNOWN_BAD: readonly { readonly major: number; readonly fixed: number; readonly why: string }[] = [
  ...[
    { major: 14, fixed: 13 },
    { major: 15, fixed: 8 },
    { major: 16, fixed: 4 },
  ].map((each) => ({ ...each, why: 'a new slot may begin in the middle of a transaction' })),
  ...[
    { major: 14, fixed: 14 },
    { major: 15, fixed: 9 },
    { major: 16, fixed: 5 },
    { major: 17, fixed: 1 },
  ].map((each) => ({ ...each, why: 'a slot’s start may move back to WAL that is gone' })),
];

export const OLDEST_MAJOR = 14;
export const NEWEST_MAJOR = 18;

/** What is wrong with a release, given `server_version_num`: the reasons, and the first minor version that has none of them. */
export function faultsOf(version: number): { readonly whys: readonly string[]; readonly fixed: number } | undefined {
  const [major, minor] = [Math.floor(version / 10_000), version % 10_000];
  const found = KNOWN_BAD.filter((each) => each.major === major && minor < each.fixed);
  if (found.length === 0) return undefined;
  return { whys: found.map(({ why }) => why), fixed: Math.max(...found.map(({ fixed }) => fixed)) };
}
