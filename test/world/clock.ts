/**
 * Gives a database a clock that can be set: everything that asks for the time there is told another one. For a superuser,
 * ahead of what is installed there.
 */
export const SETTABLE_CLOCK = `
  create schema testing;
  create table testing.clock (ahead interval not null);
  insert into testing.clock values ('0 s');
  alter function pg_catalog.clock_timestamp() rename to true_clock_timestamp;
  create function pg_catalog.clock_timestamp() returns timestamptz language sql volatile
    as 'select pg_catalog.true_clock_timestamp() + (select ahead from testing.clock)'`;

/** Sets it: `$1` is by how much it is ahead of the true time. */
export const SET_CLOCK = 'update testing.clock set ahead = $1';
