"""How long what is kept, in words: `1m 2y, 1d forever, quality 90d`."""

import calendar
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from helios.errors import InputError
from helios.models import Interval

FOREVER = "forever"
AGE = re.compile(r"(\d{1,5})(d|w|mo|y)")
EXAMPLE = "write it like '1m 2y, 1d forever'"


class Subject(StrEnum):
    """What has an age: candles, measurements of quality, signals, and the history of orders that ended."""

    KLINES = "klines"
    QUALITY = "quality"
    SIGNALS = "signals"
    HISTORY = "history"


@dataclass(frozen=True)
class Age:
    """A span of days, weeks, calendar months or years."""

    count: int
    unit: str

    def __str__(self) -> str:
        """Write it as it was read."""
        return f"{self.count}{self.unit}"

    def before(self, now: datetime) -> datetime:
        """Tell the moment that lies so long before; a day that the month lacks becomes its last."""
        if self.unit in ("d", "w"):
            return now - timedelta(days=self.count * (7 if self.unit == "w" else 1))
        months = now.year * 12 + now.month - 1 - self.count * (12 if self.unit == "y" else 1)
        year, month = divmod(months, 12)
        return now.replace(year=year, month=month + 1, day=min(now.day, calendar.monthrange(year, month + 1)[1]))


@dataclass(frozen=True)
class Rule:
    """How long one thing is kept; an age of None is forever."""

    subject: Subject
    interval: Interval | None
    age: Age | None

    @property
    def name(self) -> str:
        """Say what it is about."""
        return f"klines {self.interval.value}" if self.interval else self.subject.value


@dataclass(frozen=True)
class Policy:
    """The rules, each thing once; what has no rule stays."""

    rules: tuple[Rule, ...]

    def of_klines(self, interval: str) -> Rule | None:
        """Find the rule of an interval."""
        return next((each for each in self.rules if each.interval and each.interval.value == interval), None)

    def of_rows(self) -> list[Rule]:
        """List the rules on tables whose rows are deleted."""
        return [each for each in self.rules if each.interval is None]


def parse(written: str, *, only_klines: bool = False) -> Policy:
    """Read a policy: rules between commas, each an interval of klines (or another subject) and an age.

    Raises:
        InputError: a rule is none, or says the same thing again.

    """
    rules: dict[str, Rule] = {}
    for part in written.split(","):
        rule = rule_of(part, only_klines=only_klines)
        if rule.name in rules:
            raise InputError(f"{written!r} has two rules for {rule.name}: leave one")
        rules[rule.name] = rule
    return Policy(tuple(rules.values()))


def rule_of(part: str, *, only_klines: bool) -> Rule:
    """Read one rule."""
    words = part.split()
    if words and words[0] == Subject.KLINES:
        words = words[1:]
        if words and words[0] not in tuple(Interval):
            raise InputError(f"{part.strip()!r} names no interval of klines: choose from {listed(Interval)}")
    if len(words) != 2:  # noqa: PLR2004 - a thing and its age
        raise InputError(f"{part.strip()!r} is not a rule of what and how long: {EXAMPLE}")
    what, age = words
    if what in tuple(Interval):
        return Rule(Subject.KLINES, Interval(what), age_of(age))
    if only_klines:
        raise InputError(f"{what!r} is not an interval of klines: choose from {listed(Interval)}")
    if what not in tuple(Subject):
        raise InputError(f"{what!r} cannot be retained: choose an interval of klines, quality, signals or history")
    return Rule(Subject(what), None, age_of(age))


def age_of(word: str) -> Age | None:
    """Read an age; None is forever."""
    if word == FOREVER:
        return None
    found = AGE.fullmatch(word)
    if found is None:
        hint = "; m would be minutes, mo are months" if re.fullmatch(r"\d+m", word) else ""
        raise InputError(f"{word!r} is not an age: write 90d, 8w, 6mo, 2y or {FOREVER}{hint}")
    age = Age(int(found[1]), found[2])
    if age.count == 0:
        raise InputError(f"{word!r} would keep nothing: write an age of one day or more")
    years = age.count / {"d": 365, "w": 52, "mo": 12, "y": 1}[age.unit]
    if years > 200:  # noqa: PLR2004 - where the partitions end
        raise InputError(f"{word!r} is older than any data: write {FOREVER}")
    return age


def listed(choices: type[StrEnum]) -> str:
    """Name all choices."""
    return ", ".join(choices)
