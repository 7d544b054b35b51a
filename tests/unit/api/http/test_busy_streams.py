"""The streams of a job while the database is busy: they wait for it, and neither end nor leave anything out."""

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete

from api.jobs.streams import check_key
from jobs.errors import DatabaseBusy
from jobs.ledger.tables import Segment
from tests.support import worker_steps
from tests.support.web import hurry
from tests.unit.api.batches.test_batches import create
from tests.unit.api.jobs.test_jobs import SSE, parsed, services


@pytest.fixture
def busy(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the database be busy at the looks of a stream that have these numbers, from 0."""

    def be(*looks: int) -> None:
        numbers = count()

        def check(session: Any, call: Any) -> None:
            if next(numbers) in looks:
                raise DatabaseBusy
            check_key(session, call)

        monkeypatch.setattr("api.jobs.streams.check_key", check)
        hurry(app, job_look=0.01)

    return be


@pytest.mark.parametrize("looks", [(0,), (0, 1, 2), (1,), (0, 2, 3)])
def test_finished_results_are_streamed_after_database_was_busy(
    app: FastAPI, client: TestClient, busy: Callable[..., None], looks: tuple[int, ...]
) -> None:
    db, storage = services(app)
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, 4)
    worker_steps.answer(db, storage, worker_steps.take(db, job_id), [0, 3])
    busy(*looks)

    answer = client.get(f"/v1/jobs/{job_id}/results", params={"follow": "false"})

    assert [json.loads(line)["custom_id"] for line in answer.text.splitlines()] == ["c0", "c3"]


@pytest.mark.parametrize("follow", ["true", "false"])
def test_results_of_ended_job_equal_output_file_after_database_was_busy(
    app: FastAPI, client: TestClient, busy: Callable[..., None], follow: str
) -> None:
    job_id = create(client)["id"]
    output = worker_steps.run(*services(app), job_id, 3)
    whole = client.get(f"/v1/files/{output}/content").content
    _forget_segments(app, job_id)
    busy(0, 1)

    answer = client.get(f"/v1/jobs/{job_id}/results", params={"follow": follow})

    assert answer.content == whole


def _forget_segments(app: FastAPI, job_id: str) -> None:
    """So that the lines can come out of the files alone."""
    with services(app)[0].write() as session:
        session.execute(delete(Segment).where(Segment.job_id == job_id))


def test_a_stream_of_events_outlasts_a_busy_database(
    app: FastAPI, client: TestClient, busy: Callable[..., None]
) -> None:
    job_id = create(client)["id"]
    worker_steps.run(*services(app), job_id, 1)
    busy(0, 1, 2)
    hurry(app, job_keep_alive=0.02)

    answer = client.get(f"/v1/jobs/{job_id}/events", headers=SSE)

    _, _, rest = answer.text.partition("\n\n")
    assert rest.startswith(": alive\nid: 1\n")
    assert [event[0] for event in parsed(rest.removeprefix(": alive\n"))] == [1, 2, 3, 4]
