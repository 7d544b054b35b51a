"""Reservations of interactive requests: in which thread, and after a client that has left."""

import asyncio
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from api import shares
from api.inference import spending
from api.shares import ProjectShare, RequestShare
from jobs.clock import now
from jobs.db.engine import Database
from jobs.inference.interactive import QueuedRequest
from jobs.usage import budgets
from jobs.usage.budgets import LimitedProjects
from jobs.usage.tables import Reservation

BODY = {"model": "tiny", "max_tokens": 5}


@pytest.fixture
def limited(sqlite: Database) -> Database:
    """Return a database in which the project `p` has a spend limit."""
    with sqlite.write() as session:
        budgets.change_limit(session, "p", 100, actor="operator")
    return sqlite


def call_of(db: Database, price_source: Any) -> Any:
    registry = SimpleNamespace(price_source=price_source)
    services = SimpleNamespace(limited_projects=LimitedProjects(), registry=lambda: registry)
    return SimpleNamespace(db=db, project_id="p", services=services)


def queued() -> QueuedRequest:
    return QueuedRequest(
        id="req_1", url="/v1/chat/completions", body=b"{}", tenant="p", deadline=now() + 60, stream=False
    )


def reservations(db: Database) -> list[str]:
    with db.read() as session:
        return list(session.scalars(select(Reservation.id)))


async def test_reservation_is_made_in_a_thread_of_its_project(limited: Database) -> None:
    share = ProjectShare(1, 0)
    used = set[float]()

    def price_source(_name: str) -> None:
        used.add(share.threads.used)

    token = shares.current.set(RequestShare(share))
    try:
        await spending.reserve(call_of(limited, price_source), queued(), BODY)
    finally:
        shares.current.reset(token)

    assert used == {1.0}
    assert share.threads.used == 0
    assert reservations(limited) == ["req_1"]


async def test_request_that_is_cancelled_meanwhile_leaves_no_reservation(limited: Database) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def price_source(_name: str) -> None:
        begun.set()
        goes_on.wait(30)

    task = asyncio.create_task(spending.reserve(call_of(limited, price_source), queued(), BODY))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with suppress(asyncio.CancelledError):
        await task

    assert task.cancelled()
    assert reservations(limited) == []
