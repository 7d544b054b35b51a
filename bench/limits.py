"""Measure what permissions, limits and budgets cost a request, beside the same request without them.

    python -m bench limits [--requests 2000] [--rounds 5] [--clients 1]

An API answers in this process; a fake worker in the same process answers at once, so that what is measured is the way
of a request. Each round sends the requests of each way in turn, so that all meet the same machine. Of every way the key
is checked and the usage is counted.

    plain         a project without rules
    permissions   a list of 100 models, one of them the model that is asked
    limits        requests and tokens a minute, and requests a day
    budgets       a spend limit of the project: the only rule for which a request writes to the database
    all           all of these, and service tiers
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from jobs.bootstrap import migrate
from jobs.security import keys, model_permissions
from jobs.security.tables import Project
from jobs.usage import budgets, prices, rate_limits
from tests.support.interactive_api import MODEL, running_broker, shops
from workers.runtime.usage_counter import UsageCounter

_BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
_MANY = 1_000_000  # a limit that is never reached


def _permit(session: Session, project: Project) -> None:
    names = [MODEL, *(f"model-{n}" for n in range(99))]
    model_permissions.set_rule(session, project.id, "allow_list", names)


def _limit(session: Session, project: Project) -> None:
    values = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "requests_per_day"), _MANY)
    rate_limits.set_limits(session, project.id, MODEL, values)


def _budget(session: Session, project: Project) -> None:
    prices.set_prices(session, MODEL, {"input": 1.0, "output": 1.0}, 1, actor="bench")
    budgets.change_limit(session, project.id, _MANY, actor="bench")


def _all(session: Session, project: Project) -> None:
    _permit(session, project)
    _limit(session, project)
    _budget(session, project)
    project.service_tiers = {"default": "standard", "enabled": "all"}


WAYS: dict[str, Callable[[Session, Project], None]] = {
    "plain": lambda _session, _project: None,
    "permissions": _permit,
    "limits": _limit,
    "budgets": _budget,
    "all": _all,
}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        database = f"sqlite:///{folder}/nightmill.db"
        migrate(database)
        make = stack.enter_context(shops(Path(folder), database, stack.enter_context(running_broker(Path(folder)))))
        shop = make(access_log=False)
        db = shop.app.state.services.db
        usage = UsageCounter(db)
        stack.callback(usage.close)
        stack.enter_context(shop.open(usage=usage))
        threads = stack.enter_context(ThreadPoolExecutor(options.clients))
        clients = {}
        for name, change in WAYS.items():
            with db.write() as session:
                key = keys.create_key(session, name)
                change(session, keys.ensure_project(session, name))
            headers = {"Authorization": f"Bearer {key}"}
            clients[name] = stack.enter_context(httpx2.Client(base_url=shop.url, headers=headers, timeout=30))
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for number in range(options.rounds + 1):  # the first one warms up
            for name, client in clients.items():
                taken = list(threads.map(_ask, [client] * (options.requests // options.rounds)))
                seconds[name] += taken if number else []
    Console(width=120).print(_table(seconds, options.clients))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure what permissions, limits and budgets cost a request")
    parser.add_argument("--requests", type=int, default=2000, help="of each way")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=1, help="that ask at once")
    return parser.parse_args()


def _ask(client: Any) -> float:
    began = time.perf_counter()
    client.post("/chat/completions", json=_BODY).raise_for_status()
    return time.perf_counter() - began


def _table(seconds: dict[str, list[float]], clients: int) -> Table:
    table = Table(
        "way", "p50 ms", "p99 ms", "more than plain, p50 ms", "p99 ms",
        title=f"one chat completion, {clients} at once", box=box.SIMPLE,
    )  # fmt: skip
    plain = _percentiles(seconds["plain"])
    for name, taken in seconds.items():
        p50, p99 = _percentiles(taken)
        more = (f"{p50 - plain[0]:+.2f}", f"{p99 - plain[1]:+.2f}") if name != "plain" else ("", "")
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", *more)
    return table


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return cuts[49] * 1000, cuts[98] * 1000
