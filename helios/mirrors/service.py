"""The relay as a service: looks again and again, waits out what is down, tends what nobody changed, stops when told."""

import logging
import select
import time
from contextlib import suppress
from threading import Event
from typing import Any

import psycopg2

from helios import db
from helios.mirrors.auditing import Audit
from helios.mirrors.keys import bucket_names, number_of_buckets
from helios.mirrors.relay import BEAT, PASSING, Relay
from helios.mirrors.source import CHANNEL, connected

log = logging.getLogger("helios.mirrors")
AUDIT, TEND = 0.1, 1.0  # seconds between two slices of the audit, and between two looks at the outbox's size
PAUSE = 60  # times what a slice of the audit took, until the next one
APART = 0.25  # seconds between two looks of a relay that is told by somebody else what changes
ASIDE = 0.1  # seconds before looking again where another relay leads
FIRST_WAIT, LAST_WAIT = 0.05, 1.0  # seconds before another attempt where PostgreSQL or Redis is down


class Service:
    """Runs a relay until `stop` is set.

    Args:
        relay: the relay.
        listen: wait for NOTIFY, which services send after their commits (`follow`, `announce`), and look without it
            every tenth of a second; needs a direct connection. Else PostgreSQL itself looks every 3 ms.
        told: set by somebody else who looks for it; then it looks by itself four times a second.

    """

    def __init__(self, relay: Relay, *, listen: bool = False, told: Event | None = None) -> None:
        self.relay = relay
        self.told_by = told
        self.stop = Event()
        self.listens = listen
        self.listener: Any = None
        self.down_since: float | None = None
        self.pause = FIRST_WAIT
        self.audit = Audit(relay)
        self.audit_due = self.tended = 0.0
        self.told = False
        # Of several buckets, all together look as often as the relay of a single one; and the outbox is that of all.
        buckets = number_of_buckets(relay.bucket)
        self.audits_every = AUDIT * buckets
        self.empties = relay.bucket == bucket_names(buckets)[0]

    def run(self) -> None:
        """Relay until `stop` is set; what is down is waited for, with one sentence when it begins and ends.

        Raises:
            HeliosError: this relay must not go on, as where another server's mirrors are in its place.

        """
        try:
            while not self.stop.is_set():
                try:
                    self.look()
                except PASSING as error:
                    self.wait_out(error)
        finally:
            self.relay.close()
            self.close_listener()

    def look(self) -> None:
        """Look once, and wait as long as is due."""
        if self.listens and self.listener is None:
            self.listener = connected(self.relay.engine)
            self.listener.autocommit = True
            with self.listener.cursor() as cursor:
                cursor.execute(CHANNEL)
        worked = self.relay.step(idle=self.listener is None and self.told_by is None, told=self.told)
        self.told = False
        if not worked:
            self.tend()
        self.up_again()
        if worked:
            return
        if not self.relay.counts.leads and not self.relay.proved:
            self.stop.wait(ASIDE)
        elif self.told_by is not None:
            self.told = self.told_by.wait(APART)
            if self.told:
                self.told_by.clear()
        elif self.listener is not None and select.select([self.listener], [], [], BEAT)[0]:
            self.listener.poll()
            self.told = bool(self.listener.notifies)
            self.listener.notifies.clear()

    def tend(self) -> None:
        """See to what nobody changed, now and then: keys that Redis lost by itself, an outbox that has grown."""
        if self.relay.proved and (began := time.monotonic()) > self.audit_due:
            self.audit.step()
            ended = time.monotonic()
            self.audit_due = ended + max(self.audits_every, PAUSE * (ended - began))
        if self.relay.source is not None and self.empties and time.monotonic() > self.tended + TEND:
            self.relay.source.empty()
            self.tended = time.monotonic()

    def wait_out(self, error: BaseException) -> None:
        """Give up the connections, and wait before the next attempt; longer each time."""
        self.relay.close()
        self.close_listener()
        self.relay.counts.failures += 1
        if self.down_since is None:
            self.down_since = time.monotonic()
            said = " ".join(str(error).split()) or type(error).__name__
            log.warning("the mirrors wait, and go on by themselves: %s", db.hide(said, self.relay.engine.url))
        self.stop.wait(self.pause)
        self.pause = min(self.pause * 2, LAST_WAIT)

    def up_again(self) -> None:
        """Note that all is well."""
        self.pause = FIRST_WAIT
        if self.down_since is not None:
            log.warning("the mirrors go on after %.1f s", time.monotonic() - self.down_since)
            self.down_since = None

    def close_listener(self) -> None:
        """Give up the connection that listens."""
        if self.listener is not None:
            with suppress(psycopg2.Error):
                self.listener.close()
            self.listener = None
