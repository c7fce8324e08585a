"""Positions by the average cost rule, worked out by hand, and the same in whatever order fills are told."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.feed.positions import State, Trade, derived
from helios.models import Market

START = datetime(2025, 6, 15, 15, 6, 40, tzinfo=UTC)


def trades(*told: tuple[str, str]) -> list[Trade]:
    """Trades of (signed quantity, price), a second apart."""
    return [
        Trade(START + timedelta(seconds=number), 1, str(number), Decimal(quantity), Decimal(price))
        for number, (quantity, price) in enumerate(told)
    ]


@pytest.mark.parametrize(
    ("told", "quantity", "entry_price", "realized_pnl"),
    [
        ([("1", "100")], "1", "100", "0"),
        ([("1", "100"), ("1", "110")], "2", "105", "0"),
        ([("2", "100"), ("-1", "110")], "1", "100", "10"),
        ([("2", "100"), ("-2", "90")], "0", None, "-20"),
        ([("1", "100"), ("-3", "110")], "-2", "110", "10"),
        ([("-2", "100"), ("1", "90")], "-1", "100", "10"),
        ([("-1", "100"), ("-3", "104"), ("4", "100")], "0", None, "12"),
        ([("1", "100"), ("-1", "101"), ("-1", "102"), ("1", "100")], "0", None, "3"),
    ],
)
def test_linear_contracts(told, quantity, entry_price, realized_pnl) -> None:
    """Adding moves the average, lessening realises, turning begins anew at the price of the turn."""
    state = derived(trades(*told), Market.UM)
    expected = (Decimal(quantity), None if entry_price is None else Decimal(entry_price), Decimal(realized_pnl))
    assert expected == (state.quantity, state.entry_price, state.realized_pnl)


def test_inverse_contracts() -> None:
    """COIN-M contracts are averaged by value; profit is in the base asset for each unit of a contract."""
    state = derived(trades(("1", "100"), ("1", "200"), ("-2", "400")), Market.CM)
    assert (Decimal(0), None) == (state.quantity, state.entry_price)
    assert Fraction(2) * (Fraction(3, 400) - Fraction(1, 400)) == round(Fraction(state.realized_pnl), 20)
    held = derived(trades(("1", "100"), ("1", "200")), Market.CM)
    assert Decimal("133.3333333333333333333333333") == held.entry_price


@given(
    st.lists(st.tuples(st.integers(-5, 5).filter(bool), st.integers(1, 200), st.integers(0, 3)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_any_order(told, chance) -> None:
    """The order in which trades are told does not matter, and step by step comes to the same as all at once."""
    all_trades = [
        Trade(START + timedelta(seconds=second), 1, f"{number:02}", Decimal(quantity), Decimal(price))
        for number, (quantity, price, second) in enumerate(told)
    ]
    shuffled = chance.sample(all_trades, len(all_trades))
    state = derived(shuffled, Market.SPOT)
    assert sum((each.quantity for each in all_trades), Decimal(0)) == state.quantity
    stepwise = State()
    for trade in sorted(all_trades):
        stepwise = derived([trade], Market.SPOT, stepwise)
    assert stepwise == state


@given(st.lists(st.tuples(st.integers(-5, 5).filter(bool), st.integers(1, 200)), max_size=12))
def test_profit_is_what_came_in_less_what_went_out(told) -> None:
    """Realised profit and what is held at its entry price add up to the money that changed hands."""
    state = derived(trades(*((str(quantity), str(price)) for quantity, price in told)), Market.SPOT)
    money = -sum(quantity * price for quantity, price in told)
    held = state.quantity * (state.entry_price or 0)
    assert abs(state.realized_pnl - (money + held)) < Decimal("1e-18")
