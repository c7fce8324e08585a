"""Which Redis keys mirror an instance of Helios's own models."""

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, object_session

from helios.mirrors import Place
from helios.mirrors.keys import bucket_names
from helios.models import Account, Instrument, Kline, Order, Position, Ticker
from helios.models.bookkeeping import mirror_state

INSTRUMENT = (Instrument.exchange, Instrument.market, Instrument.symbol)
ACCOUNT = (Account.exchange, Account.name)
BUCKETS = select(func.count()).select_from(mirror_state).scalar_subquery()


def mirror_keys(instance: object) -> list[str]:
    """Name the keys in Redis that show an instance which a session has flushed; none for what has no mirror."""
    session = object_session(instance)
    if session is None:
        return []
    match instance:
        case Ticker():
            return [key(session, "ticker", of_instrument(instance.instrument_id))]
        case Kline():
            return [key(session, "klines", of_instrument(instance.instrument_id), instance.interval)]
        case Order():
            return [key(session, "orders", of_account(instance.account_id))]
        case Position():
            return [key(session, "positions", of_account(instance.account_id))]
    return []


def of_instrument(number: int) -> Select[Any]:
    """Ask for what people call an instrument."""
    return select(func.current_database(), BUCKETS, *INSTRUMENT).where(Instrument.id == number)


def of_account(number: int) -> Select[Any]:
    """Ask for what people call an account."""
    return select(func.current_database(), BUCKETS, *ACCOUNT).where(Account.id == number)


def key(session: Session, table: str, named: Select[Any], *more: str) -> str:
    """Name the key of a natural name, as the session's own transaction sees it."""
    database, buckets, *name = session.connection().execute(named).one()
    bucket = bucket_names(max(1, buckets))[0]
    return Place(database, str(Ticker.__table__.schema), bucket).key(table, *name, *more)
