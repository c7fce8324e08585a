"""Clients of a Redis Cluster that record what they write while the process is labelled."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from redis.client import NEVER_DECODE, Redis
from redis.cluster import (
    ClusterNode,
    ClusterPipeline,
    PipelineCommand,
    PipelineStrategy,
    RedisCluster,
    TransactionStrategy,
)
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

from helios import label
from helios.label.clients import Callbacks, answer_of, answers_of, drive
from helios.label.commands import Answer, Argument, Arguments, Connection, catalogue_of
from helios.label.recording import Recording, RunOverError, Write, checked, raised, settled
from helios.label.slots import opening, slot_of

Job = Callable[[Connection], Answer]
TRIES = 16  # as often as redis-py follows a slot
PAUSE = 0.25  # seconds, as redis-py waits for a cluster that is down


class Cluster(RedisCluster):
    """redis-py's client of a Redis Cluster, but that closing it closes its connections."""

    def close(self) -> None:
        """Close every connection."""
        if hasattr(self, "nodes_manager"):  # not where it has failed to connect
            self.disconnect_connection_pools()
        super().close()


class RecordedCluster(Cluster):
    """A client of a Redis Cluster, of a process that may belong to a test run."""

    environment = "development"

    def believing(self, environment: str) -> Self:
        """Tell the client what its process believes to be; in production a label is refused."""
        label.permitted_run(environment)
        self.environment = environment
        return self

    def pipeline(self, transaction: bool | None = None, shard_hint: str | None = None) -> "RecordedClusterPipeline":
        """Make a pipeline that records too."""
        ordinary = super().pipeline(transaction, shard_hint)
        made = RecordedClusterPipeline(
            nodes_manager=self.nodes_manager,
            commands_parser=self.commands_parser,
            startup_nodes=ordinary.startup_nodes,
            result_callbacks=self.result_callbacks,
            cluster_response_callbacks=self.cluster_response_callbacks,
            read_from_replicas=self.read_from_replicas,
            load_balancing_strategy=self.load_balancing_strategy,
            reinitialize_steps=self.reinitialize_steps,
            retry=self.retry,
            lock=self._lock,
            transaction=transaction,
        )
        return made.believing(self.environment)

    def _execute_command(self, target_node: ClusterNode, *args: Argument, **kwargs: Answer) -> Answer:
        run = label.permitted_run(self.environment)
        if run is None or args[0] in catalogue_of(target_node).harmless:
            return super()._execute_command(target_node, *args, **kwargs)
        write = self._over(
            target_node, lambda connection: drive(connection, Recording(run, connection).understand(args))
        )
        if not write.keys:
            return super()._execute_command(target_node, *args, **kwargs)
        slot, decode = slot_of(write.keys), NEVER_DECODE not in kwargs
        reply = self._in_slot(
            run,
            slot,
            lambda connection: drive(connection, Recording(run, connection, slot).single(write, decode=decode)),
        )
        return answer_of(self.own_callbacks, str(args[0]), reply, kwargs)

    @property
    def own_callbacks(self) -> Callbacks:
        """What redis-py makes of replies."""
        return self.get_redis_connection(self.get_default_node()).response_callbacks

    def _over(self, node: ClusterNode, job: Job) -> Answer:
        """Do something over a connection to a node."""
        pool, connection = self.get_redis_connection(node).connection_pool, None
        try:
            connection = pool.get_connection()
            return job(connection)
        except (LostConnectionError, LateError):
            if connection is not None:
                connection.disconnect()
            self.nodes_manager.initialize(last_failed_node_name=node.name)
            raise
        finally:
            if connection is not None:
                pool.release(connection)

    def _in_slot(self, run: int, slot: int, job: Job) -> Answer:
        """Do something where a slot is, and open its log where that is needed."""
        for _ in range(TRIES):
            node = self.nodes_manager.get_node_from_slot(slot)
            try:
                return settled(self._over(node, job), slot)
            except MovedError as moved:
                self.nodes_manager.move_slot(moved)
            except (AskError, TryAgainError) as error:
                settled(error, slot)
            except RunOverError:
                if not self.open_logs(run, [slot]):
                    raise
        return settled(self._over(self.nodes_manager.get_node_from_slot(slot), job), slot)

    def open_logs(self, run: int, slots: Iterable[int]) -> bool:
        """Open the logs of slots for a run, and tell whether it goes on; where it is over, none is opened.

        Raises:
            RecordingError: this user may not.

        """
        steps, reply = opening(run, slots), None
        try:
            while True:
                command = steps.send(reply)
                reply = super()._execute_command(self.get_node_from_key(command[3]), *command)
        except StopIteration as done:
            return bool(done.value)
        except ResponseError as error:
            raise checked(run, error) from None

    def understood(self, run: int, commands: Sequence[Arguments]) -> list[Write]:
        """Find out what commands write, before any of them runs."""
        return list(
            self._over(self.get_default_node(), lambda each: drive(each, Recording(run, each).all_understood(commands)))
        )

    def write_in_slots(self, run: int, units: Mapping[int, Sequence[Write]], *, decode: bool) -> dict[int, Answer]:
        """Run the commands of several slots, those of one as a unit; a unit that fails has an error for a reply."""
        found: dict[int, Answer] = {}
        for _ in range(TRIES):
            todo = [slot for slot in units if slot not in found or self._to_be_tried_again(found[slot])]
            if not todo:
                break
            closed = [slot for slot in todo if isinstance(found.get(slot), RunOverError)]
            if closed and not self.open_logs(run, closed):
                break
            for node, slots in by_node(self.nodes_manager, todo, found).items():
                found |= self._at_node(run, node, {slot: units[slot] for slot in slots}, decode=decode)
        return found

    def _at_node(
        self, run: int, node: ClusterNode, units: Mapping[int, Sequence[Write]], *, decode: bool
    ) -> dict[int, Answer]:
        try:
            found = self._over(node, lambda each: drive(each, Recording(run, each).apart(units, decode=decode)))
        except (LostConnectionError, LateError) as error:
            return dict.fromkeys(units, error)
        return dict(found)

    def _to_be_tried_again(self, reply: Answer) -> bool:
        """Tell whether another try may do better; looks again where the slots are."""
        errors = [each for each in reply if isinstance(each, MovedError)] if isinstance(reply, list) else [reply]
        match errors:
            case [MovedError() as moved, *_]:
                self.nodes_manager.move_slot(moved)
            case [ClusterDownError() | SlotNotCoveredError()]:
                time.sleep(PAUSE)
                self.nodes_manager.initialize()
            case [LostConnectionError() | LateError() | RunOverError()]:
                pass  # what can be done for it is done by now, or before the next try
            case _:
                return False
        return True


class RecordedClusterPipeline(RecordedCluster, ClusterPipeline):
    """A pipeline that records; what it writes in one slot is one unit with its images, transaction or not."""

    def __init__(self, *, transaction: bool | None = None, **options: Any) -> None:  # noqa: ANN401 - redis-py's own
        super().__init__(transaction=transaction, **options)
        self._execution_strategy = RecordedTransaction(self) if transaction else RecordedStrategy(self)


class RecordedStrategy(PipelineStrategy):
    """How a pipeline that is no transaction is sent: split by slots."""

    _pipe: RecordedClusterPipeline

    def _send_cluster_commands(
        self, stack: list[PipelineCommand], raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Answer]:
        run = label.permitted_run(self._pipe.environment)
        if run is None:
            return list(super()._send_cluster_commands(stack, raise_on_error, allow_redirections))
        start = time.monotonic()
        slots: dict[int, list[tuple[PipelineCommand, Write]]] = {}
        for each, write in zip(stack, self._pipe.understood(run, [each.args for each in stack]), strict=True):
            slot = slot_of(write.keys) if write.keys else int(self._pipe.determine_slot(*each.args) or 0)
            slots.setdefault(slot, []).append((each, write))
        units = {slot: [write for _, write in pairs] for slot, pairs in slots.items()}
        decode = not any(NEVER_DECODE in each.options for each in stack)
        for slot, reply in self._pipe.write_in_slots(run, units, decode=decode).items():
            commands = [each for each, _ in slots[slot]]
            called = [(each.args, without_targets(each.options)) for each in commands]
            replies = answers_of(self._pipe.own_callbacks, called, whole(reply, slot, len(commands)))
            for each, answer in zip(commands, replies, strict=True):
                each.result = answer
        if raise_on_error:
            self._raise_first_error(stack, start)
        return [each.result for each in stack]


class RecordedTransaction(TransactionStrategy):
    """How a transaction is sent, whose keys are all of one slot."""

    _pipe: RecordedClusterPipeline

    def _send_command_parse_response(
        self, conn: Connection, redis_node: Redis, command_name: str, *args: Argument, **options: Answer
    ) -> Answer:
        run = label.permitted_run(self._pipe.environment)
        if run is not None and command_name == "WATCH":
            self._pipe.open_logs(run, self._pipeline_slots)
        elif run is not None and self._pipeline_slots:
            recording = Recording(run, conn, *self._pipeline_slots)
            write = drive(conn, recording.understand(args))
            if write.keys:
                reply = drive(conn, recording.immediate(write, decode=NEVER_DECODE not in options))
                return answer_of(redis_node.response_callbacks, command_name, reply, options)
        return super()._send_command_parse_response(conn, redis_node, command_name, *args, **options)

    def _execute_transaction(self, stack: list[PipelineCommand], raise_on_error: bool) -> list[Answer]:
        run, start = label.permitted_run(self._pipe.environment), time.monotonic()
        if run is None or len(self._pipeline_slots) != 1:
            return list(super()._execute_transaction(stack, raise_on_error))
        replies = self._recorded(run, [each.args for each in stack])
        if replies is None:
            return list(super()._execute_transaction(stack, raise_on_error))
        self._executing = self._watching = False
        if raise_on_error:
            self._raise_first_error(replies, stack, start)
        called = [(each.args, each.options) for each in stack]
        return answers_of(self._pipe.cluster_response_callbacks, called, replies)

    def _recorded(self, run: int, commands: Sequence[Arguments]) -> list[Answer] | None:
        (slot,) = self._pipeline_slots
        while True:
            self._executing = True
            _, connection = self._get_client_and_connection_for_transaction()
            steps = Recording(run, connection, slot).pipelined(commands, watching=self._watching, decode=True)
            try:
                replies: list[Answer] | None = drive(connection, steps)
            except RunOverError:
                if not self._pipe.open_logs(run, [slot]):
                    raise
                if self._watching:  # its EXEC has ended the watch, and nothing was written
                    raise WatchError("Watched variable changed.") from None
            else:
                return replies


def by_node(manager: Any, slots: Iterable[int], errors: dict[int, Answer]) -> dict[Any, list[int]]:  # noqa: ANN401 - redis-py's, synchronous or not
    """Part slots by the nodes that are their masters; one that has none gets an error."""
    found: dict[Any, list[int]] = {}
    for slot in slots:
        try:
            found.setdefault(manager.get_node_from_slot(slot), []).append(slot)
        except SlotNotCoveredError as error:
            errors[slot] = error
    return found


def whole(reply: Answer, slot: int, count: int) -> list[Answer]:
    """Give a reply to each command of a unit; one that failed as a whole has its error for all of them."""
    try:
        return list(raised(settled(reply, slot)))
    except Exception as error:  # noqa: BLE001 - what it is, the caller raises or gives back
        return [error] * count


def without_targets(options: Mapping[str, Answer]) -> dict[str, Answer]:
    """Leave out where redis-py would have sent a command."""
    return {name: value for name, value in options.items() if name != "target_nodes"}
