"""The example of two batches finds what is missing, and its webhooks are verified."""

import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx2
import pytest
from openai import OpenAI

JOB = {"status": "completed", "errors": None}


def output(name: str, status: int = 200) -> dict[str, Any]:
    return {"custom_id": name, "response": {"status_code": status, "body": {}}, "error": None}


@pytest.fixture
def batches(example: Any) -> ModuleType:
    module: ModuleType = example("batches")
    return module


def test_complete_batch_has_no_fault(batches: ModuleType) -> None:
    assert list(batches.faults(JOB, {"a", "b"}, [output("b"), output("a")], "batch.completed")) == []


@pytest.mark.parametrize(
    "lines",
    [
        [output("a")],
        [output("a"), output("b"), output("a")],
        [output("a"), output("b"), output("c")],
        [output("a"), output("b", 500)],
        [output("a"), {"custom_id": "b", "response": None, "error": {"code": "batch_expired"}}],
    ],
    ids=["missing", "twice", "not asked for", "failed", "expired"],
)
def test_missing_repeated_or_failed_result_is_fault(batches: ModuleType, lines: list[Any]) -> None:
    [fault] = batches.faults(JOB, {"a", "b"}, lines, "batch.completed")

    assert "results are good, for 2 requests" in fault


def test_batch_that_failed_and_webhook_that_did_not_come_are_faults(batches: ModuleType) -> None:
    found = list(batches.faults({"status": "failed", "errors": "none"}, set(), [], None))

    assert found == ["it is failed: none", "no verified webhook batch.completed came (None)"]


def test_nearest_is_the_vector_that_points_the_same_way(batches: ModuleType) -> None:
    among = {"east": [1.0, 0.0], "north": [0.0, 1.0], "west": [-1.0, 0.0]}

    assert batches.nearest([1.0, 0.1], among, 3) == ["east", "north", "west"]


def test_webhook_without_a_signature_is_refused(example: Any) -> None:
    webhooks = example("webhooks")
    with webhooks.Inbox(OpenAI()) as inbox:
        inbox.secret = "whsec_" + "A" * 32
        threading.Thread(target=inbox.serve_forever, daemon=True).start()

        answer = httpx2.post(f"http://127.0.0.1:{inbox.server_port}/", content=b"{}", headers={"webhook-id": "1"})

        inbox.shutdown()
    assert answer.status_code == 400
    assert inbox.events == {}


class Endpoints(list[Any]):
    """The webhook endpoints of a client."""

    def create(self, **fields: Any) -> Any:
        self.append(SimpleNamespace(id=str(len(self)), signing_secret="whsec_", **fields))
        return self[-1]

    def list(self) -> list[Any]:
        return [*self]

    def delete(self, name: str) -> None:
        self[:] = [one for one in self if one.id != name]


def test_webhook_endpoint_of_an_interrupted_run_is_deleted(example: Any) -> None:
    webhooks = example("webhooks")
    endpoints = Endpoints()
    endpoints.create(name="mine")
    endpoints.create(name=webhooks.NAME, url="http://127.0.0.1:9/")

    with webhooks.registered(SimpleNamespace(webhooks=endpoints)):
        _, endpoint = endpoints
        assert endpoint.name == webhooks.NAME
        assert not endpoint.url.startswith("http://127.0.0.1:9/")

    assert [one.name for one in endpoints] == ["mine"]
