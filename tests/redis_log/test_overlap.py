"""Runs that overlap in one Redis: whatever each writes, and whoever ends first, in the end all is as it was."""

import os
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from own_servers import client, recording_client

from helios import label
from helios.label.recording import Recording
from helios.testing import redis_log

KEYS = ("list", "text", "new", "brief")
LONG = "x" * 5000  # beyond what a fingerprint reads
WRITES = (
    lambda there, key, _number: there.delete(key),
    lambda there, key, number: there.set(key, number),
    lambda there, key, number: there.set(key, f"{LONG}{number}"),
    lambda there, key, number: there.expire(key, 1000 + number),
    lambda there, key, _number: there.persist(key),
    lambda there, key, number: there.pipeline().execute_command("DEL", key).rpush(key, number, 1).execute(),
    lambda there, key, number: (
        there.pipeline().execute_command("DEL", key).sadd(key, number, "b").set("text", number).execute()
    ),
)
STEPS = st.one_of(
    st.tuples(
        st.just("write"), st.integers(0, 2), st.integers(0, len(WRITES) - 1), st.sampled_from(KEYS), st.integers(0, 2)
    ),
    st.tuples(st.sampled_from(["mark", "undo", "end"]), st.integers(0, 2)),
)


class Overlapping:
    """Three runs, begun when they first do something; each ends once."""

    def __init__(self, plain, recorded):
        self.plain, self.recorded = plain, recorded
        self.marks, self.told = {}, []

    def take(self, what, run, *rest):
        """Do a step, in a run that begins with its first."""
        if run not in self.marks:
            redis_log.begin(self.plain, run + 1, "here")
            self.marks[run] = []
        getattr(self, what)(run, *rest)

    def write(self, run, which, key, number):
        """Write as the run's own processes would."""
        os.environ[label.VARIABLE] = str(run + 1)
        WRITES[which](self.recorded, key, number)

    def mark(self, run):
        """Begin a test."""
        self.marks[run].append(redis_log.mark(self.plain, run + 1))

    def undo(self, run):
        """End the test that began last; outside of tests, undo all."""
        since = self.marks[run].pop() if self.marks[run] else 0
        self.told += redis_log.undo(self.plain, run + 1, since)

    def end(self, run):
        """End the run."""
        self.told += redis_log.undo(self.plain, run + 1)
        assert 0 == redis_log.close(self.plain, run + 1)
        del self.marks[run]

    def end_all(self, *, backwards):
        """End those that are still there."""
        for run in sorted(self.marks, reverse=backwards):
            self.end(run)


@pytest.fixture
def plain(valkey):
    """A neighbour."""
    neighbour = client(valkey)
    yield neighbour
    neighbour.flushall()
    neighbour.close()


@pytest.fixture
def recorded(valkey, monkeypatch):
    """A client that records for the run that the environment names at the time."""
    monkeypatch.setenv(label.VARIABLE, "0")
    made = recording_client(valkey)
    yield made
    made.close()


def furnish(plain):
    plain.flushall()
    plain.rpush("list", *range(5))
    plain.set("text", "before")
    plain.set("brief", "before", pxat=4102444800000)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=14), backwards=st.booleans())
# What a run left before a test of its own is that run's to its heir too.
@example(
    steps=[
        ("write", 0, 1, "text", 1),
        ("mark", 0),
        ("write", 0, 1, "text", 2),
        ("write", 1, 1, "text", 0),
        ("undo", 0),
    ],
    backwards=False,
)
def test_whoever_ends_first_all_is_as_it_was(plain, recorded, steps, backwards):
    """Tests and runs end in any order, in the middle of each other's; nothing is told to be somebody else's."""
    furnish(plain)
    before = redis_log.digest(plain)
    overlapping = Overlapping(plain, recorded)
    for step in steps:
        overlapping.take(*step)
    overlapping.end_all(backwards=backwards)
    assert before == redis_log.digest(plain)
    assert [] == [each for each in overlapping.told if each.what == "kept"]
    assert [] == plain.keys("helios:undo:*")


def test_an_undo_between_a_commands_image_and_the_command(plain, recorded, monkeypatch):
    """What hands its images over to another run touches no key; the command is tried again all the same."""
    furnish(plain)
    before = redis_log.digest(plain)
    overlapping = Overlapping(plain, recorded)
    overlapping.take("write", 0, 0, "new", 1)
    overlapping.take("write", 1, 0, "new", 2)
    for run in ("1", "2"):
        monkeypatch.setenv(label.VARIABLE, run)
        recorded.zadd("new", {"a": run})
    watched, undone = Recording.watched, []

    def interrupted(*given, **named):
        steps, reply = watched(*given, **named), None
        with suppress(StopIteration):
            while True:
                step = steps.send(reply)
                if step.commands[0] == ("MULTI",) and not undone:
                    undone.append(redis_log.undo(plain, 1))
                reply = yield step
        return reply[-1][:-1] if reply[-1] else None

    monkeypatch.setattr(Recording, "watched", interrupted)
    monkeypatch.setenv(label.VARIABLE, "1")
    assert (7, 1) == (recorded.zadd("new", {"a": 5}, incr=True), len(undone))  # no command that a script can answer
    overlapping.end_all(backwards=False)
    assert before == redis_log.digest(plain)
