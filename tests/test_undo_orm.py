"""What SQLAlchemy writes, in all its ways, is taken back; and Helios's own orders, which write history."""

import pytest
from installation import made, upgrade
from sqlalchemy import create_engine, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import DeclarativeBase, Session, relationship
from sqlalchemy.pool import NullPool
from undoing import Place, direct, scenes

from helios.models import metadata
from helios.schema import environment
from helios.testing import undo


@pytest.fixture(scope="module")
def place(cluster):
    with scenes(cluster) as made:
        yield made


@pytest.fixture(scope="module")
def models(place: Place):
    """Classes for two of the tables, children deleted with their parent."""
    tables = {each.name: each for each in place.tables}

    class Base(DeclarativeBase):
        metadata = tables["roots"].metadata

    class Leaf(Base):
        __table__ = tables["leaves"]

    class Root(Base):
        __table__ = tables["roots"]
        leaves = relationship(Leaf, cascade="all, delete-orphan")

    return Root, Leaf


@pytest.fixture
def session(place: Place):
    """A labelled session; what it commits is taken back, and everything is as before."""
    with place.unchanged() as run:
        label = {"options": f"-c helios.test_run={run.id}"}
        engine = create_engine(place.writer, poolclass=NullPool, connect_args=label)
        with Session(engine) as session:
            yield session


def test_objects(session, models):
    """add, add_all, merge, and deletes that cascade."""
    root, leaf = models
    session.add(root(id=100, k="one", leaves=[leaf(id=100), leaf(id=101)]))
    session.add_all([root(id=101, k="two"), root(id=102, k="three")])
    session.commit()
    session.merge(root(id=1, k="merged"))
    session.merge(root(id=103, k="new"))
    session.delete(session.get(root, 2))
    session.delete(session.get(root, 100))
    session.commit()


def test_bulk(session, models):
    """bulk_save_objects, bulk insert and bulk update by primary key."""
    root, leaf = models
    session.bulk_save_objects([root(id=200 + each, k=f"b{each}") for each in range(5)])
    session.execute(insert(leaf), [{"id": 200 + each, "root_id": 200} for each in range(5)])
    session.execute(update(root), [{"id": each, "k": f"changed {each}"} for each in range(1, 6)])
    session.commit()


def test_core(session, models):
    """Insert from a query, upsert, text, and the driver's own cursor, with a savepoint in between."""
    root, _ = models
    session.execute(insert(root).from_select(["id", "k"], select(root.id + 300, root.k + "x")))
    with session.begin_nested():
        statement = upsert(root).values([{"id": 1, "k": "u1"}, {"id": 400, "k": "u2"}])
        session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"k": statement.excluded.k}))
    session.execute(text("UPDATE scenes.leaves SET root_id = NULL"))
    session.connection().connection.driver_connection.cursor().execute("DELETE FROM scenes.roots WHERE id = 9")
    session.commit()


def test_two_phases(place: Place, models):
    """A session that prepares and then commits."""
    root, _ = models
    with place.unchanged() as run:
        label = {"options": f"-c helios.test_run={run.id}"}
        engine = create_engine(place.writer, poolclass=NullPool, connect_args=label)
        with Session(engine, twophase=True) as session:
            session.add(root(id=500, k="prepared"))
            session.prepare()
            session.commit()


ORDER = """
    INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT');
    INSERT INTO helios_trading.accounts (exchange, name, market) VALUES ('binance', 'main', 'spot');
    INSERT INTO helios_trading.orders (id, account_id, instrument_id, client_order_id, side, type, price, quantity,
                                       filled_quantity, status, submitted_at)
    SELECT gen_random_uuid(), account.id, instrument.id, 'real', 'BUY', 'LIMIT', 96000, 1, 0, 'NEW', now()
    FROM helios_trading.accounts AS account, helios_trading.instruments AS instrument
"""


@pytest.fixture(scope="module")
def trading(cluster):
    """Helios's own tables with an order in them, followed by a log; yields the place."""
    with made(cluster) as url:
        upgrade(url)
        with direct(url, "helios_trading") as connection:
            environment.mark(connection, "helios_trading", "test")
            connection.exec_driver_sql(ORDER)
            undo.install(connection, "helios_trading", metadata.sorted_tables)
            yield Place(url, url, url, connection, metadata.sorted_tables, "helios_trading")


def test_an_order_goes_back_to_open_without_a_line_of_history(trading: Place):
    """FILLED, then NEW again by the undo: as many lines of history as before, and no alert of an irregular change."""
    with trading.unchanged() as run:
        run.write("UPDATE orders SET status = 'FILLED', filled_quantity = 1")
        assert [(2,)] == trading.rows("SELECT count(*) FROM order_history")
        run.undo()
        assert [("NEW", 1)] == trading.rows("SELECT status, (SELECT count(*) FROM order_history) FROM orders")
        assert [(0,)] == trading.rows("SELECT count(*) FROM data_quality_metrics")
        run.write("UPDATE orders SET status = 'CANCELED'")


def test_new_orders_go_with_their_history(trading: Place):
    """Their history refers to them and cascades nowhere; fills, candles and tickers beside them."""
    with trading.unchanged() as run:
        run.together(
            """INSERT INTO orders (id, account_id, instrument_id, client_order_id, side, type, price, quantity,
                                   filled_quantity, status, submitted_at)
               SELECT gen_random_uuid(), account_id, instrument_id, 'test', 'BUY', 'LIMIT', 1, 1, 0, 'NEW', now()
               FROM orders""",
            "UPDATE orders SET status = 'PARTIALLY_FILLED', filled_quantity = 0.5",
            """INSERT INTO fills (order_id, trade_id, price, quantity, filled_at)
               SELECT id, 'T1', 1, 0.5, now() FROM orders""",
            """INSERT INTO klines (instrument_id, interval, open_time, open, high, low, close, volume)
               SELECT id, '1h', '2025-01-01T00:00Z', 1, 2, 1, 2, 3 FROM instruments""",
            "INSERT INTO tickers (instrument_id, last_price, event_at) SELECT id, 1, now() FROM instruments",
        )
