"""`helios mirror`: the relay, and how the mirrors do."""

import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
import psycopg2
from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from helios import db, mirrors
from helios.cli.output import json_option, say, show
from helios.errors import HeliosError, UnreachableError
from helios.mirrors.keys import MOST_BUCKETS
from helios.mirrors.nodes import UNREACHED
from helios.schema import migrations
from helios.settings import Settings

log = logging.getLogger("helios.mirrors")
LEAST_BAD, MOST_SHOWN = 1, 20


@click.group(epilog="Example: helios mirror run --metrics-port 9187")
def mirror() -> None:
    """Keep tickers, newest candles, open orders and positions in Redis as PostgreSQL has them."""


@contextmanager
def reaching(settings: Settings) -> Iterator[tuple[Engine, Redis]]:
    """Give both servers; a failure to reach one is a sentence without its password."""
    settings = db.direct_settings(settings, mirrors.NEEDS)
    engine, client = db.create_engine(settings), db.create_redis(settings)
    try:
        with db.reaching(engine.url):
            with engine.connect() as connection:
                migrations.refuse_pending(connection, settings.database_schema)
            yield engine, client
    except (psycopg2.Error, *UNREACHED) as error:
        if isinstance(error, DBAPIError):
            raise
        said = db.hide(db.hide(" ".join(str(error).split()), engine.url), db.redis_url(settings))
        raise UnreachableError(f"{said or type(error).__name__}; check DATABASE_URL and REDIS_URL") from None


@mirror.command(epilog="Example: helios mirror run --listen --metrics-port 9187")
@click.option("--listen", is_flag=True, help="Wait for what services announce; needs a direct connection, no pooler.")
@click.option("--metrics-port", type=int, metavar="PORT", help="Serve Prometheus's metrics on this port of 127.0.0.1.")
def run(*, listen: bool, metrics_port: int | None) -> None:
    """Relay what changes, until SIGTERM or Ctrl-C; several may run, and one leads at a time.

    What is down is waited for. DATABASE_URL's login has to be a member of the group role `relay`; where that is a
    pooler, DATABASE_MIGRATION_URL is used.
    """
    settings = db.direct_settings(Settings.from_environment(), mirrors.NEEDS)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    engine, client = db.create_engine(settings), reached(settings, stop)
    if client is None:
        return
    services = mirrors.Services(mirrors.Relays(engine, client), listen=listen, stop=stop)
    if metrics_port is not None:
        serve_metrics(services.relays, metrics_port)
    services.run()


def reached(settings: Settings, stop: threading.Event) -> Redis | None:
    """Make a client, which of a Redis Cluster connects at once: where it is down, wait; None once told to stop."""
    said = False
    while not stop.is_set():
        try:
            return db.create_redis(settings)
        except UnreachableError as error:
            if not said:
                log.warning("the mirrors wait, and go on by themselves: %s", error)
            said = True
            stop.wait(1)
    return None


def serve_metrics(relays: mirrors.Relays, port: int) -> None:
    """Serve the relays' metrics on loopback, from a thread that ends with the process."""

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = mirrors.metrics(relays, time.monotonic()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of each request."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Metrics)
    except OSError as error:
        raise HeliosError(f"metrics cannot be served on port {port} ({error}): choose another --metrics-port") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()


@mirror.command(epilog="Example: helios mirror check --wait 5 --json")
@click.option("--wait", type=click.FloatRange(min=0), default=10.0, show_default=True, metavar="SECONDS",
              help="How long what is on its way may take.")  # fmt: skip
@json_option
def check(*, wait: float, as_json: bool) -> int:
    """Compare both sides in full, while others write; exit status 1 on any difference."""
    with reaching(Settings.from_environment()) as (engine, client):
        relays = mirrors.Relays(engine, client)
        try:
            found = mirrors.check(relays, wait=wait)
        finally:
            relays.close()
    rows = [asdict(each) for each in found.differences]
    shown = rows if as_json else [{"key": each["key"], "kind": each["kind"]} for each in rows[:MOST_SHOWN]]
    show(shown, as_json=as_json, nothing="no difference")
    say(f"{found.compared:,} keys compared in {found.seconds:.1f} s, {len(rows):,} differences")
    return 1 if rows else 0


@mirror.command(epilog="Example: helios mirror rebuild")
@click.option("--take-over", is_flag=True, help="Also where another server's mirrors are in their place.")
def rebuild(*, take_over: bool) -> None:
    """Mirror everything anew; readers go to PostgreSQL meanwhile."""
    with reaching(Settings.from_environment()) as (engine, client):
        relays = mirrors.Relays(engine, client)
        began = time.monotonic()
        try:
            relays.rebuild("asked for", take_over=take_over)
            written = sum(each.counts.written for each in relays.every())
        finally:
            relays.close()
    say(f"mirrored {written:,} keys and fields in {time.monotonic() - began:.1f} s")


@mirror.command(epilog="Example: helios mirror buckets 16")
@click.argument("number", type=click.IntRange(1, MOST_BUCKETS))
def buckets(number: int) -> None:
    """Spread the mirrors over NUMBER buckets, for a Redis Cluster; relays that run mirror everything anew.

    Readers go to PostgreSQL meanwhile. What other numbers of buckets left in Redis is removed.
    """
    with reaching(Settings.from_environment()) as (engine, client):
        mirrors.Relays(engine, client).spread(number)
    say(f"the mirrors stand in {number} bucket{'s' * (number > 1)}; `helios mirror run` fills them")


@mirror.command(epilog="Example: helios mirror status --json")
@json_option
def status(*, as_json: bool) -> int:
    """Show lag, backlog and the last rebuild; exit status 1 where no relay runs."""
    with reaching(Settings.from_environment()) as (engine, client):
        found = mirrors.statuses(engine, client)
    never = None if as_json else "never"
    rows = [asdict(each) | ({} if each.last_batch else {"last_batch_at": never}) for each in found]
    show(rows, as_json=as_json, nothing="")
    if lacking := amiss(found):
        say(lacking)
    return LEAST_BAD if lacking else 0


def amiss(found: Sequence[mirrors.Status]) -> str:
    """Say why the mirrors do not answer; nothing where they do."""
    if all(each.relayed and each.together for each in found):
        return ""
    if not any(each.last_batch for each in found):
        return "no relay has ever run here, so readers ask PostgreSQL: start one, `helios mirror run`"
    if lacking := [each.bucket for each in found if not each.relayed]:
        runs = "no relay runs" if len(lacking) == len(found) else f"no relay leads bucket {', '.join(lacking)}"
        return f"{runs}, so readers ask PostgreSQL: start one, `helios mirror run`"
    return "PostgreSQL and Redis stand at different batches, so readers ask PostgreSQL until the relay has caught up"
