"""Candles that still run: told by the feed to Redis directly, for as long as they are true.

They are in no table, so no relay mirrors them and no check compares them. Each key expires by itself shortly after the
feed last wrote it, so a feed that died leaves no candle that seems to run.
"""

from collections.abc import Mapping
from datetime import timedelta
from inspect import isawaitable
from typing import Any

from sqlalchemy.util import await_only

from helios.mirrors.keys import RUNNING
from helios.mirrors.reading import Mirror
from helios.mirrors.values import CANDLE

EXPIRES = timedelta(seconds=10)

Series = tuple[str, str, str, str]


def publish_candles(mirror: Mirror, candles: Mapping[Series, Mapping[str, Any]]) -> None:
    """Publish candles that still run; each is there for ten seconds, or until the next one of its series.

    Args:
        mirror: whose mirrors, in which Redis; an asynchronous client serves where `run_sync` does.
        candles: by exchange, market, symbol and interval the fields of `CANDLE` by name; open_time a datetime with
            time zone, the rest exact numbers or None.

    """
    pipeline = mirror.client.pipeline(transaction=False)
    for series, candle in candles.items():
        # Whose and in which form it is, as the heartbeat says it of all the rest.
        value = mirror.voucher + b"\n" + line_of(candle).encode()
        pipeline.set(mirror.place.key(RUNNING, *series), value, px=EXPIRES)
    answers = pipeline.execute()
    if isawaitable(answers):
        await_only(answers)


def line_of(candle: Mapping[str, Any]) -> str:
    """Write a candle as the mirrors' series do."""
    told = {**candle, "open_time": round(candle["open_time"].timestamp() * 1000)}
    return ",".join("" if told.get(name) is None else str(told[name]) for name in CANDLE)


def read_candle(mirror: Mirror, series: Series) -> bytes:
    """Read the line that `publish_candles` wrote; empty where it is gone, another server's, or of another form."""
    answer: Any = mirror.client.get(mirror.place.key(RUNNING, *series))
    content = await_only(answer) if isawaitable(answer) else answer
    voucher, _, line = (content or b"").partition(b"\n")
    return line if voucher == mirror.voucher else b""
