"""An installation of the ancestor out of `public` into Helios's tables: planned first, copied on demand, never touched.

The ancestor is a trading bot that kept its tables in a schema it shared with others: current_prices, ohlcv_1m to
ohlcv_1d, trading_sessions, data_quality_metrics, orders, positions, order_history. `plan(connection)` tells what of it
Helios can hold, and of every row it cannot, why; `apply(engine, source)` copies the rest in small transactions. It only
adds: what Helios holds already stays as it is, so it can be killed at any moment and run again.
"""

from helios.adopting.copying import Progress, apply
from helios.adopting.planning import Plan, Share, plan
from helios.adopting.source import Source

__all__ = ["Plan", "Progress", "Share", "Source", "apply", "plan"]
