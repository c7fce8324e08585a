"""Rights: what each role may do with each kind of object, tried for real; and tables made later."""

from collections.abc import Iterator

import pytest
from installation import COPIED, engine_of, login, made, run_sql, upgrade
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from helios.schema import grants
from helios.schema.roles import Roles, roles_of
from helios.settings import Settings

DENIED = "42501"
PREFIX = "rights"  # of the roles
ORDER = """INSERT INTO helios_trading.orders
           (id, account_id, instrument_id, client_order_id, side, type, status, submitted_at)
           VALUES (gen_random_uuid(), 1, 1, 'x', 'BUY', 'LIMIT', 'NEW', now())"""
KLINE = """(instrument_id, interval, open_time, open, high, low, close, volume)
           VALUES (1, '1m', '2025-01-01T00:00Z', 1, 1, 1, 1, 0)"""

# what is tried: the statement, and the roles that may; all others are refused
MATRIX = {
    "schema: use": ("SELECT count(*) FROM helios_trading.alembic_version", "owner writer reader monitor"),
    "schema: create": ("CREATE TABLE helios_trading.mine (id int)", "owner"),
    "schema: drop": ("DROP SCHEMA helios_trading CASCADE", "owner"),
    "table: read": ("SELECT count(*) FROM helios_trading.orders", "owner writer reader"),
    "table: insert": (ORDER, "owner writer"),
    "table: update": ("UPDATE helios_trading.orders SET price = 1", "owner writer"),
    "table: delete": ("DELETE FROM helios_trading.signals", "owner writer"),
    "table: truncate": ("TRUNCATE helios_trading.balances", "owner"),
    "table: alter": ("ALTER TABLE helios_trading.balances ADD COLUMN extra int", "owner"),
    "table: drop": ("DROP TABLE helios_trading.balances", "owner"),
    "table: trigger": (
        (
            "CREATE TRIGGER mine BEFORE UPDATE ON helios_trading.orders FOR EACH ROW "
            "EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()"
        ),
        "owner",
    ),
    "health table: read": ("SELECT count(*) FROM helios_trading.data_quality_metrics", "owner writer reader monitor"),
    "health table: delete": ("DELETE FROM helios_trading.data_quality_metrics", "owner writer"),
    "history: read": ("SELECT count(*) FROM helios_trading.order_history", "owner writer reader"),
    "history: update": ("UPDATE helios_trading.order_history SET actor = 'me'", "owner"),
    "history: delete": ("DELETE FROM helios_trading.order_history", "owner"),
    "parent: read": ("SELECT count(*) FROM helios_trading.klines", "owner writer reader"),
    "parent: insert": (f"INSERT INTO helios_trading.klines {KLINE}", "owner writer"),
    "parent: update": ("UPDATE helios_trading.klines SET trades = 1", "owner writer"),
    "parent: delete": ("DELETE FROM helios_trading.klines", "owner writer"),
    "partition: read": ("SELECT count(*) FROM helios_trading.klines_1m_2025", "owner"),
    "partition: insert": (f"INSERT INTO helios_trading.klines_1m_2025 {KLINE}", "owner writer"),
    "partition: insert and read": (f"INSERT INTO helios_trading.klines_1m_2025 {KLINE} RETURNING high", "owner"),
    "partition: upsert": (
        (
            f"INSERT INTO helios_trading.klines_1m_2025 {KLINE} "
            "ON CONFLICT ON CONSTRAINT klines_1m_2025_pkey DO UPDATE SET high = 2"
        ),
        "owner",
    ),
    "interval's part: insert": (f"INSERT INTO helios_trading.klines_1m {KLINE}", "owner"),
    "partition: update": ("UPDATE helios_trading.klines_1m_2025 SET trades = 1", "owner"),
    "partition: delete": ("DELETE FROM helios_trading.klines_1m_2025", "owner"),
    "partition: truncate": ("TRUNCATE helios_trading.klines_1m_2025", "owner"),
    "sequence: read": ("SELECT last_value FROM helios_trading.instruments_id_seq", "owner writer reader"),
    "sequence: next": ("SELECT nextval('helios_trading.instruments_id_seq')", "owner writer"),
    "sequence: set": ("SELECT setval('helios_trading.instruments_id_seq', 1)", "owner"),
    "alembic_version: read": ("SELECT version_num FROM helios_trading.alembic_version", "owner writer reader monitor"),
    "alembic_version: insert": ("INSERT INTO helios_trading.alembic_version VALUES ('x')", "owner"),
    "alembic_version: update": ("UPDATE helios_trading.alembic_version SET version_num = 'x'", "owner"),
    "alembic_version: delete": ("DELETE FROM helios_trading.alembic_version", "owner"),
    "function: call": ("SELECT helios_trading.make_kline_partition('1m', 2040)", "owner writer"),
    "function: join orders": (
        (
            "SELECT helios_trading.join_orders(id, (SELECT id FROM helios_trading.orders WHERE client_order_id = 'b')) "
            "FROM helios_trading.orders WHERE client_order_id = 'a'"
        ),
        "owner writer",
    ),
    "function: replace": (
        (
            "CREATE OR REPLACE FUNCTION helios_trading.make_kline_partition(for_interval text, for_year int) "
            "RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        ),
        "owner",
    ),
    "roles: join": ("SELECT set_config('role', 'ROLE_owner', true)", "owner"),
}
ROLES = ("owner", "writer", "reader", "monitor", "outsider")


@pytest.fixture(scope="module")
def installed(cluster: URL) -> Iterator[dict[str, URL]]:
    """One installation with an order, and a login in each group role; the outsider is in none."""
    with made(cluster) as url:
        upgrade(url, DATABASE_ROLE_PREFIX=PREFIX)
        roles = roles_of(Settings(database_role_prefix=PREFIX), str(url.database))
        run_sql(
            url,
            "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT')",
            "INSERT INTO helios_trading.accounts (exchange, name, market) VALUES ('binance', 'main', 'spot')",
            ORDER.replace("'x'", "'a'"),
            ORDER.replace("'x'", "'b'"),
        )
        yield {each: login(url, each, f"GRANT {getattr(roles, each)} TO {{login}}") for each in ROLES[:4]} | {
            "outsider": login(url, "outsider")
        }


def allowed(connection: Connection, statement: str) -> bool:
    """Try a statement and take it back; tells whether the right was there."""
    try:
        connection.execute(text(statement.replace(":", r"\:")))
    except ProgrammingError as error:
        if getattr(error.orig, "pgcode", None) != DENIED:
            raise
        return False
    finally:
        connection.rollback()
    return True


@pytest.mark.parametrize("action", MATRIX)
def test_the_privilege_matrix(installed, action):
    """Each role may do what the matrix says, and nothing else of it."""
    statement, expected = MATRIX[action]
    found = []
    for kind, url in installed.items():
        with engine_of(url).connect() as connection:
            if allowed(connection, statement.replace("ROLE_owner", "rights_owner")):
                found.append(kind)
    assert expected.split() == found


def test_a_writer_writes_history_only_through_its_trigger(installed):
    """An order that a writer places has its history, although the writer may not write there."""
    with engine_of(installed["writer"]).connect() as connection:
        connection.execute(text(ORDER))
        assert "NEW" == connection.scalar(text("SELECT max(new_status) FROM helios_trading.order_history"))
        with pytest.raises(ProgrammingError, match="permission denied for table order_history"):
            connection.execute(text("DELETE FROM helios_trading.order_history"))


def test_a_writer_cannot_erase_an_order_with_its_history(installed):
    """Deleting the order would take away what is written of it, so it is refused."""
    with engine_of(installed["writer"]).connect() as connection:
        connection.execute(text(ORDER))
        with pytest.raises(IntegrityError, match="fk_order_history_order_id"):
            connection.execute(text("DELETE FROM helios_trading.orders"))


def test_a_writer_loses_no_history_by_joining_orders(installed):
    """What was written of the duplicate is told of the kept order; rows that are not of one order are refused."""
    with engine_of(installed["writer"]).connect() as connection:
        ids = dict(connection.execute(text("SELECT client_order_id, id FROM helios_trading.orders")).all())
        before = connection.scalar(text("SELECT count(*) FROM helios_trading.order_history"))
        join = text("SELECT helios_trading.join_orders(:duplicate, :kept)")
        connection.execute(join, {"duplicate": ids["a"], "kept": ids["b"]})
        told = connection.execute(text("SELECT order_id, version FROM helios_trading.order_history ORDER BY version"))
        assert [(ids["b"], each) for each in range(1, before + 1)] == [tuple(row) for row in told]
        with pytest.raises(DBAPIError, match="are not two rows of one order"):
            connection.execute(join, {"duplicate": ids["b"], "kept": ids["b"]})


def test_tables_made_later_are_covered(installed):
    """A table that the owner makes afterwards can be written by writers and read by readers, without another grant."""
    run_sql(installed["owner"], "SET ROLE rights_owner", "CREATE TABLE helios_trading.later (id int)")
    with engine_of(installed["writer"]).begin() as connection:
        connection.execute(text("INSERT INTO helios_trading.later VALUES (1)"))
    with engine_of(installed["reader"]).connect() as connection:
        assert 1 == connection.scalar(text("SELECT count(*) FROM helios_trading.later"))
        assert not allowed(connection, "DELETE FROM helios_trading.later")
    for kind in ("monitor", "outsider"):
        with engine_of(installed[kind]).connect() as connection:
            assert not allowed(connection, "SELECT count(*) FROM helios_trading.later")


def test_a_partition_made_by_a_writer_takes_its_inserts_alone(installed):
    """What the function makes belongs to the owner; the writer may insert there, and do all else through the parent."""
    with engine_of(installed["writer"]).connect() as connection:
        assert connection.scalar(text("SELECT helios_trading.make_kline_partition('1h', 2041)"))
        connection.commit()
        for statement in ("SELECT count(*)", "DELETE"):
            assert not allowed(connection, f"{statement} FROM helios_trading.klines_1h_2041")
        for table in ("klines", "klines_1h_2041"):
            candle = KLINE.replace("1m", "1h").replace("2025", "2041")
            assert allowed(connection, f"INSERT INTO helios_trading.{table} {candle}")


def test_default_privileges_in_another_schema_are_none_in_this_one(upgraded):
    """Tables that are made in a schema beside may be readable already: those of this one are granted all the same."""
    run_sql(
        upgraded,
        f"CREATE SCHEMA beside AUTHORIZATION {COPIED}_owner",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {COPIED}_owner IN SCHEMA beside GRANT SELECT ON TABLES TO {COPIED}_reader",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {COPIED}_owner IN SCHEMA helios_trading "
        f"REVOKE SELECT ON TABLES FROM {COPIED}_reader",
    )
    roles = roles_of(Settings.from_environment(), str(upgraded.database))
    with engine_of(upgraded).connect() as connection:
        [step] = grants.missing(connection, "helios_trading", roles, None)
    expected = f"FOR ROLE {COPIED}_owner IN SCHEMA helios_trading GRANT SELECT ON TABLES TO {COPIED}_reader"
    assert f"ALTER DEFAULT PRIVILEGES {expected}" == step.statement


def test_a_statement_that_does_not_help_is_run_once(upgraded, monkeypatch):
    """It is told as missing; the upgrade does not run it for ever."""
    looks = []

    def missing(*_):
        looks.append(True)
        assert len(looks) < 4
        return [grants.Step("SELECT 1", able=True)]

    monkeypatch.setattr(grants, "missing", missing)
    with engine_of(upgraded).connect() as connection:
        assert ["SELECT 1"] == grants.complete(connection, "helios_trading", Roles(), None)
