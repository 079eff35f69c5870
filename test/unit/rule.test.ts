import { describe, expect, it } from 'vitest';
import { familyOf, LWW, parseRule, type Rule, ruleText } from '../../src/model/rule.ts';

const likes: Rule = { conflict: 'lww', columns: { tags: 'set', likes: 'counter' } };

describe('a rule', () => {
  it('is one text in every region, whatever order its columns are named in', () => {
    const turned: Rule = { conflict: 'lww', columns: { likes: 'counter', tags: 'set' } };
    expect(ruleText(likes)).toBe(ruleText(turned));
    expect(ruleText(LWW)).toBe('lww');
  });

  it.each<Rule>([
    LWW,
    likes,
    { conflict: 'columns', columns: {} },
    { conflict: 'custom', columns: {}, custom: 'shop.pick' },
    { conflict: 'lww', columns: {}, owner: { column: 'home', list: { tokyo: ['JP'] }, default: 'tokyo' } },
  ])('%j is read back from its text', (rule) => {
    expect(parseRule(ruleText(rule))).toEqual(rule);
  });

  it('needs a state only where whole rows and versions are not enough', () => {
    expect(familyOf(LWW)).toBe('rows');
    expect(familyOf(likes)).toBe('registers');
    expect(familyOf({ conflict: 'columns', columns: {} })).toBe('registers');
    expect(familyOf({ conflict: 'siblings', columns: {} })).toBe('versions');
  });
});
