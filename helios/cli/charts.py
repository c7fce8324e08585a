"""Candles as pictures, in the terminal and as PNG, and how complete a series is as a bar of one line."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from helios.errors import HeliosError, InputError
from helios.models import Interval
from helios.queries import Coverage, Rows

LEVELS = " ▁▂▃▄▅▆▇█"
UP, DOWN = "#26a69a", "#ef5350"
MOST_IN_PNG = 300  # of 1,800 pixels, so that a body stays wider than its wick
PANELS = (3, 1)  # heights of prices and volumes


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A candle as it is drawn: alone, or several in one; numbers are floats, because pixels are."""

    slot: int  # place on the time axis; a missing candle leaves its place empty
    open_time: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float

    @property
    def rises(self) -> bool:
        """Whether it ends where it began or above."""
        return self.close >= self.open


def to_draw(candles: Rows, interval: Interval, most: int) -> tuple[list[Drawn], int]:
    """Fit candles into `most` places; gives them, and how many candles each place stands for."""
    places = [place(row.open_time, interval) - place(candles[0].open_time, interval) for row in candles]
    each = -(-(places[-1] + 1) // most)
    paired = zip(places, candles, strict=True)
    return [
        joined(slot, [row for _, row in group]) for slot, group in groupby(paired, lambda one: one[0] // each)
    ], each


def place(moment: datetime, interval: Interval) -> int:
    """Number the candles of an interval's grid."""
    if interval.length is None:
        return moment.year * 12 + moment.month
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // interval.length


def joined(slot: int, rows: Sequence[Any]) -> Drawn:
    """Make one candle of several that follow each other."""
    return Drawn(
        slot=slot,
        open_time=rows[0].open_time,
        open=float(rows[0].open),
        high=float(max(row.high for row in rows)),
        low=float(min(row.low for row in rows)),
        close=float(rows[-1].close),
        volume=float(sum(row.volume for row in rows)),
    )


def title_of(name: str, interval: Interval, candles: Rows, each: int) -> str:
    """Say what is drawn, the last price, and how far it moved since the first."""
    first, last = candles[0].open, candles[-1].close
    several = f", {each} candles in one" if each > 1 else ""
    return f"{name} {interval.value}{several}   {last.normalize():,f} ({(last / first - 1) * 100:+.2f} %)"


def in_terminal(candles: Rows, interval: Interval, name: str, *, width: int, height: int) -> str:
    """Draw candles above their volumes with characters.

    Raises:
        HeliosError: plotext is not installed.

    """
    plotext = library("plotext")
    plotext.terminal.limit(False, False)  # noqa: FBT003 - the caller knows the size
    low, high = float(min(row.low for row in candles)), float(max(row.high for row in candles))
    if low == high:
        low, high = low * 0.99, high * 1.01
    prices = levels(low, high, 5)
    drawn, each, volumes = to_draw_beside(prices, candles, interval, width - 4)
    margin = widest(prices, volumes)
    step = max(1, min(3, (width - 4 - margin) // (drawn[-1].slot + 1)))  # columns from one candle to the next
    columns = drawn[-1].slot * step + 1
    at = [one.slot * step for one in drawn]
    volume_height = max(6, height * PANELS[1] // sum(PANELS))
    figure = plotext.figure

    figure.clear()
    figure.plot_size(columns + margin + 2, height - volume_height)
    axes(figure, (columns, {}), (low, high, prices), margin)
    parts = {part: [getattr(one, part) for one in drawn] for part in ("open", "high", "low", "close")}
    figure.draw(figure.candlestick({"date": at, **parts}))
    above = str(figure.build()).rstrip("\n")

    figure.clear()
    figure.plot_size(columns + margin + 2, volume_height)
    axes(figure, (columns, times(drawn, interval, step)), (0, max(volumes), volumes), margin)
    for x, one in zip(at, drawn, strict=True):
        if one.volume:
            bar = plotext.marker("█", "green" if one.rises else "red")
            figure.draw(figure.segment((x, x), (0, one.volume), marker=bar))
    below = str(figure.build()).rstrip("\n")
    figure.clear()
    span = f"{candles[0].open_time:%Y-%m-%d %H:%M} to {candles[-1].open_time:%Y-%m-%d %H:%M}, UTC"
    return f"{title_of(name, interval, candles, each)}\n{above}\n{below}\n{span.rjust(columns + margin + 2)}"


def to_draw_beside(
    prices: dict[float, str], candles: Rows, interval: Interval, room: int
) -> tuple[list[Drawn], int, dict[float, str]]:
    """Fit candles beside the figures of their axes: how many fit, the figures of the volumes decide as well."""
    margin = widest(prices)
    while True:
        drawn, each = to_draw(candles, interval, max(1, room - margin))
        volumes = levels(0, max(one.volume for one in drawn), 3)
        if widest(volumes) <= margin or margin >= room:
            return drawn, each, volumes
        margin += 1


def widest(*labels: dict[float, str]) -> int:
    """Tell how many columns the figures of axes take."""
    return max(len(label) for each in labels for label in each.values())


def axes(
    figure: Any,  # noqa: ANN401 - plotext ships no types
    across: tuple[int, dict[int, str]],
    up: tuple[float, float, dict[float, str]],
    margin: int,
) -> None:
    """Set both axes of a plotext figure: one column for each place, labels of one width so that panels line up."""
    columns, times_ = across
    low, high, labels = up
    figure.theme("simple")  # the terminal's own background
    figure.ruler("x").lim(0, columns - 1)
    figure.ruler("x").ticks(list(times_), labels=list(times_.values()))
    figure.ruler("y").lim(low, high)
    figure.ruler("y").ticks(list(labels), labels=[label.rjust(margin) for label in labels.values()])


def levels(low: float, high: float, count: int) -> dict[float, str]:
    """Choose evenly spaced figures of an axis, with as many digits as tell them apart."""
    step = (high - low) / (count - 1) or 1
    digits = max(0, 1 - math.floor(math.log10(step)))
    return {low + at * step: f"{low + at * step:,.{digits}f}" for at in range(count)}


def times(drawn: Sequence[Drawn], interval: Interval, step: int) -> dict[int, str]:
    """Choose times of the axis, far enough from each other to be read."""
    length = interval.length or timedelta(days=31)
    form = "%Y-%m-%d" if length >= timedelta(days=1) else "%m-%d %H:%M"
    found: dict[int, str] = {}
    free = 0
    for one in drawn:
        column = one.slot * step
        if column >= free:
            found[column] = f"{one.open_time:{form}}"
            free = column + 18
    return found


def as_png(candles: Rows, interval: Interval, name: str, file: Path) -> None:
    """Draw candles above their volumes into a PNG file.

    Raises:
        HeliosError: matplotlib is not installed.
        InputError: the file cannot be written.

    """
    dates = library("matplotlib.dates")
    drawn, each = to_draw(candles, interval, MOST_IN_PNG)
    at = [one.open_time for one in drawn]
    apart = each * (interval.length or timedelta(days=30))
    figure = library("matplotlib.figure").Figure(figsize=(12, 7), dpi=150, layout="constrained")
    prices, volumes = figure.subplots(2, 1, sharex=True, height_ratios=PANELS)
    colours = [UP if one.rises else DOWN for one in drawn]
    prices.vlines(at, [one.low for one in drawn], [one.high for one in drawn], colors=colours, linewidth=1)
    least = (max(one.high for one in drawn) - min(one.low for one in drawn)) / 500  # a line where nothing moved
    prices.bar(
        at,
        [max(abs(one.close - one.open), least) for one in drawn],
        bottom=[min(one.open, one.close) for one in drawn],
        width=apart * 0.7,
        color=colours,
    )
    volumes.bar(at, [one.volume for one in drawn], width=apart * 0.7, color=colours)
    prices.set_title(title_of(name, interval, candles, each), loc="left")
    prices.set_ylabel("price")
    volumes.set_ylabel("volume")
    volumes.set_xlabel("UTC")
    locator = dates.AutoDateLocator(tz=UTC)
    volumes.xaxis.set_major_locator(locator)
    volumes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=UTC))
    for panel in (prices, volumes):
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.12f}".rstrip("0").rstrip("."))
        panel.grid(visible=True, alpha=0.25)
        panel.set_axisbelow(True)
        panel.margins(x=0.01)
    try:
        figure.savefig(file, format="png")
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror}; choose another file") from None


def coverage_bar(series: Coverage, gaps: Iterable[Any], cells: int = 16) -> str:
    """Draw how much of a series is there, from its first candle to its last: full blocks lack nothing, blanks all."""
    end = series.last + (series.interval.length or timedelta(days=28))
    span = (end - series.first) / cells
    missing = [0.0] * cells
    for gap in gaps:
        since, until = (gap.start - series.first) / span, (gap.until - series.first) / span
        for cell in range(int(since), min(cells, math.ceil(until))):
            missing[cell] += min(until, cell + 1) - max(since, cell)
    full = len(LEVELS) - 1
    # what lacks anything never looks complete, and what has anything never looks empty
    levels_ = [full if not share else max(1, min(full - 1, round((1 - share) * full))) for share in missing]
    return "".join(
        LEVELS[0] if share > 1 - 1e-9 else LEVELS[level] for share, level in zip(missing, levels_, strict=True)
    )


def installed(name: str) -> bool:
    """Tell whether a library that draws is there."""
    return find_spec(name) is not None


def library(name: str) -> Any:  # noqa: ANN401 - a module that may be absent
    """Import a library that draws.

    Raises:
        HeliosError: it is not installed.

    """
    try:
        return import_module(name)
    except ImportError:
        raise HeliosError(
            f'drawing candles needs {name.partition(".")[0]}, which is not installed: pip install "helios[charts]"'
        ) from None
