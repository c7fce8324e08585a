"""A Redis Cluster of real servers: what Helios's clients and mirrors do there."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from chaos_cluster import SYMBOLS, Fresh, Stage
from cluster import Cluster, redis_cluster
from installation import finish, start
from mirroring import scene_of
from redis import Redis
from server_user import until
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios import db, mirrors, queries
from helios.errors import UnreachableError
from helios.mirrors.keys import bucket_names, bucket_of, slot_of
from helios.mirrors.values import CANDLE
from helios.queries.mirrored import candle_of
from helios.settings import Settings

BUCKETS = 6  # two on each master
CANDLE_OF_ONES = dict.fromkeys(CANDLE, 1) | {"open_time": datetime(2025, 3, 1, tzinfo=UTC)}
PLENTY = timedelta(seconds=20)


@pytest.fixture(scope="module")
def nodes():
    with redis_cluster() as made:
        yield made


def test_any_node_leads_to_all(nodes: Cluster):
    """Values are written through one node that lives and read through another, which hold them on three masters."""
    first, *_, last = nodes.nodes
    with db.create_redis(settings_of(f"redis+cluster://127.0.0.1:1,127.0.0.1:{first.port}")) as client:
        for number in range(30):
            client.set(f"key {number}", number)
    with db.create_redis(settings_of(f"redis+cluster://127.0.0.1:{last.port}")) as client:
        assert [b"%d" % number for number in range(30)] == [client.get(f"key {number}") for number in range(30)]
    assert all(each.ask("DBSIZE") for each in nodes.masters)


def test_a_cluster_that_does_not_answer_is_a_sentence():
    """The sentence names the nodes and the remedy, and not the password."""
    with pytest.raises(UnreachableError, match=r"check REDIS_URL") as caught:
        db.create_redis(settings_of("redis+cluster://:s3cret@127.0.0.1:1,127.0.0.1:2"))
    assert "s3cret" not in str(caught.value)


@pytest.fixture(scope="module")
def stage(nodes: Cluster, cluster: URL) -> Iterator[Stage]:
    """Mirrors in six buckets of the cluster, a relay that runs, a writer and a reader; in the end nobody read wrong."""
    nodes.empty()
    with scene_of(cluster) as scene:
        made = Stage(nodes, scene, BUCKETS)
        with made.running():
            yield made
        assert [] == made.trading.wrong
        assert made.trading.reads[True] > 0


def test_mirrors_stand_on_all_masters_and_every_reader_finds_them(stage: Stage):
    """Sync, asynchronous, the command and a running candle; both sides are equal."""
    symbols = [("binance", "spot", each) for each in SYMBOLS]
    assert all(list(each.client.scan_iter("helios:*}:ticker:*")) for each in stage.cluster.masters)
    live = queries.Live(db.create_redis(stage.settings), max_lag=PLENTY, patience=PLENTY)
    with stage.scene.engine.connect() as connection:
        until(lambda: all(live.price(connection, each).mirrored for each in symbols))
        until(lambda: live.open_orders(connection, ("binance", "main")).mirrored)
        mirror = mirrors.Mirror.of(connection, live.client)
        mirrors.publish_candles(mirror, {(*each, "1m"): CANDLE_OF_ONES for each in symbols})
        assert [1] * len(symbols) == [live.running(connection, each, "1m").close for each in symbols]
    for url, answered_by in ((stage.env["REDIS_URL"], "mirror"), ("redis+cluster://127.0.0.1:1", "postgresql")):
        said, _ = finish(start("helios.cli", "price", "S1", "--json", env={**stage.env, "REDIS_URL": url}))
        assert answered_by == json.loads(said)[0]["answered_by"]
    assert () == stage.differences()


async def test_an_asynchronous_reader_finds_all(stage: Stage):
    """By a client of redis.asyncio, within run_sync."""
    client = db.create_async_redis(stage.settings)
    engine = create_async_engine(stage.scene.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    live = queries.Live(client, max_lag=PLENTY, patience=PLENTY)
    async with AsyncSession(engine) as session:
        for each in SYMBOLS:
            price = await session.run_sync(live.price, ("binance", "spot", each))
            assert price.mirrored
        assert ({}, 1) == await session.run_sync(orders_and_candle, live.client)
    await live.client.aclose()
    await client.aclose()
    await engine.dispose()


def orders_and_candle(session: Session, client: Redis) -> tuple[object, object]:
    """Read the open orders, and a running candle that is told just before."""
    mirror, series = mirrors.Mirror.of(session, client), ("binance", "spot", "S2", "1m")
    mirrors.publish_candles(mirror, {series: CANDLE_OF_ONES})
    orders = mirror.hashes(mirror.place.key("orders", "binance", "main"))
    return orders and orders.contents[0], candle_of(mirrors.read_candle(mirror, series)).close


@pytest.mark.parametrize("returns", [False, True], ids=["its replica takes over", "it returns empty"])
def test_a_killed_master_stalls_the_mirrors_for_seconds(stage: Stage, *, returns: bool):
    """They are fresh and equal again, nobody having read anything too old; a second relay does no harm."""
    second = start("helios.cli", "mirror", "run", env=stage.env)
    try:
        slot = slot_of(bucket_names(BUCKETS)[3])
        _, fresh = stage.kill(slot, returns=returns)
        assert fresh < 30
        stage.cluster.settle()
        assert () == stage.differences()
    finally:
        second.terminate()
        finish(second)


def test_a_slot_moves_to_another_node_while_relaying(stage: Stage):
    """Key by key, beside the writer; then its bucket goes on there."""
    bucket = bucket_of(("binance", "spot", "S1"), BUCKETS)
    slot = slot_of(bucket)
    old = stage.cluster.master_of(slot)
    to = next(each for each in stage.cluster.masters if each is not old)
    for _ in stage.cluster.move_slot(slot, to):
        time.sleep(0.05)
    assert to is stage.cluster.master_of(slot)
    until(Fresh(stage.scene, stage.settings))
    assert () == stage.differences()
    assert to.ask("CLUSTER", "COUNTKEYSINSLOT", slot) > 2


def test_keys_of_other_buckets_are_told_and_removed(stage: Stage):
    """As a node that was down when the number of buckets changed may have them."""
    client = stage.relays.client
    stray = mirrors.Place(str(stage.scene.url.database), "helios_trading", bucket_names(3)[1]).token
    client.set(stray, "left")
    assert [(stray, "ghost")] == [(each.key, each.kind) for each in stage.differences()]
    _, talk = finish(start("helios.cli", "mirror", "buckets", str(BUCKETS), env=stage.env))
    assert f"{BUCKETS} buckets" in talk
    assert () == stage.differences()


def test_the_doctor_and_status_know_all_buckets(stage: Stage):
    """Status has a line for each; the doctor says what stands behind, and asks every master whether it evicts."""
    said, _ = finish(start("helios.cli", "mirror", "status", "--json", env=stage.env))
    assert list(bucket_names(BUCKETS)) == [each["bucket"] for each in json.loads(said)]
    said, _ = finish(start("helios.cli", "doctor", "--json", env=stage.env), expected=None)
    found = {each["check"]: each for each in json.loads(said)}
    assert "3 masters" in found["Redis"]["found"]
    assert "a relay leads" in found["mirrors"]["found"]


def test_users_with_the_listed_rights_are_enough(stage: Stage):
    """The relay's and the readers' commands, and the keys of the schema, as the README lists them."""
    pattern = mirrors.Place(str(stage.scene.url.database), "helios_trading").pattern
    for each in stage.cluster.nodes:
        for name, commands, keys in (
            ("relay", mirrors.RELAY_COMMANDS, f"~{pattern}"),
            ("reader", mirrors.READER_COMMANDS, f"%R~{pattern}"),
        ):
            rights = [f"+{command}" for command in (*commands.split(), *mirrors.CLUSTER_COMMANDS.split())]
            each.ask("ACL", "SETUSER", name, "on", ">secret", "resetkeys", keys, "-@all", *rights)
    relay, reader = (
        Settings.from_environment(
            {"REDIS_URL": f"redis+cluster://{name}:secret@127.0.0.1:{stage.cluster.nodes[0].port}"}
        )
        for name in ("relay", "reader")
    )
    relays = mirrors.Relays(stage.scene.engine, db.create_redis(relay))
    with stage.trading.still():
        relays.rebuild("for a test")
        relays.drain()
        relays.spread(BUCKETS)
        assert () == mirrors.check(relays).differences
    relays.close()
    live = queries.Live(db.create_redis(reader))
    with stage.scene.engine.connect() as connection:
        until(lambda: live.price(connection, ("binance", "spot", "S1")).mirrored)


def settings_of(url: str) -> Settings:
    return Settings.from_environment({"REDIS_URL": url})
