"""What the catalog lacks, or grants too much, compared with what Helios wants; and the SQL that sets it right.

One query (grants.sql) gives the missing statements. The upgrade runs those it may, `helios grants --sql` prints them
for a DBA, `helios doctor` expects none, and an offline upgrade carries the query itself.
"""

import logging
from dataclasses import dataclass
from importlib.resources import files

from sqlalchemy import ARRAY, Connection, Dialect, Text, TextClause, bindparam, text

from helios.schema.roles import Roles

log = logging.getLogger("helios.schema")

MIRROR_STANDS = ("mirror_points", "mirror_state")
# writers only read them: history and outbox are written by triggers alone
READ_ONLY = ("alembic_version", "order_history", "mirror_outbox", *MIRROR_STANDS)
MONITORED = (
    "alembic_version",
    "instruments",
    "tickers",
    "kline_files",
    "data_quality_metrics",
    "mirror_outbox",
    *MIRROR_STANDS,
)
MIRRORED = ("alembic_version", "instruments", "accounts", "tickers", "klines", "orders", "positions", "mirror_outbox")
CALLABLE = ("join_orders", "make_kline_partition", "tell_klines")  # of writers; all else is called by triggers
RELAYING = ("empty_mirror_outbox", "spread_mirrors")  # what the relay of the mirrors may call
# what all who read klines may call, where they are shards of Citus
READING = ("newest_klines", "kline_series", "await_klines")


@dataclass(frozen=True)
class Step:
    """A statement that is missing, and whether the connected role may run it."""

    statement: str
    able: bool


def missing(connection: Connection, schema: str, roles: Roles, login: str | None) -> list[Step]:
    """List the statements that complete the schema and its grants, in the order to run them; none when all is well.

    Args:
        connection: to the database, as any role.
        schema: the schema's name.
        roles: the group roles; those of `Roles()` are not managed.
        login: the login that migrates, which joins the owner role; None leaves memberships alone.

    """
    return [Step(row.statement, row.able) for row in connection.execute(query(schema, roles, login))]


def complete(connection: Connection, schema: str, roles: Roles, login: str | None) -> list[str]:
    """Run what is missing and may be run; return the statements that the connected role may not run.

    Each statement can change what the next ones may do (a new role, a new owner), so the catalog is asked again
    until a look finds nothing left that may be run.
    """
    done: set[str] = set()
    while True:
        steps = missing(connection, schema, roles, login)
        runnable = [step.statement for step in steps if step.able and step.statement not in done]
        if not runnable:
            return [step.statement for step in steps]
        for statement in runnable:
            log.debug("%s", statement)
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            done.add(statement)


def offline(dialect: Dialect, schema: str, roles: Roles, login: str | None) -> str:
    """Write the query and a loop that runs its statements as one block, for an upgrade printed as SQL."""
    compiled = query(schema, roles, login).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    tag = "helios"
    while f"${tag}$" in str(compiled):
        tag += "_"
    return (
        f"DO ${tag}$\n#variable_conflict use_column\n"
        f"DECLARE\n    step record;\nBEGIN\n    FOR step IN\n{compiled}\n    LOOP\n"
        f"        IF step.able THEN EXECUTE step.statement; END IF;\n    END LOOP;\nEND ${tag}$"
    )


def query(schema: str, roles: Roles, login: str | None) -> TextClause:
    """Bind grants.sql to a schema and its roles."""
    names = {
        "schema": schema,
        "owner": roles.owner,
        "writer": roles.writer,
        "reader": roles.reader,
        "monitor": roles.monitor,
        "relay": roles.relay,
        "login": login,
    }
    lists = {
        "read_only": READ_ONLY,
        "monitored": MONITORED,
        "callable": CALLABLE,
        "mirrored": MIRRORED,
        "mirror_stands": MIRROR_STANDS,
        "relaying": RELAYING,
        "reading": READING,
    }
    return text((files("helios.schema") / "grants.sql").read_text()).bindparams(
        *(bindparam(name, value, Text) for name, value in names.items()),
        *(bindparam(name, list(value), ARRAY(Text)) for name, value in lists.items()),
    )
