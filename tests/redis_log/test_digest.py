"""Equal contents have equal digests, and any difference shows."""

import uuid

import pytest

from helios.testing import redis_log


def test_equal_contents_have_equal_digests(plain):
    """Whatever the encoding: grown and shrunk, restored, or written in another order."""
    before = redis_log.digest(plain)
    for name in plain.scan_iter():
        expiry = plain.pexpiretime(name)
        plain.restore(name, max(expiry, 0), plain.dump(name), replace=True, absttl=expiry > 0)
    plain.sadd("small set", *range(1000))
    plain.srem("small set", *range(1000))
    plain.hset("small hash", mapping={str(each): "x" * 100 for each in range(1000)})
    plain.hdel("small hash", *[str(each) for each in range(1000)])
    plain.pfcount("counter")
    assert before == redis_log.digest(plain)


@pytest.mark.parametrize(
    "words",
    [
        ("SET", "string", "other"),
        ("RPUSH", "list", 9),
        ("LSET", "list", 0, 1),
        ("SADD", "set", "x"),
        ("ZINCRBY", "sorted", 0.001, "member 1"),
        ("HSET", "hash", "field 1", "y"),
        ("HPEXPIREAT", "lapsing", 4102444800001, "FIELDS", 1, "a"),
        ("PEXPIREAT", "expiring", 4102444800001),
        ("PERSIST", "expiring"),
        ("XADD", "stream", "*", "b", 1),
        ("XGROUP", "CREATECONSUMER", "stream", "group", "me"),
        ("XREADGROUP", "GROUP", "group", "me", "STREAMS", "stream", ">"),
        ("PFADD", "counter", "x", "y", "z"),
        ("DEL", "numbers"),
        ("SET", "new", 1),
    ],
    ids=str,
)
def test_any_difference_shows_in_the_digest(words, plain):
    """One changed element, expiry, consumer, key: the digest of exactly that key differs."""
    before = redis_log.digest(plain)
    plain.execute_command(*words)
    after = redis_log.digest(plain)
    name = words[2] if words[0] == "XGROUP" else "stream" if words[0] == "XREADGROUP" else words[1]
    assert {f"0:{name}"} == {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)}


def test_large_keys_have_digests_too(plain):
    """Read in pages; the order of a list matters, that of a set does not."""
    members = [f"member {each}" for each in range(6000)]
    for name, order in (("one", members), ("two", members[::-1])):
        plain.sadd(f"set {name}", *order)
        plain.rpush(f"list {name}", *order)
        plain.zadd(f"sorted {name}", dict.fromkeys(order, 1))
        plain.hset(f"hash {name}", mapping=dict.fromkeys(order, 1))
    plain.hpexpireat("hash two", 4102444800000, "member 5")
    found = redis_log.digest(plain)
    assert (True, True) == tuple(found[f"0:{kind} one"] == found[f"0:{kind} two"] for kind in ("set", "sorted"))
    assert (False, False) == tuple(found[f"0:{kind} one"] == found[f"0:{kind} two"] for kind in ("list", "hash"))


def test_bookkeeping_is_no_part_of_the_digest(plain):
    """Neither the log's keys nor what is left out by prefix."""
    before = redis_log.digest(plain)
    redis_log.begin(plain, 7, "here")
    plain.set("helios:trading.helios_trading:{0}:tickers:1", uuid.uuid4().hex)
    assert before == redis_log.digest(plain, excluding=["helios:trading.helios_trading:"])
    redis_log.close(plain, 7)
