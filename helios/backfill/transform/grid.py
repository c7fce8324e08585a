"""Where the candles of an interval may begin, how that is written, and which of them a file has shown so far."""

import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator

DAY = 86_400_000
FIRST_MOMENT = 946_684_800_000  # 2000-01-01: nothing older is a candle, and seconds taken for milliseconds fall below
LAST_MOMENT = 7_258_118_400_000  # 2200-01-01
MICROSECONDS_FROM = 10**14  # as milliseconds this would be the year 5138


def scale_of(moment: int) -> int | None:
    """Tell by its size in what unit a moment is written: units per millisecond, or None when it is no moment."""
    scale = 1 if moment < MICROSECONDS_FROM else 1000
    return scale if FIRST_MOMENT * scale <= moment < LAST_MOMENT * scale else None


def year_of(moment: int) -> int:
    """Name the UTC year of a moment in milliseconds."""
    return time.gmtime(moment // 1000).tm_year


class Grid:
    """The candles of one interval, numbered; `step` is in milliseconds, and 0 for calendar months."""

    def __init__(self, step: int, anchor: int | None) -> None:
        self.step = step
        self.anchor = anchor
        self._suffixes: list[bytes] = []
        self._days: dict[int, bytes] = {}

    def number(self, moment: int) -> int | None:
        """Number the candle that opens at a moment in milliseconds; None when none does."""
        if not self.step:
            date = time.gmtime(moment // 1000)
            return date.tm_year * 12 + date.tm_mon - 1 if moment % DAY == 0 and date.tm_mday == 1 else None
        if self.anchor is None:  # nobody says on which days periods of three begin: the file's first midnight does
            if moment % DAY:
                return None
            self.anchor = moment % self.step
        number, off = divmod(moment - self.anchor, self.step)
        return None if off else number

    def moment(self, number: int) -> int:
        """Say when a candle opens, in milliseconds."""
        if self.step:
            return number * self.step + (self.anchor or 0)
        days = days_before(number // 12, number % 12 + 1)
        return days * DAY

    def texts(self, moment: int, count: int, before: bytes) -> list[bytes]:
        """Write a run of opening times as PostgreSQL reads them, each with `before` in front."""
        if not self.step or self.step >= DAY:
            first = self.number(moment) or 0
            return [before + self.text(self.moment(first + each)) for each in range(count)]
        suffixes = self._suffixes = self._suffixes or [clock(each) for each in range(0, DAY, self.step)]
        texts: list[bytes] = []
        day, place = moment // DAY, moment % DAY // self.step
        while len(texts) < count:
            date = before + self.date(day)
            texts += [date + each for each in suffixes[place : place + count - len(texts)]]
            day, place = day + 1, 0
        return texts

    def text(self, moment: int) -> bytes:
        """Write one opening time as PostgreSQL reads it."""
        day, rest = divmod(moment, DAY)
        return self.date(day) + clock(rest)

    def date(self, day: int) -> bytes:
        """Write a day since 1970, with the blank behind it."""
        known = self._days.get(day)
        if known is None:
            known = self._days[day] = time.strftime("%Y-%m-%d ", time.gmtime(day * 86_400)).encode()
        return known


def clock(rest: int) -> bytes:
    """Write the time of day; candles open on whole seconds."""
    seconds = rest // 1000
    return b"%02d:%02d:%02d+00" % (seconds // 3600, seconds // 60 % 60, seconds % 60)


def days_before(year: int, month: int) -> int:
    """Count the days from 1970-01-01 to the first of a month."""
    shifted = year - (month <= 2)  # noqa: PLR2004 - a year that begins in March has its leap day at the end
    leap = shifted // 4 - shifted // 100 + shifted // 400
    return 365 * shifted + leap + (153 * ((month + 9) % 12) + 2) // 5 - 719_468


class Coverage:
    """Which candles a file has shown: the first, the last, and the gaps between, so that memory follows the gaps."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.last = -1
        self.starts = array("q")
        self.ends = array("q")

    def later(self, number: int) -> bool:
        """Say whether a candle lies behind everything seen."""
        return self.first is None or number > self.last

    def add(self, number: int, count: int = 1) -> bool:
        """Take a candle, or a run of them behind everything seen; False when it was there already."""
        if self.first is None:
            self.first, self.last = number, number + count - 1
        elif number > self.last:
            if number > self.last + 1:
                self.starts.append(self.last + 1)
                self.ends.append(number - 1)
            self.last = number + count - 1
        elif number < self.first:
            if number < self.first - 1:
                self.starts.insert(0, number + 1)
                self.ends.insert(0, self.first - 1)
            self.first = number
        else:
            return self._fill(number)
        return True

    def _fill(self, number: int) -> bool:
        place = bisect_right(self.starts, number) - 1
        if place < 0 or number > self.ends[place]:
            return False
        start, end = self.starts[place], self.ends[place]
        if start == end:
            del self.starts[place], self.ends[place]
        elif number == start:
            self.starts[place] += 1
        elif number == end:
            self.ends[place] -= 1
        else:
            self.ends[place] = number - 1
            self.starts.insert(place + 1, number + 1)
            self.ends.insert(place + 1, end)
        return True

    def gaps(self) -> Iterator[tuple[int, int]]:
        """List the gaps: the number of the first missing candle, and how many are missing."""
        for start, end in zip(self.starts, self.ends, strict=True):
            yield start, end - start + 1

    @property
    def missing(self) -> int:
        """Count the candles missing between the first and the last."""
        return sum(self.ends) - sum(self.starts) + len(self.starts)
