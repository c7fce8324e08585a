"""Bytes of a CSV, a ZIP holding one, or a JSON list of candles, handed on as blocks of whole lines."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

from .refusal import RefusalError

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it reads no such ZIP
    LZMAError = zlib.error  # type: ignore[misc, assignment]

BLOCK = 1 << 19
LONGEST_LINE = 1 << 20
PARQUET = b"PAR1"
ENCRYPTED = 1  # among the flags of a ZIP's member
# ValueError: the name of a member is no UTF-8; RuntimeError: NotImplementedError, a compression that Python lacks.
DAMAGED = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, ValueError, RuntimeError)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Readable(Protocol):
    """What a block is read from: a file, or the member of an archive."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes."""


class Block(NamedTuple):
    """Whole lines, each with its line feed; `torn` when the file ended inside the last one."""

    first_line: int
    data: bytes
    torn: bool
    lines: int  # counted once, because even that takes a twentieth of the whole reading


def blocks(file: BinaryIO, size: int | None = None) -> Iterator[Block]:
    """Read a file from its beginning, whatever of the three forms it has; its content decides, not its name."""
    size = size or BLOCK
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    if head.startswith(PARQUET):
        raise RefusalError("is Parquet, which takes numpy and pyarrow to read: install the extra helios[fast]")
    if head.startswith(b"PK\x03\x04"):
        return member_blocks(file, size)
    return text_blocks(file, head, size)


def member_blocks(file: BinaryIO, size: int) -> Iterator[Block]:
    """Read the one file inside a ZIP, never more of it at once than a block."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            if len(members) != 1:
                raise RefusalError(f"holds {len(members)} files, but a ZIP of klines holds one: unpack it first")
            if members[0].flag_bits & ENCRYPTED:
                raise RefusalError("is an encrypted ZIP: unpack it first, and load what was in it")
            with archive.open(members[0]) as member:
                head = member.read(4096)
            with archive.open(members[0]) as member:
                yield from text_blocks(member, head, size)
    except DAMAGED as error:
        raise RefusalError(f"is a ZIP that cannot be read ({error}): fetch it again") from error


def text_blocks(stream: Readable, head: bytes, size: int) -> Iterator[Block]:
    """Tell text from rubbish by its beginning, and CSV from JSON."""
    if b"\0" in head or not readable(head):
        raise RefusalError("is not text: klines are CSV, a ZIP with one CSV, or JSON")
    first = head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    if first == b"{":
        raise RefusalError("holds a JSON object, but candles are a list of lists, [[time, open, high, low, ...], ...]")
    return json_blocks(stream, size) if first == b"[" else csv_blocks(stream, size)


def readable(head: bytes) -> bool:
    """Say whether the beginning of a file is UTF-8, but for a character cut at its end."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.end == len(head) and error.start > len(head) - 4 and error.start > 0
    return True


def pieces(stream: Readable, size: int) -> Iterator[bytes]:
    """Read a stream block by block, without the mark that some editors put before the first byte."""
    if first := stream.read(max(size, len(BYTE_ORDER_MARK))).removeprefix(BYTE_ORDER_MARK):
        yield first
    while data := stream.read(size):
        yield data


def csv_blocks(stream: Readable, size: int) -> Iterator[Block]:
    """Cut CSV behind the last line feed of each piece; a carriage return before a line feed is dropped."""
    line, rest = 1, b""
    for piece in pieces(stream, size):
        data = rest + piece
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if len(rest) > LONGEST_LINE:
            raise RefusalError(f"holds a line of more than {LONGEST_LINE} bytes (line {line}): it is no file of klines")
        if cut:
            whole = data[:cut]
            if b"\r" in whole:  # looking for one byte is far quicker than replacing two in vain
                whole = whole.replace(b"\r\n", b"\n")
            count = whole.count(b"\n")
            yield Block(line, whole, torn=False, lines=count)
            line += count
    if rest:
        yield Block(line, rest.rstrip(b"\r") + b"\n", torn=True, lines=1)


def json_blocks(stream: Readable, size: int) -> Iterator[Block]:
    """Turn `[[a,b],[c,d]]` into lines `a,b`; digits stay as they were written, and a line is a row's number."""
    line, rest, opened = 1, b"", False
    for piece in pieces(stream, size):
        data = rest + piece.translate(None, b' \t\r\n"')
        if not opened:
            if len(data) < 2:  # noqa: PLR2004 - both opening brackets are needed
                rest = data
                continue
            data, opened = opening_removed(data), True
        cut = data.rfind(b"],[") + 1
        rest = data[cut:]
        if len(rest) > LONGEST_LINE:
            raise RefusalError(f"holds a row of more than {LONGEST_LINE} bytes (row {line}): it is no list of candles")
        if cut:
            whole = data[:cut].replace(b"],[", b"\n").removeprefix(b",[").removesuffix(b"]") + b"\n"
            count = whole.count(b"\n")
            yield Block(line, whole, torn=False, lines=count)
            line += count
    if not opened:
        raise RefusalError("ends inside its first bracket: fetch it again")
    yield from last_rows(line, rest.removeprefix(b",["))


def opening_removed(data: bytes) -> bytes:
    """Take the opening brackets off a list of rows; an empty list has no rows at all."""
    if data.startswith(b"[["):
        return data[2:]
    if data.startswith(b"[]"):
        return b"]]"
    raise RefusalError("holds JSON that is not a list of lists, [[time, open, high, low, close, volume], ...]")


def last_rows(line: int, rest: bytes) -> Iterator[Block]:
    """Hand on what stands behind the last boundary between rows; a list that was cut off leaves a torn row."""
    if rest == b"]]":
        return
    if found := re.fullmatch(rb"([^\[\]]*)\]\]", rest):
        yield Block(line, found[1] + b"\n", torn=False, lines=1)
    elif rest:
        yield Block(line, rest.rstrip(b"],").replace(b"\n", b"") + b"\n", torn=True, lines=1)
