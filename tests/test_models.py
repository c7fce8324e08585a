"""helios.models: what the tables hold comes back as it went in, and the models know of each other."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum

import pytest
import uuid_utils.compat
from sqlalchemy import (
    Connection,
    Engine,
    delete,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy import insert as insert_into
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, configure_mappers, selectinload
from tables import GOOD, GRID, ORDER, PARENTS, SCHEMA, SESSION, insert

import helios.models
from helios.errors import InputError
from helios.models import (
    Account,
    Balance,
    Base,
    Fill,
    GridLevel,
    GridSession,
    Instrument,
    Interval,
    Kline,
    Market,
    Order,
    OrderHistory,
    OrderStatus,
    OrderType,
    Side,
    Ticker,
    TradingSession,
    metadata,
)
from helios.models.base import Choice

TABLES = {table.name: table for table in metadata.sorted_tables}
MIDNIGHT = datetime(2025, 3, 1, tzinfo=UTC)

SMALL = Decimal("0.000000001234")
BIG = Decimal(10**12)
EXACT = [
    SMALL,
    BIG,
    BIG + SMALL,
    Decimal("-123456789012345678.901234567891"),  # 30 digits
    Decimal("0.5000"),  # the zeros say how exact it is
    Decimal("1E-12"),
    Decimal(0),
]


@pytest.fixture
def session(connection: Connection) -> Iterator[Session]:
    """A session within that transaction."""
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        yield session


@pytest.mark.parametrize("value", EXACT, ids=str)
def test_a_number_through_the_orm_comes_back_as_it_went_in(session: Session, value: Decimal) -> None:
    """Value and digits are the same, in Python and as PostgreSQL prints them."""
    session.add(Balance(account_id=1, asset="X", free=value, locked=value, event_at=MIDNIGHT))
    session.flush()
    session.expire_all()
    assert (value, value) == session.execute(select(Balance.free, Balance.locked)).one()
    assert format(value, "f") == session.scalar(text(f"SELECT free::text FROM {SCHEMA}.balances"))


@pytest.mark.parametrize("value", EXACT, ids=str)
@pytest.mark.parametrize("form", [Decimal, str])
def test_a_number_through_core_comes_back_as_it_went_in(connection: Connection, value: Decimal, form: type) -> None:
    """A Decimal and a str mean the same number."""
    row = {"account_id": 1, "asset": "X", "free": form(value), "locked": 0, "event_at": MIDNIGHT}
    connection.execute(insert_into(Balance), [row])
    assert format(value, "f") == format(connection.scalar(select(Balance.free)), "f")
    assert value == connection.scalar(select(Balance.free).where(Balance.free == form(value)))


@pytest.mark.parametrize("value", EXACT, ids=str)
def test_a_number_in_raw_text_comes_back_as_it_went_in(connection: Connection, value: Decimal) -> None:
    """What raw SQL wrote, the model reads with the same digits."""
    insert(connection, "balances", GOOD["balances"] | {"free": format(value, "f")})
    assert format(value, "f") == format(connection.scalar(select(Balance.free)), "f")


def test_an_int_is_exact(connection: Connection) -> None:
    """A whole number may be given as an int, however big."""
    row = {"account_id": 1, "asset": "X", "free": 10**30 + 1, "locked": 0, "event_at": MIDNIGHT}
    connection.execute(insert_into(Balance), [row])
    assert Decimal(10**30 + 1) == connection.scalar(select(Balance.free))


@pytest.mark.parametrize("value", [0.1, True, b"1", [1]])
def test_what_is_not_exact_is_refused(connection: Connection, value: object) -> None:
    """A float, and whatever is no number at all, is refused with the remedy."""
    row = {"account_id": 1, "asset": "X", "free": value, "locked": 0, "event_at": MIDNIGHT}
    with pytest.raises(StatementError, match="not exact: pass a Decimal, an int or a str") as refusal:
        connection.execute(insert_into(Balance), [row])
    assert isinstance(refusal.value.orig, InputError)


def test_a_float_is_refused_in_a_question_too(connection: Connection) -> None:
    """A comparison with a float would miss the row that it means."""
    with pytest.raises(StatementError, match=r"0\.1 is a float"):
        connection.execute(select(Balance).where(Balance.free == 0.1))


def test_a_text_that_is_no_number_is_refused(connection: Connection) -> None:
    """The offending text is quoted."""
    with pytest.raises(StatementError, match="'1,5' is not a number"):
        connection.execute(select(Balance).where(Balance.free == "1,5"))


def test_a_moment_without_a_time_zone_is_refused(connection: Connection) -> None:
    """The server would take it for the session's zone, so nobody gets that far."""
    with pytest.raises(StatementError, match="has no time zone"):
        connection.execute(select(Kline).where(Kline.open_time >= datetime(2025, 3, 1)))  # noqa: DTZ001 - that is the test


def test_what_is_no_moment_is_refused(connection: Connection) -> None:
    """A number of milliseconds is not taken for a moment."""
    with pytest.raises(StatementError, match="1740787200000 is not a moment"):
        connection.execute(select(Kline).where(Kline.open_time >= 1740787200000))


def test_a_moment_comes_back_in_utc(session: Session) -> None:
    """Whatever zone it came in, and whatever zone the session is in."""
    session.execute(text("SET LOCAL timezone TO 'Asia/Tokyo'"))
    elsewhere = datetime(2025, 3, 1, 1, 2, 3, 456789, tzinfo=timezone(timedelta(hours=-7)))
    session.add(Balance(account_id=1, asset="X", free=1, event_at=elsewhere))
    session.flush()
    session.expire_all()
    found = session.scalars(select(Balance.event_at)).one()
    assert (elsewhere, UTC) == (found, found.tzinfo)


CHOICES = [
    pytest.param(table.name, column.name, member, id=f"{table.name}.{column.name}={member}")
    for table in TABLES.values()
    for column in table.columns
    if isinstance(column.type, Choice) and table.name != "klines"
    for member in column.type.choices
]


@pytest.mark.parametrize(("table", "column", "member"), CHOICES)
def test_every_choice_comes_back_as_its_member(
    connection: Connection, table: str, column: str, member: StrEnum
) -> None:
    """Each text that a choice may be is taken by the database and read as its member."""
    key = next(iter(TABLES[table].primary_key.columns))
    insert(connection, table, GOOD[table] | {column: member.value})
    query = select(TABLES[table].c[column]).where(TABLES[table].c[column] == member).order_by(key.desc()).limit(1)
    assert member is connection.scalar(query)


@pytest.mark.parametrize("interval", Interval)
def test_every_interval_has_its_partition(connection: Connection, interval: Interval) -> None:
    """A candle of each interval finds its place."""
    insert(connection, "klines", GOOD["klines"] | {"interval": interval.value})
    assert interval is connection.scalar(select(Kline.interval))


def test_a_choice_that_nobody_knows_is_refused_before_it_is_sent(connection: Connection) -> None:
    """The sentence lists what may be chosen."""
    with pytest.raises(StatementError, match="'buy' is not a Side: choose one of BUY, SELL"):
        connection.execute(select(Order).where(Order.side == "buy"))


def test_choices_leave_no_type_behind(connection: Connection) -> None:
    """Choices are text: no PostgreSQL type is made, in the schema or in public."""
    query = "SELECT typname FROM pg_type WHERE typtype = 'e'"
    assert [] == connection.scalars(text(query)).all()


def test_an_interval_knows_its_length() -> None:
    """Each candle's length can be added to its open time, but for the month."""
    assert [1, 60, 180, 300, 900, 1800] == [i.length.total_seconds() for i in list(Interval)[:6]]
    assert timedelta(weeks=1) == Interval.W1.length
    assert timedelta(days=3) == Interval.D3.length
    assert timedelta(hours=12) == Interval.H12.length
    assert Interval.MO1.length is None


def test_ids_made_by_the_application_are_ordered_by_time() -> None:
    """UUIDv7: what is made later sorts later, so that keys are written at the end of their index."""
    ids = [uuid_utils.compat.uuid7() for _ in range(1000)]
    assert ids == sorted(ids)
    assert {7} == {each.version for each in ids}


def test_an_id_is_made_when_none_is_given(session: Session) -> None:
    """A UUIDv7, by ORM and Core alike; raw SQL passes its own."""
    new = {"name": "run", "strategy": "grid", "mode": "live", "started_at": MIDNIGHT}
    run = TradingSession(**new)
    session.add(run)
    session.flush()
    made = session.execute(insert_into(TradingSession).returning(TradingSession.id), [new]).scalar_one()
    assert [7, 7] == [run.id.version, made.version]
    assert run.id < made
    with pytest.raises(IntegrityError, match='null value in column "id"'):
        insert(session.connection(), "trading_sessions", PARENTS["trading_sessions"] | {"id": None})


def test_server_defaults_let_raw_sql_in(connection: Connection) -> None:
    """Whatever the database can fill in by itself, raw SQL may leave out."""
    query = f"SELECT status, origin, position_side, reduce_only, filled_quantity, recorded_at FROM {SCHEMA}.orders"
    status, origin, side, reduce_only, filled, recorded = connection.execute(text(query)).one()
    assert ("NEW", "strategy", "BOTH", False, 0) == (status, origin, side, reduce_only, filled)
    assert recorded is not None
    assert connection.scalar(text(f"SELECT status FROM {SCHEMA}.instruments")) == "UNKNOWN"


def test_a_written_row_carries_the_moment_of_its_last_writing(engine: Engine) -> None:
    """ORM and Core renew it with every update, and the session sees it without asking again."""
    with Session(engine) as session:
        balance = Balance(account_id=1, asset="RENEWED", free=1, event_at=MIDNIGHT)
        session.add(balance)
        session.commit()
        first = balance.recorded_at
        balance.free = Decimal(2)
        session.flush()
        assert "recorded_at" in inspect(balance).dict
        assert first < balance.recorded_at
        session.commit()
        second = balance.recorded_at
        session.execute(update(Balance).where(Balance.asset == "RENEWED").values(free=3))
        session.commit()
        assert second < balance.recorded_at
        session.delete(balance)
        session.commit()


def test_a_list_of_children_has_another_end() -> None:
    """What is put into it knows its parent at once, before anything is written."""
    configure_mappers()
    lists = [each for mapper in Base.registry.mappers for each in mapper.relationships if each.uselist]
    assert "Order.fills" in map(str, lists)
    assert [] == [str(each) for each in lists if not each._reverse_property]  # noqa: SLF001 - told nowhere else


def test_what_is_above_is_reached_from_below_and_back(session: Session) -> None:
    """Instrument and ticker, account and balances, session and signals, grid and levels, order and fills."""
    insert(session.connection(), "tickers", GOOD["tickers"])
    for table in ("klines", "kline_files", "signals", "grid_levels", "balances", "positions", "fills"):
        insert(session.connection(), table, GOOD[table])
    instrument, account = session.get_one(Instrument, 1), session.get_one(Account, 1)
    run, grid, order = (
        session.get_one(*each) for each in [(TradingSession, SESSION), (GridSession, GRID), (Order, ORDER)]
    )
    assert instrument.ticker is session.get_one(Ticker, 1)
    assert instrument.ticker.instrument is instrument
    assert [instrument] == [each.instrument for each in instrument.kline_files]
    assert instrument is session.scalars(select(Kline)).one().instrument
    assert [account] == [each.account for each in account.balances]
    assert [account] == [each.account for each in account.positions]
    assert instrument is account.positions[0].instrument
    assert [run] == [each.session for each in run.signals]
    assert instrument is run.signals[0].instrument
    assert [grid] == run.grids
    assert run is grid.session
    assert instrument is grid.instrument
    assert [grid] == [each.grid for each in grid.levels]
    assert grid.levels[0] is order.grid_level
    assert [order] == [each.order for each in order.fills]
    assert [order] == [each.order for each in order.history]
    assert (account, instrument, None) == (order.account, order.instrument, order.session)


@pytest.mark.parametrize("children", ["read", "unread"])
def test_an_order_whose_history_is_gone_takes_its_fills_along(session: Session, children: str) -> None:
    """By the database's cascade, read before or not; a grid's level only loses its order."""
    insert(session.connection(), "fills", GOOD["fills"])
    insert(session.connection(), "grid_levels", GOOD["grid_levels"])
    order = session.get_one(Order, ORDER)
    if children == "read":
        assert (1, 1, 0) == (len(order.fills), len(order.history), order.grid_level.level)
    session.execute(delete(OrderHistory))
    session.expire(order, ["history"])
    session.delete(order)
    session.flush()
    session.expire_all()
    assert [] == session.scalars(select(Fill)).all()
    assert session.scalars(select(GridLevel)).one().order_id is None


def test_an_order_with_history_is_not_deleted(session: Session) -> None:
    """Whoever could delete it would erase what is written of it."""
    session.delete(session.get_one(Order, ORDER))
    with pytest.raises(IntegrityError, match="fk_order_history_order_id"):
        session.flush()


@pytest.mark.parametrize("children", ["read", "unread"])
def test_a_grid_that_is_deleted_takes_its_levels_along(session: Session, children: str) -> None:
    """By the database's cascade, whether or not the levels were read."""
    insert(session.connection(), "grid_levels", GOOD["grid_levels"])
    grid = session.get_one(GridSession, GRID)
    if children == "read":
        assert len(grid.levels) == 1
    session.delete(grid)
    session.flush()
    assert [] == session.scalars(select(GridLevel)).all()


@pytest.mark.parametrize(
    ("parent", "column", "child"),
    [
        (Instrument, "instrument_id", "tickers"),
        (Instrument, "instrument_id", "kline_files"),
        (Account, "account_id", "balances"),
        (Account, "account_id", "positions"),
        (TradingSession, "session_id", "signals"),
    ],
)
def test_a_parent_that_is_still_needed_is_not_deleted(
    session: Session, parent: type[Base], column: str, child: str
) -> None:
    """The database refuses; the session neither deletes the children nor takes their keys away."""
    # a second one: on those of PARENTS orders hang as well, whose keys would refuse in the child's place
    insert(session.connection(), parent.__tablename__, GOOD[parent.__tablename__])
    needed = session.scalars(select(parent).order_by(text("id DESC")).limit(1)).one()
    insert(session.connection(), child, GOOD[child] | {column: str(needed.id)})
    session.delete(needed)
    with pytest.raises(IntegrityError, match=f"fk_{child}_{column}"):
        session.flush()


def test_a_fill_taken_out_of_its_order_is_deleted(session: Session) -> None:
    """A fill without an order is nothing."""
    insert(session.connection(), "fills", GOOD["fills"])
    order = session.get_one(Order, ORDER)
    order.fills.clear()
    session.flush()
    assert [] == session.scalars(select(Fill)).all()


def test_a_repr_names_what_identifies_the_row() -> None:
    """Primary key and unique columns, as far as they are there; nothing else, and no SQL."""
    new = Instrument(exchange="binance", market=Market.UM, symbol="BTCUSDT", status="TRADING")
    assert "Instrument(exchange='binance', market=<Market.UM: 'um'>, symbol='BTCUSDT')" == repr(new)
    assert "Order()" == repr(Order(side=Side.BUY))


def test_a_repr_survives_detachment(engine: Engine) -> None:
    """An instance that is expired and detached still tells its primary key."""
    with Session(engine) as session:
        order = session.get_one(Order, ORDER)
        assert "client_order_id='helios-1'" in repr(order)
        session.commit()  # expires it
        assert f"Order(id={uuid.UUID(ORDER)!r})" == repr(order)
        session.expunge(order)
    assert f"Order(id={uuid.UUID(ORDER)!r})" == repr(order)
    candle = Kline(instrument_id=1, interval=Interval.M1, open_time=MIDNIGHT)
    assert repr(candle).startswith("Kline(instrument_id=1, open_time=datetime.datetime(2025, 3, 1")


def test_a_repr_sends_no_sql(engine: Engine) -> None:
    """Not even for an expired instance whose session is open."""
    with Session(engine) as session:
        order = session.get_one(Order, ORDER)
        session.expire(order)
        assert "id" not in inspect(order).dict
        repr(order)
        assert "id" not in inspect(order).dict


def test_comments_tell_every_table_and_column(connection: Connection) -> None:
    """They reach PostgreSQL as the models have them."""
    query = text(
        "SELECT relname, attname, col_description(pg_class.oid, attnum), obj_description(pg_class.oid, 'pg_class') "
        "FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid "
        "WHERE relnamespace = CAST(:schema AS regnamespace) "
        "AND attnum > 0 AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'alembic_version'"
    )
    found = {
        (table, column): (of_column, of_table)
        for table, column, of_column, of_table in connection.execute(query, {"schema": SCHEMA})
    }
    expected = {(t.name, c.name): (c.comment, t.comment) for t in TABLES.values() for c in t.columns}
    assert expected == found
    assert all(comment for both in found.values() for comment in both)


def test_all_that_services_import_is_exported() -> None:
    """Each model and each choice can be imported from helios.models."""
    models = {mapper.class_.__name__ for mapper in Base.registry.mappers}
    choices = {c.type.choices.__name__ for t in TABLES.values() for c in t.columns if isinstance(c.type, Choice)}
    bookkeeping = {name for name, table in TABLES.items() if table.info.get("bookkeeping")}
    assert models | choices | bookkeeping | {"OPEN_STATUSES", "TRANSITIONS", "Base", "metadata"} == set(
        helios.models.__all__
    )
    assert all(hasattr(helios.models, name) for name in helios.models.__all__)
    assert all(issubclass(getattr(helios.models, name), StrEnum) for name in choices)


async def test_an_async_session_reads_and_writes(engine: Engine) -> None:
    """Psycopg 3 and an async session: defaults come back with the statement, so that nothing is loaded lazily."""
    asynchronous = create_async_engine(engine.url.set(drivername="postgresql+psycopg"))
    try:
        async with AsyncSession(asynchronous) as session:
            order = Order(
                account_id=1,
                instrument_id=1,
                client_order_id="async",
                side=Side.SELL,
                type=OrderType.LIMIT,
                status=OrderStatus.NEW,
                price=BIG + SMALL,
                submitted_at=MIDNIGHT,
            )
            order.fills.append(Fill(trade_id="1", price=SMALL, quantity=1, filled_at=MIDNIGHT))
            session.add(order)
            await session.flush()
            assert (Decimal(0), OrderStatus.NEW) == (order.filled_quantity, order.status)
            order.status = OrderStatus.FILLED
            await session.flush()
            session.expire_all()
            query = select(Order).where(Order.client_order_id == "async").options(selectinload(Order.history))
            order = (await session.scalars(query)).one()
            assert BIG + SMALL == order.price
            assert [None, OrderStatus.NEW] == [change.old_status for change in order.history]
            assert UTC is order.submitted_at.tzinfo
    finally:
        await asynchronous.dispose()
