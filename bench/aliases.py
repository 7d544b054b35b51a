"""Measure the draw of an alias: the shares of its models, whether each user keeps one, and what finding it costs.

    python -m bench aliases [--requests 10000] [--weight 20]

The requests take the way of an interactive request, up to the queue of a live worker, in this process and without an
engine. Each one for an alias is followed by one for a model, so that both meet the same machine.

    model     the name of a model
    drawn     an alias of two models, drawn for each request
    sticky    the same for 1,000 users in turn
    fallback  an alias whose model no worker serves, with a fallback
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI
from rich import box
from rich.console import Console
from rich.table import Table

from api.deps import CallContext, Caller
from api.inference.targets import find_alias, find_target, work_of
from jobs.bootstrap import migrate
from jobs.clock import now
from jobs.fleet import access, workers
from jobs.queues import Queue
from jobs.registry import aliases
from jobs.registry.aliases import AliasRouting, WeightedModel
from jobs.registry.tables import Alias
from jobs.requests.endpoints import CHAT
from jobs.security import keys
from jobs.security.tables import ApiKey
from tests.support.web import running_app
from tests.support.worker_rows import worker_row

_OLD, _NEW, _GONE = "tone-1", "tone-2", "tone-3"
_USERS = 1000
_MAX_POINTS = 1.0  # by which a share may miss its weight
_MAX_MS = 0.2  # that an alias may cost at p99


class Request(NamedTuple):
    """A request of a way, the model that answers it, and the seconds until that was known."""

    user: str
    model: str
    seconds: float


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/nightmill.db"
        migrate(database)
        with running_app(Path(folder), database) as app:
            requests = asyncio.run(_ask(app, options))
    Console(width=120).print(_table(requests))
    missed = _missed(requests, options.weight)
    print(missed or "all as promised")
    raise SystemExit(bool(missed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the draw of an alias")
    parser.add_argument("--requests", type=int, default=10_000, help="of each way")
    parser.add_argument("--weight", type=int, default=20, help="percentage of the second model")
    return parser.parse_args()


async def _ask(app: FastAPI, options: argparse.Namespace) -> dict[str, list[Request]]:
    """Return the requests of each way; the first ones, which fill the caches, are left out."""
    call = _prepare(app, options.weight)
    requests: dict[str, list[Request]] = defaultdict(list)
    for number in range(-_USERS, options.requests):
        if number % _USERS == 0:
            _announce(app)
        user = f"user-{number % _USERS}"
        for way, name in (("model", _OLD), ("drawn", "drawn"), ("sticky", "sticky"), ("fallback", "fallback")):
            began = time.perf_counter()
            body: dict[str, Any] = {"model": name, "safety_identifier": user}
            work = work_of(call, CHAT, body)
            model = (await find_target(call, access.draw(work, await find_alias(call, work)))).model
            if number >= 0:
                requests[way].append(Request(user, model, time.perf_counter() - began))
    return requests


def _prepare(app: FastAPI, weight: int) -> CallContext:
    """Make a project with the aliases; return a call of its key."""
    shared = (WeightedModel(_OLD, 100 - weight), WeightedModel(_NEW, weight))
    routings = {
        "drawn": AliasRouting(shared),
        "sticky": AliasRouting(shared, sticky=True),
        "fallback": AliasRouting((WeightedModel(_GONE, 100),), fallbacks=(_OLD,)),
    }
    services = app.state.services
    with services.db.write() as session:
        key = session.get_one(ApiKey, keys.id_of(keys.create_key(session, "acme")))
        workers.store_models(session, dict.fromkeys((_OLD, _NEW, _GONE), False), Queue.GENERATE)
        for name, routing in routings.items():
            alias = Alias(project_id=key.project_id, name=name, created_at=now(), created_by="bench")
            aliases.move(session, alias, routing, "create", actor="bench")
        return CallContext(services, Caller(key.id, key.project_id), "req_bench")


def _announce(app: FastAPI) -> None:
    """Register the worker of two models anew, so that it lives on."""
    with app.state.services.db.write() as session:
        worker = worker_row("gpu-1", Queue.GENERATE, _OLD, _NEW, created_at=now(), seen_at=now())
        workers.register(session, worker)


def _table(requests: dict[str, list[Request]]) -> Table:
    table = Table(
        "way", "answered by", "users with one model", "p50 ms", "p99 ms", "more than a model, p99 ms",
        title=f"{len(requests['model']):,} requests of each way", box=box.SIMPLE,
    )  # fmt: skip
    plain = _p99(requests["model"])
    for way, made in requests.items():
        shares = ", ".join(f"{model} {share:.1f} %" for model, share in sorted(_shares(made).items()))
        p50 = statistics.median(request.seconds for request in made) * 1000
        table.add_row(
            way, shares, f"{_kept(made):.0f} %", f"{p50:.3f}", f"{_p99(made):.3f}", f"{_p99(made) - plain:+.3f}"
        )
    return table


def _missed(requests: dict[str, list[Request]], weight: int) -> str:
    """Return what is not as promised, as text."""
    plain = _p99(requests["model"])
    missed = [f"{way} costs more than {_MAX_MS} ms" for way, made in requests.items() if _p99(made) - plain > _MAX_MS]
    if abs(_shares(requests["drawn"])[_NEW] - weight) > _MAX_POINTS:
        missed.append(f"the share of drawn misses its weight by more than {_MAX_POINTS} points")
    if _kept(requests["sticky"]) < 100:
        missed.append("a user of sticky has several models")
    if _shares(requests["fallback"]) != {_OLD: 100.0}:
        missed.append("fallback is answered by another model")
    return "; ".join(missed)


def _shares(requests: list[Request]) -> dict[str, float]:
    """Return the percentage of the requests that each model answers."""
    counts = Counter(request.model for request in requests)
    return {model: 100 * count / len(requests) for model, count in counts.items()}


def _kept(requests: list[Request]) -> float:
    """Return the percentage of the users whose requests one model answers."""
    models = defaultdict(set)
    for request in requests:
        models[request.user].add(request.model)
    return 100 * statistics.mean(len(each) == 1 for each in models.values())


def _p99(requests: list[Request]) -> float:
    """Return the 99th percentile in milliseconds."""
    return statistics.quantiles((request.seconds for request in requests), n=100)[98] * 1000
