"""Verdicts into data_quality_metrics."""

from decimal import Decimal

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from helios.models import DataQualityMetric
from helios.quality.facts import KlineFacts, TickerFacts
from helios.quality.measuring import Measured

SIX_DIGITS = Decimal("0.000001")


def record(writer: Session | Connection, measured: Measured, *, source: str) -> None:
    """Store a verdict in the caller's transaction; `source` says who measured, such as feed."""
    writer.execute(insert(DataQualityMetric).values(**columns(measured), source=source))


def columns(measured: Measured) -> dict[str, object]:
    """Give the values of a row of data_quality_metrics, but for its source."""
    facts, verdict = measured.facts, measured.verdict
    values: dict[str, object] = {
        "instrument_id": measured.instrument_id,
        "subject": measured.subject,
        "interval": measured.interval,
        "window_start": measured.since,
        "window_end": measured.until,
        "score": verdict.score,
        "alert_level": verdict.alert_level,
        "reasons": verdict.reasons,
    }
    if isinstance(facts, KlineFacts):
        values |= {
            "rows_expected": facts.expected,
            "rows_found": facts.found,
            "rows_rejected": facts.rejected,
            "completeness": share_of(facts.completeness),
        }
    age = None if not isinstance(facts, KlineFacts | TickerFacts) else facts.age_seconds
    values["freshness_seconds"] = None if age is None else Decimal(str(age))
    values["spread"] = facts.spread if isinstance(facts, TickerFacts) else None
    return values


def share_of(value: float) -> Decimal:
    """Write a share with six digits."""
    return Decimal(value).quantize(SIX_DIGITS)
