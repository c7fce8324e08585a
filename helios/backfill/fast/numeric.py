"""One number as PostgreSQL's binary COPY has it: digits in groups of four, however many there are.

The format is that of numeric_recv() in src/backend/utils/adt/numeric.c: count of groups, weight of the first, sign,
decimal places, then the groups, each as 16 bits in network order.
"""

from decimal import Decimal
from struct import pack

GROUP = 4  # decimal digits in one of PostgreSQL's numeric digits


def numeric(written: bytes) -> bytes:
    """Write a number from zero up, with the length in front and the decimal places as they were written."""
    whole, _, fraction = f"{Decimal(written.decode()).copy_abs():f}".partition(".")
    whole = whole.lstrip("0").rjust(-(-len(whole.lstrip("0")) // GROUP) * GROUP, "0")
    digits = whole + fraction.ljust(-(-len(fraction) // GROUP) * GROUP, "0")
    groups = [int(digits[place : place + GROUP]) for place in range(0, len(digits), GROUP)]
    weight = len(whole) // GROUP - 1
    count = len(groups)
    return pack(f">ihhHh{count}h", 8 + 2 * count, count, weight, 0, len(fraction), *groups)
