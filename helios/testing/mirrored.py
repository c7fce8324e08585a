"""Which Redis keys mirror an instance of Helios's own models."""

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, object_session

from helios.mirrors import Place
from helios.models import Account, Instrument, Kline, Order, Position, Ticker

INSTRUMENT = (Instrument.exchange, Instrument.market, Instrument.symbol)
ACCOUNT = (Account.exchange, Account.name)


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
    return select(func.current_database(), *INSTRUMENT).where(Instrument.id == number)


def of_account(number: int) -> Select[Any]:
    """Ask for what people call an account."""
    return select(func.current_database(), *ACCOUNT).where(Account.id == number)


def key(session: Session, table: str, named: Select[Any], *more: str) -> str:
    """Name the key of a natural name, as the session's own transaction sees it."""
    database, *name = session.connection().execute(named).one()
    return Place(database, str(Ticker.__table__.schema)).key(table, *name, *more)
