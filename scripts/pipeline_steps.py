"""The steps of the verification run: each writes through a part of Helios, reads back, and tells what it found."""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import make_klines
import pipeline_folders
from sqlalchemy import func, inspect, select, text
from sqlalchemy.orm import Session

from helios import quality, queries
from helios.backfill import load, recognise
from helios.errors import HeliosError
from helios.feed import Feed
from helios.models import (
    Account,
    DataQualityMetric,
    Instrument,
    Interval,
    Kline,
    Market,
    Order,
    OrderHistory,
    TradingSession,
)
from helios.schema import grants, migrations
from helios.schema.roles import roles_of
from helios.testing.run import Run

DAY = datetime(2025, 1, 1, tzinfo=UTC)
ROWS = 1_440  # minutes of a day
MANY = 5_000  # rows, to see how fast they are loaded
BURST = 50  # messages of the exchange
DEFECTS = ("gap", "nan", "negative-price", "zero-volume-run")
SIZES = text("""
    SELECT count(*) FILTER (WHERE relkind IN ('r', 'p') AND NOT relispartition) AS tables,
           count(*) FILTER (WHERE relispartition AND relkind = 'r') AS partitions,
           count(*) FILTER (WHERE relkind IN ('i', 'I')) AS indexes, current_database()::text AS database
    FROM pg_class WHERE relnamespace = to_regnamespace(:schema)
""")


def own_name() -> str:
    """Make a name that nothing real bears, and that looks like a test: what was left of it would be an orphan."""
    return secrets.token_hex(3).upper()


@dataclass
class Scene:
    """What the steps share: the run that will undo it all, and the names of what they write."""

    run: Run
    made: bool  # whether the schema was made for this run
    name: str = field(default_factory=own_name)

    def __post_init__(self) -> None:
        """Make what writes and what reads."""
        self.symbol = f"TESTPIPELINE{self.name}USDT"
        self.account = f"test-pipeline-{self.name}"
        self.instrument = ("binance", "spot", self.symbol)
        self.feed = Feed(self.run.sessions, exchange="binance", market=Market.SPOT, account=self.account)
        self.live = queries.Live(self.run.halves.redis, patience=timedelta(seconds=5))

    def relay(self) -> None:
        """Have in Redis what was committed."""
        if self.run.halves.relay is None:
            raise HeliosError("there is no Redis for the mirrors: set REDIS_URL, or install the extra helios[embedded]")
        self.run.halves.relay.drain()

    def number(self, session: Session) -> int:
        """Find the number of this run's instrument."""
        return int(session.scalars(select(Instrument.id).where(Instrument.symbol == self.symbol)).one())


def schema(scene: Scene) -> list[str]:
    """Every revision is applied; tables and indexes are as the models say, and granted by role."""
    connection, subject = scene.run.connection, scene.run.subject
    at = ", ".join(migrations.current(connection, subject.schema))
    sizes = connection.execute(SIZES, {"schema": subject.schema}).one()
    if missing := list(lacking(scene)):
        raise HeliosError(f"the schema lacks {', '.join(missing)}: see `alembic check`")
    roles = roles_of(subject.settings, sizes.database)
    if steps := grants.missing(connection, subject.schema, roles, None):
        raise HeliosError(f"{len(steps)} grants are missing, the first: {steps[0].statement}: see `helios grants`")
    return [
        f"{'made now' if scene.made else 'was there'}, at revision {at}",
        f"{sizes.tables} tables, {sizes.partitions} partitions, {sizes.indexes} indexes, as the models say",
        f"granted to {roles.owner} and its like" if roles.managed else "no roles are managed",
    ]


def lacking(scene: Scene) -> Iterator[str]:
    """Name every column and index of the models that is not there."""
    place, tables = scene.run.subject.schema, scene.run.subject.tables
    asked: dict[str, Any] = {"schema": place, "filter_names": [each.name for each in tables]}
    there = inspect(scene.run.connection)
    columns, indexes = there.get_multi_columns(**asked), there.get_multi_indexes(**asked)
    for table in tables:
        found = {each["name"] for each in columns.get((place, table.name), [])}
        yield from (f"{table.name}.{each.name}" for each in table.columns if each.name not in found)
        found = {each["name"] for each in indexes.get((place, table.name), [])}
        yield from (str(each.name) for each in table.indexes if each.name not in found)


def klines(scene: Scene) -> list[str]:
    """A flawless file in the archive's layout and a poor one are loaded; the same again writes nothing."""
    said = []
    with pipeline_folders.folder() as folder:
        for interval, defects in (("1m", ()), ("5m", DEFECTS)):
            made = make_klines.make_file(
                folder, scene.symbol, interval, start=DAY, rows=ROWS if not defects else 288, defects=defects
            )
            loaded = load(scene.run.engine, recognise(made.path))
            expect(made.rejected, loaded.rejected, f"rejected lines of {made.path.name}")
            expect(made.good, stored(scene, interval), f"candles of {made.path.name}")
            expect(0, load(scene.run.engine, recognise(made.path), again=True).written, "rows written the second time")
            said.append(f"{made.good} candles of {interval}, {loaded.rejected} of {loaded.rows} lines rejected")
    return [*said, "the same again wrote nothing"]


def stored(scene: Scene, interval: str) -> int:
    """Count the candles of a series."""
    with scene.run.sessions() as session:
        own = (Kline.instrument_id == scene.number(session), Kline.interval == Interval(interval))
        return int(session.scalar(select(func.count()).select_from(Kline).where(*own)) or 0)


def ticker(scene: Scene) -> list[str]:
    """A message of the exchange becomes the price that is read back: from Redis, and from PostgreSQL."""
    scene.feed.take(quotes(scene, "99.99", "100.01"))
    scene.relay()
    with scene.run.sessions() as session:
        number = scene.number(session)
        mirrored = scene.live.price(session, scene.instrument)
        stored = queries.current_price(session, number)
        expect((True, False), (mirrored.mirrored, stored.mirrored), "who answered")
        expect(("100.00", "100.00"), (str(mirrored.value), str(stored.value)), "prices")
        judged = quality.measure_ticker(session, number, now=datetime.now(UTC))
    expect(1, judged and judged.verdict.score, "score of the ticker")
    age = mirrored.age.total_seconds() * 1000
    return [f"price {mirrored.value}, {age:.0f} ms old, equal in PostgreSQL and its mirror", "quality 1"]


def orders(scene: Scene) -> list[str]:
    """A session places an order, the exchange confirms and fills it; mirrors show it open, then the position."""
    with scene.run.sessions.begin() as session:
        session.add(placed_order(scene, session))
    scene.feed.take(execution(scene))
    scene.relay()
    with scene.run.sessions() as session:
        opened = scene.live.open_orders(session, ("binance", scene.account))
        expect((True, ["NEW"]), (opened.mirrored, [each.status for each in opened.rows]), "mirrored open orders")
    scene.feed.take(execution(scene, x="TRADE", X="FILLED", l="3", z="3", L="100", t=7, I=5002))
    scene.relay()
    with scene.run.sessions() as session:
        held = scene.live.positions(session, ("binance", scene.account))
        expect((True, [3]), (held.mirrored, [each.quantity for each in held.rows]), "mirrored positions")
        expect([], scene.live.open_orders(session, ("binance", scene.account)).rows, "mirrored open orders at the end")
        order = session.scalars(select(Order).join(Account).where(Account.name == scene.account)).one()
        states = session.scalars(
            select(OrderHistory.new_status).where(OrderHistory.order_id == order.id).order_by(OrderHistory.version)
        ).all()
        expect("FILLED", order.status.value, "state of the order")
        return [
            f"1 order of 1 session, {len(order.fills)} fill, history {' > '.join(states)}",
            f"position {held.rows[0].quantity}, order and position mirrored",
        ]


def placed_order(scene: Scene, session: Session) -> Order:
    """Make an order as a service places it, in a session of its strategy."""
    strategy = TradingSession(name=scene.account, strategy="grid", mode="paper", status="ACTIVE", started_at=DAY)
    account = Account(exchange="binance", name=scene.account, market="spot")
    session.add_all([strategy, account])
    session.flush()
    return Order(
        account_id=account.id,
        instrument_id=scene.number(session),
        session_id=strategy.id,
        client_order_id=scene.account,
        side="BUY",
        type="LIMIT",
        status="PENDING_NEW",
        price=100,
        quantity=3,
        submitted_at=datetime.now(UTC),
    )


def scores(scene: Scene) -> list[str]:
    """Good data scores 1, poor data less, with its reasons; both verdicts are stored."""
    scene.feed.take(quotes(scene, "101", "99"))  # a bid above the ask
    day = {"since": DAY, "until": DAY + timedelta(days=1)}
    with scene.run.sessions.begin() as session:
        number = scene.number(session)
        good, poor = (quality.measure(session, number, each, **day) for each in (Interval.M1, Interval.M5))
        crossed = quality.measure_ticker(session, number, now=datetime.now(UTC))
        assert crossed is not None  # noqa: S101 - the feed has just written it
        for each in (good, poor, crossed):
            quality.record(session, each, source="verification")
        stored = select(func.count()).where(
            DataQualityMetric.instrument_id == number, DataQualityMetric.source == "verification"
        )
        expect(3, session.scalar(stored), "stored verdicts")
    expect((1, "ok"), (good.verdict.score, good.verdict.alert_level.value), "verdict on the flawless day")
    for each in (poor, crossed):
        if each.verdict.score >= 1 or not each.verdict.reasons:
            raise HeliosError(f"poor data scored {each.verdict.score}: {each.verdict.reasons}")
    return [
        f"good candles {good.verdict.score:f}",
        f"poor ones {poor.verdict.score:f} ({poor.verdict.alert_level}: {', '.join(poor.verdict.reasons)})",
        f"a crossed book {crossed.verdict.score:f} ({crossed.verdict.alert_level})",
    ]


def throughput(scene: Scene) -> list[str]:
    """How fast it goes, with every write kept in the undo log; a figure to compare with itself, no promise."""
    with pipeline_folders.folder() as folder:
        made = make_klines.make_file(folder, scene.symbol, "1h", start=DAY, rows=MANY)
        loading, _ = timed(lambda: load(scene.run.engine, recognise(made.path)))
    hearing, _ = timed(lambda: [scene.feed.take(quotes(scene, "99.99", "100.01")) for _ in range(BURST)])
    mirroring, _ = timed(scene.relay)
    with scene.run.sessions() as session:
        reading, answer = timed(lambda: scene.live.klines(session, scene.instrument, Interval.H1, last=200))
    expect((True, 200), (answer.mirrored, len(answer.rows)), "mirrored candles")
    return [
        f"{MANY / loading:,.0f} lines/s loaded",
        f"{BURST / hearing:,.0f} messages/s, each a transaction",
        f"{MANY + BURST:,} changes mirrored in {mirroring * 1000:.0f} ms",
        f"200 candles read from Redis in {reading * 1000:.1f} ms",
    ]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Time an action in seconds, and give its result as well."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def keys(scene: Scene) -> list[str]:
    """Keys of every kind, some of them with an expiry."""
    client, symbol = scene.run.redis, scene.symbol
    client.set(f"test:price:{symbol}", "100.00", ex=600)
    client.hset(f"test:book:{symbol}", mapping={"bid": "99.99", "ask": "100.01"})
    with client.pipeline() as pipe:
        for number in range(25):
            pipe.rpush(f"test:queue:{symbol}", number).zadd(f"test:levels:{symbol}", {str(number): number})
        pipe.execute()
    names = list(client.scan_iter(f"test:*:{symbol}", count=1000))
    expect(4, len(names), "keys")
    return [f"{len(names)} keys, as {', '.join(sorted(client.type(each).decode() for each in names))}"]


def quotes(scene: Scene, bid: str, ask: str) -> dict[str, Any]:
    """Make the exchange's message of the best bid and ask."""
    now = round(time.time() * 1000)
    return {"e": "bookTicker", "u": 1, "E": now, "T": now, "s": scene.symbol, "b": bid, "B": "7", "a": ask, "A": "8"}


def execution(scene: Scene, **changed: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of Binance's message
    """Make the exchange's message about the order."""
    at = round(time.time() * 1000)
    message = {"e": "executionReport", "E": at, "s": scene.symbol, "c": scene.account, "S": "BUY", "o": "LIMIT"}
    message |= {"f": "GTC", "q": "3", "p": "100", "P": "0", "F": "0", "g": -1, "C": "", "x": "NEW", "X": "NEW"}
    message |= {"r": "NONE", "i": 1, "l": "0", "z": "0", "L": "0", "n": "0", "N": None, "T": at, "t": -1, "I": 5001}
    message |= {"w": True, "m": False, "M": False, "O": at, "Z": "0", "Y": "0", "Q": "0", "W": at, "V": "NONE"}
    return message | changed


def expect(wanted: object, found: object, what: str) -> None:
    """Fail where something is not as it has to be."""
    if wanted != found:
        raise HeliosError(f"{what}: expected {wanted}, found {found}")


STEPS: dict[str, Callable[[Scene], list[str]]] = {
    "schema": schema,
    "klines": klines,
    "ticker": ticker,
    "orders": orders,
    "quality": scores,
    "throughput": throughput,
    "keys": keys,
}
