/** Something that `apply` does not refuse, and that people should know before they rely on the tables. */
export interface Warning {
  readonly code: 'passed_over' | 'sequence_collides' | 'generated_differs' | 'fires_on_apply' | 'large_objects';
  /** The table that it is about; null for what concerns the databases as a whole. */
  readonly object: string | null;
  readonly message: string;
  /** What to run in which region. */
  readonly cure: readonly { readonly region: string; readonly sql: string }[];
}
