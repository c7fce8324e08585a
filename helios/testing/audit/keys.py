"""What unlabelled clients changed in Redis: the server tells every key that anybody touches (CLIENT TRACKING BCAST).

Keys that a run's log knows are left out, and bookkeeping; so a script that writes keys which it did not declare is
seen, whoever runs it. The server does not tell who: the clients that are connected are named. It does not tell the
database either: a key counts as logged if it is, in any database. Of a Redis Cluster every master tells; one that was
lost meanwhile, or has become one, is named as not looked at.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis, RedisCluster
from redis.exceptions import RedisError

from helios.label.images import HOME, LOGS, RUNS
from helios.label.slots import prefix, tag
from helios.mirrors.keys import is_heartbeat
from helios.testing.audit import Unattributed
from helios.testing.redis_log.places import Client, servers_of

OURS = "helios-audit"


class Watched:
    """A connection to which one server tells the keys that anybody touches; `lost` once it does not answer."""

    def __init__(self, client: Redis) -> None:
        pool = client.connection_pool
        # a protocol in which the server speaks without being asked
        options = {**pool.connection_kwargs, "protocol": 3, "client_name": OURS, "decode_responses": False}
        self.client = client
        self.connection = pool.connection_class(**options)
        self.name = f"{options.get('host')}:{options.get('port')}"
        self.touched: dict[bytes, int] = {}
        self.flushed = self.lost = False
        self.connection.connect()
        self.connection._parser.set_invalidation_push_handler(self._note)  # noqa: SLF001 - as redis-py's own cache does
        self._ask("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP")

    def listen(self) -> None:
        """Take in what was told."""
        self._ask("PING")

    def _ask(self, *words: str) -> None:
        self.connection.send_command(*words)
        self.connection.read_response()

    def _note(self, message: Sequence[Any]) -> None:
        keys = message[1]
        if keys is None:
            self.flushed = True
        for key in keys or ():
            self.touched[bytes(key)] = self.touched.get(bytes(key), 0) + 1


class RedisAudit:
    """Watches every database of one Redis, or every master of a Redis Cluster; must be closed."""

    def __init__(self, client: Client, excluding: Sequence[str] = ()) -> None:
        self.client = client
        self.excluding = tuple(each.encode() for each in (LOGS, *excluding))
        self.watched: list[Watched] = [Watched(each) for each in servers_of(client)]

    def begin(self) -> None:
        """Look from now on, at a Redis Cluster's masters of now."""
        self._listen()
        if any(each.lost for each in self.watched):
            self.close()
            self.watched = [Watched(each) for each in servers_of(self.client)]
        for each in self.watched:
            each.touched.clear()
            each.flushed = False

    def report(self) -> Unattributed | None:
        """Tell which keys unlabelled clients touched since `begin`, or None; to be asked before the undo.

        Nothing is told where another run has begun or ended meanwhile: what it took back is in no log any more.
        """
        self._listen()
        if any(RUNS.encode() in each.touched for each in self.watched):
            return None
        blind = [f"{each.name} was lost, with what it would have told" for each in self.watched if each.lost]
        blind += ["a database was emptied"] * any(each.flushed for each in self.watched)
        touched = {key: count for each in self.watched for key, count in each.touched.items()}
        foreign = self._not_logged(filter(self._counts, touched)) if touched else []
        if not foreign and not blind:
            return None
        what = {key.decode(errors="backslashreplace"): touched[key] for key in foreign}
        return Unattributed("redis", what, self._connected(), "; ".join(blind))

    def _counts(self, key: bytes) -> bool:
        return not key.startswith(self.excluding) and not is_heartbeat(key.decode(errors="replace"))

    def close(self) -> None:
        """Stop looking."""
        for each in self.watched:
            each.connection.disconnect()

    def _listen(self) -> None:
        """Hear every server; a master of a Redis Cluster may be lost, one Redis may not."""
        for each in self.watched:
            try:
                each.listen()
            except RedisError:
                if not isinstance(self.client, RedisCluster):
                    raise
                each.lost = True

    def _not_logged(self, keys: Iterable[bytes]) -> list[bytes]:
        if not isinstance(self.client, RedisCluster):
            return self._not_in(prefix(HOME), list(keys))
        slots: dict[int, list[bytes]] = {}
        for key in keys:
            slots.setdefault(self.client.keyslot(key), []).append(key)
        return [each for slot, names in slots.items() for each in self._not_in(prefix(tag(slot)), names)]

    def _not_in(self, log: str, names: list[bytes]) -> list[bytes]:
        """Leave out the keys that a log knows."""
        runs = [int(each) for each in self.client.hkeys(f"{log}runs")]
        databases = {0} if isinstance(self.client, RedisCluster) else self._databases()
        logged: set[bytes] = set()
        for run in runs:
            for database in databases:
                fields = [b"%d:%b" % (database, name) for name in names]
                found = self.client.hmget(f"{log}{run}", fields) if fields else []
                logged.update(name for name, known in zip(names, found, strict=True) if known is not None)
        return [name for name in names if name not in logged]

    def _databases(self) -> set[int]:
        return {int(str(name).removeprefix("db")) for name in self.client.info("keyspace")} | {0}

    def _connected(self) -> tuple[str, ...]:
        clients = [each for server in self.watched if not server.lost for each in server.client.client_list()]
        others = [each for each in clients if each.get("name") != OURS]
        return tuple(sorted({f"{each.get('name') or each['addr']} (last command {each['cmd']})" for each in others}))
