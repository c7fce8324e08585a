"""Quality: the judgement of facts, the facts measured in PostgreSQL against plainly computed ones, what is stored."""

import json
import math
import statistics
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import make_klines
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from installation import use
from sqlalchemy import URL, Connection, Engine, delete, event, insert, select, text, update
from sqlalchemy.orm import Session

from helios import backfill, quality
from helios.errors import InputError
from helios.models import (
    Account,
    AlertLevel,
    DataQualityMetric,
    Instrument,
    InstrumentStatus,
    Interval,
    Kline,
    Market,
    Order,
)
from helios.models import Ticker as TickerRow
from helios.quality import KlineFacts, KlineThresholds, OrderFacts, TickerFacts
from helios.quality.judging import LEVELS, Finding, verdict
from helios.quality.measuring import following, openings
from helios.queries import unresolved_orders

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FLAWLESS = KlineFacts(expected=1440, found=1440, age_seconds=30.0, interval_seconds=60.0)
COUNTS = st.integers(0, 10**7)
GROWING = (
    "expected",
    "missing",
    "rejected",
    "duplicates",
    "implausible",
    "odd",
    "longest_quiet",
    "jumps",
    "age_seconds",
)


@st.composite
def kline_facts(draw: st.DrawFn) -> KlineFacts:
    counts = {name: draw(COUNTS) for name in (*GROWING[:-1], "found", "gaps", "longest_gap")}
    age = draw(st.floats(0, 10**9))
    return KlineFacts(**counts, age_seconds=age, interval_seconds=draw(st.sampled_from([1.0, 60.0, 86_400.0])))


# --- judging candles -----------------------------------------------------------------------------------------------


def test_flawless_candles_score_one():
    """Nothing is wrong, and nothing is said."""
    assert quality.Verdict(Decimal(1), AlertLevel.OK, []) == quality.judge_klines(FLAWLESS)


@given(facts=kline_facts())
def test_a_score_is_a_share_and_has_its_reasons(facts):
    """Between 0 and 1, six digits; 1 exactly where there is no reason, and an alert only with one."""
    found = quality.judge_klines(facts)
    assert 0 <= found.score <= 1
    assert found.score == round(found.score, 6)
    assert (found.score == 1) == (not found.reasons)
    assert found.reasons or found.alert_level is AlertLevel.OK


@given(facts=kline_facts(), name=st.sampled_from(GROWING), more=st.integers(1, 10**6))
def test_more_of_a_defect_never_scores_higher(facts, name, more):
    """More missing, more rejected, older: the score falls or stays, and the alert gets no milder."""
    before = quality.judge_klines(facts)
    after = quality.judge_klines(replace(facts, **{name: getattr(facts, name) + more}))
    assert after.score <= before.score
    assert LEVELS.index(after.alert_level) >= LEVELS.index(before.alert_level)


@given(facts=kline_facts(), more=st.integers(1, 10**6))
def test_a_candle_more_never_scores_lower(facts, more):
    """What was missing and came lifts the score or leaves it."""
    better = replace(facts, found=facts.found + more, missing=max(0, facts.missing - more))
    assert quality.judge_klines(better).score >= quality.judge_klines(facts).score


@pytest.mark.parametrize(
    ("defect", "level", "reason"),
    [
        ({"expected": 1441}, "warning", "1 candle missing"),
        ({"expected": 1443, "missing": 3, "gaps": 2, "longest_gap": 2}, "warning", "3 candles missing in 2 gaps"),
        ({"found": 1000}, "critical", "440 candles missing"),
        ({"rejected": 1}, "warning", "1 row rejected"),
        ({"rejected": 1440}, "critical", "1,440 rows rejected"),
        ({"duplicates": 2}, "warning", "2 rows that repeat an earlier one"),
        ({"implausible": 1}, "warning", "1 candle whose figures contradict each other"),
        ({"odd": 1}, "warning", "1 oddity in rows that are good"),
        ({"jumps": 1}, "warning", "1 candle whose price jumps"),
        ({"quiet": 30, "longest_quiet": 30}, "ok", "no trade in 30 candles in a row"),
        ({"quiet": 1440, "longest_quiet": 1440}, "warning", "no trade in 1,440 candles in a row"),
        ({"age_seconds": 181.0}, "warning", "the newest candle closed 3 minutes ago"),
        ({"age_seconds": 86_400.0 * 3}, "critical", "the newest candle closed 3 days ago"),
        ({"age_seconds": -200.0}, "warning", "the newest candle closed 3 minutes in the future"),
    ],
)
def test_each_defect_alone_lowers_the_score_and_is_named(defect, level, reason):
    """One defect, one reason, and its level."""
    found = quality.judge_klines(replace(FLAWLESS, **defect))
    assert found.score < 1
    assert level == found.alert_level
    [said] = found.reasons
    assert said.startswith(reason)


@pytest.mark.parametrize(
    "harmless", [{"quiet": 10, "longest_quiet": 10}, {"age_seconds": 180.0}, {"age_seconds": None}, {"gaps": 0}]
)
def test_what_is_within_the_thresholds_is_flawless(harmless):
    """A short silence of a quiet pair, and a candle that is about to come, cost nothing."""
    assert 1 == quality.judge_klines(replace(FLAWLESS, **harmless)).score


def test_one_defect_of_millions_is_not_rounded_away():
    """Only flawless data scores 1."""
    facts = KlineFacts(expected=50_000_000, found=50_000_000, duplicates=1)
    assert Decimal("0.999999") == quality.judge_klines(facts).score


def test_nothing_at_all_and_nothing_of_what_is_expected():
    """Where nothing is due nothing is wrong; where everything lacks the score is 0."""
    assert 1 == quality.judge_klines(KlineFacts(expected=0, found=0)).score
    empty = quality.judge_klines(KlineFacts(expected=1440, found=0))
    assert (0, AlertLevel.CRITICAL) == (empty.score, empty.alert_level)
    useless = quality.judge_klines(KlineFacts(expected=0, found=0, rejected=5))
    assert (0, AlertLevel.CRITICAL) == (useless.score, useless.alert_level)


def test_thresholds_are_arguments():
    """Whoever knows his market better says so."""
    facts = replace(FLAWLESS, longest_quiet=30, age_seconds=400.0)
    thresholds = KlineThresholds(quiet_run=30, fresh_intervals=6.0)
    assert 1 == quality.judge_klines(facts, thresholds).score


@given(
    findings=st.lists(st.tuples(st.floats(0, 1), st.sampled_from(LEVELS)), max_size=6).flatmap(
        lambda found: st.tuples(st.just(found), st.permutations(found))
    )
)
def test_the_order_of_findings_does_not_matter(findings):
    """The same findings in any order give the same score and alert."""
    given_, shuffled = ([Finding(left, level, "") for left, level in each] for each in findings)
    first, second = verdict(given_), verdict(shuffled)
    assert (first.score, first.alert_level) == (second.score, second.alert_level)


# --- judging tickers and orders ------------------------------------------------------------------------------------

PRICES = st.decimals(Decimal("0.00000001"), Decimal(10**6), places=8)
TICKER = TickerFacts(age_seconds=0.5, last_price=Decimal(100), bid_price=Decimal("99.99"), ask_price=Decimal("100.01"))


@given(age=st.floats(-(10**9), 10**9), last=st.none() | PRICES, bid=st.none() | PRICES, ask=st.none() | PRICES)
def test_a_tickers_score_is_a_share(age, last, bid, ask):
    """Whatever a ticker says, its score is between 0 and 1, and 1 exactly without a reason."""
    found = quality.judge_ticker(TickerFacts(age_seconds=age, last_price=last, bid_price=bid, ask_price=ask))
    assert 0 <= found.score <= 1
    assert (found.score == 1) == (not found.reasons)


@given(bid=PRICES, spread=PRICES, more=PRICES, age=st.floats(0, 10**6), older=st.floats(0, 10**6))
def test_wider_and_older_never_score_higher(bid, spread, more, age, older):
    """A wider spread or an older price is never better."""
    facts = TickerFacts(age_seconds=age, bid_price=bid, ask_price=bid + spread)
    worse = TickerFacts(age_seconds=age + older, bid_price=bid, ask_price=bid + spread + more)
    assert quality.judge_ticker(worse).score <= quality.judge_ticker(facts).score


@pytest.mark.parametrize(
    ("defect", "level", "reason"),
    [
        ({"age_seconds": 30.0}, "warning", "its price was told 30 seconds ago"),
        ({"age_seconds": 90.0}, "critical", "its price was told 90 seconds ago"),
        ({"age_seconds": -30.0}, "warning", "its price was told 30 seconds in the future"),
        ({"bid_price": Decimal("100.02")}, "critical", "the book is crossed: bid 100.02 above ask 100.01"),
        ({"bid_price": Decimal(98)}, "warning", "the spread is 2.03% of the price"),
        ({"bid_price": Decimal(50)}, "critical", "the spread is 66.68% of the price"),
        ({"low_price_24h": Decimal(101), "high_price_24h": Decimal(102)}, "warning", "last price 100 lies outside"),
        ({"last_price": Decimal(0), "bid_price": None, "ask_price": None}, "critical", "no price above zero"),
    ],
)
def test_each_defect_of_a_ticker_is_named(defect, level, reason):
    """One defect, one reason, a lower score."""
    found = quality.judge_ticker(replace(TICKER, **defect))
    assert found.score < 1
    assert level == found.alert_level
    [said] = found.reasons
    assert said.startswith(reason)


def test_a_good_ticker_and_one_that_rests():
    """A fresh ticker scores 1; one of an instrument that does not trade may be old, and without a price."""
    assert 1 == quality.judge_ticker(TICKER).score
    assert 1 == quality.judge_ticker(TickerFacts(age_seconds=10**6, last_price=Decimal(0), trades=False)).score


@given(orders=COUNTS, irregular=COUNTS, unresolved=COUNTS, more=st.integers(0, 1000))
def test_more_irregular_orders_never_score_higher(orders, irregular, unresolved, more):
    """Orders without irregular changes and unresolved ones score 1; each more lowers that."""
    assert 1 == quality.judge_orders(OrderFacts(orders=orders)).score
    facts = OrderFacts(orders=orders, irregular=irregular, unresolved=unresolved)
    worse = replace(facts, irregular=irregular + more, unresolved=unresolved + more)
    assert 0 <= quality.judge_orders(worse).score <= quality.judge_orders(facts).score <= 1
    assert (irregular + unresolved > 0) == bool(quality.judge_orders(facts).reasons)


# --- measuring candles ---------------------------------------------------------------------------------------------


def candle(at: datetime, price: float, volume: int = 1, **other: Any) -> dict[str, Any]:
    """A candle that stands still, unless told otherwise."""
    prices = dict.fromkeys(("open", "high", "low", "close"), Decimal(str(price)))
    return {"open_time": at, **prices, "volume": Decimal(volume), "quote_volume": None, **other}


def stored(connection: Connection, rows: list[dict[str, Any]], interval: Interval = Interval.M1, **named: str) -> int:
    """Store candles of a new instrument, in any order; its number."""
    values = {"exchange": "binance", "market": Market.SPOT, **named}
    instrument = connection.scalar(insert(Instrument).values(**values).returning(Instrument.id))
    assert instrument is not None
    for year in {row["open_time"].year for row in rows}:
        connection.execute(text(f"SELECT helios_trading.make_kline_partition('{interval.value}', {year})"))
    if rows:
        keys = {"instrument_id": instrument, "interval": interval}
        connection.execute(insert(Kline), [keys | row for row in rows])
    return instrument


def plainly(rows: list[dict[str, Any]], thresholds: KlineThresholds) -> dict[str, int]:
    """Compute the facts of minutes in Python."""
    rows = sorted(rows, key=lambda row: row["open_time"])
    gaps = [(after["open_time"] - before["open_time"]) // MINUTE - 1 for before, after in pairwise(rows)]
    gaps = [gap for gap in gaps if gap]
    runs = [sum(1 for _ in run) for quiet, run in groupby(rows, key=lambda row: row["volume"] == 0) if quiet]
    tops = [
        max(row["high"], before["close"] if before else 0) for before, row in zip([None, *rows], rows, strict=False)
    ]
    bottoms = [
        min(row["low"], before["close"] if before else row["low"])
        for before, row in zip([None, *rows], rows, strict=False)
    ]
    moves = [math.log(top / bottom) for top, bottom in zip(tops, bottoms, strict=True)]
    median = statistics.median(moves)
    deviation = statistics.median(abs(move - median) for move in moves)
    limit = median + thresholds.jump_deviations * 1.4826 * deviation
    return {
        "found": len(rows),
        "missing": sum(gaps),
        "gaps": len(gaps),
        "longest_gap": max(gaps, default=0),
        "quiet": sum(runs),
        "longest_quiet": max(runs, default=0),
        "jumps": sum(move > limit and move >= thresholds.jump_least for move in moves),
    }


@pytest.fixture
def connection(owner: Engine):
    """A connection whose work is rolled back."""
    with owner.connect() as opened:
        yield opened


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    minutes=st.lists(st.integers(0, 120), min_size=1, max_size=80, unique=True),
    prices=st.lists(st.sampled_from([100.0, 100.1, 100.2, 103.0, 120.0]), min_size=80, max_size=80),
    volumes=st.lists(st.sampled_from([0, 0, 1]), min_size=80, max_size=80),
    deviations=st.sampled_from([3.0, 30.0]),
)
def test_measured_facts_equal_plainly_computed_ones(connection, symbol, minutes, prices, volumes, deviations):
    """Whatever candles there are, in whatever order they came, PostgreSQL counts what Python counts."""
    thresholds = KlineThresholds(jump_deviations=deviations)
    stamped = zip(minutes, prices, volumes, strict=False)
    rows = [candle(JANUARY + minute * MINUTE, price, volume) for minute, price, volume in stamped]
    with connection.begin_nested() as savepoint:
        number = stored(connection, rows, symbol=symbol)
        until = JANUARY + 121 * MINUTE
        found = quality.measure(
            connection, number, Interval.M1, since=JANUARY, until=until, now=until, thresholds=thresholds
        )
        savepoint.rollback()
    facts = found.facts
    assert isinstance(facts, KlineFacts)
    expected = plainly(rows, thresholds)
    assert expected == {name: getattr(facts, name) for name in expected}
    assert 121 - min(minutes) == facts.expected
    assert (120 - max(minutes)) * 60 == facts.age_seconds


@pytest.mark.parametrize("interval", list(Interval))
@pytest.mark.parametrize("lacks", [False, True])
def test_every_interval_has_its_grid(connection, symbol, interval, *, lacks):
    """Months, weeks from Monday and three days count right, whole and with a candle missing."""
    times = make_klines.openings(interval.value, datetime(2023, 12, 1, tzinfo=UTC))
    moments = [next(times) for _ in range(30)]
    held = moments[:14] + moments[15:] if lacks else moments
    number = stored(connection, [candle(at, 100) for at in held], interval, symbol=symbol)
    end = following(moments[-1], interval)
    facts = quality.measure(connection, number, interval, since=moments[0], until=end, now=end).facts
    assert isinstance(facts, KlineFacts)
    assert (30, lacks, lacks, 0.0) == (facts.expected, facts.missing, facts.gaps, facts.age_seconds)


@given(
    interval=st.sampled_from([each for each in Interval if each is not Interval.D3]),
    start_=st.integers(0, 10**6),
    length=st.integers(0, 10**6),
)
def test_expected_candles_are_those_of_the_grid(interval, start_, length):
    """Candles that open in a window and close within it, counted one by one."""
    since = JANUARY + timedelta(seconds=start_)
    until = since + timedelta(seconds=length)
    assume(interval.length is None or length / interval.length.total_seconds() < 2000)
    plain = 0
    for at in make_klines.openings(interval.value, since):
        if following(at, interval) > until:
            break
        plain += 1
    assert plain == openings(interval, since, until, since)


def test_the_running_candle_is_not_expected(connection, symbol):
    """A candle that has not closed yet is no gap."""
    number = stored(connection, [candle(JANUARY + n * MINUTE, 100) for n in range(10)], symbol=symbol)
    until = JANUARY + 11 * MINUTE
    now = JANUARY + 10.5 * MINUTE
    found = quality.measure(connection, number, Interval.M1, since=JANUARY, until=until, now=now)
    assert (10, Decimal(1)) == (found.facts.expected, found.verdict.score)


def test_the_window_bounds_what_is_looked_at(connection, symbol):
    """A gap before the window is not counted, one behind the last candle is."""
    rows = [candle(JANUARY + n * MINUTE, 100) for n in (*range(5), *range(20, 30))]
    number = stored(connection, rows, symbol=symbol)
    since, until = JANUARY + 20 * MINUTE, JANUARY + 35 * MINUTE
    facts = quality.measure(connection, number, Interval.M1, since=since, until=until).facts
    assert isinstance(facts, KlineFacts)
    assert (15, 10, 0, 5, None) == (facts.expected, facts.found, facts.missing, facts.lacking, facts.age_seconds)


def test_a_series_that_is_not_there_scores_zero(connection, symbol):
    """No candle of those that the window has."""
    number = stored(connection, [], symbol=symbol)
    found = quality.measure(connection, number, Interval.H1, since=JANUARY, until=JANUARY + timedelta(days=1))
    assert (24, 0, Decimal(0)) == (found.facts.expected, found.facts.found, found.verdict.score)


@pytest.mark.parametrize(
    ("figures", "market", "expected"),
    [
        ({"quote_volume": Decimal(1000)}, Market.SPOT, 0),
        ({"quote_volume": Decimal(1001)}, Market.SPOT, 1),
        ({"quote_volume": Decimal(999)}, Market.UM, 1),
        ({"quote_volume": Decimal(1)}, Market.CM, 0),
        ({"taker_buy_volume": Decimal(10)}, Market.CM, 0),
        ({"taker_buy_volume": Decimal(11)}, Market.CM, 1),
        ({"quote_volume": Decimal(1000), "taker_buy_quote_volume": Decimal(1001)}, Market.SPOT, 1),
    ],
)
def test_figures_that_contradict_each_other(connection, symbol, figures, market, expected):
    """Ten pieces at 100 cost 1000, and takers buy no more than all; contracts of cm tell no price."""
    number = stored(connection, [candle(JANUARY, 100, 10, **figures)], symbol=symbol)
    until = JANUARY + MINUTE
    found = quality.measure(connection, number, Interval.M1, since=JANUARY, until=until, market=market)
    assert expected == found.facts.implausible


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_months_are_those_of_utc(connection, symbol, zone):
    """Neither the session's time zone nor that of the window moves the months that a candle stands for."""
    times = make_klines.openings("1mo", datetime(2024, 1, 1, tzinfo=UTC))
    held = [next(times) for _ in range(5)]
    number = stored(connection, [candle(at, 100) for at in held], Interval.MO1, symbol=symbol)
    end = following(held[-1], Interval.MO1)
    connection.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
    window = {"since": held[1].astimezone(ZoneInfo(zone)), "until": end.astimezone(ZoneInfo(zone))}
    for since in ({}, {"since": held[0] - timedelta(days=400)}):  # the series begins within the window
        facts = quality.measure(connection, number, Interval.MO1, **{**window, **since}, now=end).facts
        assert (5 if since else 4, 5 if since else 4, 0) == (facts.expected, facts.found, facts.age_seconds)


def test_a_window_without_time_zone_is_refused(connection):
    """A moment that could be any is refused in one sentence."""
    naive = JANUARY.replace(tzinfo=None)
    for window in ({"since": naive, "until": JANUARY}, {"since": JANUARY, "until": JANUARY, "now": naive}):
        with pytest.raises(InputError, match="has no time zone: pass tzinfo=UTC"):
            quality.measure(connection, 1, Interval.M1, **window)
    for ask in (
        lambda: quality.measure_orders(connection, since=naive, until=JANUARY),
        lambda: quality.measure_orders(connection, since=JANUARY, until=naive),
        lambda: quality.measure_ticker(connection, 1, now=naive),
        lambda: quality.tickers(connection, now=naive),
    ):
        with pytest.raises(InputError, match="has no time zone: pass tzinfo=UTC"):
            ask()


def test_numbers_beyond_any_float_are_measured(connection, symbol):
    """A price of four hundred digits, or as small, is a jump and no failure."""
    rows = [candle(JANUARY + n * MINUTE, 100) for n in range(9)]
    huge, tiny = Decimal(10) ** 400, Decimal(10) ** -400
    rows[4] |= {"high": huge, "low": tiny, "quote_volume": huge}
    number = stored(connection, rows, symbol=symbol)
    facts = quality.measure(connection, number, Interval.M1, since=JANUARY, until=JANUARY + 9 * MINUTE).facts
    assert 1 == facts.jumps


def test_a_measurement_is_one_statement(connection, symbol):
    """One question to the server for a series, a ticker, the orders."""
    number = stored(connection, [candle(JANUARY, 100)], symbol=symbol)
    sent: list[str] = []

    def note(_connection, _cursor, statement, *_):
        sent.append(statement)

    event.listen(connection, "before_cursor_execute", note)
    quality.measure(connection, number, Interval.M1, since=JANUARY, until=JANUARY + MINUTE)
    quality.measure_ticker(connection, number, now=JANUARY)
    quality.measure_orders(connection, since=JANUARY, until=JANUARY + MINUTE)
    assert 3 == len(sent)


@pytest.mark.parametrize(
    ("defect", "facts"),
    [
        ("gap", {"missing": 5}),
        ("zero-volume-run", {"longest_quiet": 30}),
        ("long-numbers", {"implausible": 3}),
        ("nan", {"missing": 3}),
    ],
)
def test_generated_defects_are_measured_in_the_table(writer, symbol, tmp_path, defect, facts):
    """What the generator put into a file is found in the table, in its exact number."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=600, defects=(defect,), seed=4)
    backfill.load(writer, backfill.recognise(made.path))
    with writer.connect() as connection:
        [series] = quality.series(connection, symbol)
        found = quality.measure(connection, series.instrument_id, series.interval, since=JANUARY, until=series.end)
    assert (made.good, made.missing) == (found.facts.found, found.facts.missing)
    for name, count in facts.items():
        beside = 2 if name == "longest_quiet" else 0  # a quiet candle may stand beside a run
        assert count <= getattr(found.facts, name) <= count + beside
    assert found.verdict.score < 1


def test_generated_candles_without_defects_score_one(writer, symbol, tmp_path):
    """A whole month as generated has nothing wrong with it, in the file and in the table."""
    made = make_klines.make_file(tmp_path, symbol, "5m", start=JANUARY)
    backfill.load(writer, backfill.recognise(made.path))
    with writer.connect() as connection:
        [series] = quality.series(connection, symbol)
        found = quality.measure(connection, series.instrument_id, series.interval, since=JANUARY, until=series.end)
        stored_ = connection.execute(metrics(series.instrument_id)).one()
    assert (Decimal(1), Decimal(1), "ok") == (found.verdict.score, stored_.score, stored_.alert_level)


# --- storing -------------------------------------------------------------------------------------------------------


def metrics(instrument: int) -> Any:
    return select(DataQualityMetric.__table__).where(DataQualityMetric.instrument_id == instrument)


def test_a_load_stores_its_score(writer, symbol, tmp_path):
    """The loader's row has the score of the file's facts, from the same functions."""
    made = make_klines.make_file(
        tmp_path,
        symbol,
        "1m",
        start=JANUARY,
        rows=600,
        name=f"{symbol}-1m.csv",
        defects=("gap", "nan", "equal-duplicates"),
    )
    report = backfill.load(writer, backfill.recognise(made.path))
    facts = KlineFacts(
        expected=600,
        found=made.good,
        missing=made.missing,
        rejected=3,
        duplicates=3,
        longest_quiet=report.quiet[2],
    )
    with writer.connect() as connection:
        [series] = quality.series(connection, symbol)
        row = connection.execute(metrics(series.instrument_id)).one()
    judged = quality.judge_klines(facts)
    assert (judged.score, judged.alert_level) == (row.score, row.alert_level)


def test_what_is_measured_is_stored(connection, symbol):
    """Candles and ticker: facts, score, alert and reasons stand in data_quality_metrics."""
    rows = [candle(JANUARY + n * MINUTE, 100) for n in (0, 1, 3)]
    number = stored(connection, rows, symbol=symbol)
    connection.execute(
        insert(TickerRow).values(
            instrument_id=number, bid_price=Decimal(98), ask_price=Decimal(102), event_at=JANUARY, last_price=None
        )
    )
    until = JANUARY + 4 * MINUTE
    quality.record(
        connection,
        quality.measure(connection, number, Interval.M1, since=JANUARY, until=until, now=until),
        source="feed",
    )
    ticker = quality.measure_ticker(connection, number, now=JANUARY + timedelta(seconds=20))
    assert ticker is not None
    with Session(connection) as session:
        quality.record(session, ticker, source="feed")
        session.flush()
    klines, told = connection.execute(metrics(number).order_by(DataQualityMetric.id)).all()
    assert ("klines", "1m", 4, 3, Decimal("0.75"), Decimal("0.75"), "critical", 0) == (
        klines.subject,
        klines.interval,
        klines.rows_expected,
        klines.rows_found,
        klines.completeness,
        klines.score,
        klines.alert_level,
        klines.freshness_seconds,
    )
    assert ["1 candle missing in 1 gap, the longest of 1"] == klines.reasons
    assert ("ticker", 20, Decimal("0.04"), Decimal("0.125"), "feed") == (
        told.subject,
        told.freshness_seconds,
        told.spread,
        told.score,
        told.source,
    )


def test_orders_are_measured(connection, symbol):
    """An irregular change and an order that nobody resolved are counted, and named."""
    now = connection.scalar(text("SELECT clock_timestamp()"))
    window = {"since": now - timedelta(minutes=5), "until": now + timedelta(minutes=5)}
    before = quality.measure_orders(connection, **window).facts
    instrument = stored(connection, [], symbol=symbol)
    account = connection.scalar(
        insert(Account).values(exchange="binance", name=symbol, market=Market.SPOT).returning(Account.id)
    )
    order = {"account_id": account, "instrument_id": instrument, "side": "BUY", "type": "LIMIT", "submitted_at": now}
    for status in ("FILLED", "UNKNOWN", "NEW"):
        named = {"id": uuid.uuid4(), "client_order_id": status, "status": status}
        connection.execute(insert(Order).values(**order, **named))
    connection.execute(update(Order).where(Order.client_order_id == "FILLED", own(account)).values(status="NEW"))
    found = quality.measure_orders(connection, **window)
    assert (before.orders + 3, before.irregular + 1, before.unresolved + 1) == (
        found.facts.orders,
        found.facts.irregular,
        found.facts.unresolved,
    )
    assert found.verdict.score < 1
    assert any("life cycle" in reason for reason in found.verdict.reasons)
    assert any("unresolved" in reason for reason in found.verdict.reasons)


def test_an_order_waits_since_it_was_asked_for(connection, symbol):
    """A cancel of this moment is not late because the exchange last spoke an hour ago; so say queries as well."""
    now = connection.scalar(text("SELECT clock_timestamp()"))
    instrument = stored(connection, [], symbol=symbol)
    account = connection.scalar(
        insert(Account).values(exchange="binance", name=symbol, market=Market.SPOT).returning(Account.id)
    )
    told = now - timedelta(hours=1)
    order = {"id": uuid.uuid4(), "client_order_id": symbol, "side": "BUY", "type": "LIMIT", "status": "NEW"}
    order |= {"account_id": account, "instrument_id": instrument, "submitted_at": told, "updated_at": told}
    connection.execute(insert(Order).values(**order))

    def late(after: timedelta) -> int:
        found = quality.measure_orders(connection, since=told, until=now + after).facts
        assert isinstance(found, OrderFacts)
        return found.unresolved

    before = late(timedelta(0)), late(timedelta(minutes=5))
    connection.execute(update(Order).where(own(account)).values(status="PENDING_CANCEL"))
    assert (before[0], before[1] + 1) == (late(timedelta(0)), late(timedelta(minutes=5)))
    waiting = unresolved_orders(timedelta(minutes=1), account_id=account)
    assert [] == waiting.rows(connection)


def own(account: int) -> Any:
    return Order.account_id == account


def test_an_instrument_without_a_ticker_has_no_verdict(connection, symbol):
    """None, which is not the same as a bad one."""
    assert quality.measure_ticker(connection, stored(connection, [], symbol=symbol), now=JANUARY) is None


def test_a_halted_instruments_ticker_may_be_old(connection, symbol):
    """Its silence is right."""
    number = stored(connection, [], symbol=symbol, status=InstrumentStatus.HALT)
    connection.execute(insert(TickerRow).values(instrument_id=number, last_price=Decimal(1), event_at=JANUARY))
    found = quality.measure_ticker(connection, number, now=JANUARY + timedelta(days=9))
    assert found is not None
    assert 1 == found.verdict.score


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(migrated: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database of all that keep to a symbol of their own, for commands of this process."""
    use(monkeypatch, migrated)


def test_the_command_scores_names_and_records(helios, installed, writer, owner, symbol, tmp_path):
    """Each series with its score and what is wrong; --until judges as of then; --record stores it; exit status 0."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=600, defects=("gap",))
    backfill.load(writer, backfill.recognise(made.path))
    status, said, _ = helios("quality", symbol, "--json")
    assert 0 == status
    [found] = json.loads(said)
    assert ("1m", "critical") == (found["what"], found["alert"])
    assert 0 < Decimal(found["score"]) < 1
    gap, age = found["reasons"]
    assert gap.startswith("5 candles missing in ")
    assert age.startswith("the newest candle closed ")
    status, said, _ = helios("quality", symbol, "--archived", "--json")
    assert 0 == status
    assert [gap] == json.loads(said)[0]["reasons"]
    status, said, _ = helios("quality", symbol, "1m", "--until", "2025-01-01T10:00:00", "--record", "--json")
    assert 0 == status
    [found] = json.loads(said)
    assert ("warning", 1) == (found["alert"], len(found["reasons"]))
    statement = (
        select(DataQualityMetric.score)
        .join(Instrument, Instrument.id == DataQualityMetric.instrument_id)
        .where(Instrument.symbol == symbol, DataQualityMetric.source == "helios quality")
    )
    with owner.connect() as connection:
        assert [Decimal(found["score"])] == connection.scalars(statement).all()


def test_the_command_looks_as_many_days_back_as_it_is_told(helios, installed, writer, owner, symbol, tmp_path):
    """A candle that is missing on the first of five days counts in five days, and not in two."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=5 * 24)
    backfill.load(writer, backfill.recognise(made.path))
    with owner.begin() as connection:
        number = connection.scalar(select(Instrument.id).filter_by(symbol=symbol))
        connection.execute(delete(Kline).filter_by(instrument_id=number, open_time=JANUARY + timedelta(hours=7)))
    reasons = []
    for days in ("5", "2"):
        _, said, _ = helios("quality", symbol, "1h", "--until", "2025-01-06T00:00:00", "--days", days, "--json")
        reasons.append([each.partition(" missing")[0] for each in json.loads(said)[0]["reasons"]])
    assert [["1 candle"], []] == reasons


@pytest.mark.parametrize(
    ("only", "status"),
    [
        (["--exchange", "binance", "--market", "spot"], 0),
        (["--exchange", "bybit"], 2),
        (["--market", "um"], 2),
    ],
    ids=["its own", "another exchange", "another market"],
)
def test_the_command_keeps_to_an_exchange_and_a_market(helios, installed, writer, symbol, tmp_path, only, status):
    """A series of another one is not scored."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=24)
    backfill.load(writer, backfill.recognise(made.path))
    ended, said, _ = helios("quality", symbol, *only, "--json")
    assert status == ended
    assert (["1h"] if status == 0 else []) == [each["what"] for each in json.loads(said or "[]")]


def test_what_is_not_there_is_said(helios, installed):
    """A symbol without candles and ticker is a wrong input: exit status 2, one sentence."""
    status, _, talk = helios("quality", "NOSUCHUSDT", "1m")
    assert 2 == status
    assert "there is nothing of 'NOSUCHUSDT 1m' to score" in talk
    assert 1 == len(talk.strip().splitlines())
