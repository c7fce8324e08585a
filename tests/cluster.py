"""A Redis Cluster of real servers: six nodes, of which tests kill and restart any, and move slots between them."""

import ctypes
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from chaos_mirror_servers import CHOSEN, Program, until
from redis import Redis, RedisError
from sqlalchemy import URL, make_url

from helios import servers
from helios.servers.account import server_account

MASTERS, SLOTS = 3, 1 << 14
PR_SET_PDEATHSIG = 1
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
OPTIONS = {
    "bind": "127.0.0.1",
    "save": "",
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": "1000",
    "cluster-replica-validity-factor": "0",  # a replica takes over however long ago it heard of its master
    "cluster-allow-replica-migration": "no",
    "cluster-require-full-coverage": "no",  # what is on other nodes goes on
    "repl-diskless-sync-delay": "0",
}


class Node(Program):
    """One server of a cluster, master or replica as it comes."""

    def __init__(self, top: Path, port: int, bus: int) -> None:
        sockets = top / f"s{port}"
        sockets.mkdir(mode=0o777)
        sockets.chmod(0o1777)
        options = {**OPTIONS, "port": str(port), "cluster-port": str(bus)}
        recipe = servers.Valkey(top / str(port), binaries=CHOSEN.helios_redis_bin, durable=False, options=options)
        super().__init__(server_account(recipe.place.data), top / f"{port}.log")
        recipe.place.make(self.account)
        self.port, self.bus = port, bus
        self.command = recipe.prepare(sockets, self.account, 0)
        self.client = Redis(host="127.0.0.1", port=port, socket_timeout=10)

    def run(self, command: list[str], **how: Any) -> None:
        """Start it as the servers' user; it dies with this process."""
        super().run(command, preexec_fn=die_with_parent, **how)  # which takes no lock that a thread could hold

    def start(self) -> None:
        """Start it, or start it again, empty; it remembers which cluster it belongs to."""
        self.run(self.command)
        until(self.answers, "the start of a node")

    def kill(self) -> None:
        """Kill it as hard as can be."""
        self.end(signal.SIGKILL)

    def answers(self) -> bool:
        """Tell whether it answers."""
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False

    def ask(self, *command: object) -> Any:
        """Run a command on this node, whatever the cluster says."""
        return self.client.execute_command(*command)

    @property
    def id(self) -> str:
        """The name that the cluster knows it by."""
        return str(self.ask("CLUSTER", "MYID").decode())

    @property
    def slots(self) -> int:
        """Count the slots that it owns: none where it is a replica."""
        own = next(line for line in self.nodes() if "myself" in line[2])
        ranges = [each.split("-") for each in own[8:] if not each.startswith("[")]  # [...]: on its way
        return sum(int(each[-1]) - int(each[0]) + 1 for each in ranges)

    def nodes(self) -> list[list[str]]:
        """Give what it knows of the cluster: the words of each line."""
        return [line.split() for line in self.ask("CLUSTER", "NODES").decode().splitlines()]

    def well(self, nodes: int) -> bool:
        """Tell whether it sees so many nodes, all slots served, and its own copy, if it is one, complete."""
        try:
            state, info = self.ask("CLUSTER", "INFO").decode().split(), self.client.info("replication")
        except (RedisError, OSError):
            return False
        synced = info["role"] == "master" or info["master_link_status"] == "up"
        return synced and {"cluster_state:ok", f"cluster_known_nodes:{nodes}"} <= set(state)


class Cluster:
    """Three masters with a replica each; `masters` tells which they are just now."""

    def __init__(self, top: Path) -> None:
        ports = free_ports(4 * MASTERS)
        self.nodes = [Node(top, port, bus) for port, bus in zip(ports[::2], ports[1::2], strict=True)]

    def start(self) -> None:
        """Start all nodes, and make them a cluster."""
        for each in self.nodes:
            each.run(each.command)
        for each in self.nodes:
            until(each.answers, "the start of a node")
        first, *others = self.nodes
        for number, each in enumerate(self.nodes):
            each.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        bounds = [SLOTS * number // MASTERS for number in range(MASTERS + 1)]
        for each, begin, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            each.ask("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for each in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", each.port, each.bus)
        until(lambda: all(len(each.nodes()) == len(self.nodes) for each in self.nodes), "the nodes' meeting")
        for master, replica in zip(self.nodes[:MASTERS], self.nodes[MASTERS:], strict=True):
            until(lambda m=master, r=replica: knows(r, m.id), "a replica's knowing its master")
            replica.ask("CLUSTER", "REPLICATE", master.id)
        self.settle()

    @property
    def url(self) -> URL:
        """REDIS_URL of this cluster, which names two of its nodes."""
        return make_url(f"redis+cluster://127.0.0.1:{self.nodes[0].port}?host=127.0.0.1:{self.nodes[1].port}")

    @property
    def masters(self) -> list[Node]:
        """The nodes that own slots now, by what each that lives says of itself."""
        living = [each for each in self.nodes if each.process is not None]
        return [each for each in living if each.slots]

    def master_of(self, slot: int) -> Node:
        """Tell who owns a slot, by what the nodes that live say."""
        asked = next(each for each in self.nodes if each.process is not None and each.answers())
        for begin, end, owner, *_ in asked.ask("CLUSTER", "SLOTS"):
            if begin <= slot <= end:
                return next(each for each in self.nodes if each.port == owner[1])
        raise LookupError(f"nobody owns slot {slot}")

    def kill_master(self, slot: int = 0) -> Node:
        """Kill the master of a slot, and tell which one that was; its replica takes over after a second or two."""
        found = self.master_of(slot)
        found.kill()
        return found

    def fail_over(self, slot: int = 0) -> float:
        """Kill the master of a slot, wait until its replica owns it; how many seconds that took."""
        began = time.monotonic()
        old = self.kill_master(slot)
        until(lambda: self.master_of(slot) is not old and self.master_of(slot).well(len(self.nodes)), "a failover")
        return time.monotonic() - began

    def move_slot(self, slot: int, to: Node) -> Iterator[int]:
        """Move a slot to another master, key by key; gives how many keys are still to go before each of them."""
        old = self.master_of(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old.id)
        old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        while keys := old.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            for number, key in enumerate(keys):
                yield len(keys) - number
                old.ask("MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
        for each in (to, old, *self.masters):
            each.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    def settle(self) -> None:
        """Start what was killed, and wait until all nodes are well and every master has its replica."""
        for each in self.nodes:
            if each.process is None:
                each.start()
        until(lambda: all(each.well(len(self.nodes)) for each in self.nodes), "the cluster's settling")
        until(lambda: MASTERS == len(self.masters), "three masters")

    def empty(self) -> None:
        """Remove all keys."""
        for each in self.masters:
            each.ask("FLUSHALL")

    def close(self) -> None:
        """End everything."""
        for each in self.nodes:
            each.client.close()
            each.kill()


def knows(node: Node, other: str) -> bool:
    """Tell whether a node has heard of another, and shaken its hand."""
    return any(line[0] == other and "handshake" not in line[2] for line in node.nodes())


def die_with_parent() -> None:
    """Have the process that is about to be started die with this one, where the system can."""
    if PRCTL is not None:
        PRCTL(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def free_ports(count: int) -> list[int]:
    """Find ports of loopback that nobody uses."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


@contextmanager
def redis_cluster() -> Iterator[Cluster]:
    """Start a cluster in a folder of its own; afterwards nothing is left."""
    top = Path(mkdtemp(prefix="ht-")).resolve()
    top.chmod(0o755)
    made = Cluster(top)
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(top)
