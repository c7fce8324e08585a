"""Helios: the data layer of a trading system, in a PostgreSQL schema of its own.

The map, from the top; a module imports only what stands below it:

    cli                            the `helios` command: the only part that prints and asks
    testing                        tests that leave nothing behind: undo log, runs, plugin, orphans
    backfill | feed | retention    files of klines, and what the exchange says, into the tables; what is old out of them
    adopting | growing             beside them: an older installation into the tables; klines into a hypertable and back
    quality                        how well we heard: facts, scores, alerts, for all that write
    queries                        the questions a trader asks, of the mirrors first where they cannot wait
    mirrors                        what changed in the tables, into Redis; and reading it there
    db                             engines, sessions and Redis clients made from the settings; standby, pooler, retries
    models | schema | servers      the tables; schema, grants, marker, migrations; the embedded servers
    label | layout | rejects       what marks the connections of a test run; how klines lie on disk; rows not taken
    names                          how SQL names tables and functions
    settings                       what the environment says
    errors                         every failure, as one sentence

This file imports nothing: whoever imports one part pays for that part only.
"""
