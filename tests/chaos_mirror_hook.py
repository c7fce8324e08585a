"""The same chaos for the mirrors' peer, the usual after_commit hook: how many rows stay wrong, and nobody notices."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import psycopg2
from chaos_mirrors import scene
from redis import Redis, RedisError
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.hook import hook, key
from helios import db
from helios.models import Ticker
from helios.settings import Settings


def write(_dsn: str, seed: int, keys: int) -> None:
    """Write tickers as a service does, through sessions alone; the hook sees all of it."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    chance = random.Random(seed)  # noqa: S311 - chance, not secrecy
    settings = Settings.from_environment()
    factory = db.create_session_factory(db.create_engine(settings))
    hook(factory, Redis.from_url(settings.redis_url.render_as_string(), socket_timeout=1, retry=None))
    while not stopped:
        try:
            with factory() as session:
                for _ in range(chance.choice((1, 1, 3))):
                    which = chance.randint(1, 10) if chance.random() < 0.5 else chance.randint(1, keys)
                    found = session.get(Ticker, which)
                    if found is not None and chance.random() < 0.2:
                        session.delete(found)
                    else:
                        now = datetime.now(UTC)
                        price = Decimal(chance.randint(1, 10**9))
                        session.merge(Ticker(instrument_id=which, last_price=price, event_at=now))
                    session.flush()
                if chance.random() < 0.04:
                    session.rollback()
                else:
                    session.commit()
        except SQLAlchemyError:
            time.sleep(0.02)


def chaos_of_hook(rounds: int, seed: int, keys: int, say: Callable[[str], object]) -> dict[str, object]:
    """Run the rounds; count after each which tickers Redis lacks, holds differently, or holds though none is there."""
    counts = []
    with scene(seed, keys, writes=write, relays=False) as at:
        everything(at.postgres.dsn, at.valkey.client)
        for number in range(1, rounds + 1):
            at.round()
            counts.append(wrong(at.postgres.dsn, at.valkey.client))
            say(f"round {number}: {counts[-1]}")
        return {
            "seed": seed,
            "rounds": rounds,
            "keys": keys,
            "rounds_wrong": sum(any(each.values()) for each in counts),
            "wrong_at_the_end": counts[-1],
            "done": dict(sorted(at.done.items())),
        }


def prices(dsn: str) -> dict[str, str]:
    """Read the price of each ticker, by its key."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT instrument_id, last_price::text FROM helios_trading.tickers")
        return {key(number): price for number, price in cursor.fetchall()}


def everything(dsn: str, client: Redis) -> None:
    """Write all tickers, as such a service does when it is first installed."""
    client.mset({name: f'{{"last_price": "{price}"}}' for name, price in prices(dsn).items()})


def wrong(dsn: str, client: Redis) -> dict[str, int]:
    """Count the rows that differ."""
    expected = prices(dsn)
    with contextlib.suppress(RedisError):
        client.ping()
    names = [name.decode() for name in client.scan_iter("hook:*", count=10_000)]
    found = dict(zip(names, client.mget(names), strict=True)) if names else {}
    stale = sum(f'"last_price": "{price}"'.encode() not in found.get(name, b"") for name, price in expected.items())
    missing = len(expected.keys() - found.keys())
    return {"missing": missing, "stale": stale - missing, "ghosts": len(found.keys() - expected.keys())}
