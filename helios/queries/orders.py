"""Questions about orders and positions: open, unresolved, the sum of fills now or at a moment."""

from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, case, func, literal_column, select
from sqlalchemy import Interval as Duration

from helios.errors import InputError
from helios.models import OPEN_STATUSES, Fill, Order, OrderHistory, OrderStatus, Position, Side
from helios.queries.query import Query, moments, table_of

ORDERS = table_of(Order)
FILLS = table_of(Fill)
HISTORY = table_of(OrderHistory)
POSITIONS = table_of(Position)

# What is ours to say, until the exchange answers.
UNRESOLVED_STATUSES = (OrderStatus.PENDING_NEW, OrderStatus.PENDING_CANCEL, OrderStatus.UNKNOWN)


def open_orders(*, account_id: int | None = None, instrument_id: int | None = None) -> Query[Order]:
    """Ask for the orders that may still be filled, all or those of an account or an instrument, oldest first."""
    parameters = known(account_id=account_id, instrument_id=instrument_id)
    return Query(open_orders_statement(frozenset(parameters)), parameters, Order)


@cache
def open_orders_statement(told: frozenset[str]) -> Select[Any]:
    """Make the statement of `open_orders`; the index of open orders holds nothing else."""
    found = select(*ORDERS.c).where(ORDERS.c.status.in_(OPEN_STATUSES), *of_orders(told))
    return found.order_by(ORDERS.c.submitted_at, ORDERS.c.id)


def unresolved_orders(
    older_than: timedelta = timedelta(0), *, account_id: int | None = None, instrument_id: int | None = None
) -> Query[Order]:
    """Ask for the orders the exchange has not answered for, and `since` when: PENDING_NEW, PENDING_CANCEL, UNKNOWN.

    `since` is when the newest change was recorded here, on the server's clock; `older_than` leaves younger ones out.

    Raises:
        InputError: `older_than` is below zero.

    """
    if older_than < timedelta(0):
        raise InputError(f"older_than={older_than!r} is below zero: pass how long an answer may take")
    parameters = known(account_id=account_id, instrument_id=instrument_id)
    statement = unresolved_orders_statement(frozenset(parameters))
    return Query(statement, {**parameters, "older_than": older_than}, Order)


@cache
def unresolved_orders_statement(told: frozenset[str]) -> Select[Any]:
    """Make the statement of `unresolved_orders`."""
    since = waiting_since()
    latest = func.clock_timestamp() - bindparam("older_than", type_=Duration())
    return (
        select(*ORDERS.c, since.label("since"))
        .where(ORDERS.c.status.in_(UNRESOLVED_STATUSES), since <= latest, *of_orders(told))
        .order_by(since, ORDERS.c.id)
    )


def waiting_since() -> ColumnElement[Any]:
    """Tell when an order's newest change was recorded here; `updated_at` tells when the exchange last spoke."""
    newest_change = (
        select(HISTORY.c.recorded_at)
        .where(HISTORY.c.order_id == ORDERS.c.id)
        .order_by(HISTORY.c.version.desc())
        .limit(1)
        .scalar_subquery()
    )
    # History may have been dropped by then; the row itself is as old as its first sight at least.
    return func.coalesce(newest_change, ORDERS.c.recorded_at)


def positions(
    *, at: datetime | None = None, account_id: int | None = None, instrument_id: int | None = None
) -> Query[Any]:
    """Ask for the positions now, or as they were at a moment: bought less sold, in the base asset; flat ones are left out.

    Both are the sum of the fills up to then, and cost a look at each of them; `models.Position` holds the newest
    alone, and `position_differences` proves that the two agree.

    Raises:
        InputError: the moment has no time zone.

    """  # noqa: E501 - one sentence
    parameters = {"at": None, **moments(at=at), **known(account_id=account_id, instrument_id=instrument_id)}
    return Query(positions_statement(frozenset(parameters)), parameters)


@cache
def positions_statement(told: frozenset[str]) -> Select[Any]:
    """Make the statement of `positions`; where no moment is told, it is the end of time."""
    up_to = func.coalesce(bindparam("at", type_=FILLS.c.filled_at.type), literal_column("timestamptz 'infinity'"))
    summed = sum_of_fills().add_columns(func.max(FILLS.c.filled_at).label("filled_at"))
    quantity = summed.selected_columns.quantity
    summed = summed.where(FILLS.c.filled_at <= up_to, *of_orders(told))
    return summed.having(quantity != 0).order_by(ORDERS.c.account_id, ORDERS.c.instrument_id, ORDERS.c.position_side)


def sum_of_fills() -> Select[Any]:
    """Sum what was bought less what was sold, for each account, instrument and side of a position."""
    signed = case((ORDERS.c.side == Side.BUY, FILLS.c.quantity), else_=-FILLS.c.quantity)
    keys = (ORDERS.c.account_id, ORDERS.c.instrument_id, ORDERS.c.position_side)
    return (
        select(*keys, func.sum(signed).label("quantity"))
        .select_from(ORDERS)
        .join(FILLS, FILLS.c.order_id == ORDERS.c.id)
        .group_by(*keys)
    )


def position_differences() -> Query[Any]:
    """Ask for the positions that differ from the sum of their fills, with both quantities in the base asset."""
    filled = sum_of_fills().subquery("filled")
    keys = ("account_id", "instrument_id", "position_side")
    same = [POSITIONS.c[key] == filled.c[key] for key in keys]
    stated, summed = func.coalesce(POSITIONS.c.quantity, 0), func.coalesce(filled.c.quantity, 0)
    statement = (
        select(
            *(func.coalesce(POSITIONS.c[key], filled.c[key]).label(key) for key in keys),
            stated.label("position"),
            summed.label("fills"),
        )
        .select_from(POSITIONS)
        .join(filled, same[0] & same[1] & same[2], full=True)
        .where(stated != summed)
        .order_by(*keys)
    )
    return Query(statement)


def known(**numbers: int | None) -> dict[str, Any]:
    """Keep the numbers that are told."""
    return {name: number for name, number in numbers.items() if number is not None}


def of_orders(told: frozenset[str]) -> list[ColumnElement[bool]]:
    """Keep to the account and the instrument, where they are told."""
    return [ORDERS.c[name] == bindparam(name) for name in ("account_id", "instrument_id") if name in told]
