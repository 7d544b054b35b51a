"""The access log: each request is one line, which says what became of it and nothing that a client has written."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.http import access_log
from jobs import logs
from tests.support.web import make_key
from tests.unit.api.conftest import client_of


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that returns the lines of the access log so far."""
    caplog.set_level(logging.INFO, access_log.__name__)
    ids: list[str | None] = []

    def note(_record: logging.LogRecord) -> bool:
        ids.append(logs.request_id())
        return True

    caplog.handler.addFilter(note)

    def read() -> list[dict[str, Any]]:
        wanted = ("method", "route", "status", "project", "seconds")
        named = zip(caplog.records, ids, strict=True)
        return [
            {**{name: getattr(record, name) for name in wanted}, "request_id": request_id}
            for record, request_id in named
            if record.name == access_log.__name__
        ]

    return read


def test_request_logs_single_line_with_route_status_project_and_id(
    app: FastAPI, client: TestClient, lines: Any
) -> None:
    client.get("/v1/files/file-secret?after=secret", headers={"x-request-id": "ticket-4711"})

    (line,) = lines()
    assert line.pop("seconds") >= 0
    project = line.pop("project")
    assert project
    assert line == {"method": "GET", "route": "/v1/files/{file_id}", "status": 404, "request_id": "ticket-4711"}


def test_refused_and_unknown_requests_have_a_line_and_health_checks_have_none(
    app: FastAPI, client: TestClient, nobody: TestClient, lines: Any
) -> None:
    nobody.get("/v1/files")
    client.get("/nowhere/secret")
    for path in ("/livez", "/readyz", "/statusz", "/metrics"):
        nobody.get(path)

    assert [(line["route"], line["status"], bool(line["project"])) for line in lines()] == [
        ("none", 401, False),
        ("none", 404, True),
    ]


def test_a_request_that_crashes_is_a_500(
    app: FastAPI, client: TestClient, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(type(app.state.services.db), "read", crash)
    client.get("/v1/files")

    assert [line["status"] for line in lines()] == [500]


def test_it_can_be_switched_off(make_app: Callable[..., FastAPI], lines: Any) -> None:
    app = make_app(access_log=False)

    client_of(app, make_key(app)).get("/v1/files")

    assert lines() == []
