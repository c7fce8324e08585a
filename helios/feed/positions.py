"""Positions: what an account holds, what it was entered at, and what closing parts of it brought.

A position is derived from its fills in the order in which they were traded (moment, then trade id), by the average
cost rule: what adds to it moves the average entry price, what lessens it realises the difference between that price
and its own. So it is the same in whatever order the fills are told.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from helios.errors import HeliosError
from helios.feed.orders import Holding, Outcome
from helios.feed.reports import FillReport
from helios.feed.statements import Writer
from helios.models import Fill, Market, Order, Position, Side
from helios.queries.query import table_of

# Older than any trade, and what PostgreSQL can store.
LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)
EXACT = Context(prec=1000)  # sums and products lose nothing
DIVIDING = Context(prec=28)  # an average rarely has an end


ORDERS, FILLS, POSITIONS = table_of(Order), table_of(Fill), table_of(Position)
THIS = (
    POSITIONS.c.account_id == bindparam("account"),
    POSITIONS.c.instrument_id == bindparam("instrument"),
    POSITIONS.c.position_side == bindparam("side"),
)
LOCK = (
    select(POSITIONS.c.quantity, POSITIONS.c.entry_price, POSITIONS.c.realized_pnl, POSITIONS.c.event_at)
    .where(*THIS)
    .with_for_update()
)
MAKE = insert(POSITIONS).on_conflict_do_nothing()
CHANGE = update(POSITIONS).where(*THIS)
REMOVE = delete(POSITIONS).where(*THIS)
TRADES = (
    select(ORDERS.c.side, FILLS.c.trade_id, FILLS.c.price, FILLS.c.quantity, FILLS.c.filled_at)
    .join(ORDERS, ORDERS.c.id == FILLS.c.order_id)
    .where(
        ORDERS.c.account_id == bindparam("account"),
        ORDERS.c.instrument_id == bindparam("instrument"),
        ORDERS.c.position_side == bindparam("side"),
    )
)
TRADES_AT = TRADES.where(FILLS.c.filled_at == bindparam("at"))


class Trade(NamedTuple):
    """A fill, as a position sees it; they sort in the order in which they were traded."""

    filled_at: datetime
    digits: int  # of the trade id, so that ids of digits sort as numbers
    trade_id: str
    quantity: Decimal  # below zero where sold
    price: Decimal


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A position: quantity in the base asset (contracts in COIN-M), below zero when short; entry price; profit."""

    quantity: Decimal = Decimal(0)
    entry_price: Decimal | None = None
    realized_pnl: Decimal = Decimal(0)

    def after(self, trade: Trade, market: Market) -> "State":
        """Give the position after another trade."""
        quantity = EXACT.add(self.quantity, trade.quantity)
        if self.entry_price is None or self.quantity * trade.quantity >= 0:
            return State(quantity=quantity, entry_price=self._average(trade, market), realized_pnl=self.realized_pnl)
        closed = min(abs(self.quantity), abs(trade.quantity)).copy_sign(self.quantity)
        profit = EXACT.multiply(closed, gain(self.entry_price, trade.price, market))
        turned = quantity and quantity.is_signed() != self.quantity.is_signed()
        entry_price = trade.price if turned else self.entry_price
        return State(
            quantity=quantity,
            entry_price=entry_price if quantity else None,
            realized_pnl=EXACT.add(self.realized_pnl, profit),
        )

    def _average(self, trade: Trade, market: Market) -> Decimal:
        """Average the entry price: by quantity; in COIN-M futures by value, which is quantity over price."""
        if self.entry_price is None:
            return trade.price
        held, added = abs(self.quantity), abs(trade.quantity)
        if market == Market.CM:
            worth = DIVIDING.divide(held, self.entry_price) + DIVIDING.divide(added, trade.price)
            return DIVIDING.divide(held + added, worth)
        cost = EXACT.fma(held, self.entry_price, EXACT.multiply(added, trade.price))
        return DIVIDING.divide(cost, EXACT.add(held, added))


def gain(entry_price: Decimal, price: Decimal, market: Market) -> Decimal:
    """Give the profit of one unit bought at a price and sold at another.

    Linear (spot, USDⓈ-M): exit less entry, in the quote asset. Inverse (COIN-M): 1 / entry - 1 / exit, in the base
    asset for each unit of quote asset that a contract is worth; the tables do not know how many those are (100 for
    BTCUSD, 10 for the others), so multiply by it. Both as Binance's futures help pages define profit and loss.
    """
    if market == Market.CM:
        return EXACT.subtract(DIVIDING.divide(Decimal(1), entry_price), DIVIDING.divide(Decimal(1), price))
    return EXACT.subtract(price, entry_price)


def derived(trades: Iterable[Trade], market: Market, since: State | None = None) -> State:
    """Go through trades, oldest first."""
    state = since or State()
    for trade in sorted(trades):
        state = state.after(trade, market)
    return state


def trade_of(side: Side, fill: FillReport | Row[*tuple[Any, ...]]) -> Trade:
    """See a fill as a position does."""
    quantity = fill.quantity if side is Side.BUY else -fill.quantity
    return Trade(fill.filled_at, len(fill.trade_id), fill.trade_id, quantity, fill.price)


def write_positions(writer: Writer, account_id: int, outcome: Outcome, market: Market) -> int:
    """Bring the positions up to the fills that were written, each under the lock of its row; how many."""
    for holding in outcome.holdings:
        added = sorted(trade_of(side, fill) for side, fill in outcome.added.get(holding, []))
        settle(writer, account_id, holding, None if holding in outcome.unsettled else added, market)
    return len(outcome.holdings)


def settle(writer: Writer, account_id: int, holding: Holding, added: list[Trade] | None, market: Market) -> None:
    """Go on from the position as it stands where the added trades are its newest; else derive it from all its fills."""
    known = locked(writer, account_id, holding)
    if added and known.newest > LONG_AGO and is_newest(writer, account_id, holding, known.newest, added):
        state, newest = derived(added, market, known.state), added[-1].filled_at
    else:
        trades = trades_of(writer, account_id, holding)
        if not trades:
            writer.execute(REMOVE, this(account_id, holding))
            return
        state, newest = derived(trades, market), max(each.filled_at for each in trades)
    values = {name: getattr(state, name) for name in ("quantity", "entry_price", "realized_pnl")}
    writer.execute(CHANGE, {**this(account_id, holding), **values, "event_at": newest})


class Known(NamedTuple):
    """A position as its row has it, and the moment of its newest fill."""

    state: State
    newest: datetime


def locked(writer: Writer, account_id: int, holding: Holding) -> Known:
    """Lock the row of a position; one that is not there is made, as of long ago."""
    for _ in range(5):
        row = writer.execute(LOCK, this(account_id, holding)).first()
        if row is not None:
            state = State(quantity=row.quantity, entry_price=row.entry_price, realized_pnl=row.realized_pnl)
            return Known(state, row.event_at)
        writer.execute(MAKE, {"account_id": account_id, **holding._asdict(), "event_at": LONG_AGO})
    raise HeliosError(f"The position in instrument {holding.instrument_id} is made and deleted by others: try again")


def this(account_id: int, holding: Holding) -> dict[str, Any]:
    """Bind whose position is meant."""
    return {"account": account_id, "instrument": holding.instrument_id, "side": holding.position_side}


def is_newest(writer: Writer, account_id: int, holding: Holding, newest: datetime, added: list[Trade]) -> bool:
    """Say whether all that was added was traded after all that is in the position already."""
    if added[0].filled_at != newest:
        return added[0].filled_at > newest
    together = trades_of(writer, account_id, holding, at=newest)
    mine = [each for each in added if each.filled_at == newest]
    return together[-len(mine) :] == mine


def trades_of(writer: Writer, account_id: int, holding: Holding, at: datetime | None = None) -> list[Trade]:
    """Read the fills of a position, oldest first; all of them, or those of one moment."""
    whose = this(account_id, holding)
    rows = writer.execute(TRADES, whose) if at is None else writer.execute(TRADES_AT, {**whose, "at": at})
    return sorted(trade_of(row.side, row) for row in rows)
