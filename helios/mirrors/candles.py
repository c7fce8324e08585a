"""Candles that still run: told by the feed to Redis directly, for as long as they are true.

They are in no table, so no relay mirrors them and no check compares them. Each key expires by itself shortly after the
feed last wrote it, so a feed that died leaves no candle that seems to run.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from helios.mirrors.keys import RUNNING, Place
from helios.mirrors.values import CANDLE

if TYPE_CHECKING:
    from redis import Redis

EXPIRES = timedelta(seconds=10)


def publish_candle(client: "Redis", place: Place, series: tuple[str, str, str, str], candle: Mapping[str, Any]) -> None:
    """Publish a candle that still runs; it is there for ten seconds, or until the next one.

    Args:
        client: of the Redis that holds the mirrors.
        place: whose mirrors.
        series: exchange, market, symbol and interval.
        candle: the fields of `CANDLE` by name; open_time a datetime with time zone, the rest exact numbers or None.

    """
    told = {**candle, "open_time": round(candle["open_time"].timestamp() * 1000)}
    line = ",".join("" if told.get(name) is None else str(told[name]) for name in CANDLE)
    client.set(place.key(RUNNING, *series), line, px=EXPIRES)
