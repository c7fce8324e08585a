"""The same Redis clients for asyncio."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import NoScriptError, ResponseError

from helios import label
from helios.label import recording
from helios.label.clients import CHUNK, answer_of, answers_of
from helios.label.commands import catalogue_of
from helios.label.recording import Steps, Wait


class AsyncRecordedRedis(Redis):
    """An asynchronous Redis client of a process that may belong to a test run."""

    environment = "development"

    def believing(self, environment: str) -> Self:
        """Tell the client what its process believes to be; in production a label is refused."""
        label.permitted_run(environment)
        self.environment = environment
        return self

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "AsyncRecordedPipeline":
        """Make a pipeline that records too."""
        made = AsyncRecordedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.environment = self.environment
        return made

    def client(self) -> "AsyncRecordedRedis":
        """Make a client that keeps one connection, and records too."""
        made: AsyncRecordedRedis = super().client()
        made.environment = self.environment
        return made

    async def _send_command_parse_response(self, conn: Any, command_name: str, *args: Any, **options: Any) -> Any:
        run = label.run()
        if run is not None:
            label.permitted_run(self.environment)
            packed = recording.shortcut(catalogue_of(conn), run, conn, args)
            if packed is not None and EMPTY_RESPONSE not in options:
                await conn.send_packed_command(packed)
                try:
                    return await self.parse_response(conn, command_name, **options)
                except NoScriptError:
                    pass  # the way below sends the script whole
                except ResponseError as error:
                    raise recording.checked(run, error) from None
            write = await drive(conn, recording.understand(catalogue_of(conn), args, conn.encoder.encode))
            if write.keys:
                steps = recording.single(run, conn.db, write, decode=NEVER_DECODE not in options)
                answer = answer_of(self.response_callbacks, command_name, await drive(conn, steps), options)
                return await answer if inspect.isawaitable(answer) else answer
        return await super()._send_command_parse_response(conn, command_name, *args, **options)


class AsyncRecordedPipeline(Pipeline):
    """A pipeline that records; it is one unit with its images, transaction or not."""

    environment = "development"

    async def _send_command_parse_response(self, conn: Any, command_name: str, *args: Any, **options: Any) -> Any:
        run = label.run()
        if run is not None:
            label.permitted_run(self.environment)
            packed = recording.shortcut(catalogue_of(conn), run, conn, args)
            if packed is not None and EMPTY_RESPONSE not in options:
                await conn.send_packed_command(packed)
                try:
                    return await self.parse_response(conn, command_name, **options)
                except NoScriptError:
                    pass  # the way below sends the script whole
                except ResponseError as error:
                    raise recording.checked(run, error) from None
            write = await drive(conn, recording.understand(catalogue_of(conn), args, conn.encoder.encode))
            if write.keys:
                steps = recording.immediate(run, conn.db, write, decode=NEVER_DECODE not in options)
                answer = answer_of(self.response_callbacks, command_name, await drive(conn, steps), options)
                return await answer if inspect.isawaitable(answer) else answer
        return await super()._send_command_parse_response(conn, command_name, *args, **options)

    async def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> list[Any]:
        return await self._recorded(connection, commands, raise_on_error, super()._execute_transaction)

    async def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> list[Any]:
        plainly = super()._execute_pipeline
        if len(commands) <= CHUNK or label.run() is None:
            return await self._recorded(connection, commands, raise_on_error, plainly)
        found: list[Any] = []
        for first in range(0, len(commands), CHUNK):
            found += await self._recorded(connection, commands[first : first + CHUNK], False, plainly)
        if raise_on_error:
            self.raise_first_error(commands, found)
        return found

    async def _recorded(
        self, connection: Any, commands: Any, raise_on_error: bool, plainly: Callable[..., Awaitable[Any]]
    ) -> list[Any]:
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
            replies = await drive(connection, steps)
        if replies is None:
            return list(await plainly(connection, commands, raise_on_error))
        self.watching = False
        if raise_on_error:
            self.raise_first_error(commands, replies)
        found = answers_of(self.response_callbacks, commands, replies)
        return [await each if inspect.isawaitable(each) else each for each in found]


async def drive(connection: Any, steps: Steps) -> Any:
    """Send what the steps ask for over a connection, and hand them the replies, errors among them."""
    replies = None
    try:
        while True:
            step = steps.send(replies)
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
                continue
            await connection.send_packed_command(step.packed or connection.pack_commands(step.commands))
            replies = [await read(connection, step.decode) for _ in step.commands]
    except StopIteration as done:
        return done.value


async def read(connection: Any, decode: bool) -> Any:
    """Read one reply; an error is one too."""
    try:
        return await connection.read_response(disable_decoding=not decode)
    except ResponseError as error:
        return error
