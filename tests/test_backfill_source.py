"""Telling the series of a file from its name, its folders and the caller's options."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from helios.backfill import recognise
from helios.errors import InputError
from helios.models import Interval, Market


def there(folder: Path, name: str) -> Path:
    """Make an empty file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("name", "symbol", "interval", "market", "assumed"),
    [
        ("BTCUSDT-1m-2024-12.csv", "BTCUSDT", "1m", "spot", True),
        ("BTCUSDT-1m-2024-12-31.zip", "BTCUSDT", "1m", "spot", True),
        ("BTCUSDT-1mo-2024-12.zip", "BTCUSDT", "1mo", "spot", True),
        ("BTCUSD_PERP-1h-2024-12.csv", "BTCUSD_PERP", "1h", "cm", False),
        ("BTCUSD_240329-1h-2024-01.csv", "BTCUSD_240329", "1h", "cm", False),
        ("BTCUSDT_240329-1h-2024-01.csv", "BTCUSDT_240329", "1h", "um", False),
        ("spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-12.zip", "BTCUSDT", "1m", "spot", False),
        ("futures/um/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-12-31.zip", "BTCUSDT", "1m", "um", False),
        ("futures/cm/daily/klines/X/1m/BTCUSD_PERP-1m-2024-12-31.zip", "BTCUSD_PERP", "1m", "cm", False),
        ("binance_um_1m/ALGOUSDT-1m-2024-09.csv", "ALGOUSDT", "1m", "um", False),
        ("cm/spot/BTCUSDT-1m-2024-12.csv", "BTCUSDT", "1m", "spot", False),
        ("UNITTEST_BTC-1m.json", "UNITTESTBTC", "1m", "spot", True),
        ("BTC_USDT-1M.json", "BTCUSDT", "1mo", "spot", True),
        ("BTC_USDT_USDT-1h-futures.json", "BTCUSDT", "1h", "um", False),
        ("1000SHIBUSDT-3d-2024-12.CSV", "1000SHIBUSDT", "3d", "spot", True),
    ],
)
def test_names(tmp_path, name, symbol, interval, market, *, assumed) -> None:
    """Each usual form of name tells its series, and says when the market is only assumed."""
    source = recognise(there(tmp_path, name))
    assert (symbol, Interval(interval), Market(market), assumed) == (
        source.symbol,
        source.interval,
        source.market,
        source.assumed,
    )


def test_options_win(tmp_path) -> None:
    """What the caller says wins over name and folders."""
    path = there(tmp_path, "um/BTCUSDT-1m-2024-12.csv")
    source = recognise(path, symbol="ETHUSDT", interval="1h", market="cm", exchange="OKX")
    assert "okx cm ETHUSDT 1h" == source.series
    assert not source.assumed


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("BTCUSDT-1m-2024-12.csv", (2024, 12, 1), (2025, 1, 1)),
        ("BTCUSDT-1m-2024-02-29.csv", (2024, 2, 29), (2024, 3, 1)),
    ],
)
def test_periods(tmp_path, name, start, end) -> None:
    """Month and day in a name are the period that its candles should fill."""
    expected = (datetime(*start, tzinfo=UTC), datetime(*end, tzinfo=UTC))
    assert expected == recognise(there(tmp_path, name)).period


@pytest.mark.parametrize(
    "name",
    [
        "BTCUSDT-1m.csv",
        "BTCUSDT-1m-2024-13.csv",
        "BTCUSDT-1m-2023-02-29.csv",
        "BTCUSDT-1m-0000-01.csv",
        "BTCUSDT-1m-9999-12.csv",
        "BTCUSDT-1m-9999-12-31.csv",
    ],
)
def test_no_period(tmp_path, name) -> None:
    """A name without a possible date says no period."""
    assert recognise(there(tmp_path, name)).period is None


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("klines.csv", {}, "does not tell its symbol by its name: say --symbol"),
        ("klines.csv", {"symbol": "BTCUSDT"}, "does not tell its interval by its name: say --interval"),
        ("BTCUSDT-aggTrades-2024-12.zip", {}, "does not tell its symbol"),
        ("BTCUSDT-7m-2024-12.zip", {}, "'7m' is not an interval: choose --interval from 1s, 1m"),
        ("BTCUSDT-1m-2024-12.zip", {"interval": "60"}, "'60' is not an interval"),
        (
            "BTCUSDT-1m-2024-12.zip",
            {"market": "futures"},
            "'futures' is not a market: choose --market from spot, um, cm",
        ),
        ("um/markPriceKlines/BTCUSDT-1m-2024-12.zip", {}, "lies in a folder markpriceklines"),
        ("BTC_USDT_USDT-8h-funding_rate.json", {}, "holds funding_rate by its name"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path, name, options, said) -> None:
    """Where the name does not tell, one sentence names the file and the option."""
    with pytest.raises(InputError) as refused:
        recognise(there(tmp_path, name), **options)
    assert said in str(refused.value)
    assert name.rsplit("/", maxsplit=1)[-1] in str(refused.value)


def test_a_file_that_is_not_there(tmp_path) -> None:
    """A path that is no file is named."""
    with pytest.raises(InputError, match=r"nothing\.csv is not there"):
        recognise(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="is not there, or not a file"):
        recognise(tmp_path)
    with pytest.raises(InputError, match="cannot be looked at: File name too long"):
        recognise(tmp_path / f"{'BTCUSDT' * 50}-1m.csv")
