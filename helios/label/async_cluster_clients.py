"""The same clients of a Redis Cluster for asyncio."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from redis.asyncio.cluster import (
    ClusterNode,
    ClusterPipeline,
    PipelineCommand,
    PipelineStrategy,
    RedisCluster,
    TransactionStrategy,
)
from redis.client import NEVER_DECODE
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
    WatchError,
)
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import TimeoutError as LateError
from redis.typing import EncodableT

from helios import label
from helios.label.async_clients import drive
from helios.label.clients import answer_of, answers_of
from helios.label.cluster_clients import PAUSE, TRIES, by_node, whole, without_targets
from helios.label.commands import Answer, Argument, Arguments, Connection, catalogue_of
from helios.label.recording import Recording, RunOverError, Write, checked, settled
from helios.label.slots import opening, slot_of

Job = Callable[[Connection], Awaitable[Answer]]


class AsyncRecordedCluster(RedisCluster):
    """An asynchronous client of a Redis Cluster, of a process that may belong to a test run."""

    environment = "development"

    def believing(self, environment: str) -> Self:
        """Tell the client what its process believes to be; in production a label is refused."""
        label.permitted_run(environment)
        self.environment = environment
        return self

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> "AsyncRecordedClusterPipeline":  # noqa: ANN401 - redis-py's own
        """Make a pipeline that records too."""
        super().pipeline(transaction, shard_hint)  # refuses what it refuses
        return AsyncRecordedClusterPipeline(self, transaction)  # type: ignore[abstract] # redis-py's own is so too

    async def _execute_command(self, target_node: ClusterNode, *args: EncodableT, **kwargs: Answer) -> Answer:
        run = label.permitted_run(self.environment)
        if run is None or args[0] in catalogue_of(target_node).harmless:
            return await super()._execute_command(target_node, *args, **kwargs)
        write = await self._over(target_node, lambda each: drive(each, Recording(run, each).understand(args)))
        if not write.keys:
            return await super()._execute_command(target_node, *args, **kwargs)
        slot, decode = slot_of(write.keys), NEVER_DECODE not in kwargs
        reply = await self._in_slot(
            run, slot, lambda each: drive(each, Recording(run, each, slot).single(write, decode=decode))
        )
        answer = answer_of(self.response_callbacks, str(args[0]), reply, kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    async def _over(self, node: ClusterNode, job: Job) -> Answer:
        """Do something over a connection to a node."""
        connection = node.acquire_connection()
        try:
            await node.disconnect_if_needed(connection)
            return await job(connection)
        except (LostConnectionError, LateError):
            await connection.disconnect()
            self._initialize = True
            raise
        finally:
            node.release(connection)

    async def _in_slot(self, run: int, slot: int, job: Job) -> Answer:
        """Do something where a slot is, and open its log where that is needed."""
        for _ in range(TRIES):
            node = self.nodes_manager.get_node_from_slot(slot)
            try:
                return settled(await self._over(node, job), slot)
            except MovedError as moved:
                await self.nodes_manager.move_slot(moved)
            except (AskError, TryAgainError) as error:
                settled(error, slot)
            except RunOverError:
                if not await self.open_logs(run, [slot]):
                    raise
        return settled(await self._over(self.nodes_manager.get_node_from_slot(slot), job), slot)

    async def open_logs(self, run: int, slots: Iterable[int]) -> bool:
        """Open the logs of slots for a run, and tell whether it goes on; where it is over, none is opened.

        Raises:
            RecordingError: this user may not.

        """
        steps, reply = opening(run, slots), None
        try:
            while True:
                command = steps.send(reply)
                reply = await super()._execute_command(
                    self.nodes_manager.get_node_from_slot(key_slot(str(command[3]).encode())), *command
                )
        except StopIteration as done:
            return bool(done.value)
        except ResponseError as error:
            raise checked(run, error) from None

    async def understood(self, run: int, commands: Sequence[Arguments]) -> list[Write]:
        """Find out what commands write, before any of them runs."""
        node = self.nodes_manager.default_node
        return list(await self._over(node, lambda each: drive(each, Recording(run, each).all_understood(commands))))

    async def write_in_slots(
        self, run: int, units: Mapping[int, Sequence[Write]], *, decode: bool
    ) -> dict[int, Answer]:
        """Run the commands of several slots, those of one as a unit; a unit that fails has an error for a reply."""
        found: dict[int, Answer] = {}
        for _ in range(TRIES):
            todo = [slot for slot in units if slot not in found or await self._to_be_tried_again(found[slot])]
            if not todo:
                break
            if self._initialize:
                await self.initialize()
            closed = [slot for slot in todo if isinstance(found.get(slot), RunOverError)]
            if closed and not await self.open_logs(run, closed):
                break
            for node, slots in by_node(self.nodes_manager, todo, found).items():
                found |= await self._at_node(run, node, {slot: units[slot] for slot in slots}, decode=decode)
        return found

    async def _at_node(
        self, run: int, node: ClusterNode, units: Mapping[int, Sequence[Write]], *, decode: bool
    ) -> dict[int, Answer]:
        try:
            found = await self._over(node, lambda each: drive(each, Recording(run, each).apart(units, decode=decode)))
        except (LostConnectionError, LateError) as error:
            return dict.fromkeys(units, error)
        return dict(found)

    async def _to_be_tried_again(self, reply: Answer) -> bool:
        """Tell whether another try may do better; looks again where the slots are."""
        errors = [each for each in reply if isinstance(each, MovedError)] if isinstance(reply, list) else [reply]
        match errors:
            case [MovedError() as moved, *_]:
                await self.nodes_manager.move_slot(moved)
            case [ClusterDownError() | SlotNotCoveredError()]:
                await asyncio.sleep(PAUSE)
                self._initialize = True
            case [LostConnectionError() | LateError() | RunOverError()]:
                pass  # what can be done for it is done by now, or before the next try
            case _:
                return False
        return True


class AsyncRecordedClusterPipeline(ClusterPipeline):
    """A pipeline that records; what it writes in one slot is one unit with its images, transaction or not."""

    cluster_client: AsyncRecordedCluster

    def __init__(self, client: AsyncRecordedCluster, transaction: bool | None = None) -> None:
        super().__init__(client, transaction)
        self._execution_strategy = RecordedTransaction(self) if transaction else RecordedStrategy(self)


class RecordedStrategy(PipelineStrategy):
    """How a pipeline that is no transaction is sent: split by slots."""

    _pipe: AsyncRecordedClusterPipeline

    async def _execute(  # type: ignore[override] # the client is the one that made the pipeline
        self,
        client: AsyncRecordedCluster,
        stack: list[PipelineCommand],
        raise_on_error: bool = True,
        allow_redirections: bool = True,
    ) -> list[Answer]:
        run = label.permitted_run(client.environment)
        if run is None:
            return await super()._execute(client, stack, raise_on_error, allow_redirections)
        slots: dict[int, list[tuple[PipelineCommand, Write]]] = {}
        for each, write in zip(stack, await client.understood(run, [each.args for each in stack]), strict=True):
            determine = client._determine_slot  # noqa: SLF001 - redis-py's own
            slot = slot_of(write.keys) if write.keys else await determine(*each.args)
            slots.setdefault(slot, []).append((each, write))
        units = {slot: [write for _, write in pairs] for slot, pairs in slots.items()}
        decode = not any(NEVER_DECODE in each.kwargs for each in stack)
        for slot, reply in (await client.write_in_slots(run, units, decode=decode)).items():
            commands = [each for each, _ in slots[slot]]
            called = [(each.args, without_targets(each.kwargs)) for each in commands]
            replies = answers_of(client.response_callbacks, called, whole(reply, slot, len(commands)))
            for each, answer in zip(commands, replies, strict=True):
                each.result = await answer if inspect.isawaitable(answer) else answer
        if raise_on_error:
            raise_first(self, stack, [each.result for each in stack])
        return [each.result for each in stack]


class RecordedTransaction(TransactionStrategy):
    """How a transaction is sent, whose keys are all of one slot."""

    _pipe: AsyncRecordedClusterPipeline

    async def _send_command_parse_response(
        self, connection: Connection, redis_node: ClusterNode, command_name: str, *args: Argument, **options: Answer
    ) -> Answer:
        client = self._pipe.cluster_client
        run = label.permitted_run(client.environment)
        if run is not None and command_name == "WATCH":
            await client.open_logs(run, self._pipeline_slots)  # now: later it would cost the watch
        elif run is not None and self._pipeline_slots:
            recording = Recording(run, connection, *self._pipeline_slots)
            write = await drive(connection, recording.understand(args))
            if write.keys:
                reply = await drive(connection, recording.immediate(write, decode=NEVER_DECODE not in options))
                answer = answer_of(client.response_callbacks, command_name, reply, options)
                return await answer if inspect.isawaitable(answer) else answer
        return await super()._send_command_parse_response(connection, redis_node, command_name, *args, **options)

    async def _execute_transaction(self, stack: list[PipelineCommand], raise_on_error: bool) -> list[Answer]:
        client = self._pipe.cluster_client
        run = label.permitted_run(client.environment)
        if run is None or len(self._pipeline_slots) != 1:
            return list(await super()._execute_transaction(stack, raise_on_error))
        replies = await self._recorded(run, [each.args for each in stack])
        if replies is None:
            return list(await super()._execute_transaction(stack, raise_on_error))
        self._executing = self._watching = False
        if raise_on_error:
            raise_first(self, stack, replies)
        called = [(each.args, each.kwargs) for each in stack]
        found = answers_of(client.response_callbacks, called, replies)
        return [await each if inspect.isawaitable(each) else each for each in found]

    async def _recorded(self, run: int, commands: Sequence[Arguments]) -> list[Answer] | None:
        (slot,) = self._pipeline_slots
        client = self._pipe.cluster_client
        while True:
            self._executing = True
            _, connection = self._get_client_and_connection_for_transaction()
            steps = Recording(run, connection, slot).pipelined(commands, watching=self._watching, decode=True)
            try:
                replies: list[Answer] | None = await drive(connection, steps)
            except RunOverError:
                if not await client.open_logs(run, [slot]):
                    raise
                if self._watching:  # its EXEC has ended the watch, and nothing was written
                    raise WatchError("Watched variable changed.") from None
            else:
                return replies


def raise_first(strategy: Any, stack: Sequence[PipelineCommand], replies: Sequence[Answer]) -> None:  # noqa: ANN401 - either
    """Raise the first error among a pipeline's replies, as redis-py does."""
    for each, reply in zip(stack, replies, strict=True):
        if isinstance(reply, Exception):
            strategy._annotate_exception(reply, each.position + 1, each.args)  # noqa: SLF001 - redis-py's own
            raise reply
