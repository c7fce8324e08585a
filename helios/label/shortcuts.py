"""What programs write most - commands with one key, in front - recorded without a second look, and packed by hand."""

from collections.abc import Callable, Sequence
from functools import cache

from helios.label.commands import PLAIN, Argument, Arguments, Catalogue, Connection
from helios.label.images import RECORD_SHA

Encode = Callable[[Argument], bytes]
MOST_WORDS = 4000  # of one command: Lua unpacks no more than 8000 values at once
CALL = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % RECORD_SHA.encode()


def bulk(value: Argument, encode: Encode) -> bytes:
    """Write one word as it is sent."""
    data = value.encode() if type(value) is str else bytes(encode(value))
    return b"$%d\r\n%b\r\n" % (len(data), data)


def writes_utf8(connection: Connection) -> bool:
    """Say whether text is sent as `bulk` writes it; a client of another encoding takes the closer look."""
    return bool(connection.encoder.encoding == "utf-8" and connection.encoder.encoding_errors == "strict")


def as_it_is(value: Argument) -> bytes:
    """Encode what is text already."""
    return str(value).encode()


@cache
def opening(count: int) -> bytes:
    """Write how the recording of a command of so many words with one key begins."""
    return b"*%d\r\n%b$1\r\n1\r\n" % (count + 8, CALL)


@cache
def middle(run: int, database: int, count: int, name: str) -> bytes:
    """Write what stands between that key and the command's arguments."""
    return b"".join(bulk(each, as_it_is) for each in ("one", str(run), str(database), str(count), name))


def shortcut(run: int, connection: Connection, catalogue: Catalogue, arguments: Arguments) -> list[bytes] | None:
    """Write the recording of a command whose one key is its first argument; None where it needs a closer look."""
    name, count = arguments[0], len(arguments)
    if name not in catalogue.direct or count > MOST_WORDS or not writes_utf8(connection):
        return None
    encode = connection.encoder.encode
    words = [bulk(each, encode) for each in arguments[1:]]
    return [b"".join((opening(count), words[0], middle(run, connection.db, count, name), *words))]


def shortcuts(
    run: int, database: int | str, encode: Encode, catalogue: Catalogue, commands: Sequence[Arguments]
) -> list[bytes] | None:
    """Write the recording of a pipeline of such commands, and of some that read; None where one needs a closer look."""
    direct, harmless = catalogue.direct, catalogue.harmless
    keys: dict[bytes, None] = {}
    for arguments in commands:
        name, count = arguments[0], len(arguments)
        if name not in PLAIN or not 1 < count < MOST_WORDS:
            return None
        if name in direct:
            keys[bulk(arguments[1], encode)] = None
        elif name not in harmless:
            return None
    if not keys:
        return None
    alike = len(keys) == len(commands) and len({(each[0], len(each)) for each in commands}) == 1
    mode, parts = (
        same(commands, encode) if alike else ("many", [part for each in commands for part in many(each, encode)])
    )
    head = b"*%d\r\n%b%b" % (len(parts) + len(keys) + 6, CALL, bulk(len(keys), encode))
    return [b"".join([head, *keys, *(bulk(each, encode) for each in (mode, run, database)), *parts])]


def same(commands: Sequence[Arguments], encode: Encode) -> tuple[str, list[bytes]]:
    """Write the words of a command that is run on each key."""
    first = commands[0]
    words = [bulk(each, encode) for arguments in commands for each in arguments[2:]]
    return "same", [bulk(first[0], encode), bulk(len(first) - 2, encode), *words]


def many(arguments: Arguments, encode: Encode) -> list[bytes]:
    """Write the words of one command among many."""
    return [bulk(len(arguments), encode), *(bulk(each, encode) for each in arguments)]
