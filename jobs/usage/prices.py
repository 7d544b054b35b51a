"""Prices of a million tokens in US dollars, each since a time: what was priced already never changes.

A kind of tokens without a price of its own costs what the models file says (`cost_per_million_tokens`), cached tokens
cost as much as others, and a tuned model without prices of its own costs as much as its base. A model without any price
costs null, which is not 0. A model has prices of input and of output, or neither: half a price would cost null as well.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import product
from typing import Final, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.errors import InvalidRequest
from jobs.ledger import audit
from jobs.usage.tables import Price

#: The kinds of tokens. Those of training are priced apart.
KINDS: Final = ("input", "cached", "output", "training")
_NEEDED: Final = frozenset({"input", "output"})  # where any kind but training has a price


class Priced(Protocol):
    """A model of the models file. `cost_per_million_tokens` is its price, in dollars, where SQL has none."""

    @property
    def name(self) -> str: ...

    @property
    def cost_per_million_tokens(self) -> float | None: ...


Resolve = Callable[[str], Priced | None]  # a name to a model of the models file; that of a tuned model to its base


class Prices:
    """All prices, as they are now."""

    def __init__(self, session: Session, resolve: Resolve) -> None:
        self._resolve = resolve
        self._history: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        columns = Price.model, Price.kind, Price.since, Price.usd_per_million
        for model, kind, since, price in session.execute(select(*columns).order_by(Price.since)):
            self._history[model, kind].append((since, price))

    def cost(self, model: str, at: int, tokens: Mapping[str, int]) -> int | None:
        """Return the cost of tokens by kind, in millionths of a US dollar; None where one of them has no price.

        A model whose work took no tokens costs null too, if it has no price.
        """
        used = {kind: count for kind, count in tokens.items() if count} or {next(iter(tokens)): 0}
        cost = 0.0
        for kind, count in used.items():
            price = self.price(model, kind, at)
            if price is None:
                return None
            cost += count * price
        return round(cost)

    def price(self, model: str, kind: str, at: int) -> float | None:
        """Return the price of a kind of tokens of a model at a time in unix seconds."""
        priced = self._resolve(model)
        names = (model, priced.name) if priced else (model,)
        for key in product(names, (kind, "input") if kind == "cached" else (kind,)):
            history = self._history.get(key, ())
            if index := bisect_right(history, at, key=lambda entry: entry[0]):
                return history[index - 1][1]
        return priced.cost_per_million_tokens if priced else None

    def is_complete(self, model: str) -> bool:
        """Return whether all requests for a model have a price now."""
        return all(self.price(model, kind, int(now())) is not None for kind in _NEEDED)


def set_prices(
    session: Session, model: str, prices: Mapping[str, float], since: int, *, actor: str, request_id: str | None = None
) -> None:
    """Set prices of a model, by kind, from a time in unix seconds on. Raises InvalidRequest where one is missing."""
    for kind, price in prices.items():
        new = insert_into(session, Price).values(
            model=model, kind=kind, since=since, usd_per_million=price, created_at=now()
        )
        values = {name: new.excluded[name] for name in ("usd_per_million", "created_at")}
        session.execute(new.on_conflict_do_update(index_elements=["model", "kind", "since"], set_=values))
    stored = set(session.scalars(select(Price.kind).where(Price.model == model, Price.since <= since)))
    if stored - {"training"} and not stored >= _NEEDED:
        message = "A model needs prices of input and of output; 0 where its answers have no tokens, as embeddings."
        raise InvalidRequest(message, code="incomplete_price")
    details = {"since": since, **{kind: prices[kind] for kind in KINDS if kind in prices}}
    audit.record(session, actor=actor, action="price.set", target=model, request_id=request_id, details=details)
