"""Redis clients that record what they write while the process is labelled; without a label they are redis-py's own."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from redis import Redis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE, Pipeline
from redis.exceptions import NoScriptError, ResponseError

from helios import label
from helios.label.commands import Answer, Argument, Connection, catalogue_of
from helios.label.recording import Recording, Steps, Wait, checked
from helios.label.shortcuts import shortcut

Callbacks = Any  # redis-py's table of them
Commands = Any  # of a pipeline, as redis-py keeps them: each with its arguments and its options

CHUNK = 500  # commands of a pipeline that is no transaction, run as one unit


class RecordedRedis(Redis):
    """A Redis client of a process that may belong to a test run."""

    environment = "development"
    watching = False

    def believing(self, environment: str) -> Self:
        """Tell the client what its process believes to be; in production a label is refused."""
        label.permitted_run(environment)
        self.environment = environment
        return self

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "RecordedPipeline":
        """Make a pipeline that records too."""
        made = RecordedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        return made.believing(self.environment)

    def client(self) -> Self:
        """Make a client that keeps one connection, and records too."""
        made: Self = super().client()
        return made.believing(self.environment)

    def _send_command_parse_response(
        self, conn: Connection, command_name: str, *args: Argument, **options: Answer
    ) -> Answer:
        run = label.run()
        if run is None:
            return super()._send_command_parse_response(conn, command_name, *args, **options)
        if self.environment == "production":
            label.permitted_run(self.environment)
        catalogue = catalogue_of(conn)
        if command_name in catalogue.harmless:
            return super()._send_command_parse_response(conn, command_name, *args, **options)
        packed = shortcut(run, conn, catalogue, args)
        if packed is not None and EMPTY_RESPONSE not in options:
            conn.send_packed_command(packed)
            try:
                return self.parse_response(conn, command_name, **options)
            except NoScriptError:
                pass  # the way below sends the script whole
            except ResponseError as error:
                raise checked(run, error) from None
        recording = Recording(run, conn)
        write = drive(conn, recording.understand(args))
        if not write.keys:
            return super()._send_command_parse_response(conn, command_name, *args, **options)
        method = recording.immediate if self.watching else recording.single
        reply = drive(conn, method(write, decode=NEVER_DECODE not in options))
        return answer_of(self.response_callbacks, command_name, reply, options)


class RecordedPipeline(RecordedRedis, Pipeline):
    """A pipeline that records; it is one unit with its images, transaction or not."""

    def _execute_transaction(self, connection: Connection, commands: Commands, raise_on_error: bool) -> list[Answer]:
        return self._recorded(connection, commands, raise_on_error=raise_on_error, plainly=super()._execute_transaction)

    def _execute_pipeline(self, connection: Connection, commands: Commands, raise_on_error: bool) -> list[Answer]:
        plainly = super()._execute_pipeline
        if len(commands) <= CHUNK or label.run() is None:
            return self._recorded(connection, commands, raise_on_error=raise_on_error, plainly=plainly)
        found: list[Answer] = []
        for first in range(0, len(commands), CHUNK):
            found += self._recorded(connection, commands[first : first + CHUNK], raise_on_error=False, plainly=plainly)
        if raise_on_error:
            self.raise_first_error(commands, found)
        return found

    def _recorded(
        self, connection: Connection, commands: Commands, *, raise_on_error: bool, plainly: Callable[..., Answer]
    ) -> list[Answer]:
        run = label.permitted_run(self.environment)
        replies = None
        if run is not None:
            steps = Recording(run, connection).pipelined(
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


def drive(connection: Connection, steps: Steps) -> Answer:
    """Send what the steps ask for over a connection, and hand them the replies, errors among them."""
    replies = None
    try:
        while True:
            step = steps.send(replies)
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                continue
            connection.send_packed_command(step.packed or connection.pack_commands(step.commands))
            replies = [read(connection, decode=step.decode) for _ in step.commands]
    except StopIteration as done:
        return done.value


def read(connection: Connection, *, decode: bool) -> Answer:
    """Read one reply; an error is one too."""
    try:
        return connection.read_response(disable_decoding=not decode)
    except ResponseError as error:
        return error


def answer_of(callbacks: Callbacks, name: str, reply: Answer, options: Mapping[str, Answer]) -> Answer:
    """Make of a reply what redis-py makes of it."""
    if isinstance(reply, ResponseError) and EMPTY_RESPONSE in options:
        return options[EMPTY_RESPONSE]
    if isinstance(reply, Exception):
        raise reply
    if name not in callbacks:
        return reply
    known = {key: value for key, value in options.items() if key not in {EMPTY_RESPONSE, NEVER_DECODE, "keys"}}
    return callbacks[name](reply, **known)


def answers_of(callbacks: Callbacks, commands: Commands, replies: Sequence[Answer]) -> list[Answer]:
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
