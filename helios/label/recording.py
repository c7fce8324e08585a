"""How a recorded client writes: which exchanges with the server a command becomes, without saying how they are sent.

What a command's reply would be is not changed by a script for most commands; those run, with their images, as one
script and one round trip. All others are saved first under WATCH, then run in a MULTI that fails if anybody touched
the keys in between, and are tried again.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError, ResponseError, WatchError

from helios.errors import RecordingError
from helios.label.commands import Argument, Arguments, AskServerError, Catalogue, Command, named_keys, text
from helios.label.images import OVER, RECORD, RECORD_SHA, RUNS

PAUSE = 0.005
MOST_WORDS = 4000  # Lua unpacks no more than 8000 values at once

# Commands that a script answers as the server itself does, in either protocol: with a status, a whole number, one
# string, or a list of strings. The list makes them quick; every other command is as safe.
PLAIN = frozenset(
    "SET SETEX PSETEX SETNX GETSET GETDEL GETEX APPEND INCR INCRBY DECR DECRBY INCRBYFLOAT SETRANGE SETBIT MSET MSETNX "
    "DEL UNLINK EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST RENAME RENAMENX COPY "
    "HSET HSETNX HMSET HDEL HINCRBY HINCRBYFLOAT HEXPIRE HPEXPIRE HEXPIREAT HPEXPIREAT HPERSIST "
    "LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LSET LREM LTRIM LINSERT LMOVE RPOPLPUSH SADD SREM SMOVE "
    "SINTERSTORE SUNIONSTORE SDIFFSTORE ZREM ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREMRANGEBYLEX ZUNIONSTORE ZINTERSTORE "
    "ZDIFFSTORE ZRANGESTORE XADD XDEL XTRIM XACK XSETID PFADD PFMERGE BITOP GEOADD GEOSEARCHSTORE "
    "GET MGET EXISTS STRLEN GETRANGE TTL PTTL EXPIRETIME PEXPIRETIME HGET HMGET HEXISTS HLEN HSTRLEN LLEN LINDEX LRANGE "
    "SISMEMBER SCARD ZCARD ZCOUNT XLEN PFCOUNT GETBIT BITCOUNT TOUCH".split()
)
WITHOUT_KEYS = "names no keys, so what was there before cannot be saved"
REFUSED = {
    "FLUSHDB": "empties a database that others use too",
    "FLUSHALL": "empties databases that others use too",
    "SWAPDB": "swaps databases that others use too",
    "MIGRATE": "moves keys to another server",
    "MOVE": "moves a key to another database",
    "SELECT": "changes the database of a pooled connection",
}


@dataclass(frozen=True)
class Send:
    """Commands to send together; each has one reply. `decode` says that the replies are the caller's own."""

    commands: Sequence[Arguments]
    decode: bool = False


@dataclass(frozen=True)
class Wait:
    """A pause, in seconds."""

    seconds: float


Steps = Generator[Send | Wait, Any, Any]


@dataclass(frozen=True)
class Write:
    """A command that is about to write, as its catalogue understands it; no keys: it writes nothing."""

    words: Arguments
    keys: tuple[bytes, ...]
    command: Command | None

    @property
    def plain(self) -> bool:
        """Whether a script answers as the server would."""
        if len(self.words) > MOST_WORDS:
            return False
        name = text(self.words[0]).upper()
        return name in PLAIN or (name == "ZADD" and not any(word in {"INCR", b"INCR", "incr"} for word in self.words))


def split(arguments: Arguments) -> Arguments:
    """Split a command's first word, where redis-py joins two: `XGROUP CREATE`."""
    first = arguments[0]
    if isinstance(first, str) and " " in first:
        return (*first.split(), *arguments[1:])
    return arguments


def understand(catalogue: Catalogue, arguments: Arguments, encode: Any) -> Steps:  # noqa: ANN401 - a redis-py encoder's method
    """Find out what a command writes.

    Raises:
        RecordingError: what it writes cannot be known.

    """
    words = split(arguments)
    name = text(words[0]).upper()
    if name not in catalogue.known:
        (answer,) = yield Send([("COMMAND", "INFO", name)])
        catalogue.learn(name, answer)
    command = catalogue.find([text(word).upper() for word in words[:2]])
    if name in REFUSED:
        raise refusal(name, REFUSED[name])
    if command is None or not command.writes:
        return Write(words, (), command)
    try:
        keys: Sequence[Argument] = command.written(words)
    except AskServerError:
        (answer,) = yield Send([("COMMAND", "GETKEYSANDFLAGS", *words)])
        if isinstance(answer, Exception):
            raise answer from None
        keys = named_keys(answer)
    if not keys and "write" in command.flags:
        raise refusal(" ".join(text(word) for word in words[: 2 if command.specifications == () else 1]), WITHOUT_KEYS)
    if name == "COPY" and any(word in {"DB", b"DB", "db"} for word in words[3:]):
        raise refusal("COPY ... DB", REFUSED["MOVE"])
    return Write(words, tuple(dict.fromkeys(bytes(encode(key)) for key in keys)), command)


def refusal(name: str, why: str) -> RecordingError:
    """Say what a recorded client does not do."""
    return RecordingError(
        f"{name} {why}: a test run refuses what it cannot undo; "
        "name the keys instead, or use a client that is not labelled on a Redis of the test's own"
    )


def record(mode: str, run: int, database: int, keys: Sequence[bytes], commands: Sequence[Arguments]) -> Arguments:
    """Write the arguments of the recording script, as they follow its name."""
    parts = [part for words in commands for part in (len(words), *words)]
    return (1 + len(keys), RUNS, *keys, mode, run, database, *parts)


def checked(run: int, reply: Any) -> Any:  # noqa: ANN401 - an answer of Redis
    """Turn the script's own refusal into a sentence."""
    if isinstance(reply, ResponseError) and OVER in str(reply):
        return RecordingError(
            f"test run {run} has not begun in this Redis, or is over, so nothing was written: "
            "a process that outlives its run must end with it, or drop its label (HELIOS_TEST_RUN)"
        )
    return reply


def scripted(
    mode: str, run: int, database: int, keys: Sequence[bytes], commands: Sequence[Arguments], *, decode: bool
) -> Steps:
    """Run commands and save their images in one script."""
    arguments = record(mode, run, database, keys, commands)
    (reply,) = yield Send([("EVALSHA", RECORD_SHA, *arguments)], decode=decode)
    if isinstance(reply, NoScriptError):
        (reply,) = yield Send([("EVAL", RECORD, *arguments)], decode=decode)
    return checked(run, reply)


def watched(run: int, database: int, keys: Sequence[bytes], commands: Sequence[Arguments], *, decode: bool) -> Steps:
    """Save images, then run commands in a MULTI; give its replies, or None where somebody touched a key in between."""
    yield Send([("WATCH", RUNS, *keys)])
    saved = yield from scripted("before", run, database, keys, [], decode=False)
    if isinstance(saved, Exception):
        yield Send([("UNWATCH",)])
        raise saved
    noted = ("EVAL", RECORD, *record("after", run, database, keys, []))
    queued = yield Send([("MULTI",), *commands, noted, ("EXEC",)], decode=decode)
    done = queued[-1]
    if isinstance(done, Exception):
        raise next((each for each in queued if isinstance(each, Exception)), done)
    return None if done is None else done[:-1]


def single(run: int, database: int, write: Write, *, decode: bool) -> Steps:
    """Run one command; one that blocks is tried until its time is over."""
    if write.plain:
        return (yield from scripted("one", run, database, write.keys, [write.words], decode=decode))
    end = None
    if write.command is not None and write.command.blocks:
        limit = patience(write.words)
        end = None if limit is None else time.monotonic() + limit
    while True:
        replies = yield from watched(run, database, write.keys, [write.words], decode=decode)
        if replies is not None and (replies[0] is not None or end is None or time.monotonic() >= end):
            return replies[0]
        if replies is not None:
            yield Wait(PAUSE)


def patience(words: Arguments) -> float | None:
    """Give the seconds that a blocking command waits; None: it does not wait."""
    name = text(words[0]).upper()
    if name in {"XREADGROUP", "XREAD"}:
        upper = [text(word).upper() for word in words]
        if "BLOCK" not in upper:
            return None
        seconds = float(text(words[upper.index("BLOCK") + 1])) / 1000
    else:
        seconds = float(text(words[1] if name in {"BLMPOP", "BZMPOP"} else words[-1]))
    return seconds or float("inf")


def pipelined(
    catalogue: Catalogue,
    run: int,
    connection: Any,  # noqa: ANN401 - a redis-py connection
    commands: Sequence[Arguments],
    *,
    watching: bool,
    decode: bool,
) -> Steps:
    """Run the commands of a pipeline as one unit; give their replies, or None where they write nothing.

    Raises:
        RecordingError: what one of them writes cannot be known; none was run.
        WatchError: a key that the caller watches was touched.

    """
    writes: list[Write] = []
    for each in commands:
        writes.append((yield from understand(catalogue, each, connection.encoder.encode)))
    keys = list(dict.fromkeys(key for write in writes for key in write.keys))
    if not keys:
        return None
    words = [write.words for write in writes]
    plain = all(write.plain for write in writes)
    if plain and not watching:
        replies = yield from scripted("many", run, connection.db, keys, words, decode=decode)
    elif plain:
        script = ("EVAL", RECORD, *record("many", run, connection.db, keys, words))
        *_, done = yield Send([("MULTI",), script, ("EXEC",)], decode=decode)
        replies = checked(run, done[0]) if isinstance(done, list) else done
    else:
        replies = yield from watched(run, connection.db, keys, words, decode=decode)
        while replies is None and not watching:
            replies = yield from watched(run, connection.db, keys, words, decode=decode)
    if replies is None:
        raise WatchError("Watched variable changed.")
    if isinstance(replies, Exception):
        raise replies
    return replies


def immediate(run: int, database: int, write: Write, *, decode: bool) -> Steps:
    """Run one command between WATCH and MULTI.

    Raises:
        RecordingError: it would need a MULTI of its own.

    """
    if not write.plain:
        raise RecordingError(
            f"{text(write.words[0])} between WATCH and MULTI cannot be recorded, so it was refused: "
            "call it after multi(), or before watch()"
        )
    return (yield from scripted("one", run, database, write.keys, [write.words], decode=decode))
