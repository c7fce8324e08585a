"""Restarts and failovers under services that trade: `python tests/chaos_failover.py ROUNDS [--seed N]`.

A primary with a synchronous standby; services, sync and async, place orders under ids of their own and write down each
one that was acknowledged; another reads from the standby; a relay mirrors. In each round the primary is restarted,
crashed, or killed and its standby promoted. Then every order that was acknowledged has to be there, once, and none
besides; nothing that was read may have been staler than the limit; the mirrors have to be equal. Exit status 1 where
they are not. The suite runs a few rounds.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos_failover_services import (
    look_before_placing_again,
    place_again_and_again,
    place_asynchronously,
    read_again_and_again,
)
from chaos_mirror_servers import Valkey, until
from chaos_mirrors import relay
from replicas import Pair, pair

from helios import db, mirrors, schema

SERVICES = (place_again_and_again, place_again_and_again, look_before_placing_again, place_asynchronously)
ACCOUNTS = 3  # so that two services share one
PATIENCE = 60.0
RELOAD = "SELECT pg_reload_conf()"
WAITING = "SELECT count(*) > 2 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
SOME = 20  # orders after which services are at work
NEW = "SELECT array_agg(client_order_id) FROM helios_trading.orders WHERE status = 'NEW'"
UNSPENT = "SELECT count(*) + (SELECT sum(free) FROM helios_trading.balances) FROM helios_trading.orders"
ENDED = "UPDATE helios_trading.orders SET status = 'CANCELED' WHERE status = 'NEW'"
ACCOUNT = "INSERT INTO helios_trading.accounts (exchange, market, name) VALUES ('chaos', 'spot', 'a{}')"
BALANCE = "INSERT INTO helios_trading.balances (account_id, asset, free, event_at) VALUES ({}, 'USDT', 0, now())"
FORK = multiprocessing.get_context("fork")
Line = tuple[float, list[str]]


@dataclass
class Scene:
    """The servers, the services, and what they have said in all rounds."""

    servers: Pair
    chance: random.Random
    lines: Path
    services: list[multiprocessing.process.BaseProcess] = field(default_factory=list)
    relay: multiprocessing.process.BaseProcess | None = None
    done: Counter[str] = field(default_factory=Counter)
    silences: dict[str, list[float]] = field(default_factory=dict)
    rounds: int = 0

    def begin(self) -> None:
        """Start the services of a round."""
        self.lines.write_text("")
        self.rounds += 1
        for number, what in enumerate((*SERVICES, read_again_and_again)):
            arguments = (self.lines, f"{self.rounds}-{number}", number % ACCOUNTS + 1)
            self.services.append(FORK.Process(target=what, args=arguments, daemon=True))
            self.services[-1].start()

    def end(self) -> list[str]:
        """Have the services end with what they are doing; says which did not."""
        for each in self.services:
            each.terminate()
        for each in self.services:
            each.join(timeout=PATIENCE)
        wrong = [f"a service ended with {each.exitcode}" for each in self.services if each.exitcode != 0]
        for each in self.services:
            each.kill()
        self.services.clear()
        return wrong

    # --- what happens ------------------------------------------------------------------------------------------

    def restarted(self) -> None:
        """Restart the primary in order."""
        self.servers.primary.end(signal.SIGINT)
        self.servers.primary.start()

    def crashed(self) -> None:
        """End the primary at once, and start it again."""
        self.servers.primary.end(signal.SIGQUIT)
        self.servers.primary.start()

    def failed_over(self) -> None:
        """End the primary, and promote its standby."""
        self.servers.fail_over(self.chance.choice((signal.SIGQUIT, signal.SIGINT)))

    def crashed_amid_commits(self) -> None:
        """End the primary while commits that count already wait to be acknowledged."""
        self.servers.primary.ask("ALTER SYSTEM SET synchronous_standby_names TO 'nobody'", RELOAD)
        until(lambda: self.servers.primary.answers(WAITING), "commits that wait")
        self.servers.primary.end(signal.SIGQUIT)
        self.servers.primary.start()
        self.servers.primary.ask("ALTER SYSTEM SET synchronous_standby_names TO '*'", RELOAD)

    def failed_over_amid_commits(self) -> None:
        """End the primary while commits wait of which the standby has not heard, and promote that."""
        self.servers.cut()
        time.sleep(0.1)  # without a synchronous standby commits would go on, and be lost
        self.servers.fail_over()

    def end_connections(self) -> None:
        """End every connection of the services."""
        self.servers.primary.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'helios'"
        )
        self.done["connections ended before"] += 1

    def round(self) -> list[str]:
        """Let the services work through one accident; says what went wrong."""
        self.begin()
        self.wait_for_orders(time.monotonic())
        time.sleep(self.chance.uniform(0, 0.2))
        if self.chance.random() < 0.3:
            self.end_connections()
        what = self.chance.choice(EVENTS)
        began = time.monotonic()
        getattr(self, what)()
        self.done[what] += 1
        self.wait_for_orders(time.monotonic())
        wrong = self.end()
        said = self.said()
        if what.startswith("failed_over"):
            self.servers.follow(synchronous=True)
        self.silences.setdefault(what, []).append(longest_silence(said, began))
        wrong += self.lost_or_doubled(said) + self.stale(said) + self.unlike()
        return [f"{each} (after {what})" for each in wrong]

    def wait_for_orders(self, since: float) -> None:
        """Wait until some orders were acknowledged after a moment."""
        end = time.monotonic() + PATIENCE
        while sum(moment > since for moment, words in self.said() if words[0] == "placed") < SOME:
            if time.monotonic() > end:
                raise TimeoutError(f"services have not gone on for {PATIENCE:g} s")
            time.sleep(0.02)

    # --- what is found ------------------------------------------------------------------------------------------

    def said(self) -> list[Line]:
        """Read what the services have said in this round."""
        lines = [line.split() for line in self.lines.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return sorted((float(moment), words) for moment, *words in lines)

    def lost_or_doubled(self, said: list[Line]) -> list[str]:
        """Compare what was acknowledged with what is there, and with what was spent; then end this round's orders."""
        told = {words[2] for _, words in said if words[0] == "placed"}
        self.done["orders"] += len(told)
        self.done["uncertain commits"] += sum(words[0] == "uncertain" for _, words in said)
        there = set(self.servers.primary.ask(NEW) or ())
        unspent = self.servers.primary.ask(UNSPENT)
        self.servers.primary.ask(ENDED)
        wrong = [f"{len(told - there)} orders lost"] if told - there else []
        wrong += [f"{len(there - told)} orders that nobody was told of"] if there - told else []
        return wrong + ([f"{-unspent} too many spent"] if unspent else [])

    def stale(self, said: list[Line]) -> list[str]:
        """Find what was read and lacked orders that were acknowledged before the limit."""
        before = self.done["orders"] - sum(words[0] == "placed" for _, words in said)
        wrong, placed = [], []
        for _, words in sorted(said, key=lambda each: float(each[1][1]) if each[1][0] == "read" else each[0]):
            if words[0] == "placed":
                placed.append(words)
            elif words[0] == "read":
                self.done[f"read from the {'standby' if words[3] == 'True' else 'primary'}"] += 1
                if int(words[2]) < before + len(placed):
                    wrong.append(f"{before + len(placed) - int(words[2])} orders unread beyond the limit")
            elif words[0] == "unread":
                self.done["not read, the primary gone"] += 1
        return wrong[:1]

    def unlike(self) -> list[str]:
        """Compare the mirrors."""
        checking = mirrors.Relay(db.create_engine(), db.create_redis())
        try:
            return [f"mirror {each.key} {each.kind}" for each in mirrors.check(checking, wait=30).differences][:3]
        finally:
            checking.close()


EVENTS = ["restarted", "crashed", "crashed_amid_commits", "failed_over", "failed_over_amid_commits"]


def longest_silence(said: list[Line], since: float) -> float:
    """Tell the longest time in which no order was acknowledged, from a moment on."""
    moments = [since, *(moment for moment, words in said if words[0] == "placed" and moment > since)]
    return max(after - before for before, after in itertools.pairwise(moments))


@contextlib.contextmanager
def scene(seed: int) -> Iterator[Scene]:
    """Start everything in a folder of its own; afterwards nothing is left."""
    with pair() as servers, contextlib.ExitStack() as stack:
        valkey = Valkey(servers.top, servers.sockets)
        stack.callback(valkey.close)
        valkey.start()
        hosts = servers.url.partition("&target")[0]
        os.environ.update(
            DATABASE_URL=servers.url, DATABASE_READ_URL=f"{hosts}&target_session_attrs=standby", REDIS_URL=valkey.url
        )
        os.environ.pop("DATABASE_MIGRATION_URL", None)
        schema.upgrade()
        servers.primary.ask(
            "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('chaos', 'spot', 'BTCUSDT')",
            *(each.format(number) for number in range(1, ACCOUNTS + 1) for each in (ACCOUNT, BALANCE)),
        )
        servers.follow(synchronous=True)
        made = Scene(servers, random.Random(seed), servers.top / "lines")  # noqa: S311 - chance, not secrecy
        made.relay = FORK.Process(target=relay, args=(servers.top / "relay.log",), daemon=True)
        made.relay.start()
        stack.callback(made.relay.join)
        stack.callback(made.relay.kill)
        stack.callback(lambda: [each.kill() for each in made.services])
        yield made


def chaos(rounds: int, seed: int, say: Callable[[str], object] = lambda _: None) -> dict[str, object]:
    """Run the rounds, and tell what was done, what went wrong, and for how long no order was acknowledged."""
    wrong: list[str] = []
    with scene(seed) as at:
        for number in range(1, rounds + 1):
            found = at.round()
            wrong += [f"round {number}: {each}" for each in found]
            say(f"round {number}: {dict(at.done)} {found}")
        rebuilds = (at.servers.top / "relay.log").read_text().count("mirroring everything anew")
        if wrong:
            shutil.copy(at.lines, Path(tempfile.gettempdir()) / f"helios-failover-{seed}.lines")
    return {
        "seed": seed,
        "rounds": rounds,
        "wrong": wrong,
        "done": dict(sorted(at.done.items())),
        "rebuilds": rebuilds,
        "seconds_without_orders": {
            what: {"median": round(statistics.median(each), 2), "longest": round(max(each), 2)}
            for what, each in sorted(at.silences.items())
        },
    }


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    options = parser.parse_args()
    say = lambda words: print(words, file=sys.stderr, flush=True)  # noqa: E731, T201
    say(f"seed {options.seed}")
    told = chaos(options.rounds, options.seed, say)
    print(json.dumps(told, indent=2))  # noqa: T201
    return 1 if told["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
