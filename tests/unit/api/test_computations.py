"""Children of the web process are shared out: one for each project, few for all, and the others are refused."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.computations import Computations
from api.shares import ProjectBusy
from jobs.evals import grading, grading_process
from jobs.evals.grading import Grade
from jobs.evals.grading_process import GradingOutcome, GradingTask, encode_outcome
from jobs.finetuning import examination
from jobs.finetuning.examination import DatasetFindings, Part
from jobs.security import keys
from jobs.timings import Timings
from tests.support.tuning_requests import BASE, upload
from tests.support.web import make_key, running_app
from tests.unit.api.conftest import client_of

RUN = "/v1/fine_tuning/alpha/graders/run"
GRADER = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{ item.a }}", "reference": "x"}
ASKED = {"grader": GRADER, "model_sample": "x", "item": {"a": "x"}}


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path, sqlite_url, replace(Timings(), computation_patience=0.05)) as app:
        yield app


def id_of(app: FastAPI, project: str) -> str:
    with app.state.services.db.write() as session:
        return keys.ensure_project(session, project).id


def test_slots_are_limited_per_project_and_in_total() -> None:
    computations = Computations(0.01, slots=2)

    with computations.slot("a"), computations.slot("b"):
        for project in ("a", "c"):
            with pytest.raises(ProjectBusy), computations.slot(project):
                pass
    with computations.slot("c"), computations.slot("a"):
        pass


def test_a_request_that_was_admitted_waits_for_its_slot() -> None:
    computations, admitted = Computations(0.01), threading.Event()

    def wait() -> None:
        with computations.slot("a", admitted=True):
            admitted.set()

    waiting = threading.Thread(target=wait)
    with computations.slot("a"):
        waiting.start()
        assert not admitted.wait(0.1)
    waiting.join(30)
    assert admitted.is_set()


@pytest.mark.parametrize("route", ["graders/run", "fine_tuning/jobs/validate", "batches/validate"])
def test_project_with_taken_slot_is_refused_and_other_project_is_served(
    app: FastAPI, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "examine", lambda _question: DatasetFindings(training=Part("a", 1, 100)))
    clients = [client_of(app, make_key(app, project)) for project in ("default", "another")]

    with app.state.services.computations.slot(id_of(app, "default")):
        busy, served = (post(client, route) for client in clients)

    error = busy.json()["error"]
    assert (busy.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error["message"].startswith("This project has a computation in progress.")
    assert busy.headers["Retry-After"] == "1"
    assert served.status_code != 429


def post(client: TestClient, route: str) -> Any:
    if route == "graders/run":
        return client.post(RUN, json=ASKED)
    if route == "batches/validate":
        file = client.post("/v1/files", files={"file": ("a", b"{}\n")}, data={"purpose": "batch"}).json()
        return client.post("/v1/batches/validate", json={"input_file_id": file["id"], "endpoint": "/v1/embeddings"})
    return client.post("/v1/fine_tuning/jobs/validate", json={"model": BASE, "training_file": upload(client)})


def test_forty_requests_of_a_project_leave_threads_and_slots_to_others(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let two projects hold their slots, and one of them send 43 requests more."""
    grade_of, opened, held = (
        GradingOutcome(Grade("same", "string_check", 1.0, True)),
        threading.Event(),
        threading.Semaphore(0),
    )
    slow = {id_of(app, "slow"), id_of(app, "slower")}

    def ask(question: GradingTask, _seconds: float) -> bytes:
        if question.project in slow:
            held.release()
            assert opened.wait(60)
        return encode_outcome(grade_of)

    monkeypatch.setattr(grading_process, "ask", ask)

    async def all_at_once() -> None:
        clients = {
            project: httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app),
                base_url="http://mill",
                headers={"Authorization": f"Bearer {make_key(app, project)}"},
                timeout=60,
            )
            for project in ("slow", "slower", "quick")
        }
        first = [asyncio.create_task(clients[project].post(RUN, json=ASKED)) for project in ("slow", "slower")]
        for _ in first:
            assert await asyncio.to_thread(held.acquire, True, 60)
        more = [asyncio.create_task(clients["slow"].post(RUN, json=ASKED)) for _ in range(43)]

        models, graded = await clients["quick"].get("/v1/models"), await clients["quick"].post(RUN, json=ASKED)
        refused = await asyncio.gather(*more)
        assert not any(task.done() for task in first)
        opened.set()
        answered = await asyncio.gather(*first)

        assert (models.status_code, graded.status_code, graded.json()["reward"]) == (200, 200, 1.0)
        assert {response.status_code for response in refused} == {429}
        assert [response.json()["reward"] for response in answered] == [1.0, 1.0]
        for client in clients.values():
            await client.aclose()

    asyncio.run(all_at_once())


def test_a_sample_is_graded_in_another_process_within_its_limits(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts of 100,000 Chinese characters took ten seconds of the one interpreter of the web process."""
    for name in ("grade", "requests_of"):
        monkeypatch.delattr(grading, name)
    monkeypatch.setattr(grading_process, "CPU_SECONDS", 4)
    texts = ["".join(chr(0x4E00 + n * step % 20_000) for n in range(100_000)) for step in (7919, 104_729)]
    similarity = {
        "type": "text_similarity", "name": "alike", "evaluation_metric": "fuzzy_match",
        "input": "{{ item.text }}", "reference": "{{ sample.output_text }}",
    }  # fmt: skip
    client = client_of(app, make_key(app))

    small = client.post(RUN, json=ASKED).json()
    asked = {"grader": similarity, "model_sample": texts[0], "item": {"text": texts[1]}}
    large = client.post(RUN, json=asked)

    assert (small["reward"], small["metadata"]["errors"]["other_error"]) == (1.0, False)
    assert large.status_code == 200
    assert (large.json()["reward"], large.json()["metadata"]["errors"]["other_error"]) == (0.0, True)
