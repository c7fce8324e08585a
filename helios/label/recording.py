"""How a recorded client writes: which exchanges with the server a command becomes, without saying how they are sent.

What a command's reply would be is not changed by a script for most commands; those run, with their images, as one
script and one round trip. All others are saved first under WATCH, then run in a MULTI that fails if anybody touched
the keys in between, and are tried again.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError, TryAgainError, WatchError

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
from helios.label.images import HOME, LOGS, OVER, RECORD, RECORD_SHA
from helios.label.shortcuts import MOST_WORDS, shortcuts, writes_utf8
from helios.label.slots import tag

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


class RunOverError(RecordingError):
    """The run has not begun where it writes; on a Redis Cluster the log of a slot may just not be open yet."""


class Recording:
    """What is recorded over one connection, for one run; `slot` is the one that is written on a Redis Cluster."""

    def __init__(self, run: int, connection: Connection, slot: int | None = None) -> None:
        self.run = run
        self.tag = HOME if slot is None else tag(slot)
        self.database = connection.db if slot is None else self.tag
        self.encode = connection.encoder.encode
        self.utf8 = writes_utf8(connection)
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
        (watching,) = yield Send([("WATCH", f"{LOGS}{self.tag}:{self.run}:turn", *keys)])
        if isinstance(watching, Exception):
            raise watching
        saved = yield from self.scripted("before", keys, [], decode=False)
        if isinstance(saved, Exception):
            yield Send([("UNWATCH",)])
            raise saved
        noted = ("EVALSHA", RECORD_SHA, *self.arguments("after", keys, []))
        queued = yield Send([("MULTI",), *commands, noted, ("EXEC",)], decode=decode)
        done = queued[-1]
        if isinstance(done, Exception):
            raise next((each for each in queued if isinstance(each, Exception)), done)
        if done is None:
            return None
        if isinstance(done[-1], NoScriptError):  # forgotten since `before` ran
            yield from self.scripted("after", keys, [], decode=False)
        return done[:-1]

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
        packed = None
        if self.utf8 and not watching:
            packed = shortcuts(self.run, self.database, self.encode, self.catalogue, commands)
        if packed is not None:
            (replies,) = yield Send([()], decode=decode, packed=packed)
            if not isinstance(replies, NoScriptError):
                replies = raised(checked(self.run, replies))
                return replies if isinstance(replies, list) else [replies] * len(commands)
        writes = yield from self.all_understood(commands)
        if not any(write.keys for write in writes):
            return None
        replies = yield from self.unit(writes, watching=watching, decode=decode)
        if replies is None:
            raise WatchError("Watched variable changed.")
        return raised(replies)

    def all_understood(self, commands: Sequence[Arguments]) -> Steps:
        """Find out what each of several commands writes, before any of them runs."""
        found = []
        for each in commands:
            found.append((yield from self.understand(each)))  # noqa: PERF401 - no list comprehension may yield
        return found

    def apart(self, writes: Mapping[int, Sequence[Write]], *, decode: bool) -> Steps:
        """Run the commands of several slots of a Redis Cluster, those of one as a unit; give their replies by slot.

        A unit that failed as a whole has its error for a reply.
        """
        together = {slot: self.in_one_go(slot, each) for slot, each in writes.items()}
        replies = yield Send([each for batch in together.values() for each in batch], decode=decode)
        found, rest = {}, iter(replies)
        for slot, batch in together.items():
            answers = [next(rest) for _ in batch]
            if not any(each.keys for each in writes[slot]):
                found[slot] = answers
            elif not batch or isinstance(answers[0], NoScriptError):
                found[slot] = yield from self.alone(slot, writes[slot], decode=decode)
            else:
                found[slot] = checked(self.run, answers[0])
        return found

    def alone(self, slot: int, writes: Sequence[Write], *, decode: bool) -> Steps:
        """Run the commands of one slot as one unit; give their replies, or its error."""
        self.tag = self.database = tag(slot)
        try:
            return (yield from self.unit(writes, watching=False, decode=decode))
        except (ResponseError, RecordingError) as error:
            return error

    def in_one_go(self, slot: int, writes: Sequence[Write]) -> list[Arguments]:
        """Give what can be sent at once for a slot: commands that write nothing, or one script; or nothing."""
        words = [each.words for each in writes]
        keys = list(dict.fromkeys(key for write in writes for key in write.keys))
        if not keys:
            return words
        if not all(each.plain for each in writes):
            return []
        self.tag = self.database = tag(slot)
        return [("EVALSHA", RECORD_SHA, *self.arguments("many", keys, words))]

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


def settled(reply: Answer, slot: int) -> Answer:
    """Raise a reply that says where a slot is, that its log is not open, or that it is just being moved.

    Raises:
        RecordingError: the slot is between two nodes of a Redis Cluster.

    """
    if isinstance(reply, AskError | TryAgainError) and not isinstance(reply, MovedError):
        raise RecordingError(
            f"slot {slot} is just being moved to another node of the Redis Cluster, so nothing was written: "
            "a test run does not follow it on its way; run this again when it has arrived"
        )
    if isinstance(reply, MovedError | RunOverError):
        raise reply
    return reply


def checked(run: int, reply: Answer) -> Answer:
    """Turn the script's own refusal into a sentence."""
    if isinstance(reply, ResponseError) and OVER in str(reply):
        return RunOverError(
            f"test run {run} has not begun in this Redis, or is over, so nothing was written: "
            "a process that outlives its run must end with it, or drop its label (HELIOS_TEST_RUN)"
        )
    if isinstance(reply, ResponseError) and "ACL failure in script" in str(reply) and "@user_script" in str(reply):
        return RecordingError(
            f"this Redis user may not record what test run {run} writes, so nothing was written: beside what it writes "
            "it needs the keys ~helios:undo:*, and for them and its own +@read, +dump, +hset, +incr and +select; "
            "on a Redis Cluster also +hdel, +hincrby, +hsetnx and +unlink"
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
