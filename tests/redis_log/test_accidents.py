"""Servers that are full, old or start again, users with few rights, and processes killed at any moment."""

import os
import signal
import subprocess
import sys
import time

import pytest
from installation import ROOT
from own_servers import CHOSEN, client, end
from redis.exceptions import NoPermissionError, OutOfMemoryError
from redis_keys import furnish
from server_user import until

from helios import label, servers
from helios.errors import RecordingError
from helios.label.clients import RecordedRedis
from helios.testing import redis_log


def test_a_server_that_evicts_or_is_old_is_refused(plain):
    """The log would go with what is evicted."""
    plain.config_set("maxmemory", "1gb")
    plain.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(RecordingError, match="evicts any key when it is full"):
            redis_log.begin(plain, 7, "here")
    finally:
        plain.config_set("maxmemory-policy", "noeviction")
        plain.config_set("maxmemory", "0")
    from helios.testing.redis_log.log import refuse_unfit  # noqa: PLC0415 - shown what no server here says

    with pytest.raises(RecordingError, match=r"this Redis is 6\.2\.1, too old"):
        refuse_unfit({"redis_version": "6.2.1"})


def test_a_full_redis_writes_nothing_unrecorded(free_run, recorded, plain):
    """Where no image can be saved, the write fails too; an undo is not refused."""
    recorded.set("number", 1)
    plain.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(OutOfMemoryError):
            recorded.delete("string")
        with pytest.raises(OutOfMemoryError):
            recorded.zpopmin("sorted")
        redis_log.undo(plain, free_run)
    finally:
        plain.config_set("maxmemory", "0")
    assert (b"\x00\xff", 300, b"41") == (plain.get("string"), plain.zcard("sorted"), plain.get("number"))


def test_a_user_who_may_not_write_the_log_writes_nothing(valkey, free_run, plain):
    """The sentence says what the user needs; with it, the user's own limits hold as ever."""
    plain.acl_setuser("bot", enabled=True, nopass=True, keys=["app:*"], categories=["+@all"])
    url = valkey.render_as_string(hide_password=False)
    made = RecordedRedis.from_url(url, username="bot", password="any")  # noqa: S106 - the user has none
    with pytest.raises(RecordingError, match="~helios:undo:"):
        made.set("app:1", 1)
    plain.acl_setuser("bot", enabled=True, nopass=True, keys=["app:*", "helios:undo:*"], categories=["+@all"])
    made.set("app:1", 1)
    with pytest.raises(NoPermissionError):
        made.set("string", 1)
    made.close()
    redis_log.undo(plain, free_run)
    assert (0, b"\x00\xff") == (plain.exists("app:1"), plain.get("string"))
    plain.acl_deluser("bot")


def test_a_server_that_starts_again_changes_nothing(own_home, monkeypatch):
    """It stores what it reads in another order; the run's own keys are still told from a neighbour's."""
    server = servers.Valkey(
        own_home, binaries=CHOSEN.helios_redis_bin, durable=False, options={"enable-debug-command": "yes"}
    )
    url = server.acquire()
    neighbour, made = client(url), RecordedRedis.from_url(url.render_as_string(hide_password=False))
    furnish(neighbour)
    before = redis_log.digest(neighbour)
    redis_log.begin(neighbour, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    for name in neighbour.scan_iter():
        if not name.startswith(b"helios:"):
            made.execute_command("COPY", name, b"copy of " + name)
            made.expire(name, 1000)
    made.sadd("set", "one more")
    made.execute_command("DEBUG", "RELOAD")
    made.hset("hash", "field", 1)
    assert "kept" not in {each.what for each in redis_log.undo(neighbour, 7)}
    assert (0, before) == (redis_log.close(neighbour, 7), redis_log.digest(neighbour))
    neighbour.close()
    made.close()
    end(server)


WRITER = """
import sys, itertools
from helios.label.clients import RecordedRedis
made = RecordedRedis.from_url(sys.argv[1])
print("ready", flush=True)
for each in itertools.count():
    name = f"key {each % 50}"
    made.set(name, each)
    made.zadd("sorted", {name: each})
    made.zpopmin("sorted", 1)
    made.pipeline().delete("string").rpush("list", each).hset("hash", name, each).expire("set", 1000 + each).execute()
    made.pipeline().zpopmax("sorted").rename("list", "moved").rename("moved", "list").execute()
    made.set("string", each)
"""


def started(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ
    )


def ended(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_killed_writers_are_undone(valkey, plain, run):
    """SIGKILL at any moment leaves a write with its image, or neither."""
    url = valkey.render_as_string(hide_password=False)
    before = redis_log.digest(plain)
    for delay in (0.0, 0.013, 0.031):
        writers = [started(WRITER, url) for _ in range(2)]
        for each in writers:
            assert b"ready\n" == each.stdout.readline()
        until(lambda: plain.exists("key 1"))
        time.sleep(delay)  # the moment of the kill is what varies
        for each in writers:
            ended(each)
        redis_log.undo(plain, run)
        assert before == redis_log.digest(plain)


UNDOER = """
import sys, redis
from helios.testing import redis_log
from helios.testing.redis_log import log
log.BATCH = 20
print("ready", flush=True)
redis_log.undo(redis.Redis.from_url(sys.argv[1]), 7)
"""


def test_a_killed_undo_is_run_again(valkey, plain, run, recorded):
    """SIGKILL between any two batches; the next undo does the rest."""
    before = redis_log.digest(plain)
    for left in (9900, 5000, 100):
        for first in range(0, 10000, 1000):
            pipe = recorded.pipeline(transaction=False)
            for each in range(first, first + 1000):
                pipe.set(f"new {each}", each)
            pipe.execute()
        recorded.set("string", "x")
        undoing = started(UNDOER, valkey.render_as_string(hide_password=False))
        assert b"ready\n" == undoing.stdout.readline()
        until(lambda left=left: plain.hlen("helios:undo:{log}:7:0") <= left)
        undoing.send_signal(signal.SIGSTOP)
        ended(undoing)
        redis_log.undo(plain, run)
        assert before == redis_log.digest(plain)
