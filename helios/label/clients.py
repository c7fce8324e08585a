"""Redis clients that record what they write while the process is labelled; without a label they are redis-py's own."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from redis import Redis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE, Pipeline
from redis.exceptions import NoScriptError, ResponseError

from helios import label
from helios.label import recording
from helios.label.commands import catalogue_of
from helios.label.recording import Steps, Wait

CHUNK = 500  # commands of a pipeline that is no transaction, run as one unit


class RecordedRedis(Redis):
    """A Redis client of a process that may belong to a test run."""

    environment = "development"

    def believing(self, environment: str) -> Self:
        """Tell the client what its process believes to be; in production a label is refused."""
        label.permitted_run(environment)
        self.environment = environment
        return self

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> "RecordedPipeline":
        """Make a pipeline that records too."""
        made = RecordedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.environment = self.environment
        return made

    def client(self) -> "RecordedRedis":
        """Make a client that keeps one connection, and records too."""
        made: RecordedRedis = super().client()
        made.environment = self.environment
        return made

    def _send_command_parse_response(self, conn: Any, command_name: str, *args: Any, **options: Any) -> Any:
        run = label.run()
        if run is not None:
            label.permitted_run(self.environment)
            packed = recording.shortcut(catalogue_of(conn), run, conn, args)
            if packed is not None and EMPTY_RESPONSE not in options:
                conn.send_packed_command(packed)
                try:
                    return self.parse_response(conn, command_name, **options)
                except NoScriptError:
                    pass  # the way below sends the script whole
                except ResponseError as error:
                    raise recording.checked(run, error) from None
            write = drive(conn, recording.understand(catalogue_of(conn), args, conn.encoder.encode))
            if write.keys:
                steps = recording.single(run, conn.db, write, decode=NEVER_DECODE not in options)
                return answer_of(self.response_callbacks, command_name, drive(conn, steps), options)
        return super()._send_command_parse_response(conn, command_name, *args, **options)


class RecordedPipeline(Pipeline):
    """A pipeline that records; it is one unit with its images, transaction or not."""

    environment = "development"

    def _send_command_parse_response(self, conn: Any, command_name: str, *args: Any, **options: Any) -> Any:
        run = label.run()
        if run is not None:
            label.permitted_run(self.environment)
            packed = recording.shortcut(catalogue_of(conn), run, conn, args)
            if packed is not None and EMPTY_RESPONSE not in options:
                conn.send_packed_command(packed)
                try:
                    return self.parse_response(conn, command_name, **options)
                except NoScriptError:
                    pass  # the way below sends the script whole
                except ResponseError as error:
                    raise recording.checked(run, error) from None
            write = drive(conn, recording.understand(catalogue_of(conn), args, conn.encoder.encode))
            if write.keys:
                steps = recording.immediate(run, conn.db, write, decode=NEVER_DECODE not in options)
                return answer_of(self.response_callbacks, command_name, drive(conn, steps), options)
        return super()._send_command_parse_response(conn, command_name, *args, **options)

    def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> list[Any]:
        return self._recorded(connection, commands, raise_on_error, super()._execute_transaction)

    def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> list[Any]:
        plainly = super()._execute_pipeline
        if len(commands) <= CHUNK or label.run() is None:
            return self._recorded(connection, commands, raise_on_error, plainly)
        found: list[Any] = []
        for first in range(0, len(commands), CHUNK):
            found += self._recorded(connection, commands[first : first + CHUNK], False, plainly)
        if raise_on_error:
            self.raise_first_error(commands, found)
        return found

    def _recorded(self, connection: Any, commands: Any, raise_on_error: bool, plainly: Callable[..., Any]) -> list[Any]:
        run = label.permitted_run(self.environment)
        replies = None
        if run is not None:
            steps = recording.pipelined(
                catalogue_of(connection),
                run,
                connection,
                [arguments for arguments, _ in commands],
                watching=self.watching,
                decode=not any(NEVER_DECODE in options for _, options in commands),
            )
            replies = drive(connection, steps)
        if replies is None:
            return list(plainly(connection, commands, raise_on_error))
        self.watching = False
        if raise_on_error:
            self.raise_first_error(commands, replies)
        return answers_of(self.response_callbacks, commands, replies)


def drive(connection: Any, steps: Steps) -> Any:
    """Send what the steps ask for over a connection, and hand them the replies, errors among them."""
    replies = None
    try:
        while True:
            step = steps.send(replies)
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                continue
            connection.send_packed_command(step.packed or connection.pack_commands(step.commands))
            replies = [read(connection, step.decode) for _ in step.commands]
    except StopIteration as done:
        return done.value


def read(connection: Any, decode: bool) -> Any:
    """Read one reply; an error is one too."""
    try:
        return connection.read_response(disable_decoding=not decode)
    except ResponseError as error:
        return error


def answer_of(callbacks: Any, name: str, reply: Any, options: dict[str, Any]) -> Any:
    """Make of a reply what redis-py makes of it."""
    if isinstance(reply, ResponseError) and EMPTY_RESPONSE in options:
        return options[EMPTY_RESPONSE]
    if isinstance(reply, Exception):
        raise reply
    if name not in callbacks:
        return reply
    known = {key: value for key, value in options.items() if key not in {EMPTY_RESPONSE, NEVER_DECODE, "keys"}}
    return callbacks[name](reply, **known)


def answers_of(callbacks: Any, commands: Any, replies: Sequence[Any]) -> list[Any]:
    """Make of a pipeline's replies what redis-py makes of them; errors stay among them."""
    found = []
    for reply, (arguments, options) in zip(replies, commands, strict=True):
        if isinstance(reply, Exception):
            found.append(reply)
        elif options:
            found.append(answer_of(callbacks, arguments[0], reply, options))
        else:
            callback = callbacks.get(arguments[0])
            found.append(reply if callback is None else callback(reply))
    return found
