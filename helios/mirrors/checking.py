"""Both sides compared: which keys Redis lacks, holds differently, or holds though no row stands for them."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import RedisCluster

from helios.errors import HeliosError
from helios.mirrors import image, keys
from helios.mirrors.image import Writes
from helios.mirrors.keys import bucket_names
from helios.mirrors.nodes import strays
from helios.mirrors.relay import Relay, refuse_newer
from helios.mirrors.source import Source
from helios.mirrors.store import Store
from helios.mirrors.values import FORM

if TYPE_CHECKING:
    from helios.mirrors.spread import Relays

HASHES = (keys.ORDERS, keys.POSITIONS)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key whose content is not what the tables say: `kind` is missing, stale or ghost."""

    key: str
    kind: str
    expected: Any
    found: Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a check found; `compared` counts the keys that should be there."""

    differences: tuple[Difference, ...]
    compared: int
    seconds: float


class BehindError(HeliosError):
    """The two sides stand at different batches, and no relay brings them together."""


def check(relay: "Relay | Relays", *, wait: float = 10.0) -> Comparison:
    """Compare everything, one bucket after the other, while others write and relay.

    What differs at first is looked at again while no relay moves, so that what is still on its way is told from what is
    wrong; what is on its way is waited for.

    Args:
        relay: whose connections are used, or those of all buckets; it relays nothing.
        wait: how many seconds what is on its way may take, in each bucket.

    Raises:
        NewerError: a newer version of Helios relays these mirrors.
        BehindError: it took longer, or the two sides stand at different batches for so long: no relay runs.
        psycopg2.Error, RedisError, OSError: PostgreSQL or Redis is not reached.

    """
    began = time.monotonic()
    found = [check_bucket(each, wait) for each in relay.every()]
    differences = [differ for each in found for differ in each.differences]
    if isinstance(relay.client, RedisCluster):
        differences += astray(relay.every()[0])
    return Comparison(
        differences=tuple(differences),
        compared=sum(each.compared for each in found),
        seconds=time.monotonic() - began,
    )


def check_bucket(relay: Relay, wait: float) -> Comparison:
    """Compare what is of one bucket."""
    began = time.monotonic()
    source, store = relay.sides()
    suspects, compared = look_at_all(source, store)
    differences: tuple[Difference, ...] = ()
    while suspects:
        with source.leading(wait=True) as point:
            if point is not None:
                refuse_newer(point)
            together = point is not None and store.watch() == point.token and point.form == FORM
            differences, waiting = compare(source, store, suspects) if together else ((), suspects)
        suspects = waiting
        if suspects and time.monotonic() - began > wait:
            reason = "stand at the same batch" if not together else f"hold the same (keys that differ: {len(suspects)})"
            raise BehindError(
                f"PostgreSQL and Redis did not {reason} within {wait:g} s: see that `helios mirror run` is running"
            )
        if suspects:
            suspects |= {each.key for each in differences}
            time.sleep(0.02)
    return Comparison(differences=differences, compared=compared, seconds=time.monotonic() - began)


def astray(relay: Relay) -> Iterator[Difference]:
    """Find what is left of other buckets, as a node that was down when the mirrors were spread anew may have it."""
    place = relay.sides()[0].home.place
    for some in strays(relay.client, place, bucket_names(place.buckets)):
        yield from (Difference(key=name, kind="ghost", expected=None, found="of another bucket") for name in some)


def look_at_all(source: Source, store: Store) -> tuple[set[str], int]:
    """Compare everything without stopping anybody; the keys that differ, and how many there should be."""
    suspects: set[str] = set()
    expected: set[str] = set()
    with source.reading():
        for writes in image.everything(source.connection, store.place):
            wanted = contents(writes)
            found = store.read(list(wanted), hashes=writes.hashes)
            suspects |= {key for key, content in wanted.items() if found[key] != content}
            expected |= wanted.keys()
    for some in store.found():
        suspects |= {key for key in some if key not in expected and not is_apart(store, key)}
    return suspects, len(expected)


def is_apart(store: Store, key: str) -> bool:
    """Tell whether a key is none of a row: the heartbeat, or a running candle, which the feed tells."""
    running = f"{store.place.prefix}{keys.RUNNING}:"
    return key == store.place.heartbeat or key.startswith(running)


def compare(source: Source, store: Store, suspects: Collection[str]) -> tuple[tuple[Difference, ...], set[str]]:
    """Compare some keys while no relay moves: what is wrong, and what is on its way."""
    differing = list(differences_of(source, store, suspects))
    if not differing:
        return (), set()
    changes, _, _ = source.changes()
    if changes.everything:
        return (), {each.key for each in differing}
    with source.connection.cursor() as cursor:
        coming = {key for writes in image.of_changes(cursor, store.place, changes) for key in touched(writes)}
    wrong = tuple(each for each in differing if each.key not in coming)
    return wrong, {each.key for each in differing if each.key in coming}


def differences_of(source: Source, store: Store, suspects: Collection[str]) -> Iterator[Difference]:
    """Read some keys on both sides, and tell where they differ."""
    for some in image.parts(suspects):
        parsed = {key: store.place.parse(key) for key in some}
        found = store.read(some, hashes=[key for key, of in parsed.items() if of and of.table in HASHES])
        with source.connection.cursor() as cursor:
            wanted = contents(image.of_keys(cursor, store.place, [of for of in parsed.values() if of]))
        for key in some:
            expected, there = wanted.get(key), found[key]
            if expected != there:
                kind = "missing" if there is None else "ghost" if expected is None else "stale"
                yield Difference(key=key, kind=kind, expected=expected, found=there)


def contents(writes: Writes) -> dict[str, Any]:
    """Give the whole contents among writes."""
    return {**writes.texts, **writes.hashes}


def touched(writes: Writes) -> set[str]:
    """Name the keys that writes are about."""
    return writes.texts.keys() | writes.fields.keys() | writes.hashes.keys()
