"""What the helios command shows of the market: prices and their age, gaps at a glance, candles drawn."""

import json
import os
import pty
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest
from installation import engine_of, run_sql, use, variables
from matplotlib import colors, image
from mirroring import beating
from redis import Redis

from helios import mirrors
from helios.cli import charts
from helios.models import Interval, Market
from helios.queries import Coverage

START = datetime(2025, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MONTH = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def installed(migrated, symbol, monkeypatch):
    """An instrument on two markets, and on one of them hours with a gap of three."""
    use(monkeypatch, migrated, HELIOS_ENVIRONMENT="development")
    run_sql(
        migrated,
        f"""INSERT INTO helios_trading.instruments (exchange, market, symbol)
            VALUES ('binance', 'spot', '{symbol}'), ('binance', 'um', '{symbol}')""",
        f"""INSERT INTO helios_trading.klines
            (instrument_id, interval, open_time, open, high, low, close, volume, trades)
            SELECT id, '1h', '2025-01-01 00\\:00Z'::timestamptz + make_interval(hours => n), 100 + mod(n, 7), 110, 90,
                   100 + mod(n, 5), n, 3
            FROM generate_series(0, 95) AS n, helios_trading.instruments
            WHERE n NOT IN (10, 11, 12) AND symbol = '{symbol}' AND market = 'spot'""",
    )
    return migrated


@pytest.fixture
def spot(symbol):
    """The arguments that name the instrument with candles."""
    return symbol, "--market", "spot"


@pytest.fixture
def show(symbol):
    """The command that shows its candles."""
    return "klines", "show", symbol, "1h", "--market", "spot"


def set_price(url, symbol, age, **prices):
    """Write the ticker of the spot instrument, that many seconds old."""
    names, values = ", ".join(prices), ", ".join(str(each) for each in prices.values())
    run_sql(
        url,
        f"INSERT INTO helios_trading.tickers (instrument_id, event_at, {names}) "
        f"SELECT id, now() - make_interval(secs => {age}), {values} FROM helios_trading.instruments "
        f"WHERE symbol = '{symbol}' AND market = 'spot'",
    )


# --- price ---------------------------------------------------------------------------------------------------------


def test_a_price_with_its_age(helios, installed, symbol, spot):
    """Price, quotes and age as a table, and exactly as JSON."""
    set_price(installed, symbol, 3, last_price="1.50", bid_price="1.4", ask_price="1.6")
    status, said, talk = helios("price", *spot)
    assert (0, "") == (status, talk)
    assert re.search(rf"binance +spot +{symbol} +1\.50 +1\.4 +1\.6 +20\d\d-", said)
    [row] = json.loads(helios("price", *spot, "--json")[1])
    assert ("1.50", "1.4", "1.6", False) == tuple(row[name] for name in ("price", "bid", "ask", "stale"))
    assert 3 <= row["age_seconds"] < 60
    assert datetime.fromisoformat(row["as_of"]) < datetime.now(UTC)


def test_a_price_says_which_side_answered(helios, installed, symbol, spot, valkey, monkeypatch):
    """Where a relay runs, the mirror answers; where it lacks the key, PostgreSQL does, with the same price."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    set_price(installed, symbol, 3, last_price="1.50")
    client = Redis.from_url(valkey.render_as_string(hide_password=False))
    relay = mirrors.Relay(engine_of(installed), client)
    relay.rebuild("a test", take_over=True)
    place = relay.sides()[1].place
    with beating(client, place.heartbeat):
        for answers in ("mirror", "postgresql"):
            [row] = json.loads(helios("price", *spot, "--json")[1])
            assert ("1.50", answers) == (row["price"], row["answered_by"])
            client.delete(place.key("ticker", "binance", "spot", symbol))
    relay.close()
    client.close()


def test_a_stale_price_exits_with_1(helios, installed, symbol, spot):
    """It is shown, said to be stale, and the exit status tells a script."""
    set_price(installed, symbol, 90, last_price=2)
    status, said, talk = helios("price", *spot, "--max-lag", "60", "--json")
    assert (1, True, "2") == (status, json.loads(said)[0]["stale"], json.loads(said)[0]["price"])
    assert f"helios: {symbol} is older than 60 s: check that the feed runs" in talk
    assert 0 == helios("price", *spot, "--max-lag", "600")[0]


def test_no_price_is_one_sentence(helios, installed, symbol, spot):
    """Nothing on stdout; a symbol that is nowhere, or on several markets, exits with 2."""
    status, said, talk = helios("price", *spot)
    assert (1, "") == (status, said)
    assert f"helios: binance spot {symbol} has no price here: nothing has written its ticker yet\n" == talk
    status, _, talk = helios("price", "DOGEUSDT")
    assert 2 == status
    assert "there is no instrument 'DOGEUSDT' here" in talk
    status, _, talk = helios("price", symbol)
    assert 2 == status
    assert "binance spot, binance um: choose with --exchange and --market" in talk


# --- the list ------------------------------------------------------------------------------------------------------


def test_the_list_shows_gaps_at_a_glance(helios, installed, symbol):
    """How many gaps, how many candles, and where in time: of 16 blocks of 6 hours, two lack something."""
    said = helios("klines", "list")[1]
    [line] = [each for each in said.splitlines() if symbol in each]
    assert re.search(r" 93 .* 1 +3 +█[▁▂▃▄▅▆▇]{2}█{13}$", line.rstrip())
    [series] = [each for each in json.loads(helios("klines", "list", "--json")[1]) if symbol == each["symbol"]]
    assert (93, 1, 3, "2025-01-01T00:00:00+00:00") == tuple(
        series[name] for name in ("rows", "gaps", "missing", "first")
    )
    assert "coverage" not in series


def series(interval, first, last):
    return Coverage(
        instrument_id=1,
        exchange="binance",
        market=Market.SPOT,
        symbol="BTCUSDT",
        interval=interval,
        rows=1,
        first=first,
        last=last,
    )


def gap(since, until):
    return SimpleNamespace(start=since, until=until)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([], "████"),
        ([(4, 8)], "█ ██"),
        ([(5, 8)], "█▂██"),
        ([(7, 8)], "█▆██"),
        ([(1, 15)], "▂  ▂"),
        ([(1, 2), (3, 4), (15, 16)], "▄██▆"),
    ],
)
def test_a_bar_of_coverage(gaps, expected):
    """Each block is a quarter of sixteen hours; blanks are empty, full blocks complete."""
    over = series(Interval.H1, START, START + 15 * HOUR)
    found = [gap(START + since * HOUR, START + until * HOUR) for since, until in gaps]
    assert expected == charts.coverage_bar(over, found, cells=4)


def test_a_bar_never_hides_a_gap_nor_a_candle():
    """One candle that is missing of a thousand is not complete, one that is there is not empty."""
    over = series(Interval.H1, START, START + 1999 * HOUR)
    assert "▇█" == charts.coverage_bar(over, [gap(START + 5 * HOUR, START + 6 * HOUR)], cells=2)
    assert "▁▇" == charts.coverage_bar(over, [gap(START + 1 * HOUR, START + 1001 * HOUR)], cells=2)
    assert "█" * 16 == charts.coverage_bar(series(Interval.MO1, MONTH, MONTH), [])


# --- candles -------------------------------------------------------------------------------------------------------


def test_candles_as_a_table_and_as_json(helios, installed, show):
    """Away from a terminal they are a table of ten; bounds and --last choose others."""
    assert 11 == len(helios(*show)[1].strip().splitlines())
    found = json.loads(helios(*show, "--since", "2025-01-01T03:00", "--until", "2025-01-01T06:00Z", "--json")[1])
    assert ["2025-01-01T03:00:00+00:00", "2025-01-01T04:00:00+00:00", "2025-01-01T05:00:00+00:00"] == [
        each["open_time"] for each in found
    ]
    assert "103" == found[0]["open"]
    [last] = json.loads(helios(*show, "--until", "2025-01-01T13:00", "--last", "1", "--json")[1])
    assert "2025-01-01T09:00:00+00:00" == last["open_time"]
    [other_zone] = json.loads(
        helios(*show, "--since", "2025-01-01T02:00+02:00", "--until", "2025-01-01T01:00", "--json")[1]
    )
    assert "2025-01-01T00:00:00+00:00" == other_zone["open_time"]


def test_what_cannot_be_shown_is_one_sentence(helios, installed, symbol, show, tmp_path):
    """No candles then, a time that is none, a file that cannot be written."""
    status, said, talk = helios(*show, "--since", "2030-01-01")
    assert (0, "") == (status, said)
    assert f"{symbol} has no klines at 1h then" in talk
    none = tmp_path / "none.png"
    status, said, talk = helios(*show, "--since", "2030-01-01", "--png", str(none))
    assert (2, "") == (status, said)
    assert f"nothing was drawn, because {symbol} has no klines at 1h then" in talk
    assert not none.exists()
    status, _, talk = helios(*show, "--since", "yesterday")
    assert 2 == status
    assert "'yesterday' is not a time" in talk
    status, _, talk = helios(*show, "--png", str(tmp_path / "none" / "x.png"))
    assert 2 == status
    assert "No such file or directory; choose another file" in talk


def test_a_picture_is_written(helios, installed, show, tmp_path):
    """A PNG with candles of both colours in both panels."""
    file = tmp_path / "candles.png"
    status, said, talk = helios(*show, "--last", "50", "--png", str(file))
    assert (0, "") == (status, said)
    assert f"50 candles drawn into {file}" in "".join(talk.splitlines())
    pixels = image.imread(file)[..., :3]
    height = len(pixels)
    for colour in (charts.UP, charts.DOWN):
        there = abs(pixels - colors.to_rgb(colour)).max(axis=2) < 0.01
        assert there[: height // 2].sum() > 500
        assert there[-height // 5 :].sum() > 500


@pytest.mark.parametrize("name", ["plotext", "matplotlib"])
def test_a_drawing_library_that_is_missing_is_named(name, monkeypatch, tmp_path):
    """One sentence with the extra to install."""
    for each in (name, "matplotlib.dates", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, each, None)
    with pytest.raises(charts.HeliosError, match=rf"needs {name}, .* install the extra helios\[charts\]"):
        if name == "plotext":
            charts.in_terminal(candles(3), Interval.H1, "x", width=80, height=24)
        else:
            charts.as_png(candles(3), Interval.H1, "x", tmp_path / "x.png")


def candles(count, step=HOUR, **prices):
    """Candles that rise, and fall every third time."""
    given = {"open": Decimal(2), "high": Decimal(4), "low": Decimal(1), "close": Decimal(3), "volume": Decimal(5)}
    return [
        SimpleNamespace(open_time=START + at * step, **(given | {"close": Decimal(3 if at % 3 else 1)} | prices))
        for at in range(count)
    ]


def test_more_candles_than_places_are_joined():
    """First open, highest high, lowest low, last close, all volume; missing ones leave their place empty."""
    some = candles(10)
    some[1].high, some[2].low, some[3].close = Decimal(9), Decimal("0.5"), Decimal(7)
    drawn, each = charts.to_draw(some[:4] + some[9:], Interval.H1, 3)
    assert (4, [0, 2]) == (each, [one.slot for one in drawn])
    first = drawn[0]
    assert (2.0, 9.0, 0.5, 7.0, 20.0, START) == (
        first.open,
        first.high,
        first.low,
        first.close,
        first.volume,
        first.open_time,
    )
    drawn, each = charts.to_draw(some[:3], Interval.H1, 3)
    assert (1, [0, 1, 2]) == (each, [one.slot for one in drawn])


def test_months_have_places_of_their_own():
    """A year of months is twelve places, whatever their lengths."""
    months = candles(1) + candles(1) + candles(1)
    for row, month in zip(months, (1, 2, 12), strict=True):
        row.open_time = START.replace(month=month)
    drawn, _ = charts.to_draw(months, Interval.MO1, 100)
    assert [0, 1, 11] == [one.slot for one in drawn]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 15)])
@pytest.mark.parametrize("count", [1, 2, 30, 500])
def test_a_drawing_fits_its_terminal(count, width, height):
    """Title, both panels, and the time from and to in UTC; no line but this one is longer than the terminal."""
    drawing = re.sub(
        r"\x1b\[[0-9;]*m", "", charts.in_terminal(candles(count), Interval.H1, "BTC", width=width, height=height)
    )
    lines = drawing.splitlines()
    assert lines[0].startswith("BTC 1h")
    assert f"{START + (count - 1) * HOUR:%Y-%m-%d %H:%M}, UTC" in lines[-1]
    assert 2 == sum("┌" in line for line in lines)
    assert "█" in drawing
    assert max(len(line) for line in lines[:-1]) <= width
    assert len(lines) <= height + 2


def test_a_market_that_stands_still_is_drawn():
    """One price, no volume: nothing to scale by."""
    still = dict.fromkeys(("open", "high", "low", "close"), Decimal("0.00000012")) | {"volume": Decimal(0)}
    assert "0.00000012" in charts.in_terminal(candles(5, **still), Interval.H1, "BTC", width=80, height=24)


@pytest.mark.parametrize("price", ["0.00000012", "103456.78"])
@pytest.mark.parametrize("volume", ["0.0000123", "123456789012"])
def test_long_figures_find_room(price, volume):
    """The figures beside the axes take from the candles' room, not from the terminal's."""
    low = Decimal(price)
    prices = {"open": low, "high": low * 2, "low": low, "close": low, "volume": Decimal(volume)}
    drawing = charts.in_terminal(candles(90, **prices), Interval.H1, "BTC", width=60, height=20)
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", drawing).splitlines()) <= 60


def in_a_terminal(url, *arguments, **more):
    """Run `helios` with a terminal of its own; gives what it shows, colours and all."""
    child, terminal = pty.fork()
    if child == 0:
        command = [sys.executable, "-m", "helios.cli", *arguments]
        os.execve(sys.executable, command, variables(url, COLUMNS="90", LINES="30", **more))  # noqa: S606 - our own command
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # how Linux says that the other side was closed
        pass
    os.close(terminal)
    assert 0 == os.waitpid(child, 0)[1]
    return shown.decode()


def test_in_a_terminal_candles_are_drawn(installed, symbol, show):
    """Green and red on the terminal's own background."""
    drawn = in_a_terminal(installed, *show)
    assert f"binance spot {symbol} 1h" in drawn
    assert {"┌", "█", "│"} <= set(drawn)
    assert {"\x1b[38;5;2m", "\x1b[38;5;1m"} <= set(re.findall(r"\x1b\[[0-9;]+m", drawn))
    assert "[48;" not in drawn


def test_without_colours_and_as_a_table(installed, show):
    """NO_COLOR is obeyed, and so is --table."""
    plain = in_a_terminal(installed, *show, NO_COLOR="1")
    assert "█" in plain
    assert "\x1b[" not in plain
    assert "open time" in re.sub(r"\x1b\[[0-9;]*m", "", in_a_terminal(installed, *show, "--table"))


def test_without_plotext_a_terminal_gets_a_table(helios, installed, show, monkeypatch):
    """And is told what to install."""
    monkeypatch.setattr(charts, "installed", lambda _name: False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, said, talk = helios(*show, "--last", "3")
    assert 0 == status
    assert 4 == len(said.strip().splitlines())
    assert "drawing needs plotext: install the extra helios[charts]" in talk
