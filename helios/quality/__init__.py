"""How well we heard the market: facts measured, a score from 0 to 1, an alert level, and the reasons as sentences.

`measure(reader, instrument_id, interval, ...)` measures a series of klines, `measure_ticker` and `measure_orders` the
rest; each gives facts and their verdict, and `record` stores it. Who has facts of its own - a loader of its file, a
feed of the message it holds - asks `judge_klines` or `judge_ticker` directly, so that all scores mean the same.
"""

from helios.quality.facts import KlineFacts, OrderFacts, TickerFacts
from helios.quality.judging import (
    KlineThresholds,
    OrderThresholds,
    TickerThresholds,
    Verdict,
    judge_klines,
    judge_orders,
    judge_ticker,
)
from helios.quality.measuring import Measured, Series, measure, measure_orders, measure_ticker, series, tickers
from helios.quality.recording import record

__all__ = [
    "KlineFacts",
    "KlineThresholds",
    "Measured",
    "OrderFacts",
    "OrderThresholds",
    "Series",
    "TickerFacts",
    "TickerThresholds",
    "Verdict",
    "judge_klines",
    "judge_orders",
    "judge_ticker",
    "measure",
    "measure_orders",
    "measure_ticker",
    "record",
    "series",
    "tickers",
]
