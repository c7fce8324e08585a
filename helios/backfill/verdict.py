"""What the findings of a reading say about a file, as figures and as sentences."""

from datetime import UTC, datetime, timedelta
from typing import Any

from helios import quality
from helios.backfill.bounds import moment_of
from helios.backfill.report import Gap, Report
from helios.backfill.source import Source
from helios.models import Interval
from helios.quality.judging import plural


def moment(milliseconds: int | None) -> datetime | None:
    """Turn epoch milliseconds into a moment, where there are any."""
    return None if milliseconds is None else moment_of(milliseconds)


def completed(report: Report, found: dict[str, Any]) -> Report:
    """Take over what the reading found."""
    report.rows, report.good = found["rows"], found["good"]
    report.rejected, report.duplicates = found["rejected"], found["duplicates"]
    report.missing, report.gap_count = found["missing"], found["gap_count"]
    report.gaps = [Gap(moment_of(start), candles) for start, candles in found["gaps"]]
    report.first, report.last = moment(found["first"]), moment(found["last"])
    candles, runs, longest = found["quiet"]
    report.quiet = (candles, runs, longest)
    report.expected = expected(report, found["span"])
    report.reasons = list(sentences(report, found))
    return report


def expected(report: Report, span: int) -> int:
    """Count the candles that the period in the file's name has, or that fit between the first and the last."""
    source, step = report.source, report.source.interval.length
    if source.period is None or outside(report) or source.interval is Interval.D3:
        return span
    start, end = source.period
    if step is None:
        return 1 if end <= datetime.now(UTC) else span
    zero = datetime(1970, 1, 5, tzinfo=UTC)  # a Monday, and a midnight
    first = -((zero - start) // step)
    last = min(-((zero - end) // step) - 1, (datetime.now(UTC) - step - zero) // step)
    return max(span, last - first + 1)


def outside(report: Report) -> bool:
    """Say whether candles lie outside the period that the file's name says."""
    if report.source.period is None or report.first is None or report.last is None:
        return False
    start, end = report.source.period
    return report.first < start or report.last >= end


def sentences(report: Report, found: dict[str, Any]) -> list[str]:
    """Say what is wrong with the file."""
    said = [] if report.rows else ["the file holds no rows"]
    said += [f"{plural(times, 'row')} rejected: {kind}" for kind, times in found["kinds"].items()]
    said += [f"{plural(times, 'row')} {kind}" for kind, times in found["warnings"].items()]
    if report.duplicates:
        was, were = "row that repeats an earlier one was dropped", "rows that repeat an earlier one were dropped"
        said.append(plural(report.duplicates, was, were))
    if report.missing:
        gap = report.gaps[0]
        gaps = plural(report.gap_count, "gap")
        said.append(f"{plural(report.missing, 'candle')} missing in {gaps}, the first at {written(gap.start)}")
    if outside(report) and report.first and report.last:
        said.append(
            f"candles from {written(report.first)} to {written(report.last)} do not fit {period(report.source)}, "
            "the period in the file's name"
        )
    short = report.expected - report.good - report.missing
    if short > 0:
        said.append(f"{plural(short, 'candle')} of {period(report.source)} missing at the file's ends")
    if report.quiet[0]:
        candles, runs, longest = report.quiet
        said.append(f"{plural(candles, 'candle')} without a trade in {plural(runs, 'run')}, the longest of {longest}")
    return said


def judged(report: Report, found: dict[str, Any]) -> quality.Verdict:
    """Score a file as any other candles are scored; how long ago it ended does not matter."""
    return quality.judge_klines(
        quality.KlineFacts(
            expected=report.expected,
            found=report.good,
            missing=report.missing,
            gaps=report.gap_count,
            rejected=report.rejected,
            duplicates=report.duplicates,
            odd=sum(found["warnings"].values()) + outside(report),
            quiet=report.quiet[0],
            longest_quiet=report.quiet[2],
        )
    )


def written(at: datetime) -> str:
    """Write a moment for people."""
    return at.strftime("%Y-%m-%d %H:%M:%S")


def period(source: Source) -> str:
    """Write the period in a file's name."""
    if source.period is None:
        return "its range"
    start, end = source.period
    return start.strftime("%Y-%m-%d") if end - start == timedelta(days=1) else start.strftime("%Y-%m")
