"""What writes while chaos reigns: raw SQL and COPY, upserts, deletes, re-inserts, rollbacks, two-phase commits."""

import contextlib
import io
import random
import signal
import time
import uuid
from collections.abc import Callable

import psycopg2
from psycopg2.extras import execute_values

HOT = 10  # keys that half of the writes are about
SERIES, ACCOUNTS, HELD = 50, 4, 200  # series of klines, accounts, instruments that have positions
START = "timestamptz '2025-01-01Z'"
Cursor = psycopg2.extensions.cursor


def write(dsn: str, seed: int, keys: int) -> None:
    """Write until SIGTERM, then end with the transaction that is under way; whatever fails is rolled back."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    chance = random.Random(seed)  # noqa: S311 - chance, not secrecy
    connection = None
    while not stopped:
        try:
            if connection is None:
                connection = psycopg2.connect(dsn)
            transaction(connection, chance, keys)
        except (psycopg2.Error, SystemError):  # the second where the connection ends within a COPY
            with contextlib.suppress(psycopg2.Error):
                if connection is not None:
                    connection.close()
            connection = None
            time.sleep(0.02)


def transaction(connection: psycopg2.extensions.connection, chance: random.Random, keys: int) -> None:
    """Do one to three things in one transaction, then commit it in one of the ways there are, or roll it back."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout TO '300ms'")
        cursor.execute("SET LOCAL synchronous_commit TO " + chance.choice(("on", "off")))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            chance.choices(WAYS, WEIGHTS)[0](cursor, chance, keys)
        how = chance.random()
        if how < 0.04:
            connection.rollback()
        elif how < 0.06:
            name = f"chaos-{uuid.uuid4()}"
            cursor.execute("PREPARE TRANSACTION %s", (name,))
            connection.rollback()
            connection.autocommit = True
            cursor.execute(chance.choice(("COMMIT PREPARED %s", "COMMIT PREPARED %s", "ROLLBACK PREPARED %s")), (name,))
            connection.autocommit = False
        elif how < 0.08:
            time.sleep(chance.uniform(0, 0.3))  # commits late
            connection.commit()
        else:
            connection.commit()


def some(chance: random.Random, keys: int, most: int) -> list[int]:
    """Choose instruments, half of the time among the hot ones; in order, so that writers seldom block each other."""
    if chance.random() < 0.5:
        return sorted({chance.randint(1, HOT) for _ in range(chance.randint(1, 3))})
    return sorted({chance.randint(1, keys) for _ in range(chance.randint(1, most))})


def upsert_tickers(cursor: Cursor, chance: random.Random, keys: int) -> None:
    """Write prices."""
    rows = [(each, chance.randint(1, 10**9)) for each in some(chance, keys, 60)]
    execute_values(
        cursor,
        "INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at) VALUES %s ON CONFLICT (instrument_id)"
        " DO UPDATE SET last_price = excluded.last_price, event_at = excluded.event_at",
        rows,
        "(%s, %s, now())",
    )


def delete_tickers(cursor: Cursor, chance: random.Random, keys: int) -> None:
    """Delete tickers, some to be there again at once."""
    cursor.execute(
        "DELETE FROM helios_trading.tickers WHERE instrument_id = ANY (%s) RETURNING instrument_id",
        (some(chance, keys, 20),),
    )
    again = [row for row in cursor.fetchall() if chance.random() < 0.3]
    if again:
        insert = "INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at) VALUES (%s, 7, now())"
        cursor.executemany(insert, again)


def copy_candles(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Copy candles in the place of older ones."""
    first, series = chance.randint(0, 400_000), chance.randint(1, SERIES)
    cursor.execute(
        "DELETE FROM helios_trading.klines WHERE instrument_id = %s AND interval = '1m' AND open_time >= "
        f"{START} + %s * interval '1 minute' AND open_time < {START} + %s * interval '1 minute'",
        (series, first, first + 20),
    )
    cursor.execute(f"SELECT {START} + n * interval '1 minute' FROM generate_series(%s, %s) AS n", (first, first + 19))
    lines = "".join(f"{series}\t1m\t{at}\t2\t3\t1\t2\t{chance.random():.6f}\n" for (at,) in cursor.fetchall())
    columns = "instrument_id, interval, open_time, open, high, low, close, volume"
    cursor.copy_expert(f"COPY helios_trading.klines ({columns}) FROM STDIN", io.StringIO(lines))


def change_candles(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Change or delete the newest candles of a series."""
    what = chance.choice(("UPDATE helios_trading.klines SET volume = volume + 1", "DELETE FROM helios_trading.klines"))
    cursor.execute(
        f"{what} WHERE instrument_id = %s AND interval = '1m' AND open_time >= (SELECT max(open_time) - "
        "interval '3 min' FROM helios_trading.klines WHERE instrument_id = %s AND interval = '1m')",
        (series := chance.randint(1, SERIES), series),
    )


def place_orders(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Copy new orders."""
    rows = [
        (uuid.uuid4().hex, chance.randint(1, ACCOUNTS), chance.randint(1, HELD), uuid.uuid4().hex)
        for _ in range(chance.randint(1, 5))
    ]
    lines = "".join("\t".join(map(str, row)) + "\tBUY\tLIMIT\tNEW\t1.50\t2025-01-01Z\n" for row in rows)
    columns = "id, account_id, instrument_id, client_order_id, side, type, status, price, submitted_at"
    cursor.copy_expert(f"COPY helios_trading.orders ({columns}) FROM STDIN", io.StringIO(lines))


def change_orders(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Change orders, open and ended ones."""
    status = chance.choice(("FILLED", "CANCELED", "PARTIALLY_FILLED", "NEW", "UNKNOWN"))
    cursor.execute(
        "UPDATE helios_trading.orders SET status = %s, filled_quantity = filled_quantity + 1 WHERE id IN ("
        "SELECT id FROM helios_trading.orders WHERE account_id = %s ORDER BY id LIMIT %s)",
        (status, chance.randint(1, ACCOUNTS), chance.randint(1, 6)),
    )


def delete_orders(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Delete orders with their history."""
    cursor.execute(
        "SELECT id FROM helios_trading.orders WHERE account_id = %s ORDER BY id LIMIT 8 FOR UPDATE SKIP LOCKED",
        (chance.randint(1, ACCOUNTS),),
    )
    ids = [row[0] for row in cursor.fetchall()]
    cursor.execute("DELETE FROM helios_trading.order_history WHERE order_id = ANY (%s::uuid[])", (ids,))
    cursor.execute("DELETE FROM helios_trading.orders WHERE id = ANY (%s::uuid[])", (ids,))


def move_positions(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Write positions, flat ones too."""
    cursor.execute(
        "INSERT INTO helios_trading.positions (account_id, instrument_id, quantity, event_at) VALUES "
        "(%s, %s, %s, now()) ON CONFLICT (account_id, instrument_id, position_side) "
        "DO UPDATE SET quantity = excluded.quantity",
        (chance.randint(1, ACCOUNTS), chance.randint(1, HELD), chance.choice((0, chance.randint(-9, 9)))),
    )


def delete_positions(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Delete positions."""
    cursor.execute(
        "DELETE FROM helios_trading.positions WHERE account_id = %s AND instrument_id = %s",
        (chance.randint(1, ACCOUNTS), chance.randint(1, HELD)),
    )


def rename(cursor: Cursor, chance: random.Random, keys: int) -> None:
    """Rename an instrument, some to a name that it had before."""
    which = chance.choice((chance.randint(1, HOT), chance.randint(1, keys)))
    cursor.execute(
        "UPDATE helios_trading.instruments SET symbol = %s WHERE id = %s", (f"C{which}-{chance.randint(0, 2)}", which)
    )


def write_to_partition(cursor: Cursor, chance: random.Random, _keys: int) -> None:
    """Write to a partition directly, as the owner may."""
    cursor.execute(
        "SELECT relid FROM pg_partition_tree('helios_trading.klines') WHERE isleaf AND pg_get_expr("
        "(SELECT relpartbound FROM pg_class WHERE oid = relid), relid) LIKE '%2025-01-01%' ORDER BY relid::oid LIMIT 1"
    )
    cursor.execute(f"UPDATE {cursor.fetchone()[0]} SET volume = volume + 1 WHERE instrument_id = 1")


def empty_positions(cursor: Cursor, _chance: random.Random, _keys: int) -> None:
    """Empty a table."""
    cursor.execute("TRUNCATE helios_trading.positions")


WAYS: tuple[Callable[[Cursor, random.Random, int], None], ...] = (
    upsert_tickers,
    delete_tickers,
    copy_candles,
    change_candles,
    place_orders,
    change_orders,
    delete_orders,
    move_positions,
    delete_positions,
    rename,
    write_to_partition,
    empty_positions,
)
WEIGHTS = (400, 100, 40, 60, 100, 100, 40, 80, 20, 10, 0.5, 0.5)


def fill(dsn: str, keys: int) -> None:
    """Make what the writers write about: half of the instruments have tickers, some klines, orders, positions."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO helios_trading.instruments (exchange, market, symbol) "
            "SELECT 'chaos', 'spot', 'C' || n FROM generate_series(1, %s) AS n",
            (keys,),
        )
        cursor.execute(
            "INSERT INTO helios_trading.accounts (exchange, market, name) "
            "SELECT 'chaos', 'spot', 'a' || n FROM generate_series(1, %s) AS n",
            (ACCOUNTS,),
        )
        cursor.execute("SELECT helios_trading.make_kline_partition('1m', 2025)")
        cursor.execute(
            "INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at) "
            "SELECT id, id, now() FROM helios_trading.instruments WHERE id % 2 = 0"
        )
        cursor.execute(
            "INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume) "
            f"SELECT i, '1m', {START} + n * interval '1 minute', 2, 3, 1, 2, n "
            "FROM generate_series(1, %s) AS i, generate_series(1, 250) AS n",
            (SERIES,),
        )
