"""The kit's own proof, and its users': a hash of every row of every table, and of every key with its expiry."""

from helios.mirrors.keys import is_heartbeat
from helios.testing import redis_log, undo
from helios.testing.halves import joined, reaching_redis
from helios.testing.subject import Subject, subject_of


def digest(subject: Subject | None = None) -> dict[str, str]:
    """Hash what is there: `table <name>` and `key <name>` with their hashes; equal means nothing has changed.

    The kit's own log and what the relay keeps are left out, and the heartbeats of other databases' relays.
    """
    subject = subject or subject_of()
    with subject.direct() as connection, joined(subject, connection) as halves:
        found = {f"table {name}": value for name, value in undo.digest(connection, subject.tables).items()}
        if halves.redis is not None:
            with reaching_redis():
                keys = redis_log.digest(halves.redis, excluding=[halves.place.pattern.removesuffix("*")])
            beats = {name for name in keys if is_heartbeat(name.partition(":")[2])}
            found |= {f"key {name}": value for name, value in keys.items() if name not in beats}
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Name what is there in one digest and not in the other, or not the same."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
