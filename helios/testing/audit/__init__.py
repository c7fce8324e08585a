"""What connections without the label changed during a test: seen, told, and never blamed on the test.

A change that no labelled connection made cannot be undone, and may well be a neighbour's; it is reported as
unattributed, with the connections that it may have come from.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unattributed:
    """Changes that nobody labelled made.

    Attributes:
        store: postgresql or redis.
        what: table or key -> how many rows or changes.
        candidates: who was connected and may have made them, by application_name or client name.
        blind: what was not looked at, in words.

    """

    store: str
    what: dict[str, int]
    candidates: tuple[str, ...]
    blind: str = ""
