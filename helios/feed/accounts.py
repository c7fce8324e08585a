"""Accounts, and what they hold of each asset."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from helios.errors import HeliosError, InputError
from helios.feed.reports import BalanceReport
from helios.feed.statements import Writer, columns_of, execute, unnested
from helios.models import Account, Balance, Market
from helios.names import table_name

BALANCE_TYPES = {"asset": "text", "free": "numeric", "locked": "numeric", "event_at": "timestamptz"}


def account_id(writer: Writer, exchange: str, name: str, market: Market) -> int:
    """Find an account, and make it where it is absent.

    Raises:
        InputError: it belongs to another market.

    """
    found = select(Account.id, Account.market).where(Account.exchange == exchange, Account.name == name)
    made = insert(Account).values(exchange=exchange, name=name, market=market).on_conflict_do_nothing()
    for _ in range(3):
        row = writer.execute(found).first()
        if row is None:
            writer.execute(made)
            continue
        if row.market != market:
            raise InputError(
                f"account {name!r} of {exchange} belongs to market {row.market}, not {market}: name another account"
            )
        return int(row.id)
    raise HeliosError(f"Account {name!r} of {exchange} is deleted by others while it is written: try again")


def write_balances(writer: Writer, owner: int, reports: Iterable[BalanceReport]) -> int:
    """Write what an account holds, each asset as of its newest event; how many rows changed.

    Of two events of one millisecond the one that leaves less free counts, then the one that locks less: an order of
    their own they do not have, and it is safer to believe in less.
    """
    newest: dict[str, BalanceReport] = {}
    for report in reports:
        known = newest.get(report.asset)
        if known is None or newness(report) > newness(known):
            newest[report.asset] = report
    if not newest:
        return 0
    rows: list[dict[str, Any]] = [
        {name: getattr(newest[asset], name) for name in BALANCE_TYPES} for asset in sorted(newest)
    ]
    statement = f"""
        INSERT INTO {table_name(Balance.__table__)} AS b (account_id, {", ".join(BALANCE_TYPES)})
        SELECT :account_id, told.* FROM {unnested(BALANCE_TYPES)} AS told ON CONFLICT (account_id, asset) DO UPDATE
            SET free = excluded.free, locked = excluded.locked, event_at = excluded.event_at, recorded_at = now()
            WHERE (excluded.event_at, b.free, b.locked) > (b.event_at, excluded.free, excluded.locked)
    """
    return execute(writer, statement, {**columns_of(rows, BALANCE_TYPES), "account_id": owner})


def newness(report: BalanceReport) -> tuple[Any, ...]:
    """Say how new a balance is, as the statement does."""
    return (report.event_at, -report.free, -report.locked)
