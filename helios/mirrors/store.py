"""The side of Redis: one connection that watches the token, and batches that pass only while it has not moved.

The token is WATCHed at all times, so a batch is one round trip: MULTI, what is to be written, EXEC, and WATCH again.
Where anybody else has set the token, Redis was emptied or put back, EXEC does nothing, and the batch raises LostError:
whoever led before and wakes up late writes nothing. Commands are packed here, because redis-py's own pipeline spends
more time on them than Redis does.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from helios.errors import HeliosError
from helios.mirrors.image import Writes
from helios.mirrors.keys import Place
from helios.mirrors.nodes import UNREACHED, find_anew, pool_of

if TYPE_CHECKING:
    from redis import Redis

AT_ONCE = 200  # texts of one MSET
AT_A_TIME = 1 << 16  # bytes that are sent before the rest is packed: Redis reads them meanwhile
ALIVE = 60_000  # milliseconds that a heartbeat lives: a reader's lag is this less its time to live
# What an ACL has to allow, beside `~<pattern>` for the keys: the relay, its check included, and a reader.
RELAY_COMMANDS = "watch unwatch multi exec get mget set mset del unlink hset hdel hgetall scan hello auth select ping"
CLUSTER_COMMANDS = "cluster|slots command"  # what a Redis Cluster takes on top, of either
READER_COMMANDS = "get mget pttl hget hgetall hello auth select ping"


class LostError(HeliosError):
    """Somebody else moved the token, or Redis was emptied or put back; nothing of the batch was written."""


class Store:
    """A connection to the Redis that holds a bucket; `token` is what the bucket says it stands at, None for nothing."""

    def __init__(self, client: "Redis", place: Place) -> None:
        self.place = place
        self.token: str | None = None
        try:
            self.connect(pool_of(client, place.token))
        except UNREACHED:
            if not find_anew(client):
                raise
            self.connect(pool_of(client, place.token))

    def connect(self, pool: Any) -> None:  # noqa: ANN401 - redis-py's
        """Take a connection, and watch the token."""
        self.pool = pool
        self.connection: Any = pool.get_connection()
        try:
            self.watch()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection up."""
        self.connection.disconnect()
        self.pool.release(self.connection)

    def watch(self) -> str | None:
        """Read the token, and watch it from now on."""
        # UNWATCH first: WATCH alone would keep an old mark, and EXEC would go on failing.
        answers = self.ask(packed("UNWATCH"), packed("WATCH", self.place.token), packed("GET", self.place.token))
        raise_any(answers)
        self.token = decoded(answers[2])
        return self.token

    def write(
        self, commands: Iterable[bytes], *, token: str | None = None, voucher: str = "", seen: float | None = None
    ) -> None:
        """Write a batch, whole or not at all.

        Args:
            commands: packed commands; what makes them runs while Redis reads those before.
            token: the token to set with it; None leaves the old one.
            voucher: whose mirrors these are, and in which form; the heartbeat's value.
            seen: when, in `time.monotonic`, the tables were as Redis is afterwards; None sets no heartbeat.

        Raises:
            LostError: the token has moved; nothing was written.
            RedisError: Redis is not reached, or refuses; whether the batch was written is not known.

        """
        before = self.token
        answers = self.ask_all(self.batch(commands, token, voucher, seen))
        *queued, done, watching, token_now = answers
        raise_any([*queued, watching, token_now])
        self.token = decoded(token_now)
        if done is None:
            raise LostError(f"another relay moved {self.place.token}, or Redis was emptied or put back")
        raise_any([done] if isinstance(done, Exception) else done)
        if self.token != (before if token is None else token):
            raise LostError(f"another relay moved {self.place.token} just now")

    def batch(self, commands: Iterable[bytes], token: str | None, voucher: str, seen: float | None) -> Iterator[bytes]:
        """Put what is to be written between MULTI and EXEC."""
        yield packed("MULTI")
        yield from commands
        if token is not None:
            yield packed("SET", self.place.token, token)
        if seen is not None:
            lives = max(1, ALIVE - int((time.monotonic() - seen) * 1000) - 1)
            yield packed("SET", self.place.heartbeat, voucher, "PX", str(lives))
        yield packed("EXEC")
        yield packed("WATCH", self.place.token)
        yield packed("GET", self.place.token)

    def ask(self, *commands: bytes) -> list[Any]:
        """Send commands at once, and read an answer to each; refusals are given as they are."""
        return self.ask_all(commands)

    def ask_all(self, commands: Iterable[bytes]) -> list[Any]:
        """Send many commands, and read an answer to each."""
        asked = 0

        def gathered() -> Iterator[bytes]:
            nonlocal asked
            some, size = [], 0
            for asked, command in enumerate(commands, 1):  # noqa: B007 - counts for the answers
                some.append(command)
                size += len(command)
                if size >= AT_A_TIME:
                    yield b"".join(some)
                    some, size = [], 0
            yield b"".join(some)

        self.connection.send_packed_command(gathered())
        answers: list[Any] = []
        for _ in range(asked):
            try:
                answers.append(self.connection.read_response())
            except ResponseError as error:
                answers.append(error)
        return answers

    def found(self) -> Iterator[list[str]]:
        """Find every key of the bucket but the token, some at a time; a key may come twice."""
        cursor = ""
        while cursor != "0":
            cursor, names = self.scan(cursor or "0", 1_000)
            yield names

    def scan(self, cursor: str, about: int) -> tuple[str, list[str]]:
        """Look at about so many keys of whomsoever: where to go on, "0" at the end, and the bucket's but the token."""
        pattern = "".join(f"\\{each}" if each in "*?[]\\" else each for each in self.place.prefix) + "*"
        answer = self.ask(packed("SCAN", cursor, "MATCH", pattern, "COUNT", str(about)))
        raise_any(answer)
        names = [name.decode() for name in answer[0][1]]
        return answer[0][0].decode(), [name for name in names if name != self.place.token]

    def read(self, names: list[str], hashes: Iterable[str]) -> dict[str, Any]:
        """Read the content of keys as it is: texts, None for what is absent, dictionaries for hashes."""
        is_hash = set(hashes)
        plain = [name for name in names if name not in is_hash]
        commands = [packed("MGET", *plain)] if plain else []
        of_hashes = [name for name in names if name in is_hash]
        commands += [packed("HGETALL", name) for name in of_hashes]
        answers = self.ask(*commands) if commands else []
        contents: dict[str, Any] = {}
        if plain:
            raise_any(answers[:1])
            contents |= dict(zip(plain, map(decoded, answers.pop(0)), strict=True))
        for name, answer in zip(of_hashes, answers, strict=True):
            contents[name] = hash_of(answer)
        return contents


def hash_of(answer: Any) -> dict[str, str] | str | None:  # noqa: ANN401 - whatever Redis answered
    """Read the answer to HGETALL, in Redis's old protocol or its new one; what is no hash is told as it is."""
    if isinstance(answer, RedisError):
        return str(answer)
    if isinstance(answer, list):
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    return {name.decode(): value.decode(errors="replace") for name, value in answer.items()} or None


def commands_of(writes: Writes) -> Iterator[bytes]:
    """Write the commands of some writes: a few for all texts, one for all that goes, at most two for each hash."""
    if writes.pairs:
        yield b"*%d\r\n$4\r\nMSET\r\n%b" % (1 + 2 * writes.pairs, writes.packed)
    told = [part for key, text in writes.texts.items() if text is not None for part in (key, text)]
    for first in range(0, len(told), 2 * AT_ONCE):
        yield packed("MSET", *told[first : first + 2 * AT_ONCE])
    gone = [key for key, content in (*writes.texts.items(), *writes.hashes.items()) if content is None]
    whole = [key for key, content in writes.hashes.items() if content is not None]
    if gone or whole:
        yield packed("DEL", *gone, *whole)
    for key, fields in (*writes.fields.items(), *writes.hashes.items()):
        if fields is not None:
            if told := [part for name, text in fields.items() if text is not None for part in (name, text)]:
                yield packed("HSET", key, *told)
            if lacking := [name for name, text in fields.items() if text is None]:
                yield packed("HDEL", key, *lacking)


def packed(*parts: str) -> bytes:
    """Pack a command as Redis reads it."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part.encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


def decoded(answer: Any) -> str | None:  # noqa: ANN401 - whatever Redis answered
    """Read a text; what is no text, such as a refusal, is told as it is and equals nothing that is expected."""
    if answer is None:
        return None
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def raise_any(answers: Iterable[Any]) -> None:
    """Raise the first refusal among answers."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
