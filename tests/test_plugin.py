"""The pytest plugin, seen from outside: pytest runs in pytest, and what was there before is there afterwards."""

import re

import pytest
from installation import engine_of, finish, rows, run_sql, start
from kit import INI, Inner, content, keys
from sqlalchemy import text

from helios.schema import environment

pytest_plugins = "pytester"


@pytest.fixture
def inner(pytester, kept_database, valkey):
    """A suite that uses the kit; whatever it does, nothing may be different afterwards."""
    inner = Inner(pytester, kept_database, valkey)
    before = inner.state()
    yield inner
    assert before == inner.state()


def test_tests_that_pass_fail_and_break_leave_nothing(inner):
    """Pass, fail, an error in a fixture and one in its teardown."""
    inner.pytester.makepyfile(
        """
        import pytest
        from sqlalchemy import select, text, func
        from helios.models import Instrument

        def add(session, symbol):
            session.add(Instrument(exchange="kit", market="spot", symbol=symbol))
            session.commit()

        def test_passes(helios_session, helios_redis):
            add(helios_session, "A")
            helios_redis.set("price:BTCUSDT", "1")

        def test_fails(helios_session):
            assert 0 == helios_session.scalar(select(func.count()).where(Instrument.exchange == "kit"))
            add(helios_session, "A")
            assert False

        @pytest.fixture
        def broken(helios_session):
            add(helios_session, "A")
            raise RuntimeError("broken")

        def test_error(broken): ...

        @pytest.fixture
        def breaking(helios_session):
            yield
            add(helios_session, "A")
            raise RuntimeError("breaking")

        def test_teardown_error(breaking, helios_session):
            add(helios_session, "B")

        def test_rollback(helios_rollback_session, helios_session):
            add(helios_rollback_session, "C")
            assert 0 == helios_session.scalar(select(func.count()).where(Instrument.exchange == "kit"))
        """
    )
    result = inner.run()
    result.assert_outcomes(passed=3, failed=1, errors=2)
    result.stdout.fnmatch_lines(["*schema helios_trading of postgresql://*PostgreSQL 1*, Valkey*"])
    result.stdout.fnmatch_lines(["undone: removed 5 (instruments 5), restored 1 (*Redis 1*)"])


def test_every_writer_is_undone(inner):
    """Threads, child processes, a service, asynchronous sessions, raw SQL, COPY, every table, and many keys."""
    inner.pytester.makepyfile(
        child="""
        import sys, time
        from helios import db
        from helios.models import Instrument

        with db.create_session_factory(db.create_engine()).begin() as session:
            session.add(Instrument(exchange="kit", market="spot", symbol=sys.argv[1]))
        db.create_redis().set("price:BTCUSDT", sys.argv[1])
        print("written", flush=True)
        if sys.argv[1] == "SERVICE":
            time.sleep(60)
        """,
        test_writers=r"""
        import io, subprocess, sys, threading
        import psycopg2, pytest
        from sqlalchemy import select
        from helios import db
        from helios.models import Instrument, metadata

        def instrument(symbol):
            return Instrument(exchange="kit", market="spot", symbol=symbol)

        def symbols(session):
            return set(session.scalars(select(Instrument.symbol).where(Instrument.exchange == "kit")))

        @pytest.fixture(scope="module")
        def shared(helios_run):
            with helios_run.sessions.begin() as session:
                session.add(instrument("SHARED"))

        def test_threads(shared, helios_session):
            def work(number):
                with db.create_session_factory(engine).begin() as session:
                    session.add(instrument(f"THREAD{number}"))

            engine = db.create_engine()
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            assert 5 == len(symbols(helios_session))
            engine.dispose()

        @pytest.fixture
        def service(helios_run):
            process = subprocess.Popen([sys.executable, "child.py", "SERVICE"], stdout=subprocess.PIPE, text=True)
            assert "written" == process.stdout.readline().strip()
            yield process
            process.kill()
            process.communicate()

        def test_child_and_service(shared, service, helios_session, helios_redis):
            subprocess.run([sys.executable, "child.py", "CHILD"], check=True, stdout=subprocess.DEVNULL)
            assert {"SHARED", "SERVICE", "CHILD"} == symbols(helios_session)
            assert b"CHILD" == helios_redis.get("price:BTCUSDT")

        async def test_asynchronous(shared, helios_async_session, helios_session):
            async with helios_async_session() as session, session.begin():
                session.add(instrument("ASYNC"))
            assert {"SHARED", "ASYNC"} == symbols(helios_session)

        def test_raw(shared, helios_engine, helios_session):
            url = helios_engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            own = psycopg2.connect(url)
            with own, own.cursor() as cursor:
                copied = io.StringIO("kit\tspot\tCOPIED\n")
                cursor.copy_expert("COPY helios_trading.instruments (exchange, market, symbol) FROM STDIN", copied)
                cursor.execute("UPDATE helios_trading.tickers SET last_price = 1")
            own.close()
            assert {"SHARED", "COPIED"} == symbols(helios_session)

        def test_every_table(helios_session, helios_redis):
            for table in reversed(metadata.sorted_tables):
                if not table.info.get("bookkeeping"):
                    helios_session.execute(table.delete())
            helios_session.commit()
            helios_redis.delete(*helios_redis.keys("*BTCUSDT"))
            for number in range(25):
                helios_redis.set(f"TEST:{number}", number, ex=1000)

        def test_a_real_btcusdt(shared, helios_session, helios_redis):
            row = helios_session.scalars(select(Instrument).where(Instrument.symbol == "BTCUSDT")).one()
            assert "96340.61" == str(row.ticker.last_price)
            row.ticker.last_price = "1"
            row.base_asset = "BTC"
            helios_session.commit()
            helios_redis.hset("TEST:BTCUSDT", "bid", "1")
            helios_redis.persist("price:BTCUSDT")
            assert {"SHARED"} == symbols(helios_session)
        """,
    )
    inner.run().assert_outcomes(passed=6)


@pytest.mark.parametrize(
    "how",
    ["raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGTERM)", "InFinaliser(signal.SIGTERM)"],
)
def test_an_interrupted_run_leaves_nothing(inner, how):
    """Ctrl-C and SIGTERM end the run in order, in the middle of a test, also where Python drops the exception."""
    inner.pytester.makepyfile(
        f"""
        import os, signal
        from helios.models import Instrument

        class InFinaliser(int):
            def __del__(self):
                os.kill(os.getpid(), self)
                signal.getsignal(self)  # the handler has run by now

        def test_before(helios_session):
            assert signal.SIG_DFL != signal.getsignal(signal.SIGTERM)

        def test_interrupted(helios_session, helios_redis):
            helios_session.add(Instrument(exchange="kit", market="spot", symbol="A"))
            helios_session.commit()
            helios_redis.set("price:BTCUSDT", "1")
            {how}
            signal.pause()
        """
    )
    result = inner.run()
    assert pytest.ExitCode.INTERRUPTED == result.ret
    result.stdout.fnmatch_lines(["undone: removed 1 (instruments 1), restored 1 (*Redis 1*)"])


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_what_a_dead_run_left_is_repaired_by_the_next(inner, how):
    """The process is gone in the middle of a test: what it wrote is there, until the next run begins."""
    inner.pytester.makepyfile(
        test_dies=f"""
        import os, signal
        from helios.models import Instrument

        def test_dies(helios_session, helios_redis):
            helios_session.add(Instrument(exchange="kit", market="spot", symbol="A"))
            helios_session.commit()
            helios_redis.set("price:BTCUSDT", "1")
            {how}
        """,
        test_lives="""
        def test_lives(helios_run):
            (repair,) = helios_run.repaired
            assert ("instruments", "deleted", 1) in [(each.table, each.what, each.count) for each in repair.changes]
        """,
    )
    before = inner.state()
    inner.run("test_dies.py", "-p", "no:faulthandler")
    left = inner.state()
    assert before[0]["helios_trading.instruments"] != left[0]["helios_trading.instruments"]
    assert before[1] != left[1]
    result = inner.run("test_lives.py")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["repaired first: run * had died in schema helios_trading; removed 1 (instruments 1)*"])


def test_stopping_at_the_first_failure_and_going_on_from_there(inner):
    """-x undoes what the failed test wrote; --lf runs it again, and finds the database as it was."""
    inner.pytester.makepyfile(
        """
        import os
        from helios.models import Instrument
        from sqlalchemy import select

        def test_one(helios_session): ...

        def test_two(helios_session):
            assert not helios_session.scalars(select(Instrument).where(Instrument.exchange == "kit")).all()
            helios_session.add(Instrument(exchange="kit", market="spot", symbol="A"))
            helios_session.commit()
            assert "MENDED" in os.environ

        def test_three(helios_session): ...
        """
    )
    before = inner.state()
    inner.run("-x").assert_outcomes(passed=1, failed=1)
    assert before == inner.state()
    inner.env["MENDED"] = "yes"
    inner.run("--lf").assert_outcomes(passed=1)


def test_what_a_failed_test_wrote_is_kept_on_demand(inner):
    """--helios-keep leaves it to be looked at; the next run undoes it."""
    inner.pytester.makepyfile(
        """
        from helios.models import Instrument

        def test_fails(helios_session):
            helios_session.add(Instrument(exchange="kit", market="spot", symbol="KEPT"))
            helios_session.commit()
            raise AssertionError

        def test_passes(helios_session):
            helios_session.add(Instrument(exchange="kit", market="spot", symbol="GONE"))
            helios_session.commit()
        """
    )
    result = inner.run("--helios-keep")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*::test_fails failed: what it wrote is kept until the next run, or `helios sweep`"])
    assert [("KEPT",)] == rows(inner.database, "SELECT symbol FROM helios_trading.instruments WHERE exchange = 'kit'")
    inner.run("-k", "passes").stdout.fnmatch_lines(["repaired first: run * removed 1 (instruments 1)*"])


def test_of_what_is_kept_it_is_not_said_that_nothing_was_written(inner):
    """Where all that was written is kept, the summary says that, and nothing of undoing."""
    inner.pytester.makepyfile(
        """
        from helios.models import Instrument

        def test_fails(helios_session):
            helios_session.add(Instrument(exchange="kit", market="spot", symbol="KEPT"))
            helios_session.commit()
            raise AssertionError
        """
    )
    result = inner.run("--helios-keep")
    result.stdout.fnmatch_lines(["*::test_fails failed: what it wrote is kept until *"])
    result.stdout.no_fnmatch_line("undone: *")
    finish(start("helios.cli", "sweep", env=inner.env))


def test_nothing_happens_before_a_fixture_is_used(inner):
    """No heavy import, no handler, no label, no log; without the plugin, no option either."""
    inner.pytester.makepyfile(
        """
        import os, signal, sys

        def test_inert():
            assert signal.SIG_DFL == signal.getsignal(signal.SIGTERM)
            assert not {"sqlalchemy", "redis", "alembic", "helios.settings"} & set(sys.modules)
            assert not {"HELIOS_TEST_RUN", "PGOPTIONS"} & set(os.environ)
        """
    )
    result = inner.run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*helios: *")
    inner.run("-p", "no:helios").assert_outcomes(passed=1)
    assert pytest.ExitCode.USAGE_ERROR == inner.run("-p", "no:helios", "--helios-keep").ret


@pytest.mark.parametrize("marker", ["production", None])
def test_a_database_that_is_not_for_tests_is_refused(inner, marker):
    """Production and unmarked: one sentence for each test, and nothing installed."""
    inner.pytester.makepyfile("def test_refused(helios_session): ...")
    with engine_of(inner.database).begin() as connection:
        connection.execute(text("COMMENT ON SCHEMA helios_trading IS NULL"))
        if marker:
            environment.mark(connection, "helios_trading", marker)
    try:
        result = inner.run()
    finally:
        with engine_of(inner.database).begin() as connection:
            environment.mark(connection, "helios_trading", "test")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["helios: a test run, which writes and deletes, is refused in schema 'helios_trading'*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_what_holds_a_transaction_is_named_and_fails_the_run(inner):
    """A connection that never commits: its pid and query, and the exit status says so."""
    inner.pytester.makepyfile(
        """
        from helios import db
        from sqlalchemy import text

        def test_holds(helios_run):
            global held
            held = db.create_engine().connect()
            held.execute(text("UPDATE helios_trading.tickers SET last_price = 7"))
        """
    )
    inner.env["HELIOS_UNDO_PATIENCE"] = "0.5"
    result = inner.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*helios: *pid *UPDATE helios_trading.tickers*"])
    assert pytest.ExitCode.TESTS_FAILED == result.ret


def test_what_a_test_left_is_named(inner):
    """A table it made, altered, renamed or dropped; a neighbour's change of its row is kept, and so is the row."""
    inner.pytester.makepyfile(
        """
        import psycopg2
        from helios.models import Instrument
        from sqlalchemy import text

        def test_makes_a_table(helios_session):
            helios_session.execute(text("CREATE TABLE helios_trading.scratch (id int)"))
            helios_session.commit()

        def test_alters_it(helios_session):
            helios_session.execute(text("ALTER TABLE helios_trading.scratch ADD COLUMN name text"))
            helios_session.commit()

        def test_renames_it(helios_session):
            helios_session.execute(text("ALTER TABLE helios_trading.scratch RENAME TO scratched"))
            helios_session.commit()

        def test_drops_it(helios_session):
            helios_session.execute(text("DROP TABLE helios_trading.scratched"))
            helios_session.commit()

        def test_quiet(helios_session): ...

        def test_of_neighbours(helios_session, helios_engine):
            helios_session.add(row := Instrument(exchange="kit", market="spot", symbol="MINE"))
            helios_session.commit()
            url = helios_engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            neighbour = psycopg2.connect(url, options="-c application_name=neighbour")
            with neighbour, neighbour.cursor() as cursor:
                cursor.execute("UPDATE helios_trading.instruments SET base_asset = 'THEIRS' WHERE id = %s", [row.id])
            neighbour.close()
        """
    )
    try:
        result = inner.run("-v")
        result.assert_outcomes(passed=6)
        result.stdout.fnmatch_lines(["*::test_makes_a_table left table scratch, which it made"])
        result.stdout.fnmatch_lines(["*::test_alters_it left table scratch altered"])
        result.stdout.fnmatch_lines(["*::test_renames_it left table scratch renamed to scratched"])
        result.stdout.fnmatch_lines(["*::test_drops_it left table scratched dropped"])
        result.stdout.fnmatch_lines(["*::test_of_neighbours inserted instruments 1"])
        result.stdout.fnmatch_lines(["*::test_of_neighbours left *instruments*"])
        result.stdout.no_fnmatch_line("*::test_quiet left*")
        asked = "SELECT base_asset FROM helios_trading.instruments WHERE symbol = 'MINE'"
        assert [("THEIRS",)] == rows(inner.database, asked)
    finally:
        run_sql(
            inner.database,
            "DROP TABLE IF EXISTS helios_trading.scratch, helios_trading.scratched",
            "DELETE FROM helios_trading.instruments WHERE exchange = 'kit'",
        )


@pytest.fixture
def shop(pytester, database, valkey):
    """A project that is not Helios: tables of its own in `public`, with a row, and migrations of its own."""
    run_sql(
        database,
        "CREATE TABLE customers (id serial PRIMARY KEY, name text UNIQUE)",
        """CREATE TABLE baskets
           (id serial PRIMARY KEY, customer int REFERENCES customers ON DELETE CASCADE, goods jsonb)""",
        "INSERT INTO customers (name) VALUES ('Test & Sons')",
        """INSERT INTO baskets (customer, goods) VALUES (1, '{"tea": 2}')""",
    )
    with engine_of(database).begin() as connection:
        environment.mark(connection, "public", "test")
    inner = Inner(pytester, database, valkey)
    del inner.env["DATABASE_SCHEMA"]
    pytester.makepyfile(
        shop="""
        from sqlalchemy import ForeignKey
        from sqlalchemy.dialects.postgresql import JSONB
        from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

        class Base(DeclarativeBase): ...

        class Customer(Base):
            __tablename__ = "customers"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(unique=True)

        class Basket(Base):
            __tablename__ = "baskets"
            id: Mapped[int] = mapped_column(primary_key=True)
            customer: Mapped[int] = mapped_column(ForeignKey(Customer.id, ondelete="CASCADE"))
            goods: Mapped[dict] = mapped_column(JSONB)
        """,
        test_shop="""
        import os
        import pytest, psycopg2
        from sqlalchemy import create_engine, text
        from shop import Basket, Customer

        @pytest.mark.parametrize("number", range(4))
        def test_shop(helios_session, helios_run, number):
            found = helios_session.query(Customer).filter_by(name="Test & Sons").one_or_none()
            if found is not None:
                helios_session.delete(found)
            helios_session.add(Customer(name="new"))
            helios_session.commit()
            own = create_engine(os.environ["DATABASE_URL"])    # an engine that never heard of Helios
            with own.begin() as connection:
                connection.execute(text("INSERT INTO customers (name) VALUES ('own')"))
                assert 0 == connection.scalar(text("SELECT count(*) FROM baskets"))
                assert 2 == connection.scalar(text("SELECT count(*) FROM customers"))
            own.dispose()
        """,
    )
    pytester.makeini(INI + "    helios_metadata = shop:Base\n    pythonpath = .\n")
    before = content(database, "public"), keys(valkey)
    yield inner
    assert before == (content(database, "public"), keys(valkey))


def test_a_project_that_is_not_helios(shop):
    """Its own tables, its own engines, its own database: the same guarantee."""
    result = shop.run("-v")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*2 tables in schema public of postgresql://*"])
    result.stdout.fnmatch_lines(["undone: removed 8 (customers 8), restored 8 (*)"])


def test_a_project_is_marked_as_the_refusal_says(shop):
    """Its tables are in `public`, which nobody marked; the command that is told marks that schema, no other."""
    run_sql(shop.database, "COMMENT ON SCHEMA public IS NULL")
    result = shop.run("-x")
    result.assert_outcomes(errors=1)
    said = re.search("`helios (environment set test --schema public)`", result.stdout.str())
    finish(start("helios.cli", *said.group(1).split(), env=shop.env))
    shop.run().assert_outcomes(passed=4)


def test_a_project_without_a_redis_is_told_what_helps(shop):
    """Tables that are not Helios's own start no embedded Redis, so an extra would not help: REDIS_URL does."""
    shop.env["REDIS_URL"] = ""
    shop.pytester.makepyfile(test_shop="def test_shop(helios_redis): ...")
    result = shop.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*this run has no Redis*: set REDIS_URL; `helios up` starts an embedded one and *"])
    result.stdout.no_fnmatch_line("*install the extra*")


ENV = """
from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
"""
REVISION = """
from alembic import op

revision, down_revision = "1", None

def upgrade():
    op.execute("CREATE TABLE customers (id serial PRIMARY KEY, name text UNIQUE)")
    op.execute("CREATE TABLE baskets (id serial PRIMARY KEY, customer int REFERENCES customers, goods jsonb)")
"""
UPGRADE = """
from alembic import command
from alembic.config import Config

def upgrade(connection):
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "own")
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")
"""


def test_its_workers_have_schemas_of_their_own(shop):
    """Each worker of pytest-xdist has tables of its own, made by the project's own Alembic and kept for next time."""
    versions = shop.pytester.mkdir("own") / "versions"
    versions.mkdir()
    (versions.parent / "env.py").write_text(ENV)
    (versions / "one.py").write_text(REVISION)
    shop.pytester.makepyfile(migrating=UPGRADE)
    ini = "    helios_metadata = shop:Base\n    helios_migrate = migrating:upgrade\n    pythonpath = .\n"
    shop.pytester.makeini(INI + ini)
    result = shop.run("-n", "2")
    result.assert_outcomes(passed=4)
    assert [("public",), ("public_gw0",), ("public_gw1",)] == rows(
        shop.database,
        "SELECT nspname FROM pg_namespace WHERE nspname ~ '^public' AND nspname !~ '_undo$' ORDER BY 1",
    )
    counts = {name.split(".")[1]: each.split()[1] for name, each in content(shop.database, "public_gw0").items()}
    assert {"alembic_version": "1", "baskets": "0", "customers": "0"} == counts


def test_workers_that_share_a_schema(inner):
    """Runs that overlap in one schema undo their own rows and leave the others' alone."""
    inner.pytester.makeini(INI + "    helios_metadata = helios.models:metadata\n")
    inner.pytester.makepyfile(
        """
        import pytest
        from helios.models import Instrument
        from sqlalchemy import select

        @pytest.mark.parametrize("number", range(8))
        def test_shared(helios_session, helios_redis, number):
            assert "helios_trading" == Instrument.__table__.schema
            helios_session.add(row := Instrument(exchange="kit", market="spot", symbol=f"A{number}"))
            helios_session.commit()
            real = helios_session.scalars(select(Instrument).where(Instrument.symbol == "BTCUSDT")).one()
            real.base_asset = str(number)
            helios_session.commit()
            helios_redis.set(f"test:{number}", number)
            helios_session.refresh(row)
            assert b"%d" % number == helios_redis.get(f"test:{number}")
        """
    )
    inner.run("-n", "2", "--helios-shared").assert_outcomes(passed=8)


def test_workers_with_schemas_of_their_own(inner):
    """Four workers count rows without meeting each other; one that dies is repaired by the next run."""
    inner.pytester.makeini(INI + "    helios_metadata = helios.models:metadata\n")
    inner.pytester.makepyfile(
        """
        import os, time
        import pytest
        from helios.models import Instrument
        from sqlalchemy import func, select

        @pytest.mark.parametrize("number", range(8))
        def test_counts(helios_session, number):
            assert 0 == helios_session.scalar(select(func.count()).select_from(Instrument))
            helios_session.add(Instrument(exchange="kit", market="spot", symbol="A"))
            helios_session.commit()
            if number == 3 and "DIE" in os.environ:
                os._exit(1)
        """
    )
    inner.env["DIE"] = "yes"
    inner.run("-n", "4").assert_outcomes(passed=7, failed=1)
    del inner.env["DIE"]
    result = inner.run("-n", "4")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(
        ["*repaired first: run * had died in schema helios_trading_gw?; removed 1 (instruments 1)"]
    )
