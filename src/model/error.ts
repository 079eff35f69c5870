/** The exit codes of every `coregent` command; a contract with users' scripts. */
export const EXIT = { ok: 0, failed: 1, usage: 2, findings: 3, unreachable: 4, refused: 5 } as const;

/** `never`: a person must act. `later`: the same attempt may succeed. `reconnect`: only a new connection can. */
export type Retry = 'never' | 'later' | 'reconnect';

interface ErrorRow {
  readonly exit: (typeof EXIT)[keyof typeof EXIT];
  readonly retry: Retry;
  readonly cure: string;
}

/** Every error Coregent raises: the process exit code, whether to retry, and what a person can do about it. */
export const errors = {
  config_missing: { exit: 2, retry: 'never', cure: 'Run `coregent init`, or name the file with --config.' },
  config_invalid: { exit: 2, retry: 'never', cure: 'Correct the lines named above; nothing was started or changed.' },
  usage: { exit: 2, retry: 'never', cure: 'See `coregent --help`.' },
  file_unusable: { exit: 1, retry: 'never', cure: 'Check that the path exists and that this user may use it.' },
  port_unavailable: { exit: 1, retry: 'never', cure: 'Choose another port with --port, or stop what listens there.' },
  refused: {
    exit: 5,
    retry: 'never',
    cure: 'Read what would be lost, then say so explicitly with the flag named above.',
  },
  unsupported: {
    exit: 1,
    retry: 'never',
    cure: 'See “What each region needs” in docs/start.md: PostgreSQL 14 or later, wal_level = logical.',
  },

  peer_unreachable: {
    exit: 4,
    retry: 'reconnect',
    cure: 'Check the region’s url, its pg_hba.conf, and the network between the two.',
  },
  peer_restarting: { exit: 4, retry: 'reconnect', cure: 'Wait: the server is starting, stopping or recovering.' },
  peer_denied: {
    exit: 4,
    retry: 'reconnect',
    cure: 'Check user and password of the url, and pg_hba.conf of the region.',
  },
  peer_untrusted: {
    exit: 4,
    retry: 'reconnect',
    cure: 'Check the server’s certificate, sslmode and sslrootcert of the url.',
  },
  peer_database_missing: { exit: 4, retry: 'reconnect', cure: 'Check the database name at the end of the url.' },
  peer_busy: { exit: 4, retry: 'reconnect', cure: 'Raise max_connections, max_wal_senders or memory of that server.' },
  peer_read_only: {
    exit: 4,
    retry: 'reconnect',
    cure: 'Let the url name the primary: this server is a standby or set read-only.',
  },
  peer_not_ready: {
    exit: 1,
    retry: 'later',
    cure: 'Run `coregent doctor`: it says what is missing, such as wal_level = logical.',
  },
  peer_protocol: { exit: 1, retry: 'reconnect', cure: 'Check that the url reaches PostgreSQL itself, not a pooler.' },
  peer_identity: {
    exit: 5,
    retry: 'never',
    cure: 'The url reaches another server than before; check it. After a restore, run `coregent apply --restored REGION`.',
  },
  peer_behind: {
    exit: 4,
    retry: 'later',
    cure: 'Start the agents of all regions and wait until `coregent status` shows no lag.',
  },
  privilege_missing: {
    exit: 1,
    retry: 'later',
    cure: 'Give the role what `coregent doctor --grants` prints.',
  },
  not_owner: {
    exit: 5,
    retry: 'never',
    cure: 'Write the row in the region that owns it: docs/rules/owner.md. To move it, update its owner there.',
  },
  disk_full: { exit: 1, retry: 'later', cure: 'Free disk space on that server; replication goes on by itself.' },

  slot_missing: { exit: 1, retry: 'never', cure: 'Run `coregent apply`: it makes the slot and joins the rows.' },
  slot_lost: {
    exit: 1,
    retry: 'later',
    cure: 'None needed: the slot, or WAL that it needed, was dropped; it is made anew, and the rows are joined.',
  },
  slot_busy: { exit: 1, retry: 'later', cure: 'Another agent of this region reads the slot; stop it or wait.' },
  slot_limit: { exit: 1, retry: 'later', cure: 'Raise max_replication_slots of that server, or drop unused slots.' },

  schema_missing: {
    exit: 1,
    retry: 'later',
    cure: 'Run `coregent apply`: schema coregent of the region is missing, or older than this coregent.',
  },
  schema_differs: { exit: 1, retry: 'later', cure: 'Make the table equal in every region, then run `coregent apply`.' },
  schema_changed: { exit: 1, retry: 'later', cure: 'None needed: the link begins again with the tables as they are.' },
  schema_too_new: {
    exit: 1,
    retry: 'never',
    cure: 'Upgrade coregent here: another agent already upgraded this region.',
  },

  apply_failed: {
    exit: 1,
    retry: 'never',
    cure: 'The row is parked with its error; mend the table or the row, then retry it.',
  },
  apply_interrupted: {
    exit: 1,
    retry: 'later',
    cure: 'None needed: a lock, deadlock or timeout ended it; it is retried.',
  },
  progress_fenced: {
    exit: 1,
    retry: 'reconnect',
    cure: 'Another agent moved this region’s progress; only one may run.',
  },
  clock_ahead: {
    exit: 1,
    retry: 'later',
    cure: 'Set the clock of the region named above (NTP); its rows wait until then.',
  },
  clock_unusable: {
    exit: 1,
    retry: 'later',
    cure: 'Set that region’s clock right (NTP). No region takes what was written there meanwhile; docs/operate.md says how it is stamped anew.',
  },
  data_corrupt: { exit: 1, retry: 'never', cure: 'The server reports corrupt data; restore it before going on.' },

  unknown: { exit: 1, retry: 'reconnect', cure: 'Set COREGENT_DEBUG=1 for the stack, and report it if it stays.' },
  internal_assert: {
    exit: 1,
    retry: 'never',
    cure: 'This is a fault of Coregent; report it with COREGENT_DEBUG=1 output.',
  },
} as const satisfies Record<string, ErrorRow>;

/** The stable name of an error; scripts and alarms may match on it. */
export type ErrorCode = keyof typeof errors;

/** One fault of several reported together, such as a wrong line of the configuration file. */
export interface Fault {
  readonly path: string;
  readonly line?: number;
  readonly message: string;
}

interface ErrorOptions {
  /** What it concerns: `tokyo`, `coregent.yaml:7`, `public.orders`. */
  readonly where?: string;
  /** A cure more exact than the one in the table. */
  readonly cure?: string;
  readonly cause?: unknown;
  readonly faults?: readonly Fault[];
}

/** What a CoregentError looks like in JSON output; never holds a stack or a password. */
export interface ErrorDocument {
  readonly code: ErrorCode;
  readonly message: string;
  readonly where?: string;
  readonly cure: string;
  readonly exit: number;
  readonly retry: Retry;
  readonly faults?: readonly Fault[];
}

/** The one error class. All its text is redacted when it is made; `cause` keeps the original for debugging. */
export class CoregentError extends Error {
  override readonly name = 'CoregentError';
  readonly code: ErrorCode;
  readonly where?: string;
  readonly cure: string;
  readonly faults?: readonly Fault[];

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(redact(message), 'cause' in options ? { cause: options.cause } : undefined);
    this.code = code;
    this.cure = redact(options.cure ?? errors[code].cure);
    if (options.where !== undefined) this.where = redact(options.where);
    if (options.faults)
      this.faults = options.faults.map((fault) => ({
        ...fault,
        path: redact(fault.path),
        message: redact(fault.message),
      }));
  }

  get exit(): number {
    return errors[this.code].exit;
  }

  get retry(): Retry {
    return errors[this.code].retry;
  }

  toJSON(): ErrorDocument {
    return {
      code: this.code,
      message: this.message,
      ...(this.where === undefined ? {} : { where: this.where }),
      cure: this.cure,
      exit: this.exit,
      retry: this.retry,
      ...(this.faults ? { faults: this.faults } : {}),
    };
  }

  /** `console.log` and `util.inspect` show the chain of causes by text only: a driver's error may carry its settings. */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    const chain: string[] = [];
    for (let at: unknown = this; at instanceof Error && chain.length < 8; at = at.cause) {
      chain.push(at instanceof CoregentError ? `${at.code}: ${at.stack ?? at.message}` : (at.stack ?? at.message));
    }
    return redact(chain.join('\ncaused by '));
  }
}

/** Throws `internal_assert` when an invariant does not hold; the message names the invariant. */
export function assert(holds: unknown, invariant: string): asserts holds {
  if (!holds) throw new CoregentError('internal_assert', invariant);
}

/** What node-postgres says, by its words alone, of a connection that is gone. */
const GONE = /^(Connection terminated|Client (was closed|has encountered a connection error))/;

/** Turns anything thrown into a CoregentError, by SQLSTATE or errno; a CoregentError comes back as it is. */
export function classify(error: unknown, where?: string): CoregentError {
  if (error instanceof CoregentError) return error;
  const code = errorCode(error);
  const gone = code === '' && GONE.test(textOf(error)) ? 'peer_unreachable' : undefined;
  return new CoregentError(bySqlstate(code) ?? byErrno(code) ?? gone ?? 'unknown', textOf(error), {
    ...(where === undefined ? {} : { where }),
    cause: error,
  });
}

function errorCode(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' ? code : '';
}

function textOf(error: unknown): string {
  // A refused connection to a name with two addresses is an AggregateError whose own message is empty.
  if (error instanceof AggregateError && !error.message) return error.errors.map(textOf).join('; ');
  if (error instanceof Error) return error.message || error.name;
  return String(error);
}

/** Exact SQLSTATEs first, then their classes. See the PostgreSQL manual, appendix A. */
const sqlstates: Readonly<Record<string, ErrorCode>> = {
  '08P01': 'peer_protocol',
  '25006': 'peer_read_only',
  '3D000': 'peer_database_missing',
  '3F000': 'schema_missing',
  '42501': 'privilege_missing',
  '42703': 'schema_missing',
  '42704': 'schema_missing',
  '42P01': 'schema_missing',
  '53100': 'disk_full',
  '53400': 'slot_limit',
  '55000': 'peer_not_ready',
  '55006': 'slot_busy',
  '55P03': 'apply_interrupted',
  '57014': 'apply_interrupted',
  '58P01': 'slot_lost',
  CG001: 'not_owner',
  XX001: 'data_corrupt',
  XX002: 'data_corrupt',
  '08': 'peer_unreachable',
  '0A': 'unsupported',
  '22': 'apply_failed',
  '23': 'apply_failed',
  '25': 'apply_interrupted',
  '28': 'peer_denied',
  '40': 'apply_interrupted',
  '42': 'schema_differs',
  '53': 'peer_busy',
  '57': 'peer_restarting',
};

function bySqlstate(code: string): ErrorCode | undefined {
  // Five characters alone would also match EPIPE: a SQLSTATE has a digit in it.
  if (!/^(?=.*\d)[0-9A-Z]{5}$/.test(code)) return undefined;
  return sqlstates[code] ?? sqlstates[code.slice(0, 2)];
}

const errnos: Readonly<Record<string, ErrorCode>> = {
  ECONNREFUSED: 'peer_unreachable',
  ECONNRESET: 'peer_unreachable',
  ECONNABORTED: 'peer_unreachable',
  EPIPE: 'peer_unreachable',
  ETIMEDOUT: 'peer_unreachable',
  EHOSTUNREACH: 'peer_unreachable',
  EHOSTDOWN: 'peer_unreachable',
  ENETUNREACH: 'peer_unreachable',
  ENETDOWN: 'peer_unreachable',
  ENOTFOUND: 'peer_unreachable',
  EAI_AGAIN: 'peer_unreachable',
  EADDRINUSE: 'port_unavailable',
  EADDRNOTAVAIL: 'port_unavailable',
  ENOENT: 'file_unusable',
  EACCES: 'file_unusable',
  EPERM: 'file_unusable',
  EISDIR: 'file_unusable',
  ENOTDIR: 'file_unusable',
  EROFS: 'file_unusable',
  ENOSPC: 'disk_full',
};

function byErrno(code: string): ErrorCode | undefined {
  if (Object.hasOwn(errnos, code)) return errnos[code];
  // Node names the faults of TLS verification after OpenSSL's, and its own ERR_TLS_… and ERR_SSL_….
  return /^(ERR_TLS_|ERR_SSL_|CERT_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH)/.test(code)
    ? 'peer_untrusted'
    : undefined;
}

/**
 * Masks passwords in free text: in URLs, in `password=…` (conninfo, query string, JSON, YAML), in SQL `PASSWORD '…'`,
 * and bearer tokens. Where the end of a password is unclear it masks too much rather than too little.
 */
export function redact(text: string): string {
  return (
    text
      // A raw `/`, `#` or `@` in a password makes a broken URL, and broken URLs are what error messages quote.
      .replace(/(\bpostgres(?:ql)?:\/\/[^\s:@/?#]*:)(?:(?!:\/\/)\S)*@/gi, '$1***@')
      .replace(/(\b[a-z][a-z0-9+.-]*:\/\/[^\s:@/?#]*:)[^\s/?#]*@/gi, '$1***@')
      .replace(
        /(pass(?:word|wd|phrase)?["']?\s*[=:]\s*)(?:'(?:[^'\\]|\\.|'')*'?|"(?:[^"\\]|\\.)*"?|[^\s&]+)/gi,
        '$1***',
      )
      .replace(/(\bpassword\s+)(?:E?'(?:[^'\\]|\\.|'')*'?)/gi, '$1***')
      .replace(/(\bbearer\s+)[\w.~+/=-]+/gi, '$1***')
  );
}
