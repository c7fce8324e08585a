"""The Redis half of the undo log, for plain clients whose answers are bytes: begin, mark, undo, close; and the digest.

The images are saved by labelled clients themselves (helios.label). What a neighbour changed since is kept and reported.
What this cannot do:

- see keys that a script writes without declaring them; the audit does (helios.testing.audit);
- tell a neighbour's change from the run's own in a key whose DUMP exceeds 4 KB, unless type, length or expiry changed
  too; in fields of a hash that expire by themselves; and where both add to one value (INCR): then the state that the
  run found comes back;
- give a blocking pop its place in the queue of those who wait: it is tried again every few milliseconds;
- take back FUNCTION LOAD, CONFIG SET, ACL: what is no key; the first is refused;
- work on a server before 7.0, or on one that evicts any key;
- on a Redis Cluster, take a command without a key in a pipeline, or follow a slot that is just being moved; and when
  a master is lost with moments that it had not replicated, a test's undo may miss slots that only the run's end finds.

A user with restricted rights needs `~helios:undo:*` and database 0, and to read and DUMP the keys that it writes; on a
Redis Cluster also +hsetnx, +hincrby, +hdel and +unlink, for the logs of slots.
"""

from helios.testing.redis_log.digesting import digest
from helios.testing.redis_log.log import Change, begin, close, forget, mark, runs, undo

__all__ = ["Change", "begin", "close", "digest", "forget", "mark", "runs", "undo"]
