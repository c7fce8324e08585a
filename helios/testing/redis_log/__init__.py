"""The Redis half of the undo log, for plain clients whose answers are bytes: begin, mark, undo, close; and the digest.

The images are saved by labelled clients themselves (helios.label). What a neighbour changed since is kept and reported.
What this cannot do:

- see keys that a script writes without declaring them; the audit does (helios.testing.audit);
- tell a neighbour's change from the run's own in a key whose DUMP exceeds 4 KB, unless type, length or expiry changed
  too; in fields of a hash that expire by themselves; and where both add to one value (INCR): then the state that the
  run found comes back;
- give a blocking pop its place in the queue of those who wait: it is tried again every few milliseconds;
- take back FUNCTION LOAD, CONFIG SET, ACL: what is no key; the first is refused;
- work on a Redis Cluster yet, on a server before 7.0, or on one that evicts any key.

A user with restricted rights needs `~helios:undo:*` and database 0, and to read and DUMP the keys that it writes.
"""

from helios.testing.redis_log.digesting import digest
from helios.testing.redis_log.log import Change, begin, close, forget, mark, runs, undo

__all__ = ["Change", "begin", "close", "digest", "forget", "mark", "runs", "undo"]
