"""The watcher of stores tolerates one that is deleted meanwhile, and reports any other that is missing."""

import random
from typing import Any

import httpx
import openai
import pytest

from tests.chaos.journal import Journal
from tests.chaos.store_clients import StoreClients
from tests.support.store_oracle import Intake, KnownStore, make_paper

pytestmark = pytest.mark.verify


class _Client:
    """A server that has no store; `closes` is deleted while it is requested."""

    def __init__(self, closes: KnownStore | None) -> None:
        self.closes = closes
        self.asked = 0

    def look(self, *_: Any) -> Any:
        self.asked += 1
        if self.closes is not None:
            self.closes.gone = True
        answer = httpx.Response(404, request=httpx.Request("GET", "http://server.example/"))
        raise openai.NotFoundError("none", response=answer, body=None)


@pytest.mark.parametrize("look", ["papers", "intake", "search"])
@pytest.mark.parametrize("deleted", [True, False])
def test_deleted_store_is_tolerated_and_missing_store_raises(look: str, deleted: bool) -> None:
    store, rng = KnownStore("store", id="vs_1"), random.Random(1)
    paper = make_paper(0, rng, refused=False)
    store.papers.append(paper)
    client: Any = _Client(store if deleted else None)
    store_clients = StoreClients(client, Journal(1), rng, 1, lambda: None, [store])
    if look == "intake":
        paper.status = "completed"
        store_clients.intakes.append(Intake("intake", store, [paper], batch=True, id="vsfb_1"))

    step = store_clients.read if look == "search" else store_clients.watch
    if deleted:
        step()
    else:
        with pytest.raises(openai.NotFoundError):
            step()

    assert client.asked == 1
