"""The questions a trader asks of the tables, each one statement.

Most give a `Query`, which is read as rows, as objects or as a table of pandas, polars or Arrow; `coverage` and
`current_price` judge what they read, and so take the session or connection themselves. `Live` answers what cannot wait
from the mirrors in Redis, and from PostgreSQL where these may not be trusted.
"""

from helios.queries.klines import Coverage, coverage, gaps, klines, latest_of_each, ownerless_series, series_present
from helios.queries.live import Answer, Live
from helios.queries.mirrored import Candle
from helios.queries.orders import open_orders, position_differences, positions, unresolved_orders
from helios.queries.prices import Price, current_price, instruments_named
from helios.queries.query import Query, Reader, Rows

__all__ = [
    "Answer",
    "Candle",
    "Coverage",
    "Live",
    "Price",
    "Query",
    "Reader",
    "Rows",
    "coverage",
    "current_price",
    "gaps",
    "instruments_named",
    "klines",
    "latest_of_each",
    "open_orders",
    "ownerless_series",
    "position_differences",
    "positions",
    "series_present",
    "unresolved_orders",
]
