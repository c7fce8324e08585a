"""Orders, and what happened to each: written as it was first seen, then changed as the ancestor's history tells.

So the trigger writes their history, with the moments that the ancestor noted, as it does for every other order.
"""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, text

from helios.adopting.mapping import ALL, Mapping
from helios.names import table_name

BATCH, LINES = "pg_temp.helios_adopted_orders", "pg_temp.helios_adopted_lines"
ACTOR = text("SELECT set_config('helios.actor', 'helios adopt', true)")
FILLED = ("filled_quantity", "filled_quote_quantity")
NO_LINES = """
    SELECT CAST(NULL AS text) AS of_order, CAST(NULL AS text) AS new_status, CAST(NULL AS timestamptz) AS exchange_at,
           CAST(NULL AS numeric) AS number, CAST(NULL AS text) AS reason WHERE false
"""


def write(connection: Connection, mapping: Mapping, history: Mapping | None, binds: dict[str, Any]) -> int:
    """Write the orders of a stretch that are not there yet, whole with their history; how many."""
    connection.execute(ACTOR)
    gather(connection, mapping, binds)
    gather_lines(connection, history, binds, changed_at(mapping))
    count = put(connection, mapping)
    last = connection.execute(text(f"SELECT coalesce(max(line), 0) FROM {LINES}")).scalar_one()
    for line in range(2, last + 1):
        change(connection, mapping, line)
    finish(connection, mapping)
    for table in (LINES, BATCH):
        connection.execute(text(f"DROP TABLE {table}"))
    return count


def gather(connection: Connection, mapping: Mapping, binds: dict[str, Any]) -> None:
    """Set apart the orders of a stretch that are not there yet; of two of one id, the first."""
    columns = [f"{sql} AS {name}" for name, sql in mapping.references.items()]
    columns += [f'{mapping.typed(name)} AS "{name}"' for name in mapping.copied]
    statement = f"""
        CREATE TEMPORARY TABLE {BATCH.split(".")[1]} ON COMMIT DROP AS
        SELECT DISTINCT ON (j.client_order_id) {", ".join(columns)}
        FROM ({mapping.judged}) AS j {mapping.referred} {mapping.known}
        WHERE j.reason IS NULL AND {mapping.key} IS NULL ORDER BY j.client_order_id, j.part, j.place
    """
    connection.execute(text(statement), binds)


def changed_at(mapping: Mapping) -> str:
    """Name the column that tells when an order last changed."""
    return "updated_at" if "updated_at" in mapping.copied else "submitted_at"


def gather_lines(connection: Connection, history: Mapping | None, binds: dict[str, Any], changed: str) -> None:
    """Number what is known to have happened to them; where the order itself says otherwise, that is the last.

    The quantities filled are known of the end alone: they are written with the first line that tells of a fill.
    """
    told = replace(history, reasons=()).judged if history else NO_LINES  # that their orders are adopted, is seen here
    statement = f"""
        CREATE TEMPORARY TABLE {LINES.split(".")[1]} ON COMMIT DROP AS
        WITH told AS (
            SELECT of_order, new_status, exchange_at, number FROM ({told}) AS h
            WHERE reason IS NULL AND of_order IN (SELECT client_order_id FROM {BATCH})
        ), newest AS (
            SELECT DISTINCT ON (of_order) * FROM told ORDER BY of_order, exchange_at DESC, number DESC
        ), every AS (
            SELECT *, 0 AS is_end FROM told
            UNION ALL
            SELECT o.client_order_id, o.status, o.{changed}, NULL, 1 FROM {BATCH} AS o
            LEFT JOIN newest ON newest.of_order = o.client_order_id WHERE newest.new_status IS DISTINCT FROM o.status
        ), numbered AS (
            SELECT of_order, new_status, exchange_at,
                   row_number() OVER story AS line, count(*) OVER (PARTITION BY of_order) AS lines,
                   bool_or(new_status IN ('PARTIALLY_FILLED', 'FILLED')) OVER story AS is_filling
            FROM every WINDOW story AS (PARTITION BY of_order ORDER BY is_end, exchange_at, number)
        )
        SELECT of_order, new_status, exchange_at, line, is_filling OR line = lines AS is_filled FROM numbered
    """
    connection.execute(text(statement), {**binds, **ALL})


def put(connection: Connection, mapping: Mapping) -> int:
    """Write the orders as they were first seen; those that the exchange's id shows to be there are left out."""
    names = [*mapping.references, *mapping.copied]
    seen = {name: f'o."{name}"' for name in names}
    seen |= {"status": "l.new_status", "updated_at": "l.exchange_at"}
    seen |= {name: f"CASE WHEN l.is_filled THEN o.{name} ELSE 0 END" for name in FILLED}
    statement = f"""
        INSERT INTO {table_name(mapping.table)} ({", ".join(f'"{name}"' for name in seen)})
        SELECT {", ".join(seen.values())} FROM {BATCH} AS o
        JOIN {LINES} AS l ON l.of_order = o.client_order_id AND l.line = 1
        ORDER BY o.id ON CONFLICT DO NOTHING
    """
    return connection.execute(text(statement)).rowcount


def change(connection: Connection, mapping: Mapping, line: int) -> None:
    """Change the orders that were just written, as one line of their history tells."""
    filled = ", ".join(f"{name} = CASE WHEN l.is_filled THEN o.{name} ELSE 0 END" for name in FILLED)
    statement = f"""
        UPDATE {table_name(mapping.table)} AS k SET status = l.new_status, updated_at = l.exchange_at, {filled}
        FROM {BATCH} AS o JOIN {LINES} AS l ON l.of_order = o.client_order_id
        WHERE k.id = o.id AND l.line = :line
    """
    connection.execute(text(statement), {"line": line})


def finish(connection: Connection, mapping: Mapping) -> None:
    """Let the orders say when they last changed, as the ancestor's do; no line of history is written for that."""
    if "updated_at" in mapping.copied:
        statement = f"""
            UPDATE {table_name(mapping.table)} AS k SET updated_at = o.updated_at FROM {BATCH} AS o
            WHERE k.id = o.id AND k.updated_at IS DISTINCT FROM o.updated_at
        """
        connection.execute(text(statement))
