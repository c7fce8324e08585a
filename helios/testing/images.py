"""The log where triggers may not be installed: around each statement that SQLAlchemy builds, it writes their entries.

Before an UPDATE or DELETE the rows it will find are locked and kept as they are; after an INSERT the rows it made are
entered. The server's own counters then tell whether anything else was written to these tables in the transaction - by
text SQL, a driver's cursor, triggers, cascades - which is told when it commits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Delete, Engine, Insert, Select, TableClause, Update, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import SavepointClause
from sqlalchemy.util import immutabledict

from helios import label
from helios.errors import HeliosError
from helios.names import function_name, quoted
from helios.testing.places import AsIs, conflicting, inserted, kept, matching

STATE = "helios.testing.images"  # where a connection keeps what a run knows of its transaction
LABELS = "helios.testing.images.labels"  # and whether it belongs to a run
OPEN = 2  # libpq's number for a transaction that has begun, has not failed, and is not at work
QUERYLESS = re.compile(r"(?>\s+|--[^\n]*|/\*.*?\*/)*+(?:SET|LOCK)\b", re.IGNORECASE | re.DOTALL)
WRITTEN = re.compile(r"(?:INSERT|UPDATE|DELETE|MERGE|COPY|TRUNCATE)\b\D*(?:\d+ )?(\d*)")  # what libpq says was done
CARRIED = """
    SELECT coalesce(current_setting(%s, true), ''),
           has_schema_privilege(pronamespace, 'USAGE') AND has_function_privilege(pg_proc.oid, 'EXECUTE')
    FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace WHERE nspname = %s AND proname = 'counted'
"""

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
        self.spaces = {number: space_and_name for space_and_name, number in tables.items()}
        self.names = {number: name for number, (_, name) in self.spaces.items()}
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
            ("after_cursor_execute", self._autocommitted),
            ("before_execute", self._before),
            ("after_execute", self._after),
            ("rollback_savepoint", self._rolled_back),
            ("rollback", self._rolling_back),
            ("commit", self._committing),
            ("prepare_twophase", self._ending),
            ("commit_twophase", self._ending),  # one that was not prepared
        )

    def _begun(self, connection: Connection, _xid: object = None) -> None:
        connection.info.pop(self.place, None)
        if libpq(connection) and not autocommits(connection):
            connection.info[self.place] = Watched()

    def _first(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        """Count before the first statement; not before SET TRANSACTION and LOCK, which bear no query before them.

        The snapshot of a transaction that is not READ COMMITTED would be older than the lock.
        """
        state: Watched | None = connection.info.get(self.place)
        if state is not None and state.counted is None and not QUERYLESS.match(statement):
            self._state(connection)

    def _autocommitted(self, connection: Connection, cursor: Any, statement: str, *_: object) -> None:  # noqa: ANN401 - a driver's
        """Tell what text SQL wrote in autocommit, where nothing can be counted: the tables are those that it names."""
        if self.place in connection.info or not libpq(connection) or not autocommits(connection):
            return
        said = WRITTEN.match(getattr(getattr(cursor, "_cursor", cursor), "statusmessage", None) or "")
        if said is not None and said[1] != "0" and self._labelled(connection):
            for name in self.names.values():
                if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", statement, re.IGNORECASE):
                    self.unseen(name, int(said[1] or 0))

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
        """Tell whether a connection belongs to the run, and its role is let into the log."""
        return self._carried(connection) == (str(self.run), True)

    def _carried(self, connection: Connection) -> tuple[str, bool]:
        """Give a connection's label, where such a log is, and whether its role is let in; asked once of each."""
        known: dict[int, tuple[str, bool]] = connection.info.setdefault(LABELS, {})
        if self.run not in known:
            found = ask(connection, CARRIED, label.SETTING, self.log)
            known[self.run] = found[0] if found else ("", False)
        return known[self.run]

    def _before(self, connection: Connection, statement: Any, many: Any, one: Any, options: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
        if isinstance(statement, SavepointClause):
            self._savepoint(connection, statement.ident)
        table = self._target(connection, statement, options)
        if table is None:
            return
        if connection.get_transaction() is None:
            connection.begin()  # as SQLAlchemy would in a moment
        if autocommits(connection) and self._labelled(connection):
            raise HeliosError(
                f"a write to {statement.table.fullname} in autocommit cannot be undone, as its image would not be in "
                "the same transaction: use a transaction"
            )
        if (state := self._state(connection)) is None:
            if self._carried(connection)[0]:  # refused if the role is not let in, or of a run that is over
                self._call(connection, "look(%s::oid)", table)
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
            find(connection, kept(statement.table, criterion, call, lock=what), values, options)
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
            clear = updated == touched or self._written(connection, before) - touched <= new - deleted
            wrong = not clear and not isinstance(statement._post_values_clause, AsIs)  # noqa: SLF001 - no other way
            entered = 0
            if clear:
                updated = touched  # more of them are rows that were inserted, and then updated
                if moved:
                    entered = self._part_keys(connection, before) - moved
                else:
                    entered = self._enter(connection, before, statement, options, result)
                    entered += self._scan(connection, before) if entered < new else 0
            surplus = new + updated + deleted - entered - touched
        else:
            wrong = not result.context.executemany and result.rowcount > touched
            # a row that goes to another partition counts as one inserted and one deleted
            surplus = new + updated + (deleted if isinstance(statement, Delete) else 0) - touched
            if surplus > 0 and deleted <= new and self._written(connection, before) <= touched:
                surplus = 0  # rows that were kept, and written more than once
            if moved and not surplus:
                self._part_keys(connection, before)
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
            entered += find(connection, found, {}, options)
        return entered

    def _scan(self, connection: Connection, before: Moment) -> int:
        """Enter the rows that the statement made, wherever they are: it takes reading the table."""
        call = "enter(%s::oid, %s, %s, %s, NULL, NULL)"
        ((entered,),) = self._call(connection, call, before.table, before.own, before.command, before.step)
        return int(entered)

    def _part_keys(self, connection: Connection, before: Moment) -> int:
        """Enter rows that went to other keys, old and new; gives the number of the new."""
        call = "part_keys(%s::oid, %s, %s, %s)"
        ((entered,),) = self._call(connection, call, before.table, before.own, before.command, before.step)
        return int(entered)

    def _written(self, connection: Connection, before: Moment) -> int:
        """Count the rows that a statement wrote and that are there: it takes reading the table."""
        name = ".".join(map(quoted, self.spaces[before.table])).replace("%", "%%")
        question = f"SELECT count(*) FROM {name} WHERE xmin = %s::xid AND cmin::text::bigint > %s"
        ((rows,),) = ask(connection, question, before.own, before.command)
        return int(rows)

    def _savepoint(self, connection: Connection, name: str) -> None:
        if (state := self._state(connection)) is not None:
            self._compare(connection, state)
            state.savepoints[name] = state.unseen.copy()

    def _rolled_back(self, connection: Connection, name: str, _context: object) -> None:
        """Forget what was written since; the server goes on counting it, so it is asked anew, after the rollback."""
        state: Watched | None = connection.info.get(self.place)
        if state is not None and name in state.savepoints and not connection.invalidated:
            ask(connection, f"ROLLBACK TO SAVEPOINT {quoted(name)}")  # SQLAlchemy does it once more
            state.counted, state.unseen = self._count(connection), state.savepoints[name].copy()
            state.seen.clear()

    def _rolling_back(self, connection: Connection) -> None:
        if not connection.invalidated and connection.info.pop(self.place, None) is not None:
            self._sum_up(connection)

    def _committing(self, connection: Connection) -> None:
        try:
            self._ending(connection)
        except DBAPIError:
            if not connection.invalidated:  # a COMMIT that fails ends the transaction too
                connection.dialect.do_rollback(connection.connection)
            raise

    def _ending(self, connection: Connection, *_: object) -> None:
        state: Watched | None = connection.info.pop(self.place, None)
        if state is None or not opened(connection) or not self._labelled(connection):
            return
        state.counted = state.counted or {}  # where only a driver's cursor was used, all that is counted is its own
        ask(connection, "SET CONSTRAINTS ALL IMMEDIATE")  # deferred triggers write now, and not after the count
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
        if not isinstance(statement, Insert | Update | Delete) or not isinstance(statement.table, TableClause):
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
    cursor = connection.connection.cursor()
    try:
        cursor.execute(question, values or None)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []
    except connection.dialect.loaded_dbapi.Error as error:
        connection._handle_dbapi_exception(error, question, values, cursor, None)  # noqa: SLF001 - no other way
    finally:
        cursor.close()


def find(connection: Connection, query: Select[Any], values: Mapping[str, Any], options: Any) -> int:  # noqa: ANN401 - SQLAlchemy's
    """Ask for a number in the same way, by a query of SQLAlchemy's.

    Raises:
        DBAPIError: as if the statement at hand had failed.

    """
    dialect = connection.dialect
    wanted = immutabledict(translated(options))
    compiled = query.compile(dialect=dialect, column_keys=sorted(values), **wanted)
    context = dialect.execution_ctx_cls._init_compiled(  # noqa: SLF001 - no other way
        dialect, connection, connection.connection, wanted, compiled, [dict(values)], query, None
    )
    try:
        dialect.do_execute(context.cursor, context.statement, context.parameters[0], context)
        return int(context.cursor.fetchall()[0][0])
    except dialect.loaded_dbapi.Error as error:
        connection._handle_dbapi_exception(error, context.statement, values, context.cursor, context)  # noqa: SLF001 - as above
    finally:
        context.cursor.close()


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
