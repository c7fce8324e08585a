"""Columns of a block become records of a binary COPY, as one numpy array.

PostgreSQL's numeric is digits in groups of four (see `numeric`). In one block each column is sent with a fixed count of
groups and fixed decimal places, so all records are equally long and each group is one column of the array; the server
drops leading and trailing zero groups when it stores them.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Unsigned = npt.NDArray[np.unsignedinteger[Any]]

PLACES = 8  # decimal places of the columns as pyarrow reads them
ONE = 10**PLACES
TWO_TO_64 = divmod(2**64, ONE)  # whole part and rest of the upper word's unit
MOST_UPPER = 2735  # upper words beyond it are negative, or 5e14 and more
POSTGRESQL_EPOCH = 946_684_800_000  # 2000-01-01, in ms since 1970
IN_NETWORK_ORDER = np.arange(10_000, dtype="u2").astype(">u2").view("u2")


class Digits(NamedTuple):
    """A column of numbers: groups of four digits, the most significant first, and where the point stands."""

    groups: list[Unsigned]
    weight: int
    scale: int


def digits_of(low: Unsigned, upper: Unsigned, scale: int) -> Digits | None:
    """Take the digits out of 128-bit integers that count hundred millionths.

    Args:
        low: the lower words.
        upper: the upper words.
        scale: decimal places to tell PostgreSQL of; all eight where some number needs more.

    Returns:
        None when a number is negative or too big for it.

    """
    highest = int(upper.max())
    if highest > MOST_UPPER:
        return None
    whole, rest = np.divmod(low, np.uint64(ONE)) if highest else quick_divmod(low, ONE)
    if highest:
        rest = rest + upper * np.uint64(TWO_TO_64[1])
        whole = whole + upper * np.uint64(TWO_TO_64[0]) + rest // np.uint64(ONE)
        rest %= np.uint64(ONE)
    groups, weight = whole_groups(whole)
    fraction = rest.astype("u4")
    if scale < PLACES and (fraction % np.uint32(10 ** (PLACES - scale))).any():
        scale = PLACES
    first, second = quick_divmod(fraction, 10_000)
    finer = bool(second.any())
    if finer or first.any() or not groups:
        groups.append(first)
    if finer:
        groups.append(second)
    return Digits(groups, weight, scale)


def quick_divmod(numbers: Unsigned, by: int) -> tuple[Unsigned, Unsigned]:
    """Divide with a multiplication for the rest: numpy's own divmod costs twice as much."""
    divisor = numbers.dtype.type(by)
    quotient = numbers // divisor
    return quotient, numbers - quotient * divisor


def whole_groups(whole: Unsigned) -> tuple[list[Unsigned], int]:
    """Cut whole numbers into groups of four digits, as many as the biggest needs; and the weight of the first."""
    groups: list[Unsigned] = []
    biggest = int(whole.max())
    if biggest < 2**32:
        whole = whole.astype("u4")
    while biggest >= 10_000:  # noqa: PLR2004 - a group
        whole, group = quick_divmod(whole, 10_000)
        groups.append(group)
        biggest //= 10_000
    if biggest:
        groups.append(whole)
    groups.reverse()
    return groups, len(groups) - 1


def records(
    instrument_id: int, interval: bytes, moments: npt.NDArray[np.int64], columns: list[Digits | npt.NDArray[np.int32]]
) -> bytes:
    """Write a block: instrument, moment (ms), the columns in their order (whole numbers as they are), interval."""
    kind: list[tuple[Any, ...]] = [("head", ">i2"), ("key", ">i4", (2,)), ("time_size", ">i4"), ("time", ">i8")]
    for place, column in enumerate(columns):
        if isinstance(column, Digits):
            kind += [(f"{place}_head", ">i2", (6,)), (f"{place}", "u2", (len(column.groups),))]
        else:
            kind += [(f"{place}_head", ">i4"), (f"{place}", ">i4")]
    kind += [("interval_size", ">i4"), ("interval", f"S{len(interval)}")]
    array = np.empty(len(moments), np.dtype(kind))
    one = np.zeros((), array.dtype)
    one["head"], one["key"], one["time_size"] = len(columns) + 3, (4, instrument_id), 8
    one["interval_size"], one["interval"] = len(interval), interval
    for place, column in enumerate(columns):
        if isinstance(column, Digits):
            count = len(column.groups)
            one[f"{place}_head"] = (0, 8 + 2 * count, count, column.weight, 0, column.scale)
        else:
            one[f"{place}_head"] = 4
    array[...] = one
    array["time"] = (moments - POSTGRESQL_EPOCH) * 1000
    for place, column in enumerate(columns):
        if isinstance(column, Digits):
            digits = array[f"{place}"]
            for group, values in enumerate(column.groups):
                digits[:, group] = IN_NETWORK_ORDER[values]
        else:
            array[f"{place}"] = column
    return array.tobytes()
