"""The constraints of the tables: each refuses what it should, and the error names it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import (
    URL,
    CheckConstraint,
    Connection,
    Constraint,
    Engine,
    ForeignKeyConstraint,
    PrimaryKeyConstraint,
    UniqueConstraint,
    Uuid,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from tables import DAY, GOOD, NEXT_DAY, NOBODY, insert, migrated

from helios.models import metadata
from helios.models.base import Choice, Exact

TABLES = {table.name: table for table in metadata.sorted_tables}


@pytest.fixture(scope="module")
def engine(cluster: URL) -> Iterator[Engine]:
    with migrated(cluster) as engine:
        yield engine


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A transaction that is rolled back after the test."""
    with engine.connect() as connection:
        connection.begin()
        yield connection


def name_of(constraint: Constraint) -> str:
    """The name that a constraint has in the database."""
    return str(postgresql.dialect().identifier_preparer.format_constraint(constraint))


# What each CHECK refuses: its name, and what makes a good row bad. Those of choices are made below.
REFUSED: list[tuple[str, dict[str, str | None]]] = [
    ("ck_instruments_names_are_not_blank", {"exchange": ""}),
    ("ck_instruments_names_are_not_blank", {"symbol": " \t"}),
    ("ck_instruments_sizes_are_positive", {"tick_size": "0"}),
    ("ck_instruments_sizes_are_positive", {"step_size": "-0.1"}),
    ("ck_instruments_min_notional_is_not_negative", {"min_notional": "-1"}),
    ("ck_klines_high_is_highest", {"open": "3.1"}),
    ("ck_klines_high_is_highest", {"close": "3.1"}),
    ("ck_klines_high_is_highest", {"low": "3.1"}),
    ("ck_klines_low_is_lowest", {"open": "0.9"}),
    ("ck_klines_low_is_lowest", {"close": "0.9"}),
    ("ck_klines_prices_are_positive", {"low": "0"}),
    ("ck_klines_prices_are_positive", {"high": "Infinity"}),
    ("ck_klines_volumes_are_not_negative", {"volume": "-1"}),
    ("ck_klines_volumes_are_not_negative", {"quote_volume": "-1"}),
    ("ck_klines_volumes_are_not_negative", {"taker_buy_volume": "-1"}),
    ("ck_klines_volumes_are_not_negative", {"taker_buy_quote_volume": "-1"}),
    ("ck_klines_volumes_are_not_negative", {"trades": "-1"}),
    ("ck_tickers_some_price_is_there", {"last_price": None, "bid_price": None, "ask_price": None}),
    ("ck_tickers_prices_are_not_negative", {"bid_price": "-1"}),
    ("ck_tickers_quantities_are_not_negative", {"ask_quantity": "-1"}),
    ("ck_tickers_quantities_are_not_negative", {"trades_24h": "-1"}),
    ("ck_tickers_price_changes_are_finite", {"price_change_24h": "NaN"}),
    ("ck_data_quality_metrics_completeness_is_a_share", {"completeness": "1.01"}),
    ("ck_data_quality_metrics_score_is_a_share", {"score": "-0.01"}),
    ("ck_data_quality_metrics_rows_are_not_negative", {"rows_expected": "-1"}),
    ("ck_data_quality_metrics_rows_are_not_negative", {"rows_found": "-1"}),
    ("ck_data_quality_metrics_rows_are_not_negative", {"rows_rejected": "-1"}),
    ("ck_data_quality_metrics_measures_are_finite", {"spread": "NaN"}),
    ("ck_data_quality_metrics_window_is_in_order", {"window_start": NEXT_DAY, "window_end": DAY}),
    ("ck_data_quality_metrics_reasons_are_a_list", {"reasons": '"late"'}),
    ("ck_kline_files_name_is_not_blank", {"name": ""}),
    ("ck_kline_files_sha256_is_a_checksum", {"sha256": "0123456789ABCDEF" * 4}),
    ("ck_kline_files_sha256_is_a_checksum", {"sha256": "0" * 63}),
    ("ck_kline_files_rows_are_not_negative", {"rows": "-1"}),
    ("ck_kline_files_rows_are_not_negative", {"rejected": "-1"}),
    ("ck_kline_files_open_times_are_in_order", {"first_open_time": NEXT_DAY}),
    ("ck_kline_files_open_times_are_in_order", {"first_open_time": None}),
    ("ck_trading_sessions_names_are_not_blank", {"name": " "}),
    ("ck_trading_sessions_names_are_not_blank", {"strategy": ""}),
    ("ck_trading_sessions_stops_after_start", {"started_at": NEXT_DAY}),
    ("ck_trading_sessions_parameters_are_an_object", {"parameters": "[]"}),
    ("ck_signals_kind_is_not_blank", {"kind": ""}),
    ("ck_signals_strength_is_a_share", {"strength": "1.1"}),
    ("ck_signals_price_is_positive", {"price": "0"}),
    ("ck_grid_sessions_prices_are_in_order", {"lower_price": "2"}),
    ("ck_grid_sessions_prices_are_in_order", {"lower_price": "0"}),
    ("ck_grid_sessions_level_count_is_two_or_more", {"level_count": "1"}),
    ("ck_grid_sessions_quantity_is_positive", {"quantity_per_level": "0"}),
    ("ck_grid_sessions_stops_after_start", {"stopped_at": "2025-02-28 23:59:59+00"}),
    ("ck_grid_levels_level_is_not_negative", {"level": "-1"}),
    ("ck_grid_levels_price_is_positive", {"price": "0"}),
    ("ck_accounts_names_are_not_blank", {"name": "\n"}),
    ("ck_accounts_names_are_not_blank", {"exchange": ""}),
    ("ck_balances_asset_is_not_blank", {"asset": ""}),
    ("ck_balances_amounts_are_finite", {"locked": "-Infinity"}),
    ("ck_orders_some_order_id_is_there", {"client_order_id": None, "exchange_order_id": None}),
    ("ck_orders_quantities_are_positive", {"quantity": "0"}),
    ("ck_orders_quantities_are_positive", {"quote_quantity": "0"}),
    ("ck_orders_prices_are_not_negative", {"price": "-1"}),
    ("ck_orders_prices_are_not_negative", {"stop_price": "-1"}),
    ("ck_orders_filled_quantities_are_not_negative", {"filled_quantity": "-1"}),
    ("ck_orders_filled_quantities_are_not_negative", {"filled_quote_quantity": "-1"}),
    ("ck_fills_price_is_positive", {"price": "0"}),
    ("ck_fills_quantity_is_positive", {"quantity": "0"}),
    ("ck_fills_quote_quantity_is_not_negative", {"quote_quantity": "-1"}),
    ("ck_fills_fee_is_finite", {"fee": "NaN"}),
    ("ck_fills_fee_has_its_asset", {"fee": None}),
    ("ck_fills_fee_has_its_asset", {"fee_asset": None}),
    ("ck_order_history_version_is_one_or_more", {"version": "0"}),
    ("ck_positions_amounts_are_finite", {"quantity": "NaN"}),
    ("ck_positions_entry_price_is_not_negative", {"entry_price": "-1"}),
    ("ck_mirror_state_bucket_is_plain", {"bucket": "}:"}),
]
REFUSED += [
    (f"ck_{table.name}_{column.name}", {column.name: "nonsense"})
    for table in TABLES.values()
    for column in table.columns
    if isinstance(column.type, Choice)
]
REFUSED += [
    (f"fk_{table.name}_{column.name}", {column.name: NOBODY if isinstance(column.type, Uuid) else "99"})
    for table in TABLES.values()
    for column in table.columns
    if column.foreign_keys
]
# What each key refuses: a second good row, changed in this and nothing else.
TWICE: list[tuple[str, dict[str, str | None]]] = [
    ("uq_instruments_exchange_market_symbol", {}),
    ("uq_accounts_exchange_name", {"market": "spot"}),
    ("uq_orders_account_id_client_order_id", {"id": NOBODY, "exchange_order_id": "18"}),
    ("uq_orders_account_id_instrument_id_exchange_order_id", {"id": NOBODY, "client_order_id": "helios-3"}),
    ("uq_grid_levels_order_id", {"level": "1"}),
    ("pk_klines", {"volume": "1"}),
    ("pk_tickers", {"last_price": "2"}),
    ("pk_kline_files", {"sha256": "f" * 64}),
    ("pk_trading_sessions", {"name": "other"}),
    ("pk_signals", {"kind": "other"}),
    ("pk_grid_sessions", {"level_count": "3"}),
    ("pk_grid_levels", {"order_id": None}),
    ("pk_balances", {"free": "2"}),
    ("pk_orders", {"client_order_id": "helios-3", "exchange_order_id": "18"}),
    ("pk_fills", {"price": "2"}),
    ("pk_order_history", {"actor": "other"}),
    ("pk_positions", {"quantity": "2"}),
    ("pk_mirror_points", {"token": "other"}),
    ("pk_mirror_state", {"form": "other"}),
]


def table_of(constraint: str) -> str:
    """The table whose constraint this is."""
    return max(
        (table for table in TABLES if constraint[3:].startswith(f"{table}_") or constraint[3:] == table), key=len
    )


@pytest.mark.parametrize("table", TABLES)
def test_a_good_row_passes(connection: Connection, table: str) -> None:
    """Each table takes the row that the other tests make bad."""
    insert(connection, table, GOOD[table])


@pytest.mark.parametrize(("name", "changes"), REFUSED, ids=lambda each: each if isinstance(each, str) else "")
def test_a_constraint_refuses_a_bad_row_by_its_name(
    connection: Connection, name: str, changes: dict[str, str | None]
) -> None:
    """A bad value is refused, and the error names the constraint that refused it."""
    # Routing comes before the CHECKs, so the interval of a candle can be wrong in a partition only.
    into = "klines_1m_2025" if name == "ck_klines_interval" else table_of(name)
    with pytest.raises(IntegrityError) as refusal:
        insert(connection, into, GOOD[table_of(name)] | changes)
    assert name == refusal.value.orig.diag.constraint_name


@pytest.mark.parametrize(("name", "changes"), TWICE, ids=lambda each: each if isinstance(each, str) else "")
def test_a_key_refuses_a_second_row_by_its_name(
    connection: Connection, name: str, changes: dict[str, str | None]
) -> None:
    """A key that is there is refused, and the error names the constraint that refused it."""
    insert(connection, table_of(name), GOOD[table_of(name)])
    with pytest.raises(IntegrityError) as refusal:
        insert(connection, table_of(name), GOOD[table_of(name)] | changes)
    expected = "klines_1m_2025_pkey" if name == "pk_klines" else name  # the partition's part of it
    assert expected == refusal.value.orig.diag.constraint_name


def test_every_constraint_is_tried() -> None:
    """No named CHECK, UNIQUE, foreign or primary key goes without a case above; numbers that the database gives do."""
    tried = {name for name, _ in REFUSED + TWICE}
    kinds = (CheckConstraint, UniqueConstraint, ForeignKeyConstraint, PrimaryKeyConstraint)
    generated = {f"pk_{table.name}" for table in TABLES.values() if any(column.identity for column in table.columns)}
    generated |= {f"pk_{table.name}" for table in TABLES.values() if not table.primary_key.columns}
    named = {name_of(each) for table in TABLES.values() for each in table.constraints if isinstance(each, kinds)}
    assert tried == named - generated


def test_names_fit_and_say_what_is_held() -> None:
    """Every constraint and index has a name that PostgreSQL does not cut, beginning with its kind and its table."""
    for table in TABLES.values():
        for each in [*table.constraints, *table.indexes]:
            name = name_of(each) if not hasattr(each, "expressions") else str(each.name)
            assert len(name.encode()) <= 63
            assert name.split("_", 1)[1].startswith(table.name)


NUMBERS = [
    pytest.param(table.name, column.name, id=f"{table.name}.{column.name}")
    for table in TABLES.values()
    for column in table.columns
    if isinstance(column.type, Exact)
]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(("table", "column"), NUMBERS)
def test_no_number_column_takes_what_is_no_number(connection: Connection, table: str, column: str, value: str) -> None:
    """NaN and both infinities are refused by a CHECK, in every column that holds a number."""
    with pytest.raises(IntegrityError) as refusal:
        insert(connection, table, GOOD[table] | {column: value})
    assert refusal.value.orig.diag.constraint_name.startswith(f"ck_{table}_")


def test_a_candle_whose_year_is_far_away_finds_no_partition(connection: Connection) -> None:
    """There is no default partition: a candle of a year that nobody made is refused."""
    with pytest.raises(IntegrityError, match="no partition of relation"):
        insert(connection, "klines", GOOD["klines"] | {"open_time": "1999-01-01 00:00:00+00"})
