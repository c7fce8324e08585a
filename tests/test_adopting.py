"""Adopting an installation of the ancestor: what its plan says, what is copied, and that `public` stays as it was."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import ancestor
import exchange
import pytest
from installation import COPIED, Run, ask, dump, engine_of, login, made, rows, run_sql, start, use, variables
from sqlalchemy import URL, text
from tables import wait_until_blocked

from helios import adopting, db, queries
from helios.adopting import Plan, Share, Source
from helios.errors import InputError, RightsError
from helios.feed import Feed
from helios.models import Market, SessionMode

SCHEMA = "helios_trading"
PAPER = Source(mode=SessionMode.PAPER)
# what tables hold, but for numbers that the database gave and moments of writing
CONTENT = (
    f"SELECT symbol, k.* FROM {SCHEMA}.klines k JOIN {SCHEMA}.instruments i ON i.id = instrument_id ORDER BY 1, 3, 4",
    f"""SELECT symbol, last_price, bid_price, priced_at, quoted_at
        FROM {SCHEMA}.tickers JOIN {SCHEMA}.instruments i ON i.id = instrument_id ORDER BY 1""",
    f"SELECT id, name, strategy, mode, status, started_at, stopped_at, parameters FROM {SCHEMA}.trading_sessions",
    f"SELECT id, client_order_id, status, filled_quantity, updated_at FROM {SCHEMA}.orders ORDER BY 1",
    f"""SELECT order_id, version, new_status, exchange_at, new_state ->> 'filled_quantity'
        FROM {SCHEMA}.order_history ORDER BY 1, 2""",
    f"SELECT subject, source, measured_at, score, alert_level, reasons FROM {SCHEMA}.data_quality_metrics ORDER BY 2",
)


@pytest.fixture(scope="module")
def filled(cluster: URL, template: str) -> Iterator[str]:
    """The name of an upgraded database with an installation of the ancestor, for copies."""
    with made(cluster, template) as url:
        ancestor.install(url)
        yield str(url.database)


@pytest.fixture
def installed(cluster: URL, filled: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """A copy of it, for one test."""
    with made(cluster, filled) as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=COPIED)
        yield url


@pytest.fixture(scope="module")
def adopted(cluster: URL, filled: str) -> Iterator[URL]:
    """A copy in which it was adopted, to be looked at only."""
    with made(cluster, filled) as url:
        apply(url)
        yield url


def plan(url: URL, source: Source = PAPER) -> Plan:
    with engine_of(url).connect() as connection:
        return adopting.plan(connection, source)


def shares(url: URL, source: Source = PAPER) -> dict[str, Share]:
    return {each.table: each for each in plan(url, source).shares}


def apply(url: URL, source: Source = PAPER, **options: Any) -> dict[str, int]:
    return {each.table: each.written for each in adopting.apply(engine_of(url), source, **options)}


def content(url: URL) -> list[list[tuple[Any, ...]]]:
    return [[tuple(map(str, row)) for row in rows(url, question)] for question in CONTENT]


def candles(url: URL, table: str, columns: str, values: str) -> None:
    """Make a table of candles of another version, with these columns and rows."""
    run_sql(url, f"CREATE TABLE public.{table} ({columns})", f"INSERT INTO public.{table} VALUES {values}")


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_counts_every_row_and_tells_every_reason(installed):
    """Of each table what can be adopted, and the others by why they cannot; nothing is written."""
    found = shares(installed)
    counts = {name: (each.rows, each.good, each.there) for name, each in found.items() if each.rows}
    assert {
        "ohlcv_1m": (400, 400, 0),
        "ohlcv_1h": (11, 2, 0),
        "current_prices": (3, 2, 0),
        "trading_sessions": (2, 2, 0),
        "orders": (6, 3, 0),
        "order_history": (8, 6, 0),
        "positions": (2, 0, 0),
        "data_quality_metrics": (4, 2, 0),
    } == counts
    assert {
        "open_time is not between 2000 and 2199": 2,
        "open_time is where no candle of 1h begins": 1,
        "its interval is still running": 1,
        "it is the newest of its series, and was written before it ended": 1,
        "it breaks the rule: prices are positive": 1,
        "it breaks the rule: high is highest": 1,
        "it breaks the rule: volumes are not negative": 1,
        "symbol is blank, too long, or holds white space": 1,
    } == found["ohlcv_1h"].rejected
    assert {
        "it breaks the rule: quantities are positive": 1,
        "side is none that Helios knows: HOLD": 1,
        "time_in_force is none that Helios knows: DAY": 1,
    } == found["orders"].rejected
    assert {
        "its order is not adopted": 1,
        "new_status is none that Helios knows: DREAMING": 1,
    } == found["order_history"].rejected
    assert 0 == ask(installed, f"SELECT count(*) FROM {SCHEMA}.instruments")


def test_the_rules_are_those_of_the_tables(installed, tmp_path):
    """Whatever the plan takes, the tables take: no row of the copy fails, and all that was promised is there."""
    promised = {name: each.good for name, each in shares(installed).items()}
    apply(installed, rejects=tmp_path)
    after = shares(installed)
    assert promised == {name: each.there for name, each in after.items()}
    assert 0 == sum(each.missing + each.differing for each in after.values())


def test_columns_are_never_dropped_silently(installed):
    """One that nobody knows is named, and so is one that is left behind, with why."""
    run_sql(installed, "ALTER TABLE public.orders ADD COLUMN leverage integer, ADD COLUMN notes text")
    share = shares(installed)["orders"]
    assert ["leverage"] == share.unknown
    assert {"commission", "commission_asset", "notes"} == set(share.left)


def test_what_is_somebody_elses_is_left_alone(installed):
    """A table of that name with other columns, an interval that nobody knows, and a view."""
    run_sql(
        installed,
        "DROP TABLE public.orders",
        "CREATE TABLE public.orders (id integer, customer text, total numeric)",
        "CREATE TABLE public.ohlcv_7m (symbol text)",
        "CREATE VIEW public.ohlcv_15m AS SELECT * FROM public.ohlcv_1m",
    )
    found = shares(installed)
    assert "it is another table of that name: it has no column symbol or pair" in str(found["orders"].problem)
    assert "its name tells no interval that Helios knows" == found["ohlcv_7m"].problem
    assert "it is not a table, but a view or foreign" == found["ohlcv_15m"].problem
    assert {"there is no table of orders": 7} == {
        why: n for why, n in found["order_history"].rejected.items() if "DREAMING" not in why
    }
    apply(installed)
    assert 0 == ask(installed, f"SELECT count(*) FROM {SCHEMA}.orders")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("nowhere", "this database has no schema 'nowhere'"),
        ("empty", "schema 'empty' holds no older installation's tables"),
        (SCHEMA, "'helios_trading' is Helios's own schema"),
    ],
)
def test_a_schema_with_nothing_to_adopt_is_refused(installed, schema, said):
    """In one sentence that says what was looked for."""
    run_sql(installed, "CREATE SCHEMA empty")
    with pytest.raises(InputError, match=said):
        plan(installed, Source(schema=schema))


def test_the_ancestor_may_have_a_schema_of_its_own(installed):
    """Its later versions had one; its name may be whatever PostgreSQL takes."""
    run_sql(installed, "CREATE SCHEMA \"Old: 'bot'\"", "ALTER TABLE public.ohlcv_1m SET SCHEMA \"Old: 'bot'\"")
    source = Source(schema="Old: 'bot'")
    assert {"ohlcv_1m": 400} == apply(installed, source)
    assert (400, 0) == (shares(installed, source)["ohlcv_1m"].there, plan(installed, source).missing)


def test_a_column_that_cannot_be_read_stops_it(installed):
    """With its name and type; nothing was written."""
    run_sql(installed, "ALTER TABLE public.ohlcv_1m ALTER COLUMN volume TYPE boolean USING true")
    with pytest.raises(InputError, match=r"column volume of public.ohlcv_1m is bool, from which no number can be read"):
        apply(installed)
    assert 0 == ask(installed, f"SELECT count(*) FROM {SCHEMA}.instruments")


# --- what is copied --------------------------------------------------------------------------------------------------


def test_public_is_left_byte_for_byte(installed, programs, tmp_path):
    """By a login that may only read it, and is a writer: the dump after planning and copying is the one before."""
    bot = login(
        installed,
        "adopter",
        f"GRANT {COPIED}_writer TO {{login}}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {login}",
    )
    before = dump(programs, installed, "--schema=public")
    plan(bot)
    apply(bot, rejects=tmp_path)
    assert 0 == plan(bot).missing
    assert before == dump(programs, installed, "--schema=public")
    assert "CREATE TABLE public.ohlcv_1m" in before


def test_who_may_not_read_is_told_what_to_grant(installed):
    """The SQL stands in the message, ready to run."""
    bot = login(installed, "stranger", f"GRANT {COPIED}_writer TO {{login}}")
    with pytest.raises(RightsError, match=f'GRANT SELECT ON "public"."current_prices", .* TO {bot.username};'):
        plan(bot)


def test_candles_are_the_same_to_the_last_digit(adopted):
    """Of all tables in one, by instrument and interval; a year without a partition got one."""
    old = "SELECT symbol, timestamp, open_price, high_price, low_price, close_price, volume, trades_count"
    new = f"""
        SELECT symbol, open_time, open, high, low, close, volume, trades FROM {SCHEMA}.klines
        JOIN {SCHEMA}.instruments ON id = instrument_id
        WHERE interval = '1m' AND exchange = 'binance' AND market = 'spot'
    """
    assert rows(adopted, f"{old} FROM public.ohlcv_1m ORDER BY 1, 2") == rows(adopted, f"{new} ORDER BY 1, 2")
    assert 118 == ask(adopted, f"SELECT count(*) FROM {SCHEMA}.klines_1m_2023")
    assert ["2025-01-01 00", "2025-01-01 04"] == [
        f"{at:%Y-%m-%d %H}" for (at,) in rows(adopted, f"SELECT open_time FROM {SCHEMA}.klines_1h ORDER BY 1")
    ]


def test_prices_become_tickers(adopted):
    """Quotes have a moment only where there are some."""
    assert [
        ("BTCUSDT", Decimal("96340.61"), Decimal("96340.60"), True, True),
        ("SOLUSDT", Decimal("180.12345678"), None, True, False),
    ] == rows(
        adopted,
        f"SELECT symbol, last_price, bid_price, priced_at = event_at, quoted_at IS NOT NULL FROM {SCHEMA}.tickers "
        f"JOIN {SCHEMA}.instruments ON id = instrument_id ORDER BY 1",
    )


def test_sessions_keep_their_ids_and_all_they_say(adopted):
    """What has no column of its own goes into the parameters."""
    first, second = rows(
        adopted,
        f"""SELECT CAST(id AS text), name, strategy, mode, status, parameters
            FROM {SCHEMA}.trading_sessions ORDER BY name""",
    )
    assert ("7b0e9a3e-90c5-4d7c-8a38-0a34a45b0a01", "first", "grid", "paper", "STOPPED") == first[:5]
    told = {"symbols": ["BTCUSDT", "ETHUSDT"], "performance": {"pnl": "12.50"}}
    assert {"levels": 10, "adopted": told} == first[5]
    assert ("FAILED", {"adopted": {"symbols": ["BTCUSDT"]}}) == second[4:]


def test_sessions_of_an_untold_mode_are_not_adopted(installed):
    """Whether a run traded with money is not guessed."""
    assert {"nothing tells whether it traded with money: say --mode live, paper or backtest": 2} == shares(
        installed, Source()
    )["trading_sessions"].rejected


def test_an_order_goes_through_its_states_again(adopted):
    """So its history holds what the ancestor noted, when; what was filled is told where a fill is."""
    lines = f"""
        SELECT version, old_status, new_status, to_char(exchange_at AT TIME ZONE 'UTC', 'HH24:MI:SS.MS'),
               new_state ->> 'filled_quantity', actor, irregular
        FROM {SCHEMA}.order_history JOIN {SCHEMA}.orders ON id = order_id WHERE client_order_id = :id ORDER BY version
    """
    assert [
        (1, None, "PENDING_NEW", "00:00:00.123", "0", "helios adopt", False),
        (2, "PENDING_NEW", "NEW", "00:00:02.000", "0", "helios adopt", False),
        (3, "NEW", "PARTIALLY_FILLED", "00:04:00.000", "0.50000000", "helios adopt", False),
        (4, "PARTIALLY_FILLED", "FILLED", "00:05:00.000", "0.50000000", "helios adopt", False),
    ] == rows(adopted, lines, id="HLO-1")
    # here the order itself knows more than its history
    assert [(1, "NEW"), (2, "CANCELED")] == [(row[0], row[2]) for row in rows(adopted, lines, id="HLO-2")]
    assert [(1, "NEW")] == [(row[0], row[2]) for row in rows(adopted, lines, id="HLO-3")]


def test_an_order_keeps_its_client_id(adopted):
    """Its own id is a UUIDv7 of the moment it was placed; no exchange id is NULL, not blank."""
    [one, two, three] = rows(
        adopted,
        f"SELECT id, client_order_id, exchange_order_id, type, time_in_force, origin, status, filled_quote_quantity, "
        f"submitted_at, updated_at FROM {SCHEMA}.orders ORDER BY client_order_id",
    )
    assert ("HLO-1", "4711", "LIMIT", "GTC", "adopted", "FILLED", Decimal("24999.75")) == one[1:8]
    assert ("HLO-2", None, "STOP_LOSS_LIMIT", "GTC", "adopted", "CANCELED", Decimal(0)) == two[1:8]
    assert ("HLO-3", "4712", "UNKNOWN", None, "adopted", "NEW", Decimal(0)) == three[1:8]
    assert [7, 7, 7] == [each[0].version for each in (one, two, three)]
    assert [int(each[8].timestamp() * 1000) for each in (one, two)] == [each[0].int >> 80 for each in (one, two)]
    assert "2025-01-01 00:05" == f"{one[9]:%Y-%m-%d %H:%M}"


def test_a_position_comes_from_the_trades_that_are_read_later(installed):
    """None is adopted, because no fills were kept; the feed finds the adopted order, and makes both."""
    apply(installed)
    assert 0 == ask(installed, f"SELECT count(*) FROM {SCHEMA}.positions")
    with engine_of(installed).connect() as connection:
        assert [] == queries.position_differences().rows(connection)
    feed = Feed(db.create_session_factory(engine_of(installed)), exchange="binance", market=Market.SPOT, account="main")
    feed.take(exchange.rest_trade(orderId=4711, qty="0.5", price="49999.5", quoteQty="24999.75"))
    assert [(Decimal("0.5"), Decimal("49999.5"))] == rows(
        installed, f"SELECT quantity, entry_price FROM {SCHEMA}.positions"
    )
    assert [("HLO-1", Decimal("0.5"), "FILLED")] == rows(
        installed,
        f"""SELECT client_order_id, o.filled_quantity, status
            FROM {SCHEMA}.orders o JOIN {SCHEMA}.fills f ON f.order_id = o.id""",
    )
    with engine_of(installed).connect() as connection:
        assert [] == queries.position_differences().rows(connection)


def test_measurements_keep_what_they_measured(adopted):
    """Under Helios's subjects and levels; what has no column stands among the reasons."""
    assert [
        ("klines", None, "critical", ["kline_gaps = 3.00000000"], Decimal("0.5000")),
        ("ticker", "BTCUSDT", "ok", ["ticker_update = 96340.61000000", '{"volume": "1234.5"}'], Decimal("0.9500")),
    ] == rows(
        adopted,
        f"SELECT subject, symbol, alert_level, reasons, score FROM {SCHEMA}.data_quality_metrics "
        f"LEFT JOIN {SCHEMA}.instruments i ON i.id = instrument_id ORDER BY 1",
    )


def test_refused_rows_are_set_aside(installed, tmp_path):
    """Each with its place, its reason and all it said; a later run without any removes the file."""
    apply(installed, rejects=tmp_path)
    lines = (tmp_path / "public.current_prices.rejects.csv").read_text().splitlines()
    assert ["place,reason,row", True] == [lines[0], lines[1].startswith('"(0,3)",it breaks the rule: prices are not')]
    assert '""symbol"": ""BADUSDT""' in lines[1]
    assert not (tmp_path / "public.ohlcv_1m.rejects.csv").exists()
    run_sql(installed, "DELETE FROM public.current_prices WHERE price < 0")
    apply(installed, rejects=tmp_path)
    assert not (tmp_path / "public.current_prices.rejects.csv").exists()


def test_what_helios_holds_already_stays(installed):
    """A candle, a ticker and an order that differ are counted, and left as they are."""
    run_sql(
        installed,
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT')",
        f"INSERT INTO {SCHEMA}.accounts (exchange, market, name) VALUES ('binance', 'spot', 'main')",
        f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 5, '2025-01-05T00:00Z')",
        f"""INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
            VALUES (1, '1m', '2024-01-01T00:00Z', 7, 7, 7, 7, 7)""",
        f"""INSERT INTO {SCHEMA}.orders
                (id, account_id, instrument_id, exchange_order_id, side, type, status, submitted_at)
            VALUES (gen_random_uuid(), 1, 1, '4711', 'BUY', 'LIMIT', 'CANCELED', now())""",
    )
    apply(installed)
    found = shares(installed)
    tables = ("ohlcv_1m", "current_prices", "orders")
    assert [1, 1, 1] == [found[name].differing for name in tables]
    assert 0 == sum(each.missing for each in found.values())
    assert 5 == found["order_history"].rejected["its order is there under another id"]
    assert 7 == ask(
        installed, f"SELECT open FROM {SCHEMA}.klines WHERE open_time = '2024-01-01T00:00Z' AND instrument_id = 1"
    )
    assert 5 == ask(installed, f"SELECT last_price FROM {SCHEMA}.tickers WHERE instrument_id = 1")
    assert "CANCELED" == ask(installed, f"SELECT status FROM {SCHEMA}.orders WHERE exchange_order_id = '4711'")


def test_what_happens_to_an_order_afterwards_is_not_lost(installed):
    """The feed changes it, the old table goes on: both are said to differ, and nothing is undone."""
    apply(installed)
    run_sql(
        installed,
        f"UPDATE {SCHEMA}.orders SET status = 'CANCELED' WHERE client_order_id = 'HLO-3'",
        "INSERT INTO public.order_history (order_id, status, changed_at) VALUES ('HLO-3', 'REJECTED', now())",
    )
    apply(installed)
    found = shares(installed)
    assert (1, 1) == (found["orders"].differing, found["order_history"].differing)
    assert 0 == sum(each.missing for each in found.values())
    assert "CANCELED" == ask(installed, f"SELECT status FROM {SCHEMA}.orders WHERE client_order_id = 'HLO-3'")


def test_an_account_of_another_market_is_refused(installed):
    """Its orders would be mixed with others'."""
    run_sql(installed, f"INSERT INTO {SCHEMA}.accounts (exchange, market, name) VALUES ('binance', 'um', 'main')")
    with pytest.raises(
        InputError, match="account 'main' of binance belongs to market um, not spot: name another account"
    ):
        apply(installed)


# --- other versions --------------------------------------------------------------------------------------------------


def test_doubles_and_naive_moments_are_read_exactly(upgraded):
    """By the shortest text, and as UTC, whatever zone and digits the login has; both are said."""
    run_sql(
        upgraded,
        f"ALTER DATABASE {upgraded.database} SET timezone TO 'Asia/Tokyo'",
        f"ALTER DATABASE {upgraded.database} SET extra_float_digits TO -10",
    )
    candles(
        upgraded,
        "ohlcv_5m",
        "id serial, pair text, open_time timestamp, open float8, high float8, low float8, close real, volume float8, "
        "ohm int",
        "(1, 'BTCUSDT', '2025-01-01 00:05', 0.1, 96340.612345678, 1e-7, 0.3, 'NaN', 1),"
        "(2, 'BTCUSDT', '2025-01-01 00:10', 0.1, 96340.612345678, 1e-7, 0.3, 123456789.987654, 1)",
    )
    share = shares(upgraded)["ohlcv_5m"]
    assert ["ohm"] == share.unknown
    assert {"it breaks the rule: volumes are not negative": 1} == share.rejected
    assert "open_time without a time zone: taken as UTC" in share.notes
    assert any("read by their shortest text" in each for each in share.notes)
    apply(upgraded)
    assert [tuple(map(Decimal, ("0.1", "96340.612345678", "0.0000001", "0.3", "123456789.987654")))] == rows(
        upgraded,
        f"SELECT open, high, low, close, volume FROM {SCHEMA}.klines WHERE open_time = '2025-01-01T00:10Z'",
    )
    assert 0 == plan(upgraded).missing


def test_moments_may_be_numbers_and_numbers_may_be_text(upgraded):
    """Seconds, milliseconds and microseconds are told apart; what is no number refuses its row, not the table."""
    values = "(1, 'B', {}, '{}', '2', '0.5', '1.5', ' 1e3 ', {})"
    told = (
        (1735689600, "1.00000000000000000001", "5"),
        (1735689660000, "1", "5"),
        (1735689720000000, "1", "5"),
        (1735689780000, "one", "5"),
        (1735689840000, "1", "3000000000"),
        (1735689900000, "1", "1.5"),
        (-5, "1", "1"),
    )
    columns = (
        "id int, symbol text, timestamp bigint, open text, high text, low text, close text, volume text, trades numeric"
    )
    candles(upgraded, "ohlcv_1m", columns, ", ".join(values.format(*each) for each in told))
    assert {
        "open is no number": 1,
        "trades is no whole number below 2^31": 2,
        "open_time is no moment": 1,
    } == shares(upgraded)["ohlcv_1m"].rejected
    apply(upgraded)
    question = f"SELECT extract(minute FROM open_time)::int, open, volume FROM {SCHEMA}.klines ORDER BY 1"
    one, thousand = Decimal(1), Decimal(1000)
    assert [(0, Decimal("1.00000000000000000001"), thousand), (1, one, thousand), (2, one, thousand)] == rows(
        upgraded, question
    )


def test_a_partitioned_table_without_a_key_is_adopted(upgraded):
    """Every part of it, stretch by stretch; of two rows of one candle the first counts, the other is said to differ."""
    run_sql(
        upgraded,
        "CREATE TABLE public.ohlcv_1m (symbol text, timestamp timestamptz, open numeric, high numeric, low numeric, "
        "close numeric, volume numeric) PARTITION BY RANGE (timestamp)",
        "CREATE TABLE public.part_a PARTITION OF public.ohlcv_1m FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
        "CREATE TABLE public.part_b PARTITION OF public.ohlcv_1m FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
        """INSERT INTO public.ohlcv_1m
           SELECT 'B', timestamptz '2024-12-31T12:00Z' + n * interval '1 minute', 1, 2, 1, 1, n
           FROM generate_series(1, 1440) AS n""",
        "INSERT INTO public.ohlcv_1m VALUES ('B', '2025-01-01T00:00Z', 1, 2, 1, 1, 9)",
        "INSERT INTO public.ohlcv_1m VALUES ('B', '2025-01-01T00:01Z', 1, 2, 1, 1, 721)",
    )
    assert {"ohlcv_1m": 1440} == apply(upgraded, stretch=1)
    share = shares(upgraded)["ohlcv_1m"]
    assert (1442, 1442, 0, 1) == (share.good, share.there, share.missing, share.differing)


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_killed_and_run_again_equals_one_run(installed, adopted, tmp_path):
    """The command is killed while it waits for the orders' table; what it had committed is there, and nothing twice."""
    env = variables(installed, DATABASE_ROLE_PREFIX=COPIED, DATABASE_APPLICATION_NAME="helios-adopting")
    arguments = ("helios.cli", "adopt", "--mode", "paper", "--apply", "--rejects", str(tmp_path))
    with engine_of(installed).begin() as trader:
        trader.execute(text(f"LOCK TABLE {SCHEMA}.orders IN EXCLUSIVE MODE"))
        process = start(*arguments, env=env)
        wait_until_blocked(engine_of(installed), "helios-adopting")
        process.kill()
        process.communicate()
    assert (402, 0) == (
        ask(installed, f"SELECT count(*) FROM {SCHEMA}.klines"),
        ask(installed, f"SELECT count(*) FROM {SCHEMA}.orders"),
    )
    apply(installed)
    assert content(adopted) == content(installed)
    assert {0} == set(apply(installed).values())
    assert content(adopted) == content(installed)


def test_stopped_after_any_stretch_and_run_again_equals_one_run(installed, adopted):
    """Wherever it stopped, the next run adds what is lacking."""
    for steps in (2, 9, 17, 26):
        run = adopting.apply(engine_of(installed), PAPER, stretch=1)
        for _ in range(steps):
            next(run, None)
        run.close()
    apply(installed)
    assert content(adopted) == content(installed)


def test_two_at_once_copy_everything_once(installed, adopted):
    """They take turns; measurements, which have no key of their own, are not doubled either."""
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: apply(installed, stretch=1), range(2)))
    assert {"ohlcv_1m": 400, "orders": 3, "data_quality_metrics": 2}.items() <= {
        table: done[0][table] + done[1][table] for table in done[0]
    }.items()
    assert content(adopted) == content(installed)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_plans_and_copies_only_on_demand(installed, helios: Run):
    """The plan writes nothing; --apply copies, sets aside, and compares; a second one has nothing to do."""
    status, said, talk = helios("adopt", "--mode", "paper")
    assert (0, True) == (status, "ohlcv_1m" in said)
    assert re.search(r"ohlcv_1h +1 +its interval is still running *\n", said)
    assert re.search(r"ohlcv_1h +klines +11 +2 +0 +0 +9 *\n", said)
    assert "positions: id, entry_price, current_price, realized_pnl" in talk
    assert "orders: fills were not kept" in talk
    assert (0, False) == (ask(installed, f"SELECT count(*) FROM {SCHEMA}.klines"), Path("rejects").exists())
    status, said, talk = helios("adopt", "--mode", "paper", "--apply")
    assert (0, True) == (status, "ohlcv_1h: 9 refused rows are in rejects/public.ohlcv_1h.rejects.csv" in talk)
    assert 402 == ask(installed, f"SELECT count(*) FROM {SCHEMA}.klines")
    status, said, _ = helios("adopt", "--mode", "paper", "--apply", "--json")
    told = {each["table"]: each for each in json.loads(said)}
    assert (400, 400, 0) == tuple(told["ohlcv_1m"][name] for name in ("good", "there", "differing"))
    assert 402 == ask(installed, f"SELECT count(*) FROM {SCHEMA}.klines")


def test_the_command_says_what_did_not_arrive(installed, helios: Run):
    """Exit status 1, where a row that can be adopted is not there in the end."""
    run_sql(
        installed,
        f"CREATE FUNCTION {SCHEMA}.lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"CREATE TRIGGER lose BEFORE INSERT ON {SCHEMA}.tickers FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.lose()",
    )
    status, _, talk = helios("adopt", "--apply")
    assert (1, True) == (status, "2 rows are not there: stop what changes them, then run this again" in talk)


def test_the_command_needs_the_tables(database, helios: Run, monkeypatch):
    """One sentence, before anything is looked at."""
    use(monkeypatch, database)
    status, said, talk = helios("adopt")
    assert (1, "") == (status, said)
    assert "run `helios upgrade` first" in talk.replace("\n", " ")


def test_the_command_adopts_from_another_schema_into_another_account(installed, helios: Run, tmp_path):
    """As --from and --account name them, at the exchange and on the market that are named."""
    run_sql(installed, "ALTER SCHEMA public RENAME TO older", "CREATE SCHEMA public")
    arguments = ("--from", "older", "--account", "desk", "--mode", "paper", "--rejects", str(tmp_path))
    status, _, talk = helios("adopt", "--exchange", "Bybit", "--market", "um", *arguments, "--apply")
    assert 0 == status, talk
    orders = f"SELECT a.name, count(*) FROM {SCHEMA}.orders JOIN {SCHEMA}.accounts AS a ON a.id = account_id GROUP BY 1"
    assert [("desk", 3)] == rows(installed, orders)
    places = f"SELECT exchange, market FROM {SCHEMA}.instruments UNION SELECT exchange, market FROM {SCHEMA}.accounts"
    assert [("bybit", "um")] == rows(installed, places)
