import { CoregentError } from '../model/error.ts';
import { STATE, type Table, tableLabel } from '../model/table.ts';
import type { GivenVersion, Modules } from '../modules.ts';
import type { Deciders } from './make.ts';

/** Rows whose rule is a module, made by it. */
export function decidersOf(modules: Modules): Deciders {
  return {
    async make(table: Table, rows) {
      const columns = table.columns.flatMap(({ name }) => (name === STATE ? [] : [name]));
      const given = rows.map(({ of }) => ({ versions: JSON.parse(of) as GivenVersion[], columns, key: table.key }));
      const made = await modules.make(table.rule!, given);
      return made.map((each, index) => {
        if ('made' in each) return each.made;
        const where = `${table.rule!.custom} (${tableLabel(table)} ${rows[index]!.key})`;
        // 38000: a routine outside of SQL failed.
        const cause = Object.assign(new Error(each.error), { code: '38000' });
        throw new CoregentError('apply_failed', `${where}: ${each.error}`, { cause });
      });
    },
  };
}
