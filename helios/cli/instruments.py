"""What commands are told: an instrument by its symbol, exchange and market, and a moment."""

from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy import Row

from helios import queries
from helios.errors import InputError
from helios.models import Market

exchange_option = click.option("--exchange", help="Exchange, where the symbol is on several.")
market_option = click.option(
    "--market", type=click.Choice([each.value for each in Market]), help="Market, where the symbol is in several."
)


class Moment(click.ParamType[datetime]):
    """A moment as ISO 8601, such as 2025-01-31 or 2025-01-31T12:00; in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401 - click's signature
        """Read it."""
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time: write it like 2025-01-31 or 2025-01-31T12:00", param, ctx)
        return moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment


def the_instrument(
    reader: queries.Reader, symbol: str, exchange: str | None, market: str | None
) -> Row[*tuple[Any, ...]]:
    """Find the one instrument that is meant.

    Raises:
        InputError: there is none, or the symbol alone does not tell which.

    """
    found = [
        row
        for row in queries.instruments_named(symbol).rows(reader)
        if exchange in (None, row.exchange) and market in (None, row.market)
    ]
    if not found:
        raise InputError(f"there is no instrument {symbol!r} here: `helios klines list` shows those with klines")
    if len(found) > 1:
        places = ", ".join(f"{row.exchange} {row.market.value}" for row in found)
        raise InputError(f"{symbol!r} is on {places}: choose with --exchange and --market")
    return found[0]
