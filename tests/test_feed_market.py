"""Instruments, tickers and candles as the exchange tells them: the newest counts, and a burst is one statement."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any

import exchange
import pytest
from sqlalchemy import Engine, create_engine, delete, event, select, text
from sqlalchemy.orm import Session

from helios.errors import InputError
from helios.feed import Feed, Taken
from helios.models import Instrument, InstrumentStatus, Interval, Kline, Ticker

START = datetime(2025, 6, 15, 15, 6, 40, tzinfo=UTC)


@pytest.fixture(scope="module")
def pooled(writer: Engine) -> Iterator[Engine]:
    engine = create_engine(writer.url)
    yield engine
    engine.dispose()


@pytest.fixture
def feed(pooled) -> Feed:
    return Feed(pooled)


def ticker_of(engine: Engine, symbol: str) -> Ticker:
    with Session(engine) as session:
        return session.scalars(select(Ticker).join(Ticker.instrument).where(Instrument.symbol == symbol)).one()


def klines_of(engine: Engine, symbol: str) -> list[Kline]:
    chosen = select(Kline).join(Instrument, Instrument.id == Kline.instrument_id).where(Instrument.symbol == symbol)
    with Session(engine) as session:
        return list(session.scalars(chosen.order_by(Kline.interval, Kline.open_time)))


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is sent to the server meanwhile."""
    seen: list[str] = []

    def see(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", see)
    yield seen
    event.remove(engine, "before_cursor_execute", see)


def test_instruments(pooled, feed, symbol) -> None:
    """An instrument is made, described, and touched again only when it differs; what is untold stays."""
    assert 1 == feed.take(exchange.exchange_info(symbol)).instruments
    assert 0 == feed.take(exchange.exchange_info(symbol)).instruments
    assert 1 == feed.take(exchange.exchange_info(symbol, status="HALT", filters=[])).instruments
    with Session(pooled) as session:
        found = session.scalars(select(Instrument).filter_by(symbol=symbol)).one()
    assert (InstrumentStatus.HALT, Decimal("0.01"), Decimal("0.00001"), Decimal(5)) == (
        found.status,
        found.tick_size,
        found.step_size,
        found.min_notional,
    )


def test_a_lost_connection_is_overcome(pooled, owner, feed, symbol) -> None:
    """The server ends the connection in the middle of a message; what it says is in the tables, once."""
    feed.take(exchange.ticker_stream(symbol, "1"))
    ended: list[int] = []

    def end(connection: Any, *_: Any) -> None:
        if not ended:
            ended.append(connection.connection.driver_connection.info.backend_pid)
            with owner.begin() as other:
                other.execute(text(f"SELECT pg_terminate_backend({ended[0]})"))

    event.listen(pooled, "before_cursor_execute", end)
    assert 1 == feed.take(exchange.ticker_stream(symbol, "2", 5)).tickers
    event.remove(pooled, "before_cursor_execute", end)
    assert Decimal(2) == ticker_of(pooled, symbol).last_price


def test_a_burst_of_tickers_is_one_statement(pooled, feed, symbol) -> None:
    """Of a burst the newest of each instrument is written, all in one statement."""
    other = f"{symbol}2"
    feed.take_all([exchange.ticker_stream(symbol, "1"), exchange.ticker_stream(other, "1")])
    burst = [exchange.ticker_stream(each, str(at), at) for at in (5, 9, 7) for each in (symbol, other)]
    with statements(pooled) as seen:
        assert Taken(tickers=2) == feed.take_all(burst)
    assert 1 == len(seen)
    assert [Decimal(9)] * 2 == [ticker_of(pooled, each).last_price for each in (symbol, other)]


def test_an_older_ticker_changes_nothing(pooled, feed, symbol) -> None:
    """A ticker that comes late does not take the place of a newer one."""
    feed.take(exchange.ticker_stream(symbol, "9", at=9))
    assert 0 == feed.take(exchange.ticker_stream(symbol, "5", at=5)).tickers
    assert Decimal(9) == ticker_of(pooled, symbol).last_price


def test_quotes_do_not_outdate_trades(pooled, feed, symbol) -> None:
    """Quotes are stamped here and trades by the exchange; each is compared with its own kind, whichever is first."""
    received = START + timedelta(seconds=5)
    messages = (
        exchange.ticker_stream(symbol, "100", at=0),
        exchange.book_ticker(symbol, "98", "99"),
        exchange.ticker_stream(symbol, "101", at=1000),
    )
    states = set()
    for number, order in enumerate(permutations(messages)):
        name = f"{symbol}{number}"
        for each in order:
            feed.take({**each, "s": name}, received_at=received)
        row = ticker_of(pooled, name)
        states.add((row.last_price, row.bid_price, row.ask_price, row.priced_at, row.quoted_at, row.event_at))
    expected = (Decimal(101), Decimal(98), Decimal(99), START + timedelta(seconds=1), received, received)
    assert {expected} == states


def test_a_price_alone_leaves_the_rest(pooled, feed, symbol) -> None:
    """An answer of ticker/price moves the last price, and leaves quotes and 24 hours as they are."""
    feed.take(exchange.ticker_stream(symbol, "100"))
    feed.take({"symbol": symbol, "price": "102"}, received_at=START + timedelta(seconds=1))
    row = ticker_of(pooled, symbol)
    assert (Decimal(102), Decimal("99.99"), Decimal(101)) == (row.last_price, row.bid_price, row.high_price_24h)


def test_a_ticker_that_somebody_else_wrote(pooled, feed, symbol) -> None:
    """A row without moments of its own is as old as it says."""
    feed.take(exchange.exchange_info(symbol))
    with Session(pooled) as session, session.begin():
        instrument = session.scalars(select(Instrument).filter_by(symbol=symbol)).one()
        session.add(Ticker(instrument=instrument, last_price=Decimal(7), event_at=START))
    assert 1 == feed.take(exchange.ticker_stream(symbol, "5", at=-1)).tickers  # its quotes are news
    assert Decimal(7) == ticker_of(pooled, symbol).last_price
    feed.take(exchange.ticker_stream(symbol, "5", at=1))
    assert Decimal(5) == ticker_of(pooled, symbol).last_price


def test_a_candle_is_written_once(pooled, feed, symbol) -> None:
    """A closed candle is written, the same again touches nothing, and a corrected one replaces it."""
    assert Taken(klines=1) == feed.take(exchange.kline_stream(symbol))
    assert Taken() == feed.take(exchange.kline_stream(symbol))
    assert Taken(klines=1) == feed.take(exchange.kline_stream(symbol, close="100.7"))
    assert [Decimal("100.7")] == [row.close for row in klines_of(pooled, symbol)]


def test_a_plain_candle_takes_nothing_away(pooled, feed, symbol) -> None:
    """A candle of ccxt, which has no number of trades, leaves the one that is known."""
    rows = [exchange.kline_row()]
    feed.take(rows, symbol=symbol, interval="1h")
    assert Taken() == feed.take([[rows[0][0], 100.1, 101.0, 99.0, 100.5, 1000.000001]], symbol=symbol, interval="1h")
    assert [(100, Decimal(500))] == [(row.trades, row.taker_buy_volume) for row in klines_of(pooled, symbol)]


def test_a_year_without_a_partition(pooled, feed, symbol) -> None:
    """A candle of a year that has no partition yet makes it, also across the turn of a year."""
    turn = int(datetime(2032, 1, 1, tzinfo=UTC).timestamp() * 1000)
    rows = [exchange.kline_row(turn - 3_600_000), exchange.kline_row(turn)]
    later = datetime(2033, 1, 1, tzinfo=UTC)
    assert 2 == feed.take(rows, symbol=symbol, interval="1h", received_at=later).klines
    assert [(Interval.H1, 2031), (Interval.H1, 2032)] == [
        (row.interval, row.open_time.year) for row in klines_of(pooled, symbol)
    ]


def test_a_partition_dropped_meanwhile(owner, pooled, feed, symbol) -> None:
    """A partition that the feed knew and somebody dropped is made again."""
    year = int(datetime(2041, 1, 1, tzinfo=UTC).timestamp() * 1000)
    late = datetime(2042, 1, 1, tzinfo=UTC)
    for _ in range(2):
        assert 1 == feed.take([exchange.kline_row(year)], symbol=symbol, interval="1h", received_at=late).klines
        assert 1 == len(klines_of(pooled, symbol))
        with owner.begin() as connection:
            connection.execute(text(f'DROP TABLE "{Kline.__table__.schema}".klines_1h_2041'))


def test_a_nonsense_candle(pooled, feed, symbol) -> None:
    """A candle whose high is below its low is refused with a sentence, and none of its batch is written."""
    bad = exchange.kline_row()
    bad[2] = "1"
    with pytest.raises(InputError, match=r"ck_klines_high_is_highest.*nothing was written"):
        feed.take([exchange.kline_row(bad[0] - 7_200_000), bad], symbol=symbol, interval="1h")
    assert [] == klines_of(pooled, symbol)


def test_an_instrument_deleted_meanwhile(owner, pooled, feed, symbol) -> None:
    """An instrument that the feed knew and somebody deleted is made again, for candles and for tickers."""
    for message in (exchange.kline_stream(symbol), exchange.ticker_stream(symbol, "1")):
        feed.take(exchange.exchange_info(symbol))
        feed.take(exchange.book_ticker(symbol, "1", "2"))
        with owner.begin() as connection:
            number = connection.execute(select(Instrument.id).filter_by(symbol=symbol)).scalar_one()
            connection.execute(delete(Ticker).where(Ticker.instrument_id == number))
            connection.execute(delete(Kline).where(Kline.instrument_id == number))
            connection.execute(delete(Instrument).where(Instrument.id == number))
        taken = feed.take(message)
        assert 1 == taken.klines + taken.tickers
    assert [] == klines_of(pooled, symbol)
    assert Decimal(1) == ticker_of(pooled, symbol).last_price


def test_an_instrument_is_held_while_its_candles_are_written(owner, pooled, feed, symbol) -> None:
    """Nobody deletes an instrument between the look at it and the end of the candles' transaction."""
    feed.take(exchange.exchange_info(symbol))
    reports = feed.recorder.read(exchange.kline_stream(symbol))
    with pooled.begin() as connection:
        feed.recorder.write(connection, reports, feed._known.copy())  # noqa: SLF001 - held open in the middle
        with owner.begin() as other:
            wanted = select(Instrument.id).filter_by(symbol=symbol).with_for_update(skip_locked=True)
            taken = other.execute(wanted)
            assert [] == taken.all()
    assert 1 == len(klines_of(pooled, symbol))


def test_a_refusal_says_which_message(pooled, feed, symbol) -> None:
    """A batch with one bad message is refused whole, and says which it was."""
    with pytest.raises(InputError, match=r"^message 2: 'fooBar' is no type of message"):
        feed.take_all([exchange.ticker_stream(symbol, "1"), {"e": "fooBar"}])
    with Session(pooled) as session:
        assert session.scalars(select(Instrument).filter_by(symbol=symbol)).first() is None


def test_what_is_ignored_opens_no_connection(symbol) -> None:
    """A message that is knowingly ignored says why, and asks nothing of the database."""
    nobody = Feed(create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none"))
    [ignored] = nobody.take(exchange.kline_stream(symbol, closed=False)).ignored
    assert "the candle is not closed yet" == ignored.reason
