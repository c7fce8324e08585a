"""Mirrors spread over several buckets, here on a single Redis: what is whose, and that no two are of two minds."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from mirroring import SCHEMA, Scene
from server_user import until
from sqlalchemy import URL, text
from sqlalchemy.orm import Session, sessionmaker

from helios import mirrors, queries
from helios.cli.mirror import amiss
from helios.errors import InputError, SchemaError
from helios.mirrors.keys import SLOTS, bucket_names, bucket_of, slot_of
from helios.mirrors.lookout import Lookout
from helios.mirrors.relay import BEAT
from helios.mirrors.source import CALL
from helios.models import Ticker
from helios.settings import Settings
from helios.testing.mirrored import mirror_keys

SYMBOLS = [f"S{number}" for number in range(12)]
FOUR = bucket_names(4)


@pytest.fixture
def scene(mirrored: Scene, valkey: URL) -> Iterator[Scene]:
    """Twelve tickers and an account in four buckets; afterwards all must be alike."""
    mirrored.run(f"SELECT {SCHEMA}.spread_mirrors('{{0}}')")
    mirrored.begin(valkey)
    mirrored.relay.close()
    named = ", ".join(f"('binance', 'spot', '{each}')" for each in SYMBOLS)
    mirrored.run(
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES {named}",
        f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) "
        f"SELECT id, 1, now() FROM {SCHEMA}.instruments WHERE symbol LIKE 'S%'",
    )
    mirrored.relays = mirrors.Relays(mirrored.engine, mirrored.client)
    mirrored.relays.spread(4)
    mirrored.relays.rebuild("for a test")
    yield mirrored
    mirrored.relays.close()
    mirrored.relays.drain()
    assert () == mirrors.check(mirrored.relays).differences
    mirrored.relays.close()
    mirrored.client.flushdb()
    mirrored.client.close()


def mirror_of(scene: Scene) -> mirrors.Mirror:
    with scene.engine.connect() as connection:
        return mirrors.Mirror.of(connection, scene.client)


def price(symbol: str, value: int) -> str:
    return f"""
        UPDATE {SCHEMA}.tickers SET last_price = {value} FROM {SCHEMA}.instruments AS i
        WHERE i.id = instrument_id AND symbol = '{symbol}'
    """


def buckets_of(scene: Scene) -> Counter[str]:
    """Count the keys of each bucket that has any."""
    names = scene.client.scan_iter(scene.place.pattern, count=1000)
    return Counter(name.decode().partition("{")[2].partition("}")[0] for name in names)


def test_a_name_is_in_the_same_bucket_for_ever():
    """Readers and relays of all versions must agree; the name of a bucket is in its own part of a cluster's slots."""
    assert ("0",) == bucket_names(1)
    assert ("4x0x3", "4x1x1", "4x2x3", "4x3x1") == FOUR
    assert "16x9x20" == bucket_of(("binance", "spot", "BTCUSDT"), 16)
    for buckets in (2, 16, 64):
        assert list(range(buckets)) == [slot_of(each) * buckets // SLOTS for each in bucket_names(buckets)]


def test_each_bucket_holds_its_own_and_a_reader_finds_it(scene):
    """Twelve tickers lie in four buckets, and their names alone lead to each, in one call or in twelve."""
    assert set(FOUR) == set(buckets_of(scene))
    mirror = mirror_of(scene)
    keys = [mirror.place.key("ticker", "binance", "spot", each) for each in SYMBOLS]
    assert 4 == len({key.partition("}")[0] for key in keys})
    assert all(mirror.texts(*keys).contents)
    assert mirror.hashes(mirror.place.key("orders", "binance", "main")).contents == [{}]
    with Session(scene.engine) as session:
        ticker = session.query(Ticker).first()
        of_ticker = [key for key in keys if ticker.instrument_id == json.loads(scene.client.get(key))["instrument_id"]]
        assert of_ticker == mirror_keys(ticker)


def text_of(scene: Scene, key: str) -> str:
    return str(scene.client.get(key))


def test_a_change_is_relayed_by_its_own_bucket_alone(scene):
    """The tokens of the others stay; their points move on, so that the outbox can be emptied."""
    tokens = {each: scene.client.get(scene.place.of(each).token) for each in FOUR}
    scene.run(price("S3", 7))
    own = bucket_of(("binance", "spot", "S3"), 4)
    assert [True] * 4 == [each.step() for each in scene.relays.every()]
    assert [False] * 4 == [each.step() for each in scene.relays.every()]
    moved = [each for each in FOUR if tokens[each] != scene.client.get(scene.place.of(each).token)]
    assert [own] == moved
    assert [1] * 4 == [each.counts.entries for each in scene.relays.every()]


def test_a_batch_in_which_nothing_is_of_a_bucket_refuses_no_other_relay(scene):
    """It brings a heartbeat, and sets no token anew: the other relay of that bucket would have to begin again."""
    name = next(each for each in FOUR if each != bucket_of(("binance", "spot", "S1"), 4))
    one, other = (mirrors.Relay(scene.engine, scene.client, name) for _ in range(2))
    try:
        for each in (one, other):
            each.drain()
        for number, each in enumerate((one, other, one)):
            scene.run(price("S1", number))
            time.sleep(1.5 * BEAT)  # so that a heartbeat is due
            assert each.step(told=True)
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize("listen", [False, True])
def test_the_lookout_names_the_buckets_of_what_changes(scene, listen):
    """All at first; then that of each ticker, candle and order that is committed while it waits."""
    lookout = Lookout(scene.engine, 4, listen=listen)
    assert set(FOUR) == lookout.look()
    assert set() == lookout.look(0.01)
    candle = f"""
        INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
        SELECT id, '1m', now(), 1, 1, 1, 1, 1 FROM {SCHEMA}.instruments WHERE symbol = 'S9'
    """
    for statement, name in (
        (price("S3", 7), ("binance", "spot", "S3")),
        (candle, ("binance", "spot", "S9")),
        (scene.order("one"), ("binance", "main")),
    ):
        timer = threading.Timer(0.1, scene.run, [statement, CALL.split("; ")[2]])
        timer.start()
        began = time.monotonic()
        assert {bucket_of(name, 4)} == lookout.look(30)
        assert time.monotonic() - began < 20, "it was not woken"
        timer.join()
    scene.run(f"UPDATE {SCHEMA}.instruments SET symbol = 'S99' WHERE symbol = 'S9'")
    assert set(FOUR) == lookout.look()
    lookout.close()


def test_a_new_name_moves_from_one_bucket_to_another(scene):
    """Nothing is left under the old name, also where one relay is ahead of the other."""
    there = next(each for each in map(str, range(100)) if differs(f"N{each}", "S1"))
    scene.run(price("S1", 5))
    scene.relays.drain()
    scene.run(f"UPDATE {SCHEMA}.instruments SET symbol = 'N{there}' WHERE symbol = 'S1'", price(f"N{there}", 6))
    ahead = next(each for each in scene.relays.every() if each.bucket == bucket_of(("binance", "spot", f"N{there}"), 4))
    ahead.step()
    assert '"6"' in text_of(scene, mirror_of(scene).place.key("ticker", "binance", "spot", f"N{there}"))
    scene.relays.drain()
    assert scene.client.get(mirror_of(scene).place.key("ticker", "binance", "spot", "S1")) is None
    scene.run(price(f"N{there}", 8))
    scene.relays.drain()
    assert '"8"' in text_of(scene, mirror_of(scene).place.key("ticker", "binance", "spot", f"N{there}"))


def differs(one: str, other: str) -> bool:
    return bucket_of(("binance", "spot", one), 4) != bucket_of(("binance", "spot", other), 4)


def test_a_bucket_that_redis_lost_is_made_anew_and_no_other(scene):
    """Without its token, one of four is rebuilt."""
    scene.client.delete(*scene.client.keys(f"{scene.place.of(FOUR[2]).prefix}*"))
    scene.relays.close()
    for each in scene.relays.every():
        each.step()
    assert [0, 0, 1, 0] == [each.counts.rebuilds for each in scene.relays.every()]


def test_the_audit_of_each_bucket_writes_its_lost_keys_again(scene):
    """Three tickers that were deleted by hand are written once, each by its own bucket's relay."""
    keys = [mirror_of(scene).place.key("ticker", "binance", "spot", each) for each in SYMBOLS[:3]]
    scene.client.delete(*keys)
    assert 3 == sum(scene.audit(relay=each) for each in scene.relays.every())
    assert all(map(scene.client.get, keys))


def test_the_number_changes_while_a_relay_runs_and_a_reader_reads(scene):
    """The relay goes on with the new buckets, nothing of the old is left, and the reader never gets a wrong price."""
    services = mirrors.Services(mirrors.Relays(scene.engine, scene.client))
    thread = threading.Thread(target=services.run)
    thread.start()
    live = queries.Live(scene.client)
    try:
        with scene.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for value, number in enumerate((9, 1, 4), 20):
                mirrors.Relays(scene.engine, scene.client).spread(number)
                scene.run(price("S5", value))
                until(lambda now=value: live.price(connection, ("binance", "spot", "S5")).value == now)
                until(lambda: live.price(connection, ("binance", "spot", "S5")).mirrored)
                assert value == live.price(connection, ("binance", "spot", "S5")).value
                assert set(bucket_names(number)) == set(buckets_of(scene))
    finally:
        services.stop.set()
        thread.join(20)
    assert not thread.is_alive()


def test_the_outbox_is_emptied_for_all_buckets(scene):
    """A point of each is kept, and nothing waits."""
    scene.run(
        f"INSERT INTO {SCHEMA}.mirror_outbox (subject, key) SELECT 'ticker', '999' FROM generate_series(1, 40000)"
    )
    for each in scene.relays.every():
        each.step()
    assert scene.relays.every()[0].source.empty()
    assert [(each, 1) for each in sorted(FOUR)] == scene.ask(
        f"SELECT bucket, count(*) FROM {SCHEMA}.mirror_points GROUP BY bucket ORDER BY bucket"
    )
    assert [] == scene.outbox()


def test_a_followed_session_reads_its_own_writes_and_drains_no_more(scene, monkeypatch):
    """When commit() returns it is in Redis; after the first look only the bucket that it is of was asked."""
    drain, drained = mirrors.Relay.drain, []
    monkeypatch.setattr(mirrors.Relay, "drain", lambda relay: drained.append(relay.bucket) or drain(relay))
    path = scene.client.connection_pool.connection_kwargs["path"]
    settings = Settings.from_environment({"REDIS_URL": f"unix://{path}?db=0"})
    factory = sessionmaker(scene.engine)
    follower = mirrors.follow(factory, Settings(database_url=scene.url, redis_url=settings.redis_url), wait=20)
    key = mirror_of(scene).place.key("ticker", "binance", "spot", "S7")
    try:
        for value in range(2, 5):
            with factory.begin() as session:
                session.execute(text(price("S7", value)))
            assert f'"{value}"' in text_of(scene, key)
    finally:
        follower.close()
    own = bucket_of(("binance", "spot", "S7"), 4)
    assert [*FOUR, own, own] == drained


def test_a_lost_row_and_a_wrong_number_are_sentences(scene):
    """Each names what was found and what to do."""
    with pytest.raises(InputError, match="65 is no number of buckets: choose 1 to 64"):
        scene.relays.spread(65)
    with pytest.raises(mirrors.GoneError, match="'0'"):
        mirrors.Relay(scene.engine, scene.client).step()
    scene.run(f"DELETE FROM {SCHEMA}.mirror_state WHERE bucket = '{FOUR[1]}'")
    with pytest.raises(SchemaError, match="run `helios mirror buckets 1`"):
        mirrors.Relays(scene.engine, scene.client).every()
    scene.relays.spread(4)


def test_metrics_and_status_tell_of_each_bucket(scene):
    """Each line of the metrics has its bucket, and each bucket its own status."""
    told = mirrors.metrics(scene.relays, 0.0)
    assert [f'helios_mirror_rebuilds_total{{bucket="{each}"}} 1' for each in FOUR] == [
        line for line in told.splitlines() if line.startswith("helios_mirror_rebuilds_total")
    ]
    assert [(each, True, True) for each in FOUR] == [
        (each.bucket, each.relayed, each.together) for each in mirrors.statuses(scene.engine, scene.client)
    ]


def test_the_relay_may_spread_the_mirrors_and_a_writer_may_not(scene):
    """It takes the role `relay`, which still may not write to mirror_state itself."""
    with scene.engine.begin() as connection:
        connection.execute(text(f'SET LOCAL ROLE "{scene.role("relay")}"'))
        connection.execute(text(f"SELECT {SCHEMA}.spread_mirrors(:names)"), {"names": list(FOUR)})
        connection.rollback()
    for kind, statement in (
        ("relay", f"DELETE FROM {SCHEMA}.mirror_state"),
        ("writer", f"SELECT {SCHEMA}.spread_mirrors('{{0}}')"),
    ):
        with scene.engine.connect() as connection, pytest.raises(Exception, match="permission denied"):
            connection.execute(text(f'SET LOCAL ROLE "{scene.role(kind)}"'))
            connection.execute(text(statement))


def test_status_names_the_bucket_that_no_relay_leads(scene):
    """The others answer all the same; where none is led, no relay runs."""
    first, *others = FOUR
    assert "" == amiss(mirrors.statuses(scene.engine, scene.client))
    scene.client.delete(scene.place.of(first).heartbeat)
    told = amiss(mirrors.statuses(scene.engine, scene.client))
    assert f"no relay leads bucket {first}, so readers ask PostgreSQL: start one, `helios mirror run`" == told
    scene.client.delete(*(scene.place.of(each).heartbeat for each in others))
    assert amiss(mirrors.statuses(scene.engine, scene.client)).startswith("no relay runs, so readers ask PostgreSQL")
