"""The mirrors end to end: every way of writing, seen in Redis after the next step of the relay."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from mirroring import SCHEMA, Scene
from redis import Redis
from sqlalchemy import URL, Engine, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from helios import mirrors
from helios.mirrors import auditing, image, values
from helios.models import Account, Instrument, Order, OrderStatus, OrderType, Position, Side, Ticker

NOW = "timestamptz '2025-03-01Z'"
CANDLES = f"""
    INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
    SELECT 1, '1m', {NOW} + n * interval '1 minute', 1, 2, 1, 1.50, 7 FROM generate_series(1, 3) AS n
"""


def test_a_ticker_is_mirrored_with_exact_numbers(scene):
    """Numbers keep their digits, moments are in UTC, whatever the session says."""
    scene.run("SET LOCAL timezone TO 'Asia/Tokyo'", f"""
        INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 0.00000001230, {NOW})
    """)  # fmt: skip
    scene.step()
    told = scene.ticker()
    assert ("0.00000001230", "2025-03-01T00:00:00+00:00", None) == (
        told["last_price"],
        told["event_at"],
        told["bid_price"],
    )


def by_orm(scene: Scene) -> None:
    with Session(scene.engine) as session, session.begin():
        session.merge(Ticker(instrument_id=1, last_price="2", event_at=scene.now))


def by_core(scene: Scene) -> None:
    with scene.engine.begin() as connection:
        connection.execute(update(Ticker).values(last_price="2"))


def by_upsert(scene: Scene) -> None:
    statement = insert(Ticker).values(instrument_id=1, last_price="2", event_at=scene.now)
    with scene.engine.begin() as connection:
        connection.execute(statement.on_conflict_do_update(index_elements=["instrument_id"], set_={"last_price": "2"}))


def by_raw_sql(scene: Scene) -> None:
    scene.run(f"UPDATE {SCHEMA}.tickers SET last_price = 2")


def by_copy(scene: Scene) -> None:
    scene.run(f"DELETE FROM {SCHEMA}.tickers")
    scene.copy(f"COPY {SCHEMA}.tickers (instrument_id, last_price, event_at) FROM STDIN", "1\t2\t2025-03-01Z\n")


def by_savepoint(scene: Scene) -> None:
    with scene.engine.begin() as connection, connection.begin_nested():
        connection.execute(text(f"UPDATE {SCHEMA}.tickers SET last_price = 2"))


def in_two_phases(scene: Scene) -> None:
    with scene.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text(f"UPDATE {SCHEMA}.tickers SET last_price = 2"))
        transaction.prepare()
        assert not scene.step()
        transaction.commit()


def as_a_writer(scene: Scene) -> None:
    scene.run(f"SET LOCAL ROLE {scene.role('writer')}", f"UPDATE {SCHEMA}.tickers SET last_price = 2")


WAYS = [by_orm, by_core, by_upsert, by_raw_sql, by_copy, by_savepoint, in_two_phases, as_a_writer]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_writing_is_seen(scene, way: Callable[[Scene], None]):
    """It does not matter who writes, or how: the trigger is in the writing transaction."""
    scene.run(f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW})")
    scene.step()
    way(scene)
    assert scene.step()
    assert "2" == scene.ticker()["last_price"]


def test_what_was_rolled_back_is_never_seen(scene):
    """Neither the whole transaction, nor a savepoint of one that was committed."""
    with scene.engine.connect() as connection:
        connection.execute(
            text(f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW})")
        )
        connection.rollback()
        assert not scene.step()
        savepoint = connection.begin_nested()
        connection.execute(
            text(f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW})")
        )
        savepoint.rollback()
        connection.commit()
    scene.step()
    assert scene.ticker() is None


def test_a_deleted_row_is_gone(scene):
    """Of tickers and of klines, of open orders and of positions."""
    scene.run(
        CANDLES,
        f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW})",
        scene.order("o1"),
        f"INSERT INTO {SCHEMA}.positions (account_id, instrument_id, event_at) VALUES (1, 1, {NOW})",
    )
    scene.step()
    assert (1, 1) == (len(scene.hash("orders")), len(scene.hash("positions")))
    scene.run(
        *(f"DELETE FROM {SCHEMA}.{table}" for table in ("klines", "tickers", "order_history", "orders", "positions"))
    )
    scene.step()
    assert (None, None, {}, {}) == (scene.ticker(), scene.klines(), scene.hash("orders"), scene.hash("positions"))


def test_tickers_of_any_name_come_in_one_batch(scene):
    """Common names, names that are escaped, and a ticker that is gone; each as a relay that mirrors all anew has it."""
    symbols = ["ABCxyz019_.~-", "ETHUSDT", "BTC/USDT:USDT-250926", "{0}*%41?", "\u00e9\u4eba 1", "gone", "\u0130"]
    listed = ", ".join(f"('binance', 'spot', '{each}')" for each in symbols)
    scene.run(
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES {listed}",
        f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at)"
        f" SELECT id, id + 0.50, {NOW} FROM {SCHEMA}.instruments",
    )
    scene.step()
    before = {each: scene.ticker(each) for each in symbols}
    scene.run(
        f"DELETE FROM {SCHEMA}.tickers USING {SCHEMA}.instruments WHERE id = instrument_id AND symbol = 'gone'",
        f"UPDATE {SCHEMA}.tickers SET last_price = last_price + 1",
    )
    written = scene.relay.counts.written
    scene.step()
    assert len(symbols) + 1 == scene.relay.counts.written - written
    mirrored = {each: scene.ticker(each) for each in symbols}
    assert before.pop("gone")
    assert mirrored.pop("gone") is None
    for symbol, ticker in mirrored.items():
        assert 1 == float(ticker["last_price"]) - float(before[symbol]["last_price"])
    by_batch = scene.tickers()
    scene.relay.rebuild("to compare")
    assert by_batch == scene.tickers()


def test_only_the_newest_candles_are_kept(scene):
    """In one text, oldest first, exact."""
    scene.run(CANDLES.replace("(1, 3)", f"(1, {values.NEWEST + 5})"))
    scene.step()
    lines = scene.klines().splitlines()
    assert values.NEWEST == len(lines)
    assert [str(1740787200000 + 6 * 60_000), "1", "2", "1", "1.50", "7", "", "", "", ""] == lines[0].split(",")


def test_a_bulk_load_of_klines_adds_an_entry_for_each_series(scene):
    """Not one for each candle; also by COPY."""
    scene.run(CANDLES.replace("(1, 3)", "(1, 20000)"))
    rows = "".join(
        f"1\t1h\t2025-01-{day:02} {hour:02}:00Z\t1\t1\t1\t1\t1\n" for day in range(1, 30) for hour in range(24)
    )
    names = "instrument_id, interval, open_time, open, high, low, close, volume"
    scene.copy(f"COPY {SCHEMA}.klines ({names}) FROM STDIN", rows)
    assert {("series", "1|1m"), ("series", "1|1h")} == set(scene.outbox())
    assert 2 == len(scene.outbox())
    scene.step()


def test_an_order_is_mirrored_while_it_is_open(scene):
    """Changes of one that has ended before and after do not even reach the outbox."""
    scene.run(scene.order("o1"), scene.order("o2", status="FILLED"))
    scene.step()
    (only,) = scene.hash("orders").values()
    assert ("o1", "BTC:USDT", "spot") == tuple(
        json.loads(only)[name] for name in ("client_order_id", "symbol", "market")
    )
    scene.run(f"UPDATE {SCHEMA}.orders SET status = 'CANCELED' WHERE client_order_id = 'o1'")
    scene.step()
    assert {} == scene.hash("orders")
    scene.run(f"UPDATE {SCHEMA}.orders SET price = 5")
    assert [] == scene.outbox_since()
    scene.run(f"UPDATE {SCHEMA}.orders SET status = 'NEW' WHERE client_order_id = 'o2'")
    scene.step()
    assert 1 == len(scene.hash("orders"))


def test_a_key_that_is_moved_leaves_nothing_behind(scene):
    """An UPDATE of the key counts for the old one and the new one, across partitions and accounts too."""
    scene.run(
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'OTHER')",
        f"INSERT INTO {SCHEMA}.accounts (exchange, market, name) VALUES ('binance', 'spot', 'other')",
        f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW})",
        f"INSERT INTO {SCHEMA}.positions (account_id, instrument_id, event_at) VALUES (1, 1, {NOW})",
        CANDLES,
        scene.order("o1"),
    )
    scene.step()
    scene.run(
        f"UPDATE {SCHEMA}.tickers SET instrument_id = 2",
        f"UPDATE {SCHEMA}.positions SET account_id = 2",
        f"UPDATE {SCHEMA}.klines SET interval = '1h', open_time = open_time - interval '1 year'",
        f"UPDATE {SCHEMA}.orders SET account_id = 2",
    )
    scene.step()
    assert (None, "1") == (scene.ticker(), scene.ticker("OTHER")["last_price"])
    assert (None, 3) == (scene.klines(), len(scene.klines("1h").splitlines()))
    assert ({}, {}) == (scene.hash("orders"), scene.hash("positions"))
    assert (1, 1) == (len(scene.hash("orders", "other")), len(scene.hash("positions", "other")))


def test_a_renamed_instrument_takes_all_its_keys_along(scene):
    """Ticker and klines change their keys, orders and positions what they say; two may even change places."""
    scene.run(
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'OTHER')",
        f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW}), (2, 2, {NOW})",
        f"INSERT INTO {SCHEMA}.positions (account_id, instrument_id, event_at) VALUES (1, 1, {NOW})",
        CANDLES,
        scene.order("o1"),
    )
    scene.step()
    scene.run(
        f"UPDATE {SCHEMA}.instruments SET symbol = 'X' WHERE id = 1",
        f"UPDATE {SCHEMA}.instruments SET symbol = 'BTC:USDT' WHERE id = 2",
        f"UPDATE {SCHEMA}.instruments SET symbol = 'OTHER' WHERE id = 1",
    )
    scene.step()
    assert ("2", "1") == (scene.ticker()["last_price"], scene.ticker("OTHER")["last_price"])
    assert (None, 3) == (scene.klines(), len(scene.klines(symbol="OTHER").splitlines()))
    told = [json.loads(each) for table in ("orders", "positions") for each in scene.hash(table).values()]
    assert ["OTHER", "OTHER"] == [each["symbol"] for each in told]


def test_other_changes_of_an_instrument_are_no_change(scene):
    """A new tick size mirrors nothing anew."""
    scene.run(f"UPDATE {SCHEMA}.instruments SET tick_size = 1")
    assert [] == scene.outbox_since()


def test_a_deleted_instrument_is_gone_and_comes_back_with_its_candles(scene):
    """Klines have no foreign key: without their instrument they have no name, and are mirrored again with it."""
    scene.run(CANDLES)
    scene.step()
    scene.run(f"DELETE FROM {SCHEMA}.instruments")
    scene.step()
    assert scene.klines() is None
    scene.run(
        f"INSERT INTO {SCHEMA}.instruments (id, exchange, market, symbol) OVERRIDING SYSTEM VALUE "
        "VALUES (1, 'binance', 'spot', 'BTC:USDT')"
    )
    scene.step()
    assert 3 == len(scene.klines().splitlines())


def test_a_renamed_account_takes_its_hashes_along(scene):
    """Under the old name there is no hash, not even an empty one."""
    scene.run(scene.order("o1"))
    scene.step()
    scene.run(f"UPDATE {SCHEMA}.accounts SET name = 'renamed'")
    scene.step()
    assert (None, 1) == (scene.hash("orders"), len(scene.hash("orders", "renamed")))
    scene.run(f"DELETE FROM {SCHEMA}.order_history", f"DELETE FROM {SCHEMA}.orders", f"DELETE FROM {SCHEMA}.accounts")
    scene.step()
    assert (None, None) == (scene.hash("orders"), scene.hash("orders", "renamed"))


def test_rows_of_several_accounts_that_alternate_in_their_table(scene):
    """Each account's orders and positions stand whole in its hash, however the planner joins them."""
    scene.run(
        f"INSERT INTO {SCHEMA}.accounts (exchange, market, name) VALUES ('binance', 'spot', 'other')",
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) "
        "SELECT 'x', 'um', n::text FROM generate_series(1, 400) AS n",
        f"""INSERT INTO {SCHEMA}.orders
                (id, account_id, instrument_id, client_order_id, side, type, status, submitted_at)
            SELECT gen_random_uuid(), 1 + n % 2, 1, 'o' || n, 'BUY', 'LIMIT', 'NEW', now()
            FROM generate_series(1, 400) AS n""",
        f"INSERT INTO {SCHEMA}.positions (account_id, instrument_id, event_at) "
        f"SELECT 1 + n % 2, n, {NOW} FROM generate_series(1, 400) AS n",
        *(f"ANALYZE {SCHEMA}.{table}" for table in ("accounts", "orders", "positions")),
    )
    scene.relay.rebuild("asked for")
    sizes = [len(scene.hash(table, name)) for table in ("orders", "positions") for name in ("main", "other")]
    assert [200] * 4 == sizes
    scene.run(f"UPDATE {SCHEMA}.accounts SET name = name || '2'")
    scene.step()
    sizes = [len(scene.hash(table, name)) for table in ("orders", "positions") for name in ("main2", "other2")]
    assert [200] * 4 == sizes


@pytest.mark.parametrize("part", ["klines", "klines_1m", "klines_1m_2025"])
def test_candles_inserted_into_any_part_are_told_once(scene, part):
    """A statement fires the triggers of the table that it names, which tell the series, whichever part that is."""
    scene.run(CANDLES.replace(".klines", f".{part}"))
    assert [("series", "1|1m")] == scene.outbox()
    scene.copy(
        f"COPY {SCHEMA}.{part} (instrument_id, interval, open_time, open, high, low, close, volume) FROM STDIN",
        "1\t1m\t2025-04-01Z\t1\t2\t1\t2\t3\n1\t1m\t2025-04-02Z\t1\t2\t1\t2\t3\n",
    )
    assert [("series", "1|1m")] * 2 == scene.outbox()
    scene.step()
    assert (5, 1) == (len(scene.klines().splitlines()), scene.relay.counts.rebuilds)


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE {0}.klines",
        "TRUNCATE {0}.klines_1m_2025",
        "DELETE FROM {0}.klines_1m",
        "DELETE FROM {0}.klines_1m_2025",
    ],
)
def test_what_goes_as_a_whole_or_by_its_partition_is_mirrored_anew(scene, statement):
    """TRUNCATE tells no rows, and a partition's own writes, which the owner alone may do, pass by klines."""
    scene.run(CANDLES)
    scene.step()
    scene.run(statement.format(SCHEMA))
    scene.step()
    assert scene.klines() is None
    assert scene.relay.counts.rebuilds == 2


def test_a_new_partition_is_followed_too(scene):
    """One that was made at run time has the triggers as well."""
    scene.run(
        f"SELECT {SCHEMA}.make_kline_partition('1m', 2031)",
        CANDLES.replace("2025", "2031").replace(".klines", ".klines_1m_2031"),
    )
    scene.step()
    assert (3, 1) == (len(scene.klines().splitlines()), scene.relay.counts.rebuilds)
    scene.run(f"DELETE FROM {SCHEMA}.klines_1m_2031")
    scene.step()
    assert scene.klines() is None
    scene.run(f"DROP TABLE {SCHEMA}.klines_1m_2031")


def test_an_attached_or_detached_partition_is_told_by_a_function(scene):
    """No statement writes klines then: whoever does it says so in the same transaction."""
    scene.run(
        CANDLES,
        f"SELECT {SCHEMA}.mirror_series('{SCHEMA}.klines_1m_2025')",
        f"ALTER TABLE {SCHEMA}.klines_1m DETACH PARTITION {SCHEMA}.klines_1m_2025",
    )
    scene.step()
    assert scene.klines() is None
    bounds = "FROM ('2025-01-01Z') TO ('2026-01-01Z')"
    scene.run(
        f"ALTER TABLE {SCHEMA}.klines_1m ATTACH PARTITION {SCHEMA}.klines_1m_2025 FOR VALUES {bounds}",
        f"SELECT {SCHEMA}.mirror_series('{SCHEMA}.klines_1m_2025')",
    )
    scene.step()
    assert 3 == len(scene.klines().splitlines())


def test_an_account_without_orders_says_none_and_a_lost_hash_says_nothing(scene):
    """Absence is never read as "none", also where a change brings a field of a lost hash back."""
    assert {} == scene.hash("orders")
    scene.client.delete(scene.key("orders", "binance", "main"))
    assert scene.hash("orders") is None
    scene.run(scene.order("o1"))
    scene.step()
    assert scene.hash("orders") is None
    assert 1 == scene.audit()
    assert 1 == len(scene.hash("orders"))


def test_lost_and_altered_keys_are_found_and_written_again(scene):
    """By the check at once, by the relay's audit when their turn comes."""
    scene.run(f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW})", CANDLES)
    scene.step()
    scene.client.delete(scene.key("ticker", "binance", "spot", "BTC:USDT"))
    scene.client.set(scene.key("klines", "binance", "spot", "BTC:USDT", "1m"), "nonsense")
    scene.client.set(scene.key("ticker", "binance", "spot", "NOBODY"), "nonsense")
    scene.client.delete(scene.key("orders", "binance", "main"))
    found = mirrors.check(scene.relay)
    assert ["ghost", "missing", "missing", "stale"] == sorted(each.kind for each in found.differences)
    assert 4 == scene.audit()
    assert () == mirrors.check(scene.relay).differences
    assert 0 == scene.audit()


def test_the_audit_goes_through_everything_whatever_the_size_of_its_slices(scene, monkeypatch):
    """Each key of many is found lost, in slices that grow and in slices of one."""
    scene.run(
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) "
        "SELECT 'x', 'um', n::text FROM generate_series(1, 25) AS n",
        f"INSERT INTO {SCHEMA}.accounts (exchange, market, name) "
        "SELECT 'x', 'um', n::text FROM generate_series(1, 25) AS n",
        f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) "
        f"SELECT id, 1, {NOW} FROM {SCHEMA}.instruments",
        *(CANDLES.replace("SELECT 1, '1m'", f"SELECT 1 + n * 5, '{each}'") for each in ("1m", "4h", "1mo")),
    )
    scene.step()
    names = [each for each in scene.client.scan_iter(f"{scene.place.prefix}*") if each.decode() != scene.place.token]
    lost = [each for each in names if scene.place.parse(each.decode())]
    assert 26 + 2 * 26 + 3 * 3 == len(lost)
    for takes, least in ((1.0, None), (0.0, 1)):
        monkeypatch.setattr(auditing, "TAKES", takes)
        scene.client.delete(*lost)
        assert len(lost) == scene.audit(least)
        assert () == mirrors.check(scene.relay).differences
    assert scene.relay.counts.audits == 1


def test_a_slice_of_the_audit_grows_step_by_step_and_shrinks_at_once(scene):
    """To twice the last while there is time, to a thousand things at most; to its least where one took too long."""
    audit = auditing.Audit(scene.relay)
    walk = audit.walks[0]
    sizes = []
    for took in (*[0.00001] * 7, 0.1):
        audit.adapt(walk, took)
        sizes.append(audit.sizes[walk])
    assert [50, 100, 200, 400, 800, 1000, 1000, 25] == sizes


@pytest.mark.parametrize("way", ["ids", "names"])
def test_a_series_is_read_without_planning_for_other_intervals(scene, way):
    """The planner knows the interval: with all partitions to plan for, a closed candle would cost ten times as much."""
    values_of = {"interval": "1m", "ids": [1], "exchanges": ["binance"], "markets": ["spot"], "symbols": ["BTC:USDT"]}
    with scene.relay.source.connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + values.SERIES[way], values_of)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert {"klines_1m"} == set(re.findall(r"klines_[0-9a-z]+", plan))


def test_the_audit_leaves_alone_what_is_no_rows(scene):
    """Token, heartbeat and running candles are nobody's mirror."""
    with scene.engine.connect() as connection:
        mirror = mirrors.Mirror.of(connection, scene.client)
    series = ("binance", "spot", "BTC:USDT", "1m")
    mirrors.publish_candles(mirror, {series: {"open_time": scene.now, "open": "1.50"}})
    assert 0 == scene.audit()
    assert mirrors.read_candle(mirror, series)
    assert mirror.texts(scene.place.token) is not None


def test_names_cannot_break_out_of_their_key():
    """Colons, braces, stars and blanks of names are written as %XX, and read back."""
    place = mirrors.Place("a b", "s")
    name = ("x:y", "sp{ot}", "*%41?é")
    assert "helios:a%20b.s:{0}:ticker:x%3Ay:sp%7Bot%7D:%2A%2541%3F%C3%A9" == place.key("ticker", *name)
    assert name == place.parse(place.key("ticker", *name)).name
    assert [None] * 4 == [
        place.parse(each) for each in ("other", place.token, place.heartbeat, f"{place.prefix}ticker:a")
    ]


def test_two_databases_and_two_schemas_have_no_key_in_common():
    """Not even where one's name begins with the other's."""
    places = [mirrors.Place(database, schema) for database in ("a", "a.b", "ab") for schema in ("b", "c", "b_c")]
    prefixes = [each.prefix for each in places]
    assert not any(one.startswith(other) for one in prefixes for other in prefixes if one is not other)


def test_an_entry_of_a_newer_schema_is_not_guessed_at():
    """An old relay says that it is too old."""
    with pytest.raises(mirrors.relay.HeliosError, match="the schema is ahead"):
        image.Changes().take("balance", ["1"])


def test_a_running_candle_expires_and_is_outside_the_check(scene):
    """The feed tells it; a dead feed leaves none that seems to run."""
    series = ("binance", "spot", "BTC:USDT", "1m")
    with scene.engine.connect() as connection:
        mirror = mirrors.Mirror.of(connection, scene.client)
    mirrors.publish_candles(mirror, {series: {"open_time": scene.now, "open": "1.50", "volume": None}})
    key = scene.key("running", *series)
    assert f"{round(scene.now.timestamp() * 1000)},1.50,,,,,,,,".encode() == mirrors.read_candle(mirror, series)
    assert 0 < scene.client.pttl(key) <= 10_000
    assert () == mirrors.check(scene.relay).differences


def test_models_are_the_ones_that_are_mirrored(scene):
    """What the ORM reads is what the mirror says."""
    with Session(scene.engine) as session, session.begin():
        instrument, account = session.get_one(Instrument, 1), session.get_one(Account, 1)
        session.add(Position(account=account, instrument=instrument, quantity="-2.50", event_at=scene.now))
        session.add(
            Order(
                account=account,
                instrument=instrument,
                client_order_id="c",
                side=Side.SELL,
                type=OrderType.LIMIT,
                status=OrderStatus.NEW,
                submitted_at=scene.now,
            )
        )
    scene.step()
    told: dict[str, Any] = json.loads(scene.hash("positions")["1|BOTH"])
    assert ("-2.50", scene.now.isoformat()) == (told["quantity"], told["event_at"])


def client_of(url: URL) -> Redis:
    return Redis.from_url(url.render_as_string(hide_password=False))


def test_the_relays_own_login_needs_no_more_than_its_role(scene, valkey: URL):
    """A member of the role `relay` relays, rebuilds, checks, audits and empties the outbox; it may write no table."""
    login: Engine = scene.login("relay")
    relay = mirrors.Relay(login, client_of(valkey))
    try:
        relay.rebuild("asked for")
        scene.run(f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, {NOW})")
        assert relay.step()
        assert () == mirrors.check(relay).differences
        scene.client.delete(scene.key("ticker", "binance", "spot", "BTC:USDT"))
        assert 1 == scene.audit(relay=relay)
        assert relay.source.one(mirrors.source.EMPTY)[0]
        with pytest.raises(Exception, match="permission denied"), login.begin() as connection:
            connection.execute(text(f"DELETE FROM {SCHEMA}.tickers"))
        with pytest.raises(Exception, match="permission denied"), login.begin() as connection:
            connection.execute(text(f"TRUNCATE {SCHEMA}.mirror_outbox"))
    finally:
        relay.close()
