"""One key of every kind that Redis knows, for tests of what has to come back."""


def furnish(neighbour):
    neighbour.set("string", b"\x00\xff")
    neighbour.set("number", 41)
    neighbour.set("expiring", "v", pxat=4102444800000)
    neighbour.rpush("list", *range(5))
    neighbour.rpush("long list", *["x" * 100] * 200)
    neighbour.sadd("numbers", 1, 2, 3)
    neighbour.sadd("small set", "a", "b")
    neighbour.sadd("set", *[f"member {each}" for each in range(300)])
    neighbour.zadd("small sorted", {"a": 1.5, "b": 2})
    neighbour.zadd("sorted", {f"member {each}": each / 7 for each in range(300)})
    neighbour.hset("small hash", mapping={"a": 1, "b": 2})
    neighbour.hset("hash", mapping={f"field {each}": "x" * 70 for each in range(300)})
    neighbour.hset("lapsing", mapping={"a": 1, "b": 2})
    neighbour.execute_command("HPEXPIREAT", "lapsing", 4102444800000, "FIELDS", 1, "a")
    neighbour.xadd("stream", {"a": 1}, id="1-1")
    neighbour.xgroup_create("stream", "group", 0)
    neighbour.pfadd("counter", *range(100))
    neighbour.geoadd("places", (13.4, 52.5, "Berlin"))
    neighbour.set(b"\xff\x00 bytes", "v")
