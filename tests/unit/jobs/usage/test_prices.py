"""Prices: which are refused, and what a tuned model costs."""

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.errors import InvalidRequest
from jobs.usage.prices import Prices, set_prices
from jobs.usage.tables import Price

BASE = "tiny"
TUNED = "ft:tiny:acme:support:1"


def resolve(name: str) -> Any:
    return SimpleNamespace(name=BASE, cost_per_million_tokens=9.0) if name in (BASE, TUNED) else None


def set_price(db: Database, since: int = 5, model: str = BASE, **prices: float) -> None:
    with db.write() as session:
        set_prices(session, model, prices, since, actor="operator")


@pytest.mark.parametrize("kinds", [{"input"}, {"output"}, {"cached"}, {"input", "cached"}, {"output", "training"}])
def test_half_a_price_is_refused(db: Database, kinds: set[str]) -> None:
    set_price(db, since=9, input=1.0, output=1.0)  # which begins later

    with pytest.raises(InvalidRequest, match="of input and of output"):
        set_price(db, **dict.fromkeys(kinds, 2.0))

    with db.read() as session:
        assert set(session.scalars(select(Price.since))) == {9}


def test_whole_price_is_changed_in_part(db: Database) -> None:
    set_price(db, training=7.0)
    set_price(db, input=1.0, output=2.0)
    set_price(db, since=9, output=3.0)

    with db.read() as session:
        prices = Prices(session, resolve)
    kinds = "input", "cached", "output", "training"
    assert [prices.price(BASE, kind, 9) for kind in kinds] == [1.0, 1.0, 3.0, 7.0]


def test_tuned_model_costs_as_much_as_its_base_until_it_has_prices(db: Database) -> None:
    def price(at: int) -> float | None:
        with db.read() as session:
            return Prices(session, resolve).price(TUNED, "cached", at)

    assert price(5) == 9.0

    set_price(db, input=1.0, output=1.0)
    assert price(5) == 1.0

    set_price(db, since=6, model=TUNED, input=4.0, output=4.0)
    assert (price(5), price(6)) == (1.0, 4.0)
