"""The verification run: the whole pipeline once, on the servers as they are set, and then nothing of it is left.

    python scripts/test_data_pipeline.py [--fail-at STEP] [--json] [--plain]

Each line names a step, what proves it, and how long it took. Whatever happens - a step that fails, Ctrl-C - what was
written is undone and proved to be gone; after kill -9 the next run does it first. Exit status 0 only when all holds,
130 after Ctrl-C. It runs beside real data; where others write meanwhile, the proof names what they changed.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

try:
    import pipeline_folders
    from pipeline_steps import STEPS, Scene
    from redis import Redis
    from sqlalchemy import Connection, MetaData, Table, inspect, text

    from helios import db, mirrors
    from helios.errors import HeliosError
    from helios.mirrors import Place
    from helios.schema import environment, migrations
    from helios.settings import Settings, masked
    from helios.testing import orphans, story, undo
    from helios.testing.halves import joined
    from helios.testing.proof import differences, digest
    from helios.testing.run import Run
    from helios.testing.subject import Subject, subject_of
    from helios.testing.sweeping import sweep
except ImportError as missing:
    raise SystemExit(
        f"{missing}: install Helios first, with Python 3.11 or newer: `make verify` does it and runs this, "
        "or `pip install -e '.[embedded]'` in this checkout"
    ) from None

UNMIRRORED = "test:pipeline:unmirrored"  # says that Redis held no mirrors before this run; gone with the run
BIG = 256 << 20  # bytes of a table in `public` whose rows are not read
ALONE = text("SELECT pg_try_advisory_lock(hashtext('helios verification run'))")
PUBLIC = text("""
    SELECT relname::text AS name, pg_table_size(oid) <= :big AND has_table_privilege(oid, 'SELECT') AS read
    FROM pg_class WHERE relnamespace = to_regnamespace('public') AND relkind = 'r'
""")
RIGHTS = text("""
    SELECT concat_ws(' ', (SELECT nspacl FROM pg_namespace WHERE nspname = 'public'),
                     string_agg(concat_ws(' ', relname, relowner, relacl), ';' ORDER BY relname))
    FROM pg_class WHERE relnamespace = to_regnamespace('public')
""")


class PlannedFailureError(HeliosError):
    """The failure that --fail-at asked for."""


@dataclass(frozen=True)
class Line:
    """What a step showed."""

    step: str
    ok: bool
    found: str
    seconds: float


@dataclass
class Report:
    """The lines of this run: printed as they come, or as JSON at the end."""

    settings: Settings
    as_json: bool = False
    colours: bool = False
    fail_at: str | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every step so far held."""
        return all(each.ok for each in self.lines)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; it appends its evidence to the list, and fails with an exception."""
        evidence: list[str] = []
        began = time.monotonic()
        try:
            yield evidence
            self.fail_where_asked(name)
        except BaseException as error:
            self.tell(Line(name, ok=False, found=self.said(error), seconds=time.monotonic() - began))
            raise
        self.tell(Line(name, ok=True, found="; ".join(evidence), seconds=time.monotonic() - began))

    def fail_where_asked(self, name: str) -> None:
        """Fail on purpose."""
        if name == self.fail_at:
            raise PlannedFailureError("failed on purpose, as --fail-at asked")

    def said(self, error: BaseException) -> str:
        """Take one line of what an error says, without any password that the settings hold."""
        said = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        for url in (self.settings.database_url, self.settings.migration_url, self.settings.redis_url):
            said = db.hide(said, url) if url is not None else said
        return said.strip().partition("\n")[0]

    def tell_unless_told(self, error: BaseException) -> None:
        """Tell an error that came between the steps."""
        if self.good:
            self.tell(Line("between steps", ok=False, found=self.said(error), seconds=0.0))

    def tell(self, line: Line) -> None:
        """Note a step, and print it for people."""
        self.lines.append(line)
        if self.as_json:
            return
        mark = f"{'ok' if line.ok else 'FAILED':<6}"
        if self.colours:
            mark = f"\033[{32 if line.ok else 31};1m{mark}\033[0m"
        print(f"{mark} {line.step:<13} {line.found}  [{line.seconds:.2f} s]", flush=True)

    def end(self) -> None:
        """Print JSON for programs."""
        if self.as_json:
            steps = [{**asdict(each), "seconds": round(each.seconds, 3)} for each in self.lines]
            print(json.dumps({"ok": self.good, "steps": steps}, indent=2))


def main() -> int:
    """Run every step, then undo and prove it, whatever happened; give the exit status."""
    options = arguments()
    try:
        subject = subject_of()
    except HeliosError as error:
        print(f"FAILED configuration {error}", file=sys.stderr)
        return 2
    colours = sys.stdout.isatty() and not options.plain
    report = Report(subject.settings, as_json=options.json, colours=colours, fail_at=options.fail_at)
    try:
        verify(subject, report)
    except KeyboardInterrupt as error:
        report.tell_unless_told(error)
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it was, a line tells it
        report.tell_unless_told(error)
    finally:
        report.end()
    return 0 if report.good else 1


def arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description="The whole pipeline once, and nothing of it is left.")
    parser.add_argument("--fail-at", choices=STEPS, help="fail in this step on purpose, once it has written")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--plain", action="store_true", help="no colours")
    return parser.parse_args()


def verify(subject: Subject, report: Report) -> None:
    """Do the pipeline between two looks at everything, one verification run at a time."""
    with report.step("configuration") as said:
        said.extend(configuration(subject.settings))
    with ExitStack() as held:
        with report.step("servers") as said:
            connection = held.enter_context(subject.direct())
            said.extend(servers(subject, connection))
            made = not inspect(connection).has_schema(subject.schema)
            public = fingerprint(connection)
        with report.step("repair") as said:
            said.extend(repaired(subject))
        with report.step("undo log") as said:
            before = Before(digest(subject), looking_like_tests(subject), public, is_mirrored(subject))
            run = Run.begin(subject)
            said.append(f"run {run.id}: whatever it writes is kept with the row or key from before")
        try:
            run.enter("pipeline")
            if not before.mirrored:
                run.redis.set(UNMIRRORED, "1")
            pipeline(Scene(run, made), report)
        except BaseException as error:
            report.tell_unless_told(error)
            raise
        finally:
            clean(run, report)
            prove(subject, report, before)


def servers(subject: Subject, connection: Connection) -> list[str]:
    """Name the servers, once no other verification run is at work: each would find what the other wrote."""
    while not connection.scalar(ALONE):
        time.sleep(0.05)
    with joined(subject, connection) as halves:
        if halves.redis is None:
            raise HeliosError("there is no Redis: set REDIS_URL, or install the extra helios[embedded]")
        return halves.versions()


@dataclass(frozen=True)
class Before:
    """What was there: all rows and keys, what looked like test data, `public`, and whether there were mirrors."""

    digest: dict[str, str]
    suspects: set[str]
    public: dict[str, str]
    mirrored: bool


def configuration(settings: Settings) -> list[str]:
    """Tell what is set, without any password."""
    urls = [settings.database_url, settings.database_migration_url, settings.redis_url]
    service, owner, redis = (each and masked(each).replace("postgresql+psycopg2:", "postgresql:") for each in urls)
    return [
        f"schema {settings.database_schema} of {service or owner or 'the embedded PostgreSQL'}",
        *([f"migrated through {owner}"] if owner and service else []),
        redis or "the embedded Valkey",
        f"environment {settings.helios_environment}",
    ]


def repaired(subject: Subject) -> list[str]:
    """Undo what dead runs left, then bring the tables up to date."""
    with subject.direct() as connection, joined(subject, connection) as halves:
        unmirrored = halves.redis is not None and halves.redis.exists(UNMIRRORED)
        said = [story.repaired(each) for each in sweep(subject)]
        if count := pipeline_folders.remove_dead():
            said.append(f"folders of killed runs removed: {count}")
        if halves.redis is not None and unmirrored:
            forget_mirrors(halves.redis, halves.place)
        if subject.settings.migration_url is None:
            migrations.upgrade()  # so that the embedded server marks itself development, as after `helios upgrade`
        subject.ready(connection)
        marker = environment.read(connection, subject.schema)
    return [*(said or ["no dead run had left anything"]), marker.reason]


def is_mirrored(subject: Subject) -> bool:
    """Tell whether Redis holds mirrors; where not, a key says so, and after a kill the next run takes them out."""
    with subject.direct() as connection, joined(subject, connection) as halves:
        return halves.redis is not None and any(halves.redis.scan_iter(halves.place.pattern, count=1000))


def pipeline(scene: Scene, report: Report) -> None:
    """Write through every part of Helios, and read back."""
    for name, step in STEPS.items():
        with report.step(name) as said:
            said.extend(step(scene))


def clean(run: Run, report: Report) -> None:
    """Undo all of it; where that fails, its line says so, and the proofs are made all the same."""
    with suppress(Exception), report.step("clean-up") as said:
        try:
            run.leave()
        finally:
            run.end()
        said.append(story.counts([change for scope in run.scopes for change in scope.changes]))
        said.extend([f"left {what}" for scope in run.scopes for what in scope.left])
        said.extend([what for scope in run.scopes for what in scope.others])
        if run.failures:
            raise HeliosError("; ".join(run.failures))


def prove(subject: Subject, report: Report, before: Before) -> None:
    """Show that nothing is left; a proof that fails does not stop the others."""
    proofs: dict[str, Callable[[], str]] = {
        "mirrors": lambda: mirrors_follow(subject, mirrored=before.mirrored),
        "digest": lambda: digest_is(subject, before.digest),
        "orphans": lambda: no_orphans(subject, before.suspects),
        "public": lambda: public_is(subject, before.public),
    }
    for name, proof in proofs.items():
        with suppress(Exception), report.step(name) as said:
            said.append(proof())


def mirrors_follow(subject: Subject, *, mirrored: bool) -> str:
    """See that the mirrors show what PostgreSQL holds; where there were none, take them out again."""
    with subject.direct() as connection, joined(subject, connection) as halves:
        if halves.redis is None or halves.relay is None:
            return "there is no Redis"
        if not mirrored:
            forget_mirrors(halves.redis, halves.place)
            return "none, as before"
        halves.relay.drain()
        found = mirrors.check(halves.relay)
    if found.differences:
        raise HeliosError(f"{len(found.differences)} mirrors differ, the first: {found.differences[0].key}")
    return f"{found.compared} equal to PostgreSQL's rows"


def digest_is(subject: Subject, before: dict[str, str]) -> str:
    """See that every row and key is as it was."""
    after = digest(subject)
    refuse(differences(before, after))
    return f"before {summed(before)}, after {summed(after)}: {len(after)} tables and keys"


def no_orphans(subject: Subject, before: set[str]) -> str:
    """See that nothing new looks like test data."""
    if new := looking_like_tests(subject) - before:
        raise HeliosError(f"left behind: {', '.join(sorted(new))}; `helios orphans` lists them")
    return f"none of this run ({len(before)} were there before)" if before else "none"


def public_is(subject: Subject, before: dict[str, str]) -> str:
    """See that `public` is as it was."""
    with subject.direct() as connection:
        after = fingerprint(connection)
    refuse(differences(before, after))
    return f"untouched: {len(after) - 1} objects and contents, {summed(after)}"


def refuse(changed: Sequence[str]) -> None:
    """Fail where something is not as before."""
    if changed:
        raise HeliosError(
            f"not as before: {', '.join(changed)}; where others write meanwhile, this is theirs: run it when they rest"
        )


def forget_mirrors(redis: Redis, place: Place) -> None:
    """Delete the mirrors; a relay that runs makes them anew."""
    for name in list(redis.scan_iter(place.pattern, count=1000)):
        redis.unlink(name)


def looking_like_tests(subject: Subject) -> set[str]:
    """Name every row and key that looks like test data."""
    return {f"{each.place} {each.looks}" for each in orphans.find(subject)}


def fingerprint(connection: Connection) -> dict[str, str]:
    """Hash `public`: what there is, who may do what, and the rows of tables that are not big."""
    read = connection.execute(PUBLIC, {"big": BIG}).all()
    tables = [Table(each.name, MetaData(), schema="public") for each in read if each.read]
    found = undo.objects(connection, ["public"]) | undo.digest(connection, tables)
    return found | {"rights": str(connection.scalar(RIGHTS))}


def summed(found: dict[str, Any]) -> str:
    """Sum up many hashes."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
