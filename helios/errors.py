"""Every failure that Helios explains itself: one sentence with what was asked, what was found and what to do."""


class HeliosError(Exception):
    """What was asked could not be done; the message says why and what to do."""

    exit_status = 1


class SettingError(HeliosError):
    """A setting holds what Helios cannot use; nothing was connected to or written."""

    exit_status = 2


class InputError(HeliosError):
    """What the caller handed over (a file, an option, an argument) cannot be used; nothing was written."""

    exit_status = 2


class ServerError(HeliosError):
    """An embedded server could not be found, started, joined or stopped."""


class UnreachableError(HeliosError):
    """A configured PostgreSQL or Redis does not answer; its password is never part of the message."""


class PoolerError(HeliosError):
    """A pooler stands where a session of one's own is needed; nothing was done."""


class UncertainError(HeliosError):
    """The connection was lost during a commit: whether it counts is not known, and nothing was repeated."""


class RightsError(HeliosError):
    """The connected role lacks a right; the message holds the SQL that grants it."""


class SchemaError(HeliosError):
    """The schema is not in the state that was asked for: absent, behind, ahead, locked by another migration."""


class EnvironmentRefusedError(HeliosError):
    """The database is production, or does not say what it is, and the action would delete or instrument."""


class StaleError(HeliosError):
    """What was read is older than the caller allows, or not there at all: nothing stale is handed out as fresh."""


class LabelError(HeliosError):
    """A process that believes to be production carries the label of a test run; nothing was connected to."""


class RecordingError(HeliosError):
    """What a test run was about to write to Redis cannot be recorded, so it was refused; nothing was written."""
