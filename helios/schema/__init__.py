"""The schema Helios calls its own: making it, granting it by role, marking what it is for, migrating it.

`pending()` is what a service asks at its start: which migrations does this database still lack?
"""

from helios.schema.migrations import downgrade, pending, upgrade

__all__ = ["downgrade", "pending", "upgrade"]
