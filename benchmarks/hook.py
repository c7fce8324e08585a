"""The peer of the mirrors, as services usually do it: an after_commit hook of SQLAlchemy's writes Redis itself."""

import json
from contextlib import suppress
from typing import Any

from redis import Redis, RedisError
from sqlalchemy import event
from sqlalchemy.orm import Session, UOWTransaction, sessionmaker

from helios.models import Ticker

PENDING = "hook.pending"


def hook(factory: sessionmaker[Session], client: Redis) -> None:
    """Have each commit of a factory's sessions written to Redis: `hook:ticker:<instrument id>`."""

    def remember(session: Session, _flush: UOWTransaction) -> None:
        pending = session.info.setdefault(PENDING, {})
        for each in (*session.new, *session.dirty):
            if isinstance(each, Ticker):
                pending[key(each.instrument_id)] = text_of(each)
        for each in session.deleted:
            if isinstance(each, Ticker):
                pending[key(each.instrument_id)] = None

    def write(session: Session) -> None:
        pending = session.info.pop(PENDING, {})
        if not pending:
            return
        pipeline = client.pipeline(transaction=False)
        for name, value in pending.items():
            if value is None:
                pipeline.delete(name)
            else:
                pipeline.set(name, value)
        with suppress(RedisError, OSError):  # what was committed is committed
            pipeline.execute()

    event.listen(factory, "after_flush", remember)
    event.listen(factory, "after_commit", write)
    event.listen(factory, "after_rollback", lambda session: session.info.pop(PENDING, None))


def key(instrument_id: int) -> str:
    """Name the key of a ticker."""
    return f"hook:ticker:{instrument_id}"


def text_of(ticker: Ticker) -> str:
    """Write a ticker as the mirrors do: all columns as JSON."""
    values: dict[str, Any] = {column.name: getattr(ticker, column.name) for column in Ticker.__table__.columns}
    return json.dumps(values, default=str)
