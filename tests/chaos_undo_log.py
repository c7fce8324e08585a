"""Kills runs whose writes are to be undone, and their undos: `python tests/chaos_undo_log.py 100 [seed]`.

A victim writes without end to tables that make an undo hard; it is killed at a random moment. Then sweeps undo what it
left; some of them are killed in the middle, their process, or their backend (and with it, by PostgreSQL's own rule,
every session). In the end every row has to be as it was. Exits 1 when one is not.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg2
from sqlalchemy import URL, make_url
from sqlalchemy.exc import DBAPIError
from undo_shop import SCHEMA, Run, Shop, shop_of

from helios import servers
from helios.errors import HeliosError
from helios.settings import Settings
from helios.testing import undo

LONGEST = 0.6  # seconds that a victim writes
UNDOS_KILLED = 0.7  # of the undos
PATIENCE = 30.0  # seconds within which everything has to be as it was
EXPECTED = ("deadlock", "violates", "lock timeout", "is over", "could not serialize")


def say(what: str) -> None:
    """Tell whoever watches."""
    print(what, flush=True)  # noqa: T201 - a program


def statement(chance: random.Random) -> str:
    """Choose one of the things that a test may do."""
    here, there, new = chance.randint(1, 20), chance.randint(1, 20), chance.randint(1000, 10**9)
    return chance.choice((
        f"INSERT INTO touched VALUES ({new}), ({new + 1})",
        f"UPDATE touched SET v = v + 1 WHERE id BETWEEN {here} AND {there}",
        f"INSERT INTO ranked VALUES ({new})",
        f"DELETE FROM ranked WHERE id = {here}",
        f"INSERT INTO ranked VALUES ({here}, 3) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        f"UPDATE tree SET id = {new} WHERE id = {here}",
        f"DELETE FROM tree WHERE id = {here + 15}",
        f"INSERT INTO replaced VALUES ({here}, 1), ({new}, 2)",
        f"UPDATE stamped SET v = {new} WHERE id = {here}",
        f"INSERT INTO fleeting VALUES ({new}, -1), ({new + 1}, -2), ({new + 2}, 3)",
        f"UPDATE swaps SET k = 'T{new}' WHERE id = {here}",
        f"UPDATE swaps SET k = 'k{there}' WHERE id = {here}",
        f"WITH d AS (DELETE FROM swaps WHERE id = {here} RETURNING *) INSERT INTO swaps SELECT id, k||'!', a, b FROM d",
        f"UPDATE folded SET name = 'f{new}', n = -n WHERE id = {here}",
        f"UPDATE audited SET v = v + 1 WHERE id = {here}",
        f"DELETE FROM audited WHERE id = {there}",
        f"UPDATE ticks SET ts = ts + {chance.choice((7, 1003))} WHERE ts = {here * 10}",
        f"INSERT INTO ticks SELECT i, 9, 1 FROM generate_series({new % 9000 + 3000}, {new % 9000 + 3200}) AS i",
        f"DELETE FROM signals WHERE instrument_id = {here}; UPDATE instruments SET id = {new} WHERE id = {here}",
        f"UPDATE codes SET code = 'M{new}' WHERE id = {here}",
        f"UPDATE orders SET qty = NULL, parent_id = NULL WHERE id = {here}; DELETE FROM fills WHERE order_id = {there}",
        "TRUNCATE fills, ranked",
        f"UPDATE klines SET trades = trades + 1 WHERE instrument_id = {here}",
        f"UPDATE parts SET v = {new} WHERE id = {here}",
        f"SAVEPOINT s; DELETE FROM touched WHERE id = {here}; ROLLBACK TO s; UPDATE touched SET v = 2 WHERE v = {here}",
    ))  # fmt: skip


def victim(shop: Shop, seed: str) -> None:
    """Write without end, on a run that nobody ends."""
    chance = random.Random(seed)  # noqa: S311 - chance
    with shop.kit() as connection:
        run = Run(shop, connection, random.getrandbits(62) + 1)
        undo.begin(connection, run.id, schema=SCHEMA)
        say("begun")
        writer = run.engine().raw_connection()
        cursor = writer.cursor()
        cursor.execute("SET search_path TO shop; SET lock_timeout TO '5s'")
        writer.commit()
        while True:
            try:
                for _ in range(chance.randint(1, 6)):
                    cursor.execute(statement(chance))
                (writer.commit if chance.random() < 0.9 else writer.rollback)()
            except psycopg2.Error as error:
                if writer.driver_connection.closed:
                    return
                writer.rollback()
                if not any(each in str(error) for each in EXPECTED):
                    sys.stderr.write(f"unexpected: {error}\n")


def sweep(shop: Shop) -> bool:
    """Undo what dead runs left; tell whether there is nothing more."""
    with shop.kit() as connection:
        if dead := undo.dead(connection, schema=SCHEMA):
            undo.undo(connection, dead, schema=SCHEMA)
            for run in dead:
                undo.close(connection, run, schema=SCHEMA)
        # a lease is free a moment after its holder was killed, so that no dead run does not mean that none is left
        return not undo.registered(connection, schema=SCHEMA)


def program(*arguments: str) -> "subprocess.Popen[str]":
    """Start this program in another role."""
    return subprocess.Popen([sys.executable, __file__, *arguments], text=True, stdout=subprocess.PIPE)


def urls_of(shop: Shop) -> list[str]:
    """Write the URLs of owner and writer for another process."""
    return [each.render_as_string(hide_password=False) for each in (shop.owner, shop.writer)]


def shop_at(owner: str, writer: str) -> Shop:
    """Read them there."""
    return Shop(*map(make_url, (owner, owner, writer, writer)))


def kill_a_sweep(shop: Shop, chance: random.Random, *, crash: bool) -> bool:
    """Kill a sweep while it undoes, its process and perhaps its backend; tell whether that was in time."""
    process = program("sweep", *urls_of(shop))
    connection = psycopg2.connect(shop.admin.set(drivername="postgresql").render_as_string(hide_password=False))
    with connection.cursor() as cursor:
        while not (busy := undoing(cursor)) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.random() ** 2 * 0.1)
        busy = undoing(cursor)
        for pid in busy if chance.random() < 0.6 else ():
            if crash and chance.random() < 0.3:
                os.kill(pid, signal.SIGKILL)
            else:
                cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
    connection.close()
    process.kill()
    process.communicate()
    return bool(busy)


def undoing(cursor: "psycopg2.extensions.cursor") -> list[int]:
    """List the backends that are undoing."""
    cursor.connection.rollback()
    cursor.execute(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%undo_runs(%' AND state = 'active' "
        "AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    return [pid for (pid,) in cursor.fetchall()]


def one(shop: Shop, chance: random.Random, *, crash: bool) -> bool:
    """Let victims write, kill them, and some of those that clean up; tell whether an undo was killed at work."""
    victims = [program("victim", *urls_of(shop), str(chance.random())) for _ in range(chance.choice((1, 1, 2)))]
    for each in victims:
        each.stdout.readline()
    time.sleep(chance.random() * LONGEST)
    for each in victims:
        if each.poll() not in (None, 0):
            raise HeliosError(f"a victim ended with status {each.poll()}: see what it said above")
        each.kill()
        each.communicate()
    return chance.random() < UNDOS_KILLED and kill_a_sweep(shop, chance, crash=crash)


def settled(shop: Shop) -> None:
    """Sweep until there is nothing more to be swept; PostgreSQL may be recovering."""
    deadline, last = time.monotonic() + PATIENCE, None
    while True:
        try:
            if sweep(shop):
                return
        except (DBAPIError, HeliosError) as error:
            if time.monotonic() > deadline:
                raise
            last = error
        if time.monotonic() > deadline:
            raise HeliosError(f"something is always kept: {last}")
        time.sleep(0.05)


def chaos(cluster: URL, kills: int, seed: int, *, crash: bool = True) -> int:
    """Kill so often, and count how often something was not as it was; unless `crash`, the server goes on."""
    chance, wrong, undos = random.Random(seed), 0, 0  # noqa: S311 - chance
    with shop_of(cluster) as shop:
        before = shop.digest()
        for number in range(1, kills + 1):
            undos += one(shop, chance, crash=crash)
            settled(shop)
            after = shop.digest()
            if after != before:
                wrong += 1
                say(f"{number}: not as before: {[each for each in before if before[each] != after[each]]}")
                before = after
            if number % 10 == 0 or number == kills:
                say(f"{number} runs killed, {undos} of their undos too, {wrong} not as before, seed {seed}")
    return wrong


def main() -> int:
    """Start a server of its own, and kill."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)  # noqa: S311 - chance
    with tempfile.TemporaryDirectory(prefix="helios-chaos-") as folder:
        Path(folder).chmod(0o755)
        server = servers.Postgres(Path(folder) / "home", binaries=Settings.from_environment().helios_postgres_bin)
        try:
            wrong = chaos(server.acquire().set(database="postgres"), kills, seed)
        finally:
            server.release()
            server.wait_ended()
    return min(wrong, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["victim"]:
        victim(shop_at(*sys.argv[2:4]), sys.argv[4])
    elif sys.argv[1:2] == ["sweep"]:
        sweep(shop_at(*sys.argv[2:4]))
    else:
        sys.exit(main())
