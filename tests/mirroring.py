"""A database with tables and a relay of its own, for tests of the mirrors."""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from chaos_mirror_servers import Valkey
from installation import made, upgrade
from redis import Redis
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from helios import mirrors
from helios.mirrors.auditing import Audit
from helios.mirrors.image import Changes
from helios.mirrors.store import ALIVE
from helios.models import metadata

SCHEMA = str(metadata.schema)
MIRRORED = "order_history, orders, positions, tickers, klines, accounts, instruments"


class Scene:
    """Helios's tables, a Redis and a relay, with an instrument and an account that have the id 1."""

    now = datetime(2025, 3, 1, 12, tzinfo=UTC)

    def __init__(self, url: URL) -> None:
        self.url = url
        self.engine: Engine = create_engine(url, poolclass=NullPool)

    def begin(self, valkey: URL) -> None:
        """Empty the tables, make the two rows, and mirror them."""
        tables = ", ".join(f"{SCHEMA}.{table}" for table in MIRRORED.split(", "))
        self.run(
            f"TRUNCATE {tables}, {SCHEMA}.mirror_outbox RESTART IDENTITY CASCADE",
            f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTC:USDT')",
            f"INSERT INTO {SCHEMA}.accounts (exchange, market, name) VALUES ('binance', 'spot', 'main')",
        )
        self.client = Redis.from_url(valkey.render_as_string(hide_password=False))
        self.relay = mirrors.Relay(self.engine, self.client)
        self.place = mirrors.Place(str(self.url.database), SCHEMA)
        self.client.delete(self.place.token)
        assert self.step()
        self.run(f"TRUNCATE {SCHEMA}.mirror_outbox")

    def end(self) -> None:
        """Relay what is left, and find both sides alike."""
        while self.step():
            pass
        assert () == mirrors.check(self.relay).differences
        self.relay.close()
        self.client.close()

    def step(self) -> bool:
        """Let the relay look once."""
        return self.relay.step()

    def audit(self, least: int | None = None, *, relay: mirrors.Relay | None = None) -> int:
        """Let the relay, or another, go through all keys once, or more often; how many it wrote again."""
        audit, wrong = Audit(relay or self.relay), 0
        if least is not None:
            audit.sizes = audit.least = dict.fromkeys(audit.walks, least)
        while not min(audit.rounds.values()):
            wrong += audit.step()
        return wrong

    def run(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with self.engine.begin() as connection:
            for each in statements:
                connection.exec_driver_sql(each.replace("%", "%%"))

    def copy(self, statement: str, rows: str) -> None:
        """Send rows by COPY."""
        with self.engine.begin() as connection, connection.connection.cursor() as cursor:
            cursor.copy_expert(statement, StringIO(rows))

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Ask for rows."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(question))]

    def outbox(self) -> list[tuple[str, str]]:
        """Tell all entries of the outbox."""
        return self.ask(f"SELECT subject, key FROM {SCHEMA}.mirror_outbox")

    def outbox_since(self) -> list[Changes]:
        """Give what waits to be relayed; nothing where nothing does."""
        with self.relay.source.reading():
            changes, _, entries = self.relay.source.changes()
        return [changes] if entries else []

    def role(self, kind: str) -> str:
        """Name a group role."""
        return f"{self.url.database}_{SCHEMA}_{kind}"

    def login(self, kind: str) -> Engine:
        """Make a login that is a member of a group role."""
        name = f"{kind}_{self.url.database}"
        self.run(f"CREATE ROLE {name} LOGIN IN ROLE {self.role(kind)}")
        return create_engine(self.url.set(username=name), poolclass=NullPool)

    def order(self, name: str, status: str = "NEW") -> str:
        """Write the statement of an order."""
        return f"""
            INSERT INTO {SCHEMA}.orders
                (id, account_id, instrument_id, client_order_id, side, type, status, price, submitted_at)
            VALUES (gen_random_uuid(), 1, 1, '{name}', 'BUY', 'LIMIT', '{status}', 1.10, now())
        """

    def key(self, table: str, *name: str) -> str:
        """Name a key in Redis."""
        return self.place.key(table, *name)

    def ticker(self, symbol: str = "BTC:USDT") -> Any:
        """Read a mirrored ticker."""
        found = self.client.get(self.key("ticker", "binance", "spot", symbol))
        return found and json.loads(found)

    def tickers(self) -> dict[bytes, bytes]:
        """Read all mirrored tickers as they are."""
        names = list(self.client.scan_iter(match=f"{self.place.prefix}ticker:*"))
        return dict(zip(names, self.client.mget(names), strict=True))

    def klines(self, interval: str = "1m", symbol: str = "BTC:USDT") -> str | None:
        """Read mirrored klines."""
        found = self.client.get(self.key("klines", "binance", "spot", symbol, interval))
        return found and found.decode()

    def hash(self, table: str, account: str = "main") -> dict[str, str] | None:
        """Read a mirrored hash as readers do."""
        with self.engine.connect() as connection:
            mirror = mirrors.Mirror.of(connection, self.client)
        seen = mirror.hashes(self.key(table, "binance", account))
        assert seen is not None
        return seen.contents[0]


@contextmanager
def stoppable_valkey() -> Iterator[Valkey]:
    """Start a Valkey that tests may stop, and start again."""
    top = Path(tempfile.mkdtemp(prefix="ht-")).resolve()
    top.chmod(0o755)
    (top / "s").mkdir()
    (top / "s").chmod(0o1777)
    server = Valkey(top, top / "s")
    server.start()
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(top)


@contextmanager
def scene_of(cluster: URL) -> Iterator[Scene]:
    """Make a database with all tables; it is dropped at the end."""
    with made(cluster) as url:
        upgrade(url)
        yield Scene(url)


@contextmanager
def beating(client: Any, heartbeat: str) -> Iterator[None]:
    """Keep a heartbeat as young as a relay does, however long a command takes on a busy machine."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            client.pexpire(heartbeat, ALIVE)

    client.pexpire(heartbeat, ALIVE)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
