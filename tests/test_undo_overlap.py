"""Runs that overlap on rows which a neighbour changes too: whoever ends first, what is left is the neighbour's."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Connection
from undo_shop import SCHEMA, Run, Shop, running, shop_of

from helios.testing import undo

ROWS = (1, 2)
UPDATE = "UPDATE shop.swaps SET a = {number} WHERE id = {row}"
DELETE = "DELETE FROM shop.swaps WHERE id = {row}"
INSERT = "INSERT INTO shop.swaps VALUES ({row}, 'k{row}', {number}, {row}) ON CONFLICT DO NOTHING"
WRITES = ([UPDATE], [DELETE], [INSERT], [DELETE, INSERT])
STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.sampled_from(WRITES), st.sampled_from(ROWS)),
    st.tuples(st.just("change"), st.sampled_from([UPDATE, DELETE]), st.sampled_from(ROWS)),
    st.tuples(st.sampled_from(["mark", "undo", "end"]), st.integers(0, 1)),
)


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with shop_of(cluster) as shop:
        yield shop


class Overlapping:
    """Two runs and a neighbour, whose last word on each row is remembered: its value, or None where it deleted it."""

    def __init__(self, runs: list[Run], neighbour: Connection) -> None:
        self.runs = dict(enumerate(runs))
        self.marks: dict[int, list[int]] = {number: [] for number in self.runs}
        self.neighbour = neighbour
        self.theirs: dict[int, int | None] = {row: row for row in ROWS}
        self.number = 100

    def take(self, what: str, *how: object) -> None:
        """Do a step, unless it is a run's that is over."""
        self.number += 1
        if what == "change" or how[0] in self.runs:
            getattr(self, what)(*how)

    def change(self, statement: str, row: int) -> None:
        """Change a row as the neighbour, if it is there."""
        if self.neighbour.exec_driver_sql(statement.format(row=row, number=self.number)).rowcount:
            self.theirs[row] = None if statement == DELETE else self.number

    def write(self, run: int, statements: list[str], row: int) -> None:
        """Write as a run's own processes would."""
        self.runs[run].write(*(each.format(row=row, number=self.number) for each in statements))

    def mark(self, run: int) -> None:
        """Begin a test."""
        self.marks[run].append(self.runs[run].mark())

    def undo(self, run: int) -> None:
        """End the test that began last; outside of tests, undo nothing."""
        if self.marks[run]:
            self.runs[run].undo(self.marks[run].pop())

    def end(self, run: int) -> None:
        """End the run."""
        ending = self.runs.pop(run)
        ending.undo()
        ending.close()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=14), last=st.integers(0, 1))
# A test that found a neighbour's change of a row that the run had written.
@example(
    steps=[("write", 0, [UPDATE], 1), ("change", UPDATE, 1), ("mark", 0), ("write", 0, [UPDATE], 1), ("undo", 0)],
    last=0,
)
# A row that the neighbour deleted, and that the run inserts again.
@example(steps=[("write", 0, [UPDATE], 1), ("change", DELETE, 1), ("write", 0, [INSERT], 1)], last=0)
# A row that the run inserted, that the neighbour made its own, and that the run deletes.
@example(
    steps=[("change", DELETE, 1), ("write", 0, [INSERT], 1), ("change", UPDATE, 1), ("write", 0, [DELETE], 1)], last=0
)
def test_the_neighbours_last_word_stands(shop: Shop, steps: list[tuple[object, ...]], last: int) -> None:
    """Tests and runs end in any order, in the middle of each other's and of the neighbour's work."""
    with ExitStack() as stack:
        neighbour = stack.enter_context(shop.beside())
        runs = [stack.enter_context(running(shop)) for _ in range(2)]
        overlapping = Overlapping(runs, neighbour)
        for step in steps:
            overlapping.take(*step)  # type: ignore[arg-type] # the first of a step is its name
        for run in (1 - last, last):
            overlapping.take("end", run)
        found = dict(shop.rows("SELECT id, a FROM shop.swaps WHERE id = ANY (:ids)", ids=list(ROWS)))
        for each in runs:
            undo.forget(each.connection, each.id, schema=SCHEMA)
            each.close()
        neighbour.exec_driver_sql(f"DELETE FROM shop.swaps WHERE id IN {ROWS}")
        neighbour.exec_driver_sql("INSERT INTO shop.swaps SELECT n, 'k' || n, n, n FROM unnest(ARRAY[1, 2]) AS n")
    assert {row: value for row, value in overlapping.theirs.items() if value is not None} == found
    assert 0 == shop.logged()
