"""Services that go on through restarts and failovers: they place orders, and read, and note what they were told."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.sql import Executable

from helios import db
from helios.errors import UncertainError, UnreachableError
from helios.models import Balance, Order, OrderStatus, OrderType, Side

MAX_LAG = timedelta(seconds=1)
TASKS = 3  # orders that an asynchronous service places at once


class Service:
    """One that ends at SIGTERM, once what it is doing is done; each line it writes says when, and what it was told."""

    def __init__(self, lines: Path, name: str) -> None:
        self.file = os.open(lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.name = name
        self.placed = 0
        self.stopped = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        """End soon."""
        self.stopped = True

    def next_order(self) -> str:
        """Make up a client order id that nobody has used."""
        self.placed += 1
        return f"{self.name}-{self.placed}"

    def say(self, *what: object) -> None:
        """Write a line at once, so that a killed process has said it."""
        os.write(self.file, (" ".join(map(str, (time.monotonic(), *what))) + "\n").encode())


def placing(account: int, client_order_id: str) -> Executable:
    """Place an order unless it is there: repeated, it is the same as done once."""
    values = {
        "account_id": account,
        "instrument_id": 1,
        "client_order_id": client_order_id,
        "side": Side.BUY,
        "type": OrderType.LIMIT,
        "status": OrderStatus.NEW,
        "price": Decimal("1.1"),
        "submitted_at": datetime.now(UTC),
    }
    return insert(Order).values(values).on_conflict_do_nothing().returning(Order.id)


def spending(account: int) -> Executable:
    """Spend one for an order; doubled or lost, the sum tells."""
    return update(Balance).where(Balance.account_id == account).values(free=Balance.free - 1)


def place(session: Session, account: int, client_order_id: str) -> None:
    """Place an order, and spend for it if it is new."""
    if session.scalar(placing(account, client_order_id)):
        session.execute(spending(account))


def is_there(session: Session, account: int, client_order_id: str) -> bool:
    """Look whether an order is there."""
    found = select(func.count()).where(Order.account_id == account, Order.client_order_id == client_order_id)
    return bool(session.scalar(found))


def place_again_and_again(lines: Path, name: str, account: int) -> None:
    """Place orders; a lost answer to a commit costs nothing but time."""
    service = Service(lines, name)
    factory = db.create_session_factory(db.create_engine())
    while not service.stopped:
        order = service.next_order()
        db.with_retries(factory, lambda session, order=order: place(session, account, order), idempotent=True)
        service.say("placed", account, order)


def look_before_placing_again(lines: Path, name: str, account: int) -> None:
    """Place orders as a service does that may not repeat: where nobody knows, it looks."""
    service = Service(lines, name)
    factory = db.create_session_factory(db.create_engine())
    while not service.stopped:
        order = service.next_order()
        done = False
        while not done:
            try:
                db.with_retries(factory, lambda session, order=order: place(session, account, order))
                done = True
            except UncertainError:
                service.say("uncertain", account, order)
                done = db.with_retries(factory, lambda session, order=order: is_there(session, account, order))
        service.say("placed", account, order)


def place_asynchronously(lines: Path, name: str, account: int) -> None:
    """Place some orders at once, in an isolation level in which they get in each other's way."""
    service = Service(lines, name)

    async def keep_placing(factory: Callable) -> None:
        while not service.stopped:
            order = service.next_order()

            async def work(session: object, order: str = order) -> None:
                await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
                await session.run_sync(place, account, order)

            await db.with_async_retries(factory, work, idempotent=True)
            service.say("placed", account, order)

    async def run() -> None:
        engine = db.create_async_engine()
        factory = db.create_async_session_factory(engine)
        await asyncio.gather(*(keep_placing(factory) for _ in range(TASKS)))
        await engine.dispose()

    asyncio.run(run())


def read_again_and_again(lines: Path, name: str, _account: int) -> None:
    """Count all that was spent, on the standby where it is fresh enough; say since when what was told must be seen."""
    service = Service(lines, name)
    factory = db.create_read_session_factory(db.create_engine(), db.create_read_engine(), max_lag=MAX_LAG)
    while not service.stopped:
        due = time.monotonic() - MAX_LAG.total_seconds()
        try:
            with factory() as session:
                spent = -session.scalar(select(func.sum(Balance.free)))
                service.say("read", due, spent, session.on_standby)
        except (DBAPIError, UnreachableError):
            service.say("unread")
        time.sleep(0.005)
