"""Mirrors by TLS alone: relay, readers and commands know the servers by an authority of one's own, or refuse them."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest
import redis
from installation import finish, start, variables
from mirroring import SCHEMA, Scene
from server_user import until
from sqlalchemy.ext.asyncio import AsyncSession
from tls_proxy import certificates, speaking_tls

from helios import db, mirrors
from helios.queries import Live
from helios.settings import Settings

PATIENT = timedelta(seconds=30)
BITCOIN = ("binance", "spot", "BTC:USDT")


@dataclass
class Secured:
    """Tables and mirrors, and the ports at which their servers speak TLS."""

    scene: Scene
    postgres: int
    redis: int
    number: int
    folder: Path

    def environment(self, authority: str = "right", host: str = "localhost") -> dict[str, str]:
        """Tell a process that it knows this authority, and calls the servers so."""
        pem = str(self.folder / authority / "ca.pem")
        url = self.scene.url.set(host=host, port=self.postgres, query={})
        return variables(
            url,
            DATABASE_SSLMODE="verify-full",
            DATABASE_SSLROOTCERT=pem,
            REDIS_URL=f"rediss://{host}:{self.redis}/{self.number}?ssl_ca_certs={pem}",
        )

    def settings(self, monkeypatch: pytest.MonkeyPatch, authority: str = "right", host: str = "localhost") -> Settings:
        """Read the settings of such a process."""
        for name, value in self.environment(authority, host).items():
            monkeypatch.setenv(name, value)
        return Settings.from_environment()


@pytest.fixture
def secured(scene: Scene, tmp_path: Path) -> Iterator[Secured]:
    scene.run(f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, clock_timestamp())")
    scene.step()
    of = certificates(tmp_path / "right")
    behind = Path(str(scene.url.query["host"])) / f".s.PGSQL.{scene.url.port or 5432}"
    kwargs = scene.client.connection_pool.connection_kwargs
    with speaking_tls(behind, of) as postgres, speaking_tls(Path(kwargs["path"]), of) as redis_port:
        yield Secured(scene, postgres, redis_port, kwargs.get("db", 0), tmp_path)


def set_price(scene: Scene, value: int) -> None:
    scene.run(f"UPDATE {SCHEMA}.tickers SET last_price = {value}, event_at = clock_timestamp()")


async def test_relay_and_readers_by_tls(secured, monkeypatch):
    """Both connections of the relay, and of readers, sync and async."""
    settings = secured.settings(monkeypatch)
    engine, client = db.create_engine(settings), db.create_redis(settings)
    relay = mirrors.Relay(engine, client)
    set_price(secured.scene, 2)
    assert relay.step()
    assert relay.source.connection.info.ssl_in_use
    assert () == mirrors.check(relay).differences
    live = Live(client, max_lag=PATIENT, patience=PATIENT)
    with db.create_session_factory(engine)() as session:
        price = live.price(session, BITCOIN)
    assert (2, True) == (price.value, price.mirrored)
    live.client.close()
    asynchronous, async_engine = db.create_async_redis(settings), db.create_async_engine(settings)
    live = Live(asynchronous, max_lag=PATIENT, patience=PATIENT)
    async with AsyncSession(async_engine) as session:
        assert (await session.run_sync(live.price, BITCOIN)).mirrored
    for each in (live.client, asynchronous):
        await each.aclose()
    await async_engine.dispose()
    relay.close()
    client.close()
    engine.dispose()


def test_commands_by_tls(secured):
    """`helios mirror run` relays, and `check` compares."""
    env = secured.environment()
    process = start("helios.cli", "mirror", "run", env=env)
    set_price(secured.scene, 3)
    until(lambda: "3" == secured.scene.ticker()["last_price"])
    process.send_signal(signal.SIGTERM)
    assert ("", "") == finish(process)
    assert [] == json.loads(finish(start("helios.cli", "mirror", "check", "--json", env=env))[0])


@pytest.mark.parametrize(("authority", "host"), [("wrong", "localhost"), ("right", "127.0.0.1")])
def test_servers_that_are_not_who_they_should_be_are_refused(secured, monkeypatch, authority, host):
    """Another authority's certificate, or one of another name: neither PostgreSQL nor Redis is told anything."""
    if authority == "wrong":
        certificates(secured.folder / "wrong")
    settings = secured.settings(monkeypatch, authority, host)
    with pytest.raises(psycopg2.OperationalError, match=r"certificate verify failed|does not match host name"):
        mirrors.Relay(db.create_engine(settings), db.create_redis(settings)).step()
    with db.create_redis(settings) as client, pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        client.ping()
    _, talk = finish(start("helios.cli", "mirror", "status", env=secured.environment(authority, host)), expected=1)
    assert 1 == len(talk.splitlines())
    assert "certificate" in talk
