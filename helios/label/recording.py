"""How a recorded client writes: which exchanges with the server a command becomes, without saying how they are sent.

What a command's reply would be is not changed by a script for most commands; those run, with their images, as one
script and one round trip. All others are saved first under WATCH, then run in a MULTI that fails if anybody touched
the keys in between, and are tried again.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from redis.exceptions import NoScriptError, ResponseError, WatchError

from helios.errors import RecordingError
from helios.label.commands import PLAIN, Argument, Arguments, AskServerError, Catalogue, Command, named_keys, text
from helios.label.images import OVER, PREFIX, RECORD, RECORD_SHA

PAUSE = 0.005
MOST_WORDS = 4000  # Lua unpacks no more than 8000 values at once

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
    """Commands to send together; each has one reply. `decode` says that the replies are the caller's own.

    `packed` is what to send, where it is written already.
    """

    commands: Sequence[Arguments]
    decode: bool = False
    packed: list[bytes] | None = None


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


CALL = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % RECORD_SHA.encode()


def bulk(value: Argument, encode: Callable[[Argument], bytes]) -> bytes:
    """Write one word as it is sent."""
    data = value.encode() if type(value) is str else bytes(encode(value))
    return b"$%d\r\n%b\r\n" % (len(data), data)


@cache
def opening(count: int) -> bytes:
    """Write how the recording of a command of so many words with one key begins."""
    return b"*%d\r\n%b$1\r\n1\r\n" % (count + 8, CALL)


@cache
def middle(run: int, database: int, count: int, name: str) -> bytes:
    """Write what stands between that key and the command's arguments."""
    return b"".join(bulk(each, bytes) for each in ("one", str(run), str(database), str(count), name))


def shortcut(catalogue: Catalogue, run: int, connection: Any, arguments: Arguments) -> list[bytes] | None:  # noqa: ANN401 - a redis-py connection
    """Write the recording of a command whose one key is its first argument; None where it needs a closer look."""
    name, count = arguments[0], len(arguments)
    if name not in catalogue.direct or count > MOST_WORDS:
        return None
    encode = connection.encoder.encode
    words = [bulk(each, encode) for each in arguments[1:]]
    return [b"".join((opening(count), words[0], middle(run, connection.db, count, name), *words))]


def shortcuts(catalogue: Catalogue, run: int, connection: Any, commands: Sequence[Arguments]) -> list[bytes] | None:  # noqa: ANN401 - a redis-py connection
    """Write the recording of a pipeline of such commands, and of some that read; None where one needs a closer look."""
    encode = connection.encoder.encode
    direct, harmless, keys, words, parts = catalogue.direct, catalogue.harmless, {}, 0, []
    for arguments in commands:
        name, count = arguments[0], len(arguments)
        if name not in PLAIN or not 1 < count < MOST_WORDS:
            return None
        if name in direct:
            keys[bulk(arguments[1], encode)] = None
        elif name not in harmless:
            return None
        words += count + 1
        parts.append(b"$%d\r\n%d\r\n" % (len(str(count)), count))
        parts += [bulk(each, encode) for each in arguments]
    if not keys:
        return None
    head = b"*%d\r\n%b%b" % (words + len(keys) + 6, CALL, bulk(len(keys), encode))
    mode = [bulk(each, encode) for each in ("many", run, connection.db)]
    return [b"".join([head, *keys, *mode, *parts])]


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
    return (len(keys), *keys, mode, run, database, *parts)


def checked(run: int, reply: Any) -> Any:  # noqa: ANN401 - an answer of Redis
    """Turn the script's own refusal into a sentence."""
    if isinstance(reply, ResponseError) and OVER in str(reply):
        return RecordingError(
            f"test run {run} has not begun in this Redis, or is over, so nothing was written: "
            "a process that outlives its run must end with it, or drop its label (HELIOS_TEST_RUN)"
        )
    if isinstance(reply, ResponseError) and "ACL failure in script" in str(reply) and "@user_script" in str(reply):
        return RecordingError(
            f"this Redis user may not record what test run {run} writes, so nothing was written: beside what it writes "
            "it needs the keys ~helios:undo:*, and for them and its own +@read, +dump, +hset, +incr and +select"
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
    (watching,) = yield Send([("WATCH", f"{PREFIX}{run}:turn", *keys)])
    if isinstance(watching, Exception):
        raise watching
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
    packed = None if watching else shortcuts(catalogue, run, connection, commands)
    if packed is not None:
        (replies,) = yield Send([()], decode=decode, packed=packed)
        if not isinstance(replies, Exception):
            return replies
        if not isinstance(replies, NoScriptError):
            raise checked(run, replies)
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
