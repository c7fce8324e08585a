"""How a recorded client writes: which exchanges with the server a command becomes, without saying how they are sent.

What a command's reply would be is not changed by a script for most commands; those run, with their images, as one
script and one round trip. All others are saved first under WATCH, then run in a MULTI that fails if anybody touched
the keys in between, and are tried again.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from redis.exceptions import NoScriptError, ResponseError, WatchError

from helios.errors import RecordingError
from helios.label.commands import (
    PLAIN,
    Answer,
    Arguments,
    AskServerError,
    Command,
    Connection,
    catalogue_of,
    named_keys,
    text,
)
from helios.label.images import OVER, PREFIX, RECORD, RECORD_SHA
from helios.label.shortcuts import MOST_WORDS, shortcuts

PAUSE = 0.005  # seconds between two tries of a command that blocks

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


Steps = Generator[Send | Wait, Answer, Answer]


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


def refusal(name: str, why: str) -> RecordingError:
    """Say what a recorded client does not do."""
    return RecordingError(
        f"{name} {why}: a test run refuses what it cannot undo; "
        "name the keys instead, or use a client that is not labelled on a Redis of the test's own"
    )


class Recording:
    """What is recorded over one connection, for one run."""

    def __init__(self, run: int, connection: Connection) -> None:
        self.run = run
        self.database = connection.db
        self.encode = connection.encoder.encode
        self.catalogue = catalogue_of(connection)

    def understand(self, arguments: Arguments) -> Steps:
        """Find out what a command writes; give a `Write`.

        Raises:
            RecordingError: what it writes cannot be known.

        """
        words = split(arguments)
        name = text(words[0]).upper()
        if name in REFUSED:
            raise refusal(name, REFUSED[name])
        if name not in self.catalogue.known:
            (answer,) = yield Send([("COMMAND", "INFO", name)])
            self.catalogue.learn(name, answer)
        command = self.catalogue.find([text(word).upper() for word in words[:2]])
        if command is None or not command.writes:
            return Write(words, (), command)
        keys = yield from self.written(command, words)
        if not keys and "write" in command.flags:
            raise refusal(" ".join(text(word) for word in words[: 2 if name == "FUNCTION" else 1]), WITHOUT_KEYS)
        if name == "COPY" and any(text(word).upper() == "DB" for word in words[3:]):
            raise refusal("COPY ... DB", REFUSED["MOVE"])
        return Write(words, tuple(dict.fromkeys(bytes(self.encode(key)) for key in keys)), command)

    def written(self, command: Command, words: Arguments) -> Steps:
        """Give the keys that a command may change; where its arguments do not tell, the server does."""
        try:
            return command.written(words)
        except AskServerError:
            (answer,) = yield Send([("COMMAND", "GETKEYSANDFLAGS", *words)])
            if isinstance(answer, Exception):
                raise answer from None
            return named_keys(answer)

    def arguments(self, mode: str, keys: Sequence[bytes], commands: Sequence[Arguments]) -> Arguments:
        """Write the arguments of the recording script, as they follow its name."""
        parts = [part for words in commands for part in (len(words), *words)]
        return (len(keys), *keys, mode, self.run, self.database, *parts)

    def scripted(self, mode: str, keys: Sequence[bytes], commands: Sequence[Arguments], *, decode: bool) -> Steps:
        """Run commands and save their images in one script."""
        arguments = self.arguments(mode, keys, commands)
        (reply,) = yield Send([("EVALSHA", RECORD_SHA, *arguments)], decode=decode)
        if isinstance(reply, NoScriptError):
            (reply,) = yield Send([("EVAL", RECORD, *arguments)], decode=decode)
        return checked(self.run, reply)

    def watched(self, keys: Sequence[bytes], commands: Sequence[Arguments], *, decode: bool) -> Steps:
        """Save images, then run commands in a MULTI; give its replies, or None where somebody touched a key."""
        (watching,) = yield Send([("WATCH", f"{PREFIX}{self.run}:turn", *keys)])
        if isinstance(watching, Exception):
            raise watching
        saved = yield from self.scripted("before", keys, [], decode=False)
        if isinstance(saved, Exception):
            yield Send([("UNWATCH",)])
            raise saved
        noted = ("EVAL", RECORD, *self.arguments("after", keys, []))
        queued = yield Send([("MULTI",), *commands, noted, ("EXEC",)], decode=decode)
        done = queued[-1]
        if isinstance(done, Exception):
            raise next((each for each in queued if isinstance(each, Exception)), done)
        return None if done is None else done[:-1]

    def single(self, write: Write, *, decode: bool) -> Steps:
        """Run one command; one that blocks is tried until its time is over."""
        if write.plain:
            return (yield from self.scripted("one", write.keys, [write.words], decode=decode))
        blocks = write.command is not None and write.command.blocks
        limit = patience(write.words) if blocks else None
        end = None if limit is None else time.monotonic() + limit
        while True:
            replies = yield from self.watched(write.keys, [write.words], decode=decode)
            if replies is not None:
                if replies[0] is not None or end is None or time.monotonic() >= end:
                    return replies[0]
                yield Wait(PAUSE)

    def immediate(self, write: Write, *, decode: bool) -> Steps:
        """Run one command between WATCH and MULTI.

        Raises:
            RecordingError: it would need a MULTI of its own.

        """
        if not write.plain:
            raise RecordingError(
                f"{text(write.words[0])} between WATCH and MULTI cannot be recorded, so it was refused: "
                "call it after multi(), or before watch()"
            )
        return (yield from self.scripted("one", write.keys, [write.words], decode=decode))

    def pipelined(self, commands: Sequence[Arguments], *, watching: bool, decode: bool) -> Steps:
        """Run the commands of a pipeline as one unit; give their replies, or None where they write nothing.

        Raises:
            RecordingError: what one of them writes cannot be known; none was run.
            WatchError: a key that the caller watches was touched.

        """
        packed = None if watching else shortcuts(self.run, self.database, self.encode, self.catalogue, commands)
        if packed is not None:
            (replies,) = yield Send([()], decode=decode, packed=packed)
            if not isinstance(replies, NoScriptError):
                return raised(checked(self.run, replies))
        writes = []
        for each in commands:
            write = yield from self.understand(each)
            writes.append(write)
        if not any(write.keys for write in writes):
            return None
        replies = yield from self.unit(writes, watching=watching, decode=decode)
        if replies is None:
            raise WatchError("Watched variable changed.")
        return raised(replies)

    def unit(self, writes: Sequence[Write], *, watching: bool, decode: bool) -> Steps:
        """Run commands as one unit; None where a key that the caller watches was touched."""
        keys = list(dict.fromkeys(key for write in writes for key in write.keys))
        words = [write.words for write in writes]
        if not all(write.plain for write in writes):
            replies = None
            while replies is None:
                replies = yield from self.watched(keys, words, decode=decode)
                if watching:
                    break
            return replies
        if not watching:
            return (yield from self.scripted("many", keys, words, decode=decode))
        script = ("EVAL", RECORD, *self.arguments("many", keys, words))
        *_, done = yield Send([("MULTI",), script, ("EXEC",)], decode=decode)
        return checked(self.run, done[0]) if isinstance(done, list) else done


def raised(reply: Answer) -> Answer:
    """Raise a reply that is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def checked(run: int, reply: Answer) -> Answer:
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
