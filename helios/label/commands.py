"""Which keys a Redis command writes, as the server itself tells by its flags and key specifications."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

# Commands that a script answers as the server itself does, in either protocol: with a status, a whole number, one
# string, or a list of strings. The list makes them quick; every other command is as safe.
PLAIN = frozenset(
    """
    SET SETEX PSETEX SETNX GETSET GETDEL GETEX APPEND INCR INCRBY DECR DECRBY INCRBYFLOAT SETRANGE SETBIT MSET
    MSETNX DEL UNLINK EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST RENAME RENAMENX COPY HSET HSETNX HMSET HDEL
    HINCRBY HINCRBYFLOAT HEXPIRE HPEXPIRE HEXPIREAT HPEXPIREAT HPERSIST LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LSET
    LREM LTRIM LINSERT LMOVE RPOPLPUSH SADD SREM SMOVE SINTERSTORE SUNIONSTORE SDIFFSTORE ZREM ZREMRANGEBYRANK
    ZREMRANGEBYSCORE ZREMRANGEBYLEX ZUNIONSTORE ZINTERSTORE ZDIFFSTORE ZRANGESTORE XADD XDEL XTRIM XACK XSETID
    PFADD PFMERGE BITOP GEOADD GEOSEARCHSTORE GET MGET EXISTS STRLEN GETRANGE TTL PTTL EXPIRETIME PEXPIRETIME
    HGET HMGET HEXISTS HLEN HSTRLEN LLEN LINDEX LRANGE SISMEMBER SCARD ZCARD ZCOUNT XLEN PFCOUNT GETBIT BITCOUNT
    TOUCH
    """.split()  # noqa: SIM905 - a hundred words in quotes are no easier to read
)

Argument = bytes | bytearray | str | int | float | memoryview
Answer = Any  # of Redis: whatever type it has
Connection = Any  # of redis-py, synchronous or not
Arguments = tuple[Argument, ...]


class AskServerError(Exception):
    """Only the server can tell the keys of this command, from its arguments."""


def pairs(answer: Answer) -> dict[str, Any]:
    """Read a map, which arrives as one in RESP3 and as a list in RESP2."""
    if not isinstance(answer, dict):
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    return {text(name): value for name, value in answer.items()}


def text(value: Argument) -> str:
    """Read a word of a command, which may be any bytes, or of an answer."""
    return bytes(value).decode(errors="replace") if isinstance(value, (bytes, memoryview)) else str(value)


@dataclass(frozen=True)
class Specification:
    """One way in which a command names keys."""

    flags: frozenset[str]
    begin: str
    begin_at: dict[str, Any]
    find: str
    find_by: dict[str, Any]

    @classmethod
    def read(cls, answer: Answer) -> Self:
        """Read what COMMAND INFO says."""
        said = pairs(answer)
        begin, find = pairs(said["begin_search"]), pairs(said["find_keys"])
        flags = frozenset(text(flag) for flag in said["flags"])
        return cls(flags, text(begin["type"]), pairs(begin["spec"]), text(find["type"]), pairs(find["spec"]))

    @property
    def certain(self) -> bool:
        """Whether the keys follow from the arguments."""
        return "unknown" not in {self.begin, self.find} and "incomplete" not in self.flags

    @property
    def writes(self) -> bool:
        """Whether the keys named so may be written."""
        return bool(self.flags & {"RW", "OW", "RM"})

    def keys(self, arguments: Arguments) -> Iterator[Argument]:
        """Give the keys; `arguments` is the command split into single words."""
        first = self._first(arguments)
        if first is None or first >= len(arguments):
            return
        if self.find == "keynum":
            count = int(text(arguments[first + self.find_by["keynumidx"]]))
            first += self.find_by["firstkey"]
            step = self.find_by["keystep"]
            yield from arguments[first : first + count * step : step]
            return
        last, limit = self.find_by["lastkey"], self.find_by["limit"]
        if last >= 0:
            stop = first + last + 1
        elif limit <= 1:
            stop = len(arguments) + last + 1
        else:
            stop = first + (len(arguments) - first) // limit + last + 1
        yield from arguments[first : max(stop, first) : self.find_by["keystep"]]

    def _first(self, arguments: Arguments) -> int | None:
        if self.begin == "index":
            return int(self.begin_at["index"])
        wanted, start = text(self.begin_at["keyword"]).upper(), int(self.begin_at["startfrom"])
        places = range(start, len(arguments)) if start >= 0 else range(len(arguments) + start, 0, -1)
        return next((place + 1 for place in places if text(arguments[place]).upper() == wanted), None)


@dataclass(frozen=True)
class Command:
    """What a server says about one of its commands."""

    flags: frozenset[str]
    specifications: tuple[Specification, ...]
    subcommands: dict[str, "Command"]

    @classmethod
    def read(cls, answer: Sequence[Any]) -> Self:
        """Read an entry of COMMAND INFO."""
        flags = frozenset(text(flag) for flag in answer[2])
        subcommands = {text(each[0]).partition("|")[2].upper(): Command.read(each) for each in answer[9]}
        return cls(flags, tuple(Specification.read(each) for each in answer[8]), subcommands)

    @property
    def writes(self) -> bool:
        """Whether it may change keys; scripts and functions are not flagged, as nobody knows what they do."""
        if "readonly" in self.flags:
            return False
        return "write" in self.flags or any(each.writes for each in self.specifications)

    @property
    def direct(self) -> bool:
        """Whether the first argument is the only key."""
        match self.specifications:
            case [Specification(begin="index", begin_at={"index": 1}, find="range", find_by={"lastkey": 0})]:
                return True
        return False

    @property
    def blocks(self) -> bool:
        """Whether it may wait for somebody else."""
        return "blocking" in self.flags

    def written(self, arguments: Arguments) -> list[Argument]:
        """Give the keys that it may change.

        Raises:
            AskServerError: the arguments alone do not tell.

        """
        if not all(each.certain for each in self.specifications):
            raise AskServerError
        chosen = [each for each in self.specifications if each.writes] or self.specifications
        return [key for each in chosen if "not_key" not in each.flags for key in each.keys(arguments)]


@dataclass
class Catalogue:
    """The commands of one server, learned as they are used.

    `direct` are those known whose first argument is the one key that they write, or read, and `harmless` those that
    write nothing: what a program does most needs no second look.
    """

    known: dict[str, Command | None] = field(default_factory=dict)
    direct: set[str] = field(default_factory=set)
    harmless: set[str] = field(default_factory=set)

    def learn(self, name: str, answer: Answer) -> None:
        """Keep what COMMAND INFO said of one name; nothing where the server does not know it."""
        entry = answer[0] if isinstance(answer, list) and answer else None
        command = self.known[name] = Command.read(entry) if entry else None
        if command is None or command.subcommands:
            return
        if not command.writes:
            self.harmless.add(name)
        elif command.direct and name in PLAIN and len(command.specifications) == 1:
            self.direct.add(name)

    def find(self, words: Sequence[str]) -> Command | None:
        """Give the command, or the subcommand, that these first words name; None if the server knows none."""
        command = self.known[words[0]]
        if command is None or not command.subcommands:
            return command
        return command.subcommands.get(words[1] if len(words) > 1 else "")


def named_keys(answer: Sequence[Any]) -> list[bytes]:
    """Read COMMAND GETKEYSANDFLAGS: the keys that may be written, or all where none is flagged so."""
    flagged = [(bytes(key), {text(flag) for flag in flags}) for key, flags in answer]
    return [key for key, flags in flagged if flags & {"RW", "OW", "RM"}] or [key for key, _ in flagged]


CATALOGUES: dict[object, Catalogue] = {}


def catalogue_of(connection: Connection) -> Catalogue:
    """Give the catalogue of the server that a connection leads to."""
    address = getattr(connection, "path", None) or (connection.host, connection.port)
    found = CATALOGUES.get(address)
    if found is None:
        found = CATALOGUES[address] = Catalogue()
    return found
