"""The fields of a message, read exactly, or refused with a sentence that names message, field and value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, TypeVar

from helios.errors import InputError

Choices = TypeVar("Choices", bound=StrEnum)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Above this, a number of milliseconds would lie beyond the year 5138: it counts microseconds.
MICROSECONDS_FROM = 10**14
# More digits than any price has, and fewer than PostgreSQL's `numeric` can take.
MOST_DIGITS = 1000


@dataclass(frozen=True, slots=True)
class Fields:
    """A message of some kind, whose fields are asked for by name, or by place where the message is an array."""

    kind: str
    message: Mapping[str, Any] | Sequence[Any]

    def get(self, *names: str | int) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Give the first of these fields that is told; None where none is."""
        for name in names:
            value = self._at(name)
            if value is not None:
                return value
        return None

    def _at(self, name: str | int) -> Any:  # noqa: ANN401 - whatever JSON holds
        if isinstance(self.message, Mapping):
            return self.message.get(str(name))
        place = int(name)
        return self.message[place] if place < len(self.message) else None

    def told(self, *names: str | int) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Give the first of these fields that is told.

        Raises:
            InputError: none is.

        """
        value = self.get(*names)
        if value is None:
            listed = " or ".join(repr(name) for name in names)
            raise InputError(f"{self.kind} has no {listed}: pass the exchange's message whole")
        return value

    def number(self, *names: str | int) -> Decimal:
        """Read a number exactly; a float gives its shortest text, which is what was read from JSON."""
        return self._exact(self.told(*names), names)

    def number_or_none(self, *names: str | int) -> Decimal | None:
        """Read a number that may be untold; an empty text counts as untold."""
        value = self.get(*names)
        return None if value is None or value == "" else self._exact(value, names)

    def nonzero(self, *names: str | int) -> Decimal | None:
        """Read a number where zero stands for none, as in the price of a market order."""
        return self.number_or_none(*names) or None

    def _exact(self, value: Any, names: tuple[str | int, ...]) -> Decimal:  # noqa: ANN401 - whatever JSON holds
        number = None
        if isinstance(value, Decimal | int | float | str) and not isinstance(value, bool):
            try:
                number = Decimal(str(value))
            except InvalidOperation:
                number = None
        if number is None or not number.is_finite() or abs(number.adjusted()) > MOST_DIGITS:
            raise InputError(f"{self.kind} says {names[0]!r} is {value!r}, which is not a number")
        return number

    def count_or_none(self, *names: str | int) -> int | None:
        """Read a whole number that may be untold."""
        number = self.number_or_none(*names)
        if number is not None and number != int(number):
            raise InputError(f"{self.kind} says {names[0]!r} is {number}, which is not a whole number")
        return None if number is None else int(number)

    def moment(self, *names: str | int) -> datetime:
        """Read a moment, told as milliseconds or microseconds since 1970."""
        return self._moment(self.told(*names), names)

    def moment_or_none(self, *names: str | int) -> datetime | None:
        """Read a moment that may be untold; 0 counts as untold."""
        value = self.get(*names)
        return self._moment(value, names) if value else None

    def _moment(self, value: Any, names: tuple[str | int, ...]) -> datetime:  # noqa: ANN401 - whatever JSON holds
        number = self._exact(value, names)
        microseconds = number if number >= MICROSECONDS_FROM else number * 1000
        try:
            return EPOCH + timedelta(microseconds=int(microseconds))
        except OverflowError:
            raise InputError(f"{self.kind} says {names[0]!r} is {value!r}, which is not a moment") from None

    def text(self, *names: str | int) -> str:
        """Read a name or an id; numbers become text."""
        text = self._text(self.told(*names), names)
        if text is None:
            raise InputError(f"{self.kind} says {names[0]!r} is {self.get(*names)!r}, which names nothing")
        return text

    def text_or_none(self, *names: str | int) -> str | None:
        """Read a name or an id that may be untold; blank, and the word null, count as untold."""
        value = self.get(*names)
        return None if value is None else self._text(value, names)

    def _text(self, value: Any, names: tuple[str | int, ...]) -> str | None:  # noqa: ANN401 - whatever JSON holds
        if isinstance(value, bool) or not isinstance(value, str | int) or "\x00" in str(value):
            raise InputError(f"{self.kind} says {names[0]!r} is {value!r}, which is not a text")
        text = str(value)
        return None if not text.strip() or text == "null" else text

    def flag_or_none(self, *names: str | int) -> bool | None:
        """Read a yes or no that may be untold."""
        value = self.get(*names)
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{self.kind} says {names[0]!r} is {value!r}, which is neither true nor false")
        return value

    def choice(self, choices: type[Choices], otherwise: Choices, *names: str | int) -> Choices:
        """Read a word of a list; `otherwise` where it is untold or not on the list, because nothing is refused."""
        text = self.text_or_none(*names)
        try:
            return otherwise if text is None else choices(text.upper())
        except ValueError:
            return otherwise

    def part(self, name: str) -> "Fields":
        """Give the object that stands in a field."""
        value = self.told(name)
        if not isinstance(value, Mapping):
            raise InputError(f"{self.kind} says {name!r} is {value!r}, which is not an object")
        return Fields(self.kind, value)

    def parts(self, *names: str) -> list["Fields"]:
        """Give the objects of the list that stands in a field; none where the field is untold."""
        value = self.get(*names)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
            raise InputError(f"{self.kind} says {names[0]!r} is {value!r}, which is not a list of objects")
        return [Fields(self.kind, each) for each in value]


def fee_of(message: Fields, amount: str, asset: str) -> tuple[Decimal | None, str | None]:
    """Read a fee and its asset, which come together or not at all."""
    fee, fee_asset = message.number_or_none(amount), message.text_or_none(asset)
    return (None, None) if fee is None or fee_asset is None else (fee, fee_asset)
