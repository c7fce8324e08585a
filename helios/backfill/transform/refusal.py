"""Why a file, or one row of it, is not taken."""


class RefusalError(Exception):
    """The file as a whole cannot be used; the message says why and what to do."""


class OutOfBoundsError(Exception):
    """A good candle lies outside the range that the loader prepared for; it has to look at the whole file first."""


class OutOfOrderError(Exception):
    """A good candle belongs to a section that has ended; the loader has to do without sections."""


class BadRowError(Exception):
    """One row cannot become a candle: `kind` is counted, the message is written beside the row."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
