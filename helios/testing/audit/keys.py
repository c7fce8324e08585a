"""What unlabelled clients changed in Redis: the server tells every key that anybody touches (CLIENT TRACKING BCAST).

Keys that a run's log knows are left out, and bookkeeping; so a script that writes keys which it did not declare is
seen, whoever runs it. The server does not tell who: the clients that are connected are named. It does not tell the
database either: a key counts as logged if it is, in any database.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis

from helios.label.images import PREFIX, RUNS
from helios.testing.audit import Unattributed

OURS = "helios-audit"


class RedisAudit:
    """Watches every database of one Redis from a connection of its own, which must be closed."""

    def __init__(self, client: "Redis", excluding: Sequence[str] = ()) -> None:
        self.client = client
        self.excluding = tuple(each.encode() for each in (PREFIX, *excluding))
        self.touched: dict[bytes, int] = {}
        self.flushed = False
        pool = client.connection_pool
        # a protocol in which the server speaks without being asked
        options = {**pool.connection_kwargs, "protocol": 3, "client_name": OURS, "decode_responses": False}
        self.connection = pool.connection_class(**options)
        self.connection.connect()
        self.connection._parser.set_invalidation_push_handler(self._note)  # noqa: SLF001 - as redis-py's own cache does
        self._ask("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP")

    def begin(self) -> None:
        """Look from now on."""
        self._ask("PING")
        self.touched.clear()
        self.flushed = False

    def report(self) -> Unattributed | None:
        """Tell which keys unlabelled clients touched since `begin`, or None; to be asked before the undo."""
        self._ask("PING")
        if not self.touched and not self.flushed:
            return None
        foreign = self._not_logged(key for key in self.touched if not key.startswith(self.excluding))
        if not foreign and not self.flushed:
            return None
        what = {key.decode(errors="backslashreplace"): self.touched[key] for key in foreign}
        return Unattributed("redis", what, self._connected(), "a database was emptied" if self.flushed else "")

    def close(self) -> None:
        """Stop looking."""
        self.connection.disconnect()

    def _ask(self, *words: str) -> Any:  # noqa: ANN401 - an answer of Redis
        self.connection.send_command(*words)
        return self.connection.read_response()

    def _note(self, message: Sequence[Any]) -> None:
        keys = message[1]
        if keys is None:
            self.flushed = True
        for key in keys or ():
            self.touched[bytes(key)] = self.touched.get(bytes(key), 0) + 1

    def _not_logged(self, keys: Iterable[bytes]) -> list[bytes]:
        names = list(keys)
        runs = [int(each) for each in self.client.hkeys(RUNS)]
        databases = {int(str(name).removeprefix("db")) for name in self.client.info("keyspace")} | {0}
        logged: set[bytes] = set()
        for run in runs:
            for database in databases:
                fields = [b"%d:%b" % (database, name) for name in names]
                found = self.client.hmget(f"{PREFIX}{run}", fields) if fields else []
                logged.update(name for name, known in zip(names, found, strict=True) if known is not None)
        return [name for name in names if name not in logged]

    def _connected(self) -> tuple[str, ...]:
        clients = [each for each in self.client.client_list() if each.get("name") != OURS]
        return tuple(sorted({f"{each.get('name') or each['addr']} (last command {each['cmd']})" for each in clients}))
