"""Whether the rows of a file stand as far apart as its interval says."""

from collections import Counter
from itertools import pairwise

from .duplicates import moment_of
from .grid import DAY
from .reading import Block
from .refusal import RefusalError

LOOKED_AT = 2000
ENOUGH = 3
MONTH = range(28 * DAY, 31 * DAY + 1, DAY)


def check_spacing(block: Block, step: int, steps: dict[str, int]) -> None:
    """Refuse a file whose rows clearly are another interval's: none stands where it should, most where another would.

    Raises:
        RefusalError: the interval is not the file's.

    """
    moments = [moment_of(line) for line in block.data.split(b"\n", LOOKED_AT)[:LOOKED_AT]]
    apart = Counter(b - a for a, b in pairwise(each for each in moments if each is not None) if b > a)
    own = step in apart if step else any(each in MONTH for each in apart)
    if own or apart.total() < ENOUGH:
        return
    usual, times = apart.most_common(1)[0]
    other = next((name for name, length in steps.items() if length == usual), "1mo" if usual in MONTH else None)
    if other and 2 * times > apart.total():
        raise RefusalError(f"holds rows that stand {other} apart: say --interval {other} if that is what it holds")
