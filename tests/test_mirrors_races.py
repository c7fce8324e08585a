"""The mirrors where something dies, wakes up late or goes back: both sides end alike, nothing stale seems fresh."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from mirroring import SCHEMA, Scene
from own_servers import client as client_of
from own_servers import end, valkey
from redis import Redis
from server_user import until
from sqlalchemy import insert, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from helios import mirrors
from helios.mirrors import checking, source, store
from helios.mirrors.service import Service
from helios.models.bookkeeping import mirror_points
from helios.settings import Settings


@pytest.fixture
def scene(scene: Scene) -> Scene:
    """Tables with a ticker of price 1, mirrored; afterwards both sides must be alike."""
    scene.run(price(1, insert=True))
    scene.step()
    return scene


def price(value: int, *, insert: bool = False) -> str:
    if insert:
        return f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, {value}, now())"
    return f"UPDATE {SCHEMA}.tickers SET last_price = {value} WHERE instrument_id = 1"


@contextmanager
def another(scene: Scene) -> Iterator[mirrors.Relay]:
    """A second relay of the same bucket."""
    relay = mirrors.Relay(scene.engine, scene.client)
    try:
        yield relay
    finally:
        relay.close()


def test_a_delete_is_handled_while_a_reinsert_is_in_flight(scene):
    """The delete is relayed first; the insert, which began before, has an entry of its own and comes later."""
    scene.run(f"DELETE FROM {SCHEMA}.tickers")
    with scene.engine.connect() as connection:
        connection.execute(text(price(2, insert=True)))
        assert scene.step()
        assert scene.ticker() is None
        connection.commit()
    assert scene.step()
    assert "2" == scene.ticker()["last_price"]


def test_a_long_transaction_that_commits_late_is_not_forgotten(scene):
    """Batches passed since it began, and the outbox was emptied meanwhile as far as it may be."""
    scene.run(f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'OTHER')")
    with scene.engine.connect() as connection:
        connection.execute(text("SELECT pg_current_xact_id()"))
        for value in range(2, 5):
            scene.run(price(value))
            assert scene.step()
        assert scene.relay.source.one(source.EMPTY)[0]
        connection.execute(text(price(9, insert=True).replace("(1, 9", "(2, 9")))
        scene.run(price(5))
        assert scene.step()
        assert not scene.relay.source.one(source.EMPTY)[0]  # its entries hold the outbox
        connection.commit()
    scene.run(price(6))
    assert scene.relay.source.one(source.EMPTY)[0]
    assert 2 == len(scene.outbox())
    assert scene.step()
    assert ("6", "9") == (scene.ticker()["last_price"], scene.ticker("OTHER")["last_price"])


def test_the_audit_writes_nothing_that_its_token_does_not_stand_for(scene, monkeypatch):
    """A price of the very moment in which a lost key is written again, and PostgreSQL loses it: not in Redis."""
    entries = scene.outbox()
    compare = checking.compare

    def compare_and_commit(*arguments: object) -> object:
        found = compare(*arguments)
        if found[0]:
            scene.run(price(2))
        return found

    monkeypatch.setattr(checking, "compare", compare_and_commit)
    scene.client.delete(scene.key("ticker", "binance", "spot", "BTC:USDT"))
    assert 1 == scene.audit()
    monkeypatch.undo()
    # What a copy of a moment before looks like: neither the price nor its entry was ever there.
    scene.run(
        f"ALTER TABLE {SCHEMA}.tickers DISABLE TRIGGER USER",
        price(1),
        f"ALTER TABLE {SCHEMA}.tickers ENABLE TRIGGER USER",
        f"DELETE FROM {SCHEMA}.mirror_outbox WHERE xid = (SELECT max(xid) FROM {SCHEMA}.mirror_outbox)",
    )
    assert entries == scene.outbox()
    assert "1" == scene.ticker()["last_price"]


def test_a_zombies_batch_is_refused(scene):
    """A relay that wakes up with rows of the past writes none of them: somebody else moved the token."""
    zombie = store.Store(scene.client, scene.place)
    with closing(zombie):
        old = scene.client.get(scene.key("ticker", "binance", "spot", "BTC:USDT"))
        scene.run(price(2))
        scene.step()
        commands = [store.packed("SET", scene.key("ticker", "binance", "spot", "BTC:USDT"), old.decode())]
        with pytest.raises(mirrors.LostError, match="moved"):
            zombie.write(commands, voucher="x", seen=time.monotonic())
        assert "2" == scene.ticker()["last_price"]


def test_a_zombies_heartbeat_is_refused(scene):
    """It cannot vouch for a batch that it does not know."""
    zombie = store.Store(scene.client, scene.place)
    with closing(zombie):
        scene.run(price(2))
        scene.step()
        scene.client.delete(scene.place.heartbeat)
        with pytest.raises(mirrors.LostError):
            zombie.write([], voucher="x", seen=time.monotonic())
        assert not scene.client.exists(scene.place.heartbeat)
    time.sleep(0.11)
    scene.step()


def test_a_relay_killed_between_redis_and_postgresql_costs_a_rebuild(scene):
    """Redis stands at a batch that PostgreSQL does not know of: the tokens tell, and everything is mirrored anew."""

    class KilledError(Exception):
        """The relay dies here."""

    def die(*_: object) -> None:
        raise KilledError

    scene.run(price(2))
    scene.relay.sides()[0].advance = die
    with pytest.raises(KilledError):
        scene.step()
    scene.relay.close()
    with another(scene) as relay:
        scene.run(price(3))
        assert relay.step()
        assert 1 == relay.counts.rebuilds
        assert "3" == scene.ticker()["last_price"]


def test_a_stuck_leader_is_replaced(scene, monkeypatch):
    """A transaction that does nothing for long is ended by the server, and another relay leads."""
    monkeypatch.setattr(source, "PREPARE", source.PREPARE.replace(f"'{source.LONGEST_IDLE}s'", "'1s'"))
    stuck, _ = scene.relay.sides()
    stuck.connection.autocommit = False
    assert stuck.one(source.LEAD_OR_NOT)
    scene.run(price(2))
    with another(scene) as relay:
        assert not relay.step()
        until(relay.step)
        assert "2" == scene.ticker()["last_price"]
    scene.relay.close()


def test_postgresql_put_back_to_an_older_copy(scene):
    """Redis is ahead of it: what was committed since is gone there, and here too after a rebuild."""
    kept = scene.ask(f"SELECT * FROM {SCHEMA}.mirror_points")
    scene.run(price(2))
    scene.step()
    scene.relay.close()
    scene.run(f"ALTER TABLE {SCHEMA}.tickers DISABLE TRIGGER USER", price(1), f"TRUNCATE {SCHEMA}.mirror_points",
              f"ALTER TABLE {SCHEMA}.tickers ENABLE TRIGGER USER")  # fmt: skip
    with scene.engine.begin() as connection:
        for row in kept:
            names = dict(zip("abcde", row, strict=True))
            connection.execute(text(f"INSERT INTO {SCHEMA}.mirror_points VALUES (:a, :b, :c, :d, :e)"), names)
    assert scene.step()
    assert "1" == scene.ticker()["last_price"]


def test_a_restored_copy_on_another_server_must_be_told_to_take_over(scene, monkeypatch):
    """Two environments of the same names never write into each other's mirrors; a new server takes over by word."""
    real = source.Source.__init__

    def elsewhere(self: source.Source, *arguments: object) -> None:
        real(self, *arguments)
        self.home = replace(self.home, server="42")

    with another(scene) as relay:
        monkeypatch.setattr(source.Source, "__init__", elsewhere)
        with pytest.raises(mirrors.ForeignError, match="--take-over"):
            relay.step()
        with pytest.raises(mirrors.ForeignError):
            relay.rebuild("asked for")
        assert "1" == scene.ticker()["last_price"]
        relay.rebuild("asked for", take_over=True)
        reader = mirrors.Mirror(scene.client, scene.place, scene.relay.source.home.server)
        assert reader.texts(scene.place.token) is None  # to the first server's readers these are no mirrors
    monkeypatch.undo()
    scene.relay.close()
    scene.relay.rebuild("asked for", take_over=True)


def form_of(scene: Scene, form: str) -> str:
    return f"UPDATE {SCHEMA}.mirror_state SET form = '{form}'"


def test_a_relay_of_an_older_helios_gives_way(scene):
    """Beside a newer one it writes nothing more, and does not make all anew in turns; told to, it does."""
    scene.run(form_of(scene, "99 50"), price(2))
    for ask in (scene.step, lambda: mirrors.check(scene.relay)):
        with pytest.raises(mirrors.NewerError, match="end this one and run the newer version"):
            ask()
    assert "1" == scene.ticker()["last_price"]
    scene.relay.rebuild("asked for")
    assert "2" == scene.ticker()["last_price"]


@pytest.mark.parametrize("form", ["1 50", "0 9999", ""])
def test_mirrors_of_an_older_helios_are_made_anew(scene, form):
    """Also by a relay that has proved both sides alike before."""
    scene.run(form_of(scene, form), price(2))
    assert scene.step()
    assert ("2", 2) == (scene.ticker()["last_price"], scene.relay.counts.rebuilds)


def test_an_emptied_redis_is_filled_again(scene):
    """FLUSHALL takes the token along; readers are sent to PostgreSQL until all is back."""
    scene.client.flushall()
    with scene.engine.connect() as connection:
        mirror = mirrors.Mirror.of(connection, scene.client)
    assert mirror.texts(scene.key("ticker", "binance", "spot", "BTC:USDT")) is None
    time.sleep(0.11)
    scene.step()  # the heartbeat finds out
    assert scene.step()
    assert "1" == scene.ticker()["last_price"]


def test_a_check_of_two_batches_is_none(scene):
    """Where no relay runs, an emptied Redis is not told as a difference of every key."""
    scene.client.flushall()
    with pytest.raises(mirrors.BehindError, match="did not stand at the same batch"):
        mirrors.check(scene.relay, wait=0.1)


def test_a_change_that_nobody_relays_is_waited_for_and_told(scene):
    """It is no difference yet; the sentence fits one key as well as many."""
    scene.run(price(2))
    with pytest.raises(mirrors.BehindError, match=r"did not hold the same \(keys that differ: 1\) within 0.1 s"):
        mirrors.check(scene.relay, wait=0.1)


def test_an_old_dump_is_replaced(scene):
    """Keys put back to what they were: their token is an old one."""
    names = [name.decode() for name in scene.client.scan_iter(f"{scene.place.prefix}*")]
    dumps = {name: scene.client.dump(name) for name in names}
    scene.run(price(2))
    scene.step()
    for name, dump in dumps.items():
        scene.client.restore(name, 0, dump, replace=True)
    assert "1" == scene.ticker()["last_price"]
    scene.relay.close()
    assert scene.step()
    assert "2" == scene.ticker()["last_price"]


def test_during_a_rebuild_no_reader_is_told_that_anything_is_fresh(scene, monkeypatch):
    """The heartbeat goes first, and comes last."""
    with scene.engine.connect() as connection:
        mirror = mirrors.Mirror.of(connection, scene.client)
    seen = []
    real = mirrors.image.everything

    def watched(*arguments: object):
        for writes in real(*arguments):
            seen.append(mirror.texts(scene.place.token))
            yield writes

    monkeypatch.setattr(mirrors.image, "everything", watched)
    scene.relay.rebuild("asked for")
    assert [None] * len(seen) == seen
    assert seen
    assert mirror.texts(scene.place.token) is not None


def test_a_dead_relay_shows_as_lag(scene):
    """The lag grows on Redis's clock, until the heartbeat is gone."""
    with scene.engine.connect() as connection:
        mirror = mirrors.Mirror.of(connection, scene.client)
    scene.client.pexpire(scene.place.heartbeat, store.ALIVE - 5_000)
    assert 5 <= mirror.texts(scene.place.token).lag.total_seconds() < 6
    scene.client.delete(scene.place.heartbeat)
    assert mirror.texts(scene.place.token) is None
    time.sleep(0.11)
    scene.step()


def test_two_relays_share_the_work(scene):
    """Whichever sees a change first relays it; neither undoes the other's, and nothing is rebuilt."""
    with another(scene) as relay:
        for value in range(2, 12):
            scene.run(price(value))
            (relay if value % 2 else scene.relay).step()
            assert str(value) == scene.ticker()["last_price"]
        assert (0, 1) == (relay.counts.rebuilds, scene.relay.counts.rebuilds)


def test_the_outbox_is_small_while_an_old_snapshot_is_held(scene):
    """Nothing in it is ever dead: it is emptied by TRUNCATE, whoever still sees what was there."""
    with scene.engine.connect().execution_options(isolation_level="REPEATABLE READ") as old:
        old.execute(text("SELECT 1"))
        for each in range(20):
            scene.run(
                f"INSERT INTO {SCHEMA}.mirror_outbox (subject, key) SELECT 'ticker', '1' FROM generate_series(1, 20000)"
            )
            scene.step()
            assert scene.relay.source.empty(), each
        sizes = (f"pg_total_relation_size('{SCHEMA}.{table}')" for table in ("mirror_outbox", "mirror_points"))
        [(size,)] = scene.ask(f"SELECT {' + '.join(sizes)}")
        assert size < 200_000


def test_an_outbox_in_which_much_waits_is_not_emptied(scene):
    """Carrying it over would keep writers waiting: it is emptied once that is relayed."""
    scene.run(f"INSERT INTO {SCHEMA}.mirror_outbox (subject, key) SELECT 'ticker', '1' FROM generate_series(1, 10001)")
    assert not scene.relay.source.one(source.EMPTY)[0]
    assert scene.step()
    assert scene.relay.source.one(source.EMPTY)[0]


@pytest.mark.parametrize("began", ["after the last batch", "before the last batch"])
def test_a_relay_that_waits_is_woken_by_a_commit(scene, began):
    """Whether its transaction began before the last batch or after: the server looks for it, and says so at once."""
    source, _ = scene.relay.sides()
    seen = []
    waits = threading.Thread(target=lambda: seen.append(source.poll(30.0)))
    with scene.engine.connect() as connection:
        connection.execute(text("SELECT pg_current_xact_id()"))
        if began == "before the last batch":
            scene.run(price(5))
            assert scene.step()
        waits.start()
        until(lambda: scene.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
        connection.execute(text(price(2)))
        connection.commit()
    waits.join(10)
    assert not waits.is_alive()
    [(_, changed, age)] = seen
    assert changed
    assert 0 <= age < 5


def test_a_wait_in_vain_tells_how_old_its_answer_is(scene):
    """The time waited is not part of the lag: the server looked at the end of it."""
    source, store = scene.relay.sides()
    began = time.monotonic()
    token, changed, age = source.poll(0.1)
    assert (store.token, False) == (token, changed)
    assert 0 <= age <= time.monotonic() - began - 0.1


def test_a_backlog_is_collapsed_to_one_write_for_each_key(scene):
    """After an hour of a Redis that is down, only what is so now is written."""
    for value in range(2, 52):
        scene.run(price(value))
    before = scene.relay.counts.written
    assert scene.step()
    assert 1 == scene.relay.counts.written - before


@pytest.fixture
def own(own_home) -> Iterator[tuple[object, Redis]]:
    """A Valkey of the test's own, that may be stopped."""
    server = valkey(own_home)
    yield server, client_of(server.acquire())
    end(server)


def test_the_service_outlives_redis_and_postgresql_and_stops_when_told(scene, caplog):
    """Connections that are ended are made again, with one sentence when it begins and one when it is over."""
    caplog.set_level(logging.WARNING, "helios.mirrors")
    relay = mirrors.Relay(scene.engine, scene.client)
    service = Service(relay)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        until(lambda: relay.proved)
        scene.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            f"AND datname = current_database() AND pid = {relay.source.connection.info.backend_pid}"
        )
        scene.run(price(2))
        until(lambda: "2" == scene.ticker()["last_price"])
        scene.client.client_kill_filter(_type="normal", skipme=True)
        scene.run(price(3))
        until(lambda: "3" == scene.ticker()["last_price"])
        scene.client.flushall()
        until(lambda: scene.ticker() is not None)
    finally:
        service.stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert relay.source is None
    said = [record.getMessage() for record in caplog.records]
    assert 2 <= len([each for each in said if "wait, and go on by themselves" in each])
    assert 2 <= len([each for each in said if "go on after" in each])
    scene.relay.close()


def settings_of(scene: Scene, redis: Redis) -> Settings:
    path = redis.connection_pool.connection_kwargs["path"]
    return Settings(database_url=scene.url, redis_url=make_url(f"unix://{path}?db=0"), redis_timeout=0.2)


def test_a_followed_session_reads_its_own_writes(scene):
    """When commit() returns it is in Redis; a rollback and a savepoint wait for nothing."""
    factory = sessionmaker(scene.engine)
    follower = mirrors.follow(factory, settings_of(scene, scene.client), wait=10)
    try:
        for value in range(2, 6):
            with factory.begin() as session, session.begin_nested():
                session.execute(text(price(value)))
            assert str(value) == scene.ticker()["last_price"]
        asked = follower.asked
        with factory() as session:
            session.execute(text(price(99)))
            session.rollback()
        assert asked == follower.asked == 4
    finally:
        follower.close()


async def test_a_followed_asynchronous_session_reads_its_own_writes(scene):
    """The event loop goes on meanwhile."""
    engine = create_async_engine(scene.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    factory: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
    follower = mirrors.follow(factory, settings_of(scene, scene.client), wait=10)
    try:
        async with factory.begin() as session:
            await session.execute(text(price(2)))
        assert "2" == scene.ticker()["last_price"]
        async with factory() as session:
            await session.execute(text(price(99)))
        assert 1 == follower.asked
    finally:
        await asyncio.to_thread(follower.close)
        await engine.dispose()


def test_a_redis_that_is_down_neither_fails_nor_slows_commits(scene, own, caplog):
    """The commit succeeds, is told of once, and whatever relay comes next brings the rest."""
    server, client = own
    factory = sessionmaker(scene.engine)
    follower = mirrors.follow(factory, settings_of(scene, client), wait=0.2)
    client.close()
    server.release()
    server.wait_ended()
    began = time.monotonic()
    try:
        for value in range(2, 22):
            with factory.begin() as session:
                session.execute(text(price(value)))
        assert time.monotonic() - began < 2
    finally:
        follower.close()
        server.acquire()
    assert 1 == len([each for each in caplog.records if "not in Redis at once" in each.getMessage()])
    assert scene.step()
    assert "21" == scene.ticker()["last_price"]


def test_a_look_while_the_points_are_emptied(scene):
    """Who looked before sees none, as TRUNCATE has it; it is taken for a change, and the relay goes on."""
    looks, _ = scene.relay.sides()
    found = []
    with scene.engine.begin() as connection:
        kept = connection.exec_driver_sql(f"SELECT * FROM {SCHEMA}.mirror_points").mappings().all()
        connection.exec_driver_sql(f"TRUNCATE {SCHEMA}.mirror_points")
        looking = threading.Thread(target=lambda: found.append(looks.poll()))
        looking.start()
        until(lambda: waits_for_a_lock(scene, looks.connection.info.backend_pid))
        for each in kept:
            connection.execute(insert(mirror_points), dict(each))
    looking.join(10)
    assert [True] == [changed for _, changed, _ in found]
    scene.run(price(2))
    scene.step()
    assert "2" == scene.ticker()["last_price"]


def waits_for_a_lock(scene, pid: int) -> bool:
    """Tell whether a connection waits for another one."""
    with scene.engine.connect() as connection:
        return bool(connection.exec_driver_sql(f"SELECT cardinality(pg_blocking_pids({pid})) > 0").scalar_one())


def test_an_announced_commit_wakes_the_relay_that_listens(scene, monkeypatch):
    """By NOTIFY after the commit, not in it; a commit that nobody announces is found when the relay looks by itself."""
    factory = sessionmaker(scene.engine)
    service = Service(mirrors.Relay(scene.engine, scene.client), listen=True)
    step, told = service.relay.step, []

    def noting(**how: bool) -> bool:
        told.append(how["told"])
        return step(**how)

    monkeypatch.setattr(service.relay, "step", noting)
    follower = mirrors.announce(factory, settings_of(scene, scene.client))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        until(lambda: service.relay.proved)
        scene.run(price(3))
        until(lambda: "3" == scene.ticker()["last_price"])
        assert not any(told)
        with factory.begin() as session:
            session.execute(text(price(2)))
        until(lambda: any(told))
        until(lambda: "2" == scene.ticker()["last_price"])
    finally:
        service.stop.set()
        thread.join(10)
        follower.close()
    scene.relay.close()


def login(name: str) -> dict[str, str]:
    return {"username": name, "password": "secret"}


def test_an_acl_user_with_these_commands_and_this_prefix_is_enough(scene, own):
    """And not with fewer keys: what the README lists is what it takes."""
    _, admin = own
    rights = [f"+{each}" for each in mirrors.RELAY_COMMANDS.split()]
    admin.execute_command(
        "ACL", "SETUSER", "relay", "on", ">secret", "resetkeys", f"~{scene.place.pattern}", "-@all", *rights
    )
    reads = [f"+{each}" for each in mirrors.READER_COMMANDS.split()]
    admin.execute_command("ACL", "SETUSER", "reader", "on", ">secret", f"%R~{scene.place.pattern}", "-@all", *reads)
    path = admin.connection_pool.connection_kwargs["path"]
    with Redis(unix_socket_path=path, **login("relay")) as client:
        relay = mirrors.Relay(scene.engine, client)
        scene.relay.close()
        try:
            assert relay.step()
            scene.run(price(2))
            relay.step()
            assert () == mirrors.check(relay).differences
            assert mirrors.status(scene.engine, admin).together
        finally:
            relay.close()
    with (
        Redis(unix_socket_path=path, **login("reader")) as client,
        scene.engine.connect() as connection,
    ):
        mirror = mirrors.Mirror.of(connection, client)
        assert mirror.texts(scene.key("ticker", "binance", "spot", "BTC:USDT")).contents[0]
        assert {} == mirror.hashes(scene.key("orders", "binance", "main")).contents[0]
    with Redis(unix_socket_path=path, **login("relay")) as client:
        elsewhere = mirrors.Place("other", SCHEMA)
        with pytest.raises(Exception, match="permissions"):
            store.Store(client, elsewhere)
    scene.client.delete(scene.place.token)
