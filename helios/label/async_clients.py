"""The same Redis clients for asyncio."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Self

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import NoScriptError, ResponseError

from helios import label
from helios.label.clients import CHUNK, Commands, answer_of, answers_of
from helios.label.commands import Answer, Argument, Connection, catalogue_of
from helios.label.recording import Recording, Steps, Wait, checked
from helios.label.shortcuts import shortcut


class AsyncRecordedRedis(Redis):
    """An asynchronous Redis client of a process that may belong to a test run."""

    environment = "development"
    watching = False

    def believing(self, environment: str) -> Self:
        """Tell the client what its process believes to be; in production a label is refused."""
        label.permitted_run(environment)
        self.environment = environment
        return self

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "AsyncRecordedPipeline":
        """Make a pipeline that records too."""
        made = AsyncRecordedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        return made.believing(self.environment)

    def client(self) -> Self:
        """Make a client that keeps one connection, and records too."""
        made: Self = super().client()  # type: ignore[assignment] # it is of this class
        return made.believing(self.environment)

    async def _send_command_parse_response(
        self, conn: Connection, command_name: str, *args: Argument, **options: Answer
    ) -> Answer:
        run = label.run()
        if run is None:
            return await super()._send_command_parse_response(conn, command_name, *args, **options)
        if self.environment == "production":
            label.permitted_run(self.environment)
        catalogue = catalogue_of(conn)
        if command_name in catalogue.harmless:
            return await super()._send_command_parse_response(conn, command_name, *args, **options)
        packed = shortcut(run, conn, catalogue, args)
        if packed is not None and EMPTY_RESPONSE not in options:
            await conn.send_packed_command(packed)
            try:
                return await self.parse_response(conn, command_name, **options)
            except NoScriptError:
                pass  # the way below sends the script whole
            except ResponseError as error:
                raise checked(run, error) from None
        recording = Recording(run, conn)
        write = await drive(conn, recording.understand(args))
        if not write.keys:
            return await super()._send_command_parse_response(conn, command_name, *args, **options)
        method = recording.immediate if self.watching else recording.single
        reply = await drive(conn, method(write, decode=NEVER_DECODE not in options))
        answer = answer_of(self.response_callbacks, command_name, reply, options)
        return await answer if inspect.isawaitable(answer) else answer


class AsyncRecordedPipeline(AsyncRecordedRedis, Pipeline):  # type: ignore[misc] # redis-py's own bases disagree
    """A pipeline that records; it is one unit with its images, transaction or not."""

    async def _execute_transaction(
        self, connection: Connection, commands: Commands, raise_on_error: bool
    ) -> list[Answer]:
        return await self._recorded(
            connection, commands, raise_on_error=raise_on_error, plainly=super()._execute_transaction
        )

    async def _execute_pipeline(self, connection: Connection, commands: Commands, raise_on_error: bool) -> list[Answer]:
        plainly = super()._execute_pipeline
        if len(commands) <= CHUNK or label.run() is None:
            return await self._recorded(connection, commands, raise_on_error=raise_on_error, plainly=plainly)
        found: list[Answer] = []
        for first in range(0, len(commands), CHUNK):
            found += await self._recorded(
                connection, commands[first : first + CHUNK], raise_on_error=False, plainly=plainly
            )
        if raise_on_error:
            self.raise_first_error(commands, found)
        return found

    async def _recorded(
        self,
        connection: Connection,
        commands: Commands,
        *,
        raise_on_error: bool,
        plainly: Callable[..., Awaitable[Answer]],
    ) -> list[Answer]:
        run = label.permitted_run(self.environment)
        replies = None
        if run is not None:
            steps = Recording(run, connection).pipelined(
                [arguments for arguments, _ in commands],
                watching=self.watching,
                decode=not any(NEVER_DECODE in options for _, options in commands),
            )
            replies = await drive(connection, steps)
        if replies is None:
            return list(await plainly(connection, commands, raise_on_error))
        self.watching = False
        if raise_on_error:
            self.raise_first_error(commands, replies)
        found = answers_of(self.response_callbacks, commands, replies)
        return [await each if inspect.isawaitable(each) else each for each in found]


async def drive(connection: Connection, steps: Steps) -> Answer:
    """Send what the steps ask for over a connection, and hand them the replies, errors among them."""
    replies = None
    try:
        while True:
            step = steps.send(replies)
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
                continue
            await connection.send_packed_command(step.packed or connection.pack_commands(step.commands))
            replies = [await read(connection, decode=step.decode) for _ in step.commands]
    except StopIteration as done:
        return done.value


async def read(connection: Connection, *, decode: bool) -> Answer:
    """Read one reply; an error is one too."""
    try:
        return await connection.read_response(disable_decoding=not decode)
    except ResponseError as error:
        return error
