"""The log on Helios's own tables, installed by a member of the owner role, with a writer as the test."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import make_klines
import pytest
from installation import COPIED, login, made, run_sql
from sqlalchemy import URL, create_engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from undo_shop import Run, Shop

from helios.backfill import load, recognise, tables
from helios.errors import RightsError
from helios.models import Fill, Instrument, Order, OrderHistory, OrderStatus, OrderType, Side, Ticker, metadata
from helios.schema import environment
from helios.testing import undo

SCHEMA = "helios_trading"
NOW = datetime(2025, 1, 1, tzinfo=UTC)
BEFORE = """
    INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT');
    INSERT INTO helios_trading.accounts (exchange, name, market) VALUES ('binance', 'main', 'spot');
    INSERT INTO helios_trading.orders (id, account_id, instrument_id, client_order_id, side, type, price, quantity,
                                       filled_quantity, status, submitted_at)
    SELECT gen_random_uuid(), a.id, i.id, 'real', 'BUY', 'LIMIT', 96000, 1, 0, 'NEW', now()
    FROM helios_trading.accounts AS a, helios_trading.instruments AS i;
    INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume)
    SELECT id, '1h', '2025-01-01T00:00Z', 1, 2, 1, 2, 3.10 FROM helios_trading.instruments
"""


@pytest.fixture(scope="module")
def trading(cluster: URL, template: str) -> Iterator[Shop]:
    """A database as an upgrade leaves it, with an order in it; its owner and writer are members of the group roles."""
    with made(cluster, template) as url:
        owner = login(url, "owning", f'GRANT "{COPIED}_owner" TO {{login}}')
        writer = login(url, "writing", f'GRANT "{COPIED}_writer" TO {{login}}')
        run_sql(url, *BEFORE.split(";\n"))
        tables = [each for each in metadata.sorted_tables if not undo.bookkeeping(each)]
        shop = Shop(url, owner, writer, writer, tables)
        with shop.kit() as connection:
            environment.mark(connection, SCHEMA, "test")
            expected = f'run: CREATE SCHEMA "helios_trading_undo" AUTHORIZATION "{COPIED}_owner";'
            with pytest.raises(RightsError, match=expected) as refused:
                undo.install(connection, SCHEMA, tables)
            run_sql(url, str(refused.value).partition("run: ")[2])
            undo.install(connection, SCHEMA, tables)
        yield shop


@pytest.fixture
def run(trading: Shop) -> Iterator[Run]:
    """A run on these tables; afterwards everything is as before, and the log is empty."""
    before = trading.digest()
    with trading.kit() as connection:
        run = Run(trading, connection, 42)
        undo.begin(connection, run.id, schema=SCHEMA)
        yield run
        changes = undo.undo(connection, [run.id], schema=SCHEMA)
        undo.close(connection, run.id, schema=SCHEMA)
        assert [] == undo.registered(connection, schema=SCHEMA)
    assert [] == [each for each in changes if each.what == "kept"]
    assert before == trading.digest()


def test_an_order_goes_back_to_open_without_a_line_of_history(trading: Shop, run: Run) -> None:
    """Filled by the test, open again by the undo: its history has the lines of before, and no alert is raised."""
    with Session(run.engine()) as session:
        order = session.scalars(select(Order)).one()
        order.status, order.filled_quantity = OrderStatus.FILLED, Decimal(1)
        session.commit()
        assert 2 == len(session.scalars(select(OrderHistory)).all())
    undo.undo(run.connection, [run.id], undo.mark(run.connection, run.id, schema=SCHEMA), schema=SCHEMA)
    assert [("FILLED", 2)] == trading.rows(
        "SELECT status, (SELECT count(*) FROM helios_trading.order_history) FROM helios_trading.orders"
    )
    undo.undo(run.connection, [run.id], 0, schema=SCHEMA)
    assert [("NEW", 1, 0)] == trading.rows(
        "SELECT status, (SELECT count(*) FROM helios_trading.order_history), "
        "(SELECT count(*) FROM helios_trading.data_quality_metrics) FROM helios_trading.orders"
    )


def test_new_orders_go_with_their_history_and_fills(trading: Shop, run: Run) -> None:
    """Though the history's foreign key does not cascade, and a writer may not delete an order that has one."""
    with Session(run.engine()) as session:
        real = session.scalars(select(Order)).one()
        orders = [
            Order(
                account_id=real.account_id,
                instrument_id=real.instrument_id,
                client_order_id=str(uuid.uuid4()),
                side=Side.BUY,
                type=OrderType.LIMIT,
                status=OrderStatus.NEW,
                price=Decimal("1.10"),
                quantity=Decimal(1),
                submitted_at=NOW,
            )
            for _ in range(5)
        ]
        session.add_all(orders)
        session.flush()
        session.add_all([Fill(order_id=each.id, trade_id="T", price=1, quantity=1, filled_at=NOW) for each in orders])
        session.add(Ticker(instrument_id=real.instrument_id, last_price=1, event_at=NOW))
        session.commit()
        orders[0].status = OrderStatus.CANCELED
        session.commit()
        with pytest.raises(DBAPIError, match="violates foreign key"):
            run.write("DELETE FROM helios_trading.orders WHERE client_order_id <> 'real'")


def test_klines_and_instruments_of_the_same_name(trading: Shop, run: Run) -> None:
    """A real BTCUSDT and its candles survive a test that writes BTCUSDT, changes it, and deletes candles."""
    with Session(run.engine()) as session:
        session.add(Instrument(exchange="binance", market="um", symbol="BTCUSDT"))
        session.scalars(select(Instrument).where(Instrument.market == "spot")).one().base_asset = "BTC"
        session.commit()
    run.write(
        "DELETE FROM helios_trading.klines",
        "INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume) "
        "SELECT id, '1m', '2026-01-01T00:00Z', 1, 2, 1, 2, 3 FROM helios_trading.instruments",
        "UPDATE helios_trading.klines SET volume = 7 WHERE interval = '1m'",
    )


def test_partitions_behind_their_parent_s_back(trading: Shop, run: Run) -> None:
    """The owner may write a partition directly; that is logged too."""
    run.write(
        "INSERT INTO helios_trading.klines_1d_2025 (instrument_id, interval, open_time, open, high, low, close, "
        "volume) SELECT id, '1d', '2025-01-01T00:00Z', 1, 2, 1, 2, 3 FROM helios_trading.instruments",
        "UPDATE helios_trading.klines_1h_2025 SET volume = 7",
        "TRUNCATE helios_trading.klines_1h_2025",
        url=trading.admin,
    )


@pytest.mark.parametrize(("year", "into"), [(2025, "klines_1d_2025"), (2015, "klines")])
def test_a_file_loaded_into_a_partition(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int, into: str
) -> None:
    """Its candles go again; those of a year that the run made are loaded through klines, for the log knows that."""
    places = []
    copy = tables.copy
    monkeypatch.setattr(tables, "copy", lambda *given: places.append(given[1]) or copy(*given))
    start = datetime(year, 1, 1, tzinfo=UTC)
    made_file = make_klines.make_file(tmp_path, "ETHUSDT", "1d", start=start, rows=20)
    assert 20 == load(run.engine(), recognise(made_file.path)).inserted
    assert [f"helios_trading.{into}"] == places


def test_the_log_needs_no_right_of_a_writer(trading: Shop, run: Run) -> None:
    """The writer whose writes are logged can neither read the log nor write to it."""
    run.write("UPDATE helios_trading.accounts SET name = 'other'")
    with create_engine(trading.writer, poolclass=NullPool).connect() as connection:
        for statement in ("TABLE helios_trading_undo.accounts", "DELETE FROM helios_trading_undo.accounts"):
            with pytest.raises(DBAPIError, match="permission denied for schema helios_trading_undo"):
                connection.exec_driver_sql(statement)
            connection.rollback()
