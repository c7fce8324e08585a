"""Orders and their fills into their tables, each order under the lock of its row."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import uuid_utils.compat
from sqlalchemy import Executable, Row, Uuid, bindparam, func, literal_column, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from helios.errors import HeliosError
from helios.feed.merging import changes, first_sight, precedes
from helios.feed.reports import FillReport, OrderReport
from helios.feed.statements import Writer
from helios.models import Fill, Order, PositionSide, Side
from helios.names import function_name
from helios.queries.query import table_of

FILL_VALUES = ("price", "quantity", "quote_quantity", "fee", "fee_asset", "is_maker", "filled_at")
OrderRow = dict[str, Any]
# Made once, because making a statement costs more than sending it; on the tables, because a mapped class costs more.
ORDERS, FILLS = table_of(Order), table_of(Fill)
FIND = (
    select(ORDERS)
    .where(
        ORDERS.c.account_id == bindparam("account_id"),
        (ORDERS.c.client_order_id == bindparam("client_order_id"))
        | (
            (ORDERS.c.instrument_id == bindparam("instrument_id"))
            & (ORDERS.c.exchange_order_id == bindparam("exchange_order_id"))
        ),
    )
    .order_by(ORDERS.c.id)
    .with_for_update()
)
MAKE = insert(ORDERS).on_conflict_do_nothing().returning(ORDERS.c.id)
JOIN = text(f"SELECT {function_name(ORDERS.schema, 'join_orders')}(:duplicate, :kept)").bindparams(
    bindparam("duplicate", type_=Uuid), bindparam("kept", type_=Uuid)
)
CHANGE = update(ORDERS).where(ORDERS.c.id == bindparam("order"))
SUMS = select(
    func.sum(FILLS.c.quantity), func.sum(func.coalesce(FILLS.c.quote_quantity, FILLS.c.quantity * FILLS.c.price))
).where(FILLS.c.order_id == bindparam("order"))


def put_statement() -> Executable:
    """Insert a fill, or lessen the one that is there where that changes it."""
    statement = insert(FILLS)
    least = {name: func.least(FILLS.c[name], statement.excluded[name]) for name in FILL_VALUES}
    return statement.on_conflict_do_update(
        index_elements=[FILLS.c.order_id, FILLS.c.trade_id],
        set_=least,
        where=tuple_(*(FILLS.c[name] for name in FILL_VALUES)).is_distinct_from(tuple_(*least.values())),
    ).returning(literal_column("xmax = 0").label("is_new"))


PUT = put_statement()


class Holding(NamedTuple):
    """Which position: of an instrument, on a side."""

    instrument_id: int
    position_side: PositionSide


@dataclass(kw_only=True)
class Outcome:
    """What writing orders changed, and what their positions must learn of it."""

    orders: int = 0
    fills: int = 0
    #: Fills that are new, with the sign of their side.
    added: dict[Holding, list[tuple[Side, FillReport]]] = field(default_factory=dict)
    #: Positions whose fills changed or moved: they are derived anew.
    unsettled: set[Holding] = field(default_factory=set)

    @property
    def holdings(self) -> list[Holding]:
        """The positions concerned, in the order in which every writer locks them."""
        return sorted({*self.added, *self.unsettled})


def write_orders(writer: Writer, account_id: int, reports: Iterable[tuple[int, OrderReport]]) -> Outcome:
    """Write orders, given with their instruments' numbers, in the order in which every writer locks them."""
    outcome = Outcome()
    for instrument_id, report in sorted(reports, key=place):
        write_order(writer, account_id, instrument_id, report, outcome)
    return outcome


def place(each: tuple[int, OrderReport]) -> tuple[int, int, str, str]:
    """Sort orders by instrument, then by age."""
    instrument_id, report = each
    exchange_order_id = report.exchange_order_id or ""
    return (instrument_id, len(exchange_order_id), exchange_order_id, report.client_order_id or "")


def write_order(writer: Writer, account_id: int, instrument_id: int, report: OrderReport, outcome: Outcome) -> None:
    """Write one order and its fills."""
    row, is_new = locked(writer, account_id, instrument_id, report, outcome)
    before = Holding(instrument_id, row["position_side"])
    added = write_fills(writer, row, report, outcome)
    told = first_sight(report)
    if added:
        filled, value = filled_sums(writer, row["id"])
        told["filled_quantity"] = max(told["filled_quantity"], filled)
        told["filled_quote_quantity"] = max(told["filled_quote_quantity"], value)
    changed = changes(row, told, tells_state=report.status is not None)
    if changed:
        writer.execute(CHANGE, changed | {"order": row["id"]})
    outcome.orders += bool(changed) or is_new
    holding = Holding(instrument_id, (row | changed)["position_side"])
    if holding != before:
        outcome.unsettled |= {before, holding}
    if added:
        outcome.added.setdefault(holding, []).extend((row["side"], fill) for fill in added)


def locked(
    writer: Writer, account_id: int, instrument_id: int, report: OrderReport, outcome: Outcome
) -> tuple[OrderRow, bool]:
    """Find the order of a message and lock it, or make it; whether it is new."""
    for _ in range(5):
        rows = find(writer, account_id, instrument_id, report)
        same, namesake = sort_out(rows, instrument_id, report)
        if same is not None:
            return identified(writer, same, namesake, report, outcome), False
        values = {**first_sight(report), "account_id": account_id, "instrument_id": instrument_id}
        if namesake is not None:
            values["client_order_id"] = claimed(writer, namesake, report)
        values["id"] = uuid_utils.compat.uuid7()
        if writer.execute(MAKE, values).scalar() is not None:
            return values, True
    raise HeliosError(
        f"Order {report.exchange_order_id or report.client_order_id} is made and deleted by others at once: try again"
    )


def find(writer: Writer, account_id: int, instrument_id: int, report: OrderReport) -> list[OrderRow]:
    """Lock the rows that have the exchange's id or the client's, oldest first."""
    ids = {"client_order_id": report.client_order_id, "exchange_order_id": report.exchange_order_id}
    found = writer.execute(FIND, {**ids, "account_id": account_id, "instrument_id": instrument_id})
    return [dict(row) for row in found.mappings()]


def sort_out(rows: list[OrderRow], instrument_id: int, report: OrderReport) -> tuple[OrderRow | None, OrderRow | None]:
    """Tell the row of this very order from one that only has its client id.

    An order that was placed here has no exchange's id until it is told. If it was told by its trades first, it has two
    rows: the one that was placed here comes first, the other becomes the namesake that `identified` takes in.
    """
    by_exchange = next((row for row in rows if is_of(row, instrument_id, report)), None)
    by_client = next((row for row in rows if row is not by_exchange), None)
    if by_client is None or by_client["instrument_id"] != instrument_id:
        return by_exchange, by_client
    if by_client["exchange_order_id"] is None or report.exchange_order_id is None:
        return by_client, by_exchange
    return by_exchange, by_client


def is_of(row: OrderRow, instrument_id: int, report: OrderReport) -> bool:
    """Say whether a row has the exchange's id of a message."""
    ids = (row["instrument_id"], row["exchange_order_id"])
    return report.exchange_order_id is not None and ids == (instrument_id, report.exchange_order_id)


def identified(
    writer: Writer, row: OrderRow, other: OrderRow | None, report: OrderReport, outcome: Outcome
) -> OrderRow:
    """Give a row the ids that a message adds; `other` is its second row, or an order with the same client id."""
    if other is not None and other["exchange_order_id"] == report.exchange_order_id is not None:
        row = row | take_in(writer, row, other, outcome)
        other = None
    ids: dict[str, str] = {}
    if row["exchange_order_id"] is None and report.exchange_order_id is not None:
        ids["exchange_order_id"] = report.exchange_order_id
    client_order_id = report.client_order_id
    if client_order_id is not None and client_order_id != row["client_order_id"]:
        free = other is None or claimed(writer, other, report) is not None
        if free and (row["client_order_id"] is None or report.names_original):
            ids["client_order_id"] = client_order_id
    if ids:
        writer.execute(CHANGE, ids | {"order": row["id"]})
    return row | ids


def claimed(writer: Writer, namesake: OrderRow, report: OrderReport) -> str | None:
    """Settle whose a client id is that two orders have: the older order's; the other goes by the exchange's id alone.

    Exchanges let an id be used again once its order is closed, and Binance gives `adl_autoclose` to many.
    """
    if namesake["exchange_order_id"] is None or report.exchange_order_id is None:
        return None
    if not precedes(report.exchange_order_id, namesake["exchange_order_id"]):
        return None
    writer.execute(CHANGE, {"order": namesake["id"], "client_order_id": None})
    return report.client_order_id


def take_in(writer: Writer, row: OrderRow, other: OrderRow, outcome: Outcome) -> dict[str, Any]:
    """Join two rows of one order, which its trades told of before anyone said whose they are."""
    changed = changes(row, other, tells_state=other["updated_at"] is not None)
    columns = [FILLS.c[name] for name in ("trade_id", *FILL_VALUES)]
    for fill in writer.execute(select(*columns).where(FILLS.c.order_id == other["id"])).mappings().all():
        put_fill(writer, row["id"], FillReport(**fill))
    # Not a plain DELETE: what is written of the second row moves to the first, and no writer may touch that.
    writer.execute(JOIN, {"duplicate": other["id"], "kept": row["id"]})
    filled, value = filled_sums(writer, row["id"])
    joined = row | changed
    changed["filled_quantity"] = max(joined["filled_quantity"], filled)
    changed["filled_quote_quantity"] = max(joined["filled_quote_quantity"], value)
    changed["exchange_order_id"] = other["exchange_order_id"]
    writer.execute(CHANGE, changed | {"order": row["id"]})
    sides = {row["position_side"], other["position_side"], joined["position_side"]}
    outcome.unsettled |= {Holding(row["instrument_id"], side) for side in sides}
    return changed


def write_fills(writer: Writer, row: OrderRow, report: OrderReport, outcome: Outcome) -> list[FillReport]:
    """Write the fills of a message; those that are new.

    A trade does not change. Where two messages differ in it, because one tells less or another time, the lesser of
    each value is kept and the known over the untold, so that it does not matter which came first.
    """
    added = []
    for fill in report.fills:
        result = put_fill(writer, row["id"], fill)
        if result is None:
            continue
        outcome.fills += 1
        if result.is_new:
            added.append(fill)
        else:
            outcome.unsettled.add(Holding(row["instrument_id"], row["position_side"]))
    return added


def put_fill(writer: Writer, order_id: uuid.UUID, fill: FillReport) -> Row[Any] | None:
    """Insert a fill, or lessen the one that is there; None where it is there already, just so."""
    values = {name: getattr(fill, name) for name in FILL_VALUES}
    return writer.execute(PUT, {**values, "order_id": order_id, "trade_id": fill.trade_id}).first()


def filled_sums(writer: Writer, order_id: uuid.UUID) -> tuple[Decimal, Decimal]:
    """Sum up what fills an order has: quantity, and value where it is told."""
    filled, value = writer.execute(SUMS, {"order": order_id}).one()
    return filled or Decimal(0), value or Decimal(0)
