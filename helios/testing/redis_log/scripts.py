"""Lua scripts of the kit: run by their hash, sent whole only where the server does not know them."""

import hashlib
from collections.abc import Mapping
from typing import Any

from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError, RedisError

from helios.label.images import PREFIX
from helios.label.slots import HEAD
from helios.testing.redis_log.places import Client, by_node, patiently

Argument = str | bytes | int


class Script:
    """A script that works from database 0, where the log stands, whatever database the client has chosen."""

    def __init__(self, lua: str) -> None:
        self.lua = f"redis.call('SELECT', 0){HEAD}{lua}"
        self.sha = hashlib.sha1(self.lua.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Client, *arguments: Argument, at: str | None = PREFIX) -> Any:  # noqa: ANN401 - an answer of Redis
        """Run it; answers are bytes, whatever the client makes of its own.

        Args:
            client: a plain client.
            arguments: what the script is given.
            at: how the keys of the log begin that it works on; None: no log at all.

        """
        options = {NEVER_DECODE: True}
        keys = (0,) if at is None else (1, at)

        def ask() -> Any:  # noqa: ANN401 - an answer of Redis
            try:
                return client.execute_command("EVALSHA", self.sha, *keys, *arguments, **options)
            except NoScriptError:
                return client.execute_command("EVAL", self.lua, *keys, *arguments, **options)

        return patiently(client, ask)

    def run_each(self, client: Client, calls: Mapping[str, tuple[Argument, ...]]) -> dict[str, Any]:
        """Run it on several logs, each with arguments of its own; on a Redis Cluster those of a node together."""
        found: dict[str, Any] = {}
        for node, places in by_node(client, calls).items():
            with node.pipeline(transaction=False) as pipe:
                for at in places:
                    pipe.execute_command("EVALSHA", self.sha, 1, at, *calls[at], **{NEVER_DECODE: True})
                try:
                    found.update(zip(places, pipe.execute(raise_on_error=False), strict=True))
                except RedisError:
                    continue  # alone, each is looked for where it is by now
        # a script that the node does not know, a slot that is elsewhere
        unanswered = [at for at in calls if isinstance(found.get(at), RedisError | None)]
        return found | {at: self.run(client, *calls[at], at=at) for at in unanswered}


def shown(field: bytes) -> str:
    """Write `<database>:<key>` for people, whatever bytes are in it; different keys look different."""
    return field.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
