"""Lua scripts of the kit: run by their hash, sent whole only where the server does not know them."""

import hashlib
from typing import Any

from redis import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError


class Script:
    """A script that works from database 0, where the log stands, whatever database the client has chosen."""

    def __init__(self, lua: str) -> None:
        self.lua = f"redis.call('SELECT', 0)\n{lua}"
        self.sha = hashlib.sha1(self.lua.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Redis, *arguments: str | bytes | int) -> Any:  # noqa: ANN401 - an answer of Redis
        """Run it; answers are bytes, whatever the client makes of its own."""
        options = {NEVER_DECODE: True}
        try:
            return client.execute_command("EVALSHA", self.sha, 0, *arguments, **options)
        except NoScriptError:
            return client.execute_command("EVAL", self.lua, 0, *arguments, **options)


def shown(field: bytes) -> str:
    """Write `<database>:<key>` for people, whatever bytes are in it; different keys look different."""
    return field.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
