"""The log where triggers may not be installed: around each statement that SQLAlchemy builds, it writes their entries.

Before an UPDATE or DELETE the rows it will find are locked and kept as they are; after an INSERT the rows it made are
entered. The server's own counters then tell whether anything else was written to these tables in the transaction - by
text SQL, a driver's cursor, triggers, cascades - which is told when it commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Delete, Engine, Insert, Table, Update, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import SavepointClause

from helios import label
from helios.errors import HeliosError
from helios.names import function_name
from helios.testing.places import AsIs, conflicting, inserted, kept, matching

STATE = "helios.testing.images"  # where a connection keeps what a run knows of its transaction
LABELS = "helios.testing.images.labels"  # and whether it belongs to a run
OPEN = 2  # libpq's number for a transaction that has begun, has not failed, and is not at work

Unseen = Callable[[str, int], None]
Counts = dict[int, tuple[int, int]]  # of each table the rows written so far, and the number of the file it lies in


@dataclass
class Watched:
    """A transaction: what the server counted when it was last compared, and what was written unseen until then."""

    counted: Counts | None = None  # until the first statement
    seen: Counter[int] = field(default_factory=Counter)
    unseen: Counter[int] = field(default_factory=Counter)
    savepoints: dict[str, Counter[int]] = field(default_factory=dict)
    before: Moment | None = None


@dataclass(frozen=True)
class Moment:
    """Where a statement on a table stands, before it; the counters are of rows inserted, updated and deleted."""

    table: int
    own: str
    command: int
    step: int
    counters: tuple[int, int, int]


class Images:
    """Writes the entries of a run for these tables (schema, name, oid); `unseen` is told what cannot be taken back."""

    def __init__(self, log: str, run: int, tables: Mapping[tuple[str, str], int], unseen: Unseen) -> None:
        self.log, self.run, self.tables, self.unseen = log, run, tables, unseen
        self.names = {number: name for (_, name), number in tables.items()}
        self.place = f"{STATE}.{run}"

    def listen(self) -> None:
        """Look at the statements of all engines of this process; of their connections, those that carry the label."""
        for name, listener in self._listeners():
            event.listen(Engine, name, listener)

    def close(self) -> None:
        """Look at nothing any more."""
        for name, listener in self._listeners():
            event.remove(Engine, name, listener)

    def _listeners(self) -> tuple[tuple[str, Callable[..., None]], ...]:
        return (
            ("begin", self._begun),
            ("begin_twophase", self._begun),
            ("before_cursor_execute", self._first),
            ("before_execute", self._before),
            ("after_execute", self._after),
            ("rollback_savepoint", self._rolled_back),
            ("rollback", self._rolling_back),
            ("commit", self._committing),
            ("prepare_twophase", self._committing),
        )

    def _begun(self, connection: Connection, _xid: object = None) -> None:
        connection.info.pop(self.place, None)
        if libpq(connection) and not autocommits(connection):
            connection.info[self.place] = Watched()

    def _first(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        """Count before the first statement; not before SET TRANSACTION, which bears no query before it."""
        state: Watched | None = connection.info.get(self.place)
        if state is not None and state.counted is None and statement.lstrip()[:3].upper() != "SET":
            self._state(connection)

    def _state(self, connection: Connection) -> Watched | None:
        """Give what is known of a transaction; None of one that does not belong to the run."""
        state: Watched | None = connection.info.get(self.place)
        if state is not None and state.counted is None:
            if not self._labelled(connection):
                del connection.info[self.place]
                return None
            state.counted = self._count(connection)
        return state

    def _labelled(self, connection: Connection) -> bool:
        """Tell whether a connection belongs to the run, as a role that may write, in the log's database; asked once."""
        known: dict[int, bool] = connection.info.setdefault(LABELS, {})
        if self.run not in known:
            question = (
                "SELECT current_setting(%s, true), has_schema_privilege(to_regnamespace(quote_ident(%s)), 'USAGE')"
            )
            (found,) = ask(connection, question, label.SETTING, self.log)
            known[self.run] = found == (str(self.run), True)
        return known[self.run]

    def _before(self, connection: Connection, statement: Any, many: Any, one: Any, options: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
        if isinstance(statement, SavepointClause):
            self._savepoint(connection, statement.ident)
        table = self._target(connection, statement, options)
        if table is None:
            return
        if not connection.in_transaction():
            connection.begin()  # as SQLAlchemy would in a moment
        if autocommits(connection) and self._labelled(connection):
            raise HeliosError(
                f"a write to {statement.table.fullname} in autocommit cannot be undone, as its image would not be in "
                "the same transaction: use a transaction"
            )
        if (state := self._state(connection)) is None:
            return
        ((own, command, step, *counters),) = self._call(connection, "look(%s::oid)", table)
        before = Moment(table, own, command, step, (counters[0], counters[1], counters[2]))
        parameters = many or [one]
        wanted = (
            conflicting(statement, parameters)
            if isinstance(statement, Insert)
            else ((matching(statement), each) for each in parameters)
        )
        what = "D" if isinstance(statement, Delete) else "U"
        call = f"{self._function('image')}({table}::oid, '{what}'"
        for criterion, values in wanted:
            found = kept(statement.table, criterion, call, lock=what)
            connection.execute(found, values, execution_options=translated(options))
        state.before = before

    def _after(
        self,
        connection: Connection,
        statement: Any,  # noqa: ANN401 - SQLAlchemy's, as all of these
        _many: object,
        _one: object,
        options: Any,  # noqa: ANN401
        result: Any,  # noqa: ANN401
    ) -> None:
        state: Watched | None = connection.info.get(self.place)
        if state is None or state.before is None or self._target(connection, statement, options) is None:
            return
        before, state.before = state.before, None
        place = (before.table, before.own, before.command, before.step)
        ((touched, moved, *counters),) = self._call(connection, "wrote(%s::oid, %s, %s, %s)", *place)
        new, updated, deleted = (now - was for now, was in zip(counters, before.counters, strict=True))
        state.seen[before.table] += new + updated + deleted
        if isinstance(statement, Insert):
            # a row that was updated, and not kept before, must never be taken for one that was inserted
            wrong = updated > touched and not isinstance(statement._post_values_clause, AsIs)  # noqa: SLF001 - no other way
            entered = self._enter(connection, before, statement, options, result) if updated == touched else 0
            if entered < new and updated == touched:
                entered += self._scan(connection, before)
            surplus = new + updated + deleted - entered - touched
        else:
            wrong = not result.context.executemany and result.rowcount > touched
            # a row that goes to another partition counts as one inserted and one deleted
            surplus = new + updated + (deleted if isinstance(statement, Delete) else 0) - touched
            if moved and not surplus:
                self._call(connection, "part_keys(%s::oid, %s, %s, %s)", *place)
        if surplus > 0:
            state.unseen[before.table] += surplus
        if wrong:
            raise HeliosError(
                f"rows of {statement.table.fullname} were written that could not be kept as they were before, because "
                "somebody else wrote to the table at the same moment, or a trigger did: roll this transaction back, "
                "and try again"
            )

    def _enter(self, connection: Connection, before: Moment, statement: Insert, options: Any, result: Any) -> int:  # noqa: ANN401 - SQLAlchemy's
        """Enter rows whose keys are known: of instances of a session, and wherever the statement gave them."""
        call = f"{self._function('enter')}({before.table}::oid, '{before.own}', {before.command}, {before.step}"
        entered = 0
        for criterion in inserted(statement.table, result.context.inserted_primary_key_rows):
            found = kept(statement.table, criterion, call)
            entered += connection.execute(
                found,
                execution_options=translated(options) | {"compiled_cache": None},  # no two calls are alike
            ).scalar_one()
        return entered

    def _scan(self, connection: Connection, before: Moment) -> int:
        """Enter the rows that the statement made, wherever they are: it takes reading the table."""
        call = "enter(%s::oid, %s, %s, %s, NULL, NULL)"
        ((entered,),) = self._call(connection, call, before.table, before.own, before.command, before.step)
        return int(entered)

    def _savepoint(self, connection: Connection, name: str) -> None:
        if (state := self._state(connection)) is not None:
            self._compare(connection, state)
            state.savepoints[name] = state.unseen.copy()

    def _rolled_back(self, connection: Connection, name: str, _context: object) -> None:
        """Forget what was written since; the server goes on counting it, so it is asked anew, after the rollback."""
        state: Watched | None = connection.info.get(self.place)
        if state is not None and name in state.savepoints and not connection.invalidated:
            connection.dialect.do_rollback_to_savepoint(connection, name)  # SQLAlchemy does it once more
            state.counted, state.unseen = self._count(connection), state.savepoints[name].copy()
            state.seen.clear()

    def _rolling_back(self, connection: Connection) -> None:
        if not connection.invalidated and connection.info.pop(self.place, None) is not None:
            self._sum_up(connection)

    def _committing(self, connection: Connection, _xid: object = None) -> None:
        state: Watched | None = connection.info.pop(self.place, None)
        if state is None or not opened(connection) or not self._labelled(connection):
            return
        state.counted = state.counted or {}  # where only a driver's cursor was used, all that is counted is its own
        self._compare(connection, state)
        self._sum_up(connection)
        for table, rows in state.unseen.items():
            self.unseen(self.names[table], rows)

    def _sum_up(self, connection: Connection) -> None:
        """Let the server sum up what it counted when this transaction ends, and not at leisure."""
        if opened(connection) and self._labelled(connection):
            ask(connection, "SELECT pg_stat_force_next_flush()")

    def _compare(self, connection: Connection, state: Watched) -> None:
        """Add to what was written unseen what the server counts beyond what was seen; TRUNCATE makes a new file."""
        now = self._count(connection)
        for table, (rows, file) in now.items():
            before, old_file = (state.counted or {}).get(table, (0, file))
            more = rows - before - state.seen[table]
            if more > 0 or file != old_file:
                state.unseen[table] += max(more, 0)
        state.counted = now
        state.seen.clear()

    def _count(self, connection: Connection) -> Counts:
        return {int(table): (int(rows), int(file)) for table, rows, file in self._call(connection, "counted()")}

    def _call(self, connection: Connection, call: str, *values: object) -> list[tuple[Any, ...]]:
        """Call a function of the log."""
        name = self._function("").replace("%", "%%") if values else self._function("")
        return ask(connection, f"SELECT * FROM {name}{call}", *values)

    def _function(self, call: str) -> str:
        return function_name(self.log, call)

    def _target(self, connection: Connection, statement: object, options: Any) -> int | None:  # noqa: ANN401 - SQLAlchemy's
        """Find the table that a statement writes to, if nobody else keeps its images."""
        if not isinstance(statement, Insert | Update | Delete) or not isinstance(statement.table, Table):
            return None
        if not libpq(connection):
            return None
        schema = (options.get("schema_translate_map") or {}).get(statement.table.schema, statement.table.schema)
        return self.tables.get((schema or connection.dialect.default_schema_name or "public", statement.table.name))


def ask(connection: Connection, question: str, *values: object) -> list[tuple[Any, ...]]:
    """Ask on the driver's own connection, so that nobody who listens to SQLAlchemy sees it, nor a transaction begins.

    Raises:
        DBAPIError: as if the statement at hand had failed.

    """
    driver_error = connection.dialect.loaded_dbapi.Error
    cursor = connection.connection.cursor()
    try:
        cursor.execute(question, values or None)
        return [tuple(row) for row in cursor.fetchall()]
    except driver_error as error:
        raise DBAPIError.instance(question, values, error, driver_error, dialect=connection.dialect) from error
    finally:
        cursor.close()


def driver(connection: Connection) -> Any:  # noqa: ANN401 - psycopg2's or psycopg's
    """Give the driver's connection; both drivers name alike what is asked of it here."""
    return connection.connection.driver_connection


def libpq(connection: Connection) -> bool:
    """Tell whether a driver is built on libpq: another one carries no label."""
    return connection.dialect.driver.startswith("psycopg")


def opened(connection: Connection) -> bool:
    """Tell whether a transaction is open, in which something can be asked."""
    return bool(driver(connection).info.transaction_status == OPEN)


def autocommits(connection: Connection) -> bool:
    """Tell whether each statement is a transaction of its own."""
    return bool(driver(connection).autocommit)


def translated(options: Any) -> dict[str, Any]:  # noqa: ANN401 - SQLAlchemy's
    """Give those options of a statement that another one on the same table needs."""
    return {name: options[name] for name in ("schema_translate_map",) if name in options}
