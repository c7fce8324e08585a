"""Tests that leave nothing behind: the undo log, the runs that use it, and what people see of them.

In pytest the plugin's fixtures do it all; elsewhere `with helios.testing.tracked() as run:`. This file imports nothing
before something is asked for, because pytest loads it with the plugin in every project where Helios is installed.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helios.testing.proof import digest
    from helios.testing.run import Run, tracked
    from helios.testing.tracker import Tracker

__all__ = ["Run", "Tracker", "digest", "tracked"]

HOMES = {"Tracker": "helios.testing.tracker", "digest": "helios.testing.proof"}


def __getattr__(name: str) -> object:
    """Import what is asked for, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES.get(name, "helios.testing.run")), name)
