"""The Redis half of the undo log, for plain clients whose answers are bytes: begin, mark, undo, close; and the digest.

The images are saved by labelled clients themselves (helios.label). What a neighbour changed since is kept and reported.
"""

from helios.testing.redis_log.digesting import digest
from helios.testing.redis_log.log import Change, begin, close, mark, runs, undo

__all__ = ["Change", "begin", "close", "digest", "mark", "runs", "undo"]
