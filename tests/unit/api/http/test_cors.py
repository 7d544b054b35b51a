"""Pages of other origins: what a browser is told, and what it is not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.support.web import make_key, running_app

HOME, STRANGE = "https://app.example", "https://strange.example"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-lang"}


@pytest.fixture
def make_client(tmp_path: Path, sqlite_url: str) -> Iterator[Callable[..., TestClient]]:
    made: list[Any] = []

    def make(**settings: Any) -> TestClient:
        running = running_app(tmp_path, sqlite_url, **settings)
        made.append(running)
        app = running.__enter__()
        return TestClient(app, headers={"Authorization": f"Bearer {make_key(app)}"})

    yield make
    for running in made:
        running.__exit__(None, None, None)


def _preflight(client: TestClient, origin: str) -> Any:
    client.headers.pop("Authorization")  # a browser sends none with it
    return client.options("/v1/responses", headers={"Origin": origin, **ASKS})


def test_preflight_from_allowed_origin_succeeds_without_key(make_client: Callable[..., TestClient]) -> None:
    answer = _preflight(make_client(cors_origins=(HOME,)), HOME)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == HOME
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]


def test_other_origin_gets_no_cors_headers(make_client: Callable[..., TestClient]) -> None:
    client = make_client(cors_origins=(HOME,))

    assert "access-control-allow-origin" not in client.get("/v1/files", headers={"Origin": STRANGE}).headers
    assert _preflight(client, STRANGE).status_code == 400


def test_answers_and_errors_can_be_read_by_the_page(make_client: Callable[..., TestClient]) -> None:
    client = make_client(cors_origins=(HOME,))

    good = client.get("/v1/files", headers={"Origin": HOME})
    bad = client.get("/v1/files/file-none", headers={"Origin": HOME})
    stranger = client.get("/v1/files", headers={"Origin": HOME, "Authorization": "Bearer no"})

    assert [answer.status_code for answer in (good, bad, stranger)] == [200, 404, 401]
    for answer in (good, bad, stranger):
        assert answer.headers["access-control-allow-origin"] == HOME
        assert {"X-Request-Id", "OpenAI-Poll-After-Ms"} <= set(
            answer.headers["access-control-expose-headers"].split(", ")
        )
        assert answer.headers.get("access-control-allow-credentials") is None


def test_any_origin_may_be_let_in(make_client: Callable[..., TestClient]) -> None:
    client = make_client(cors_origins=("*",))

    assert client.get("/v1/files", headers={"Origin": STRANGE}).headers["access-control-allow-origin"] == "*"


def test_by_default_no_page_may_call(make_client: Callable[..., TestClient]) -> None:
    client = make_client()

    assert "access-control-allow-origin" not in client.get("/v1/files", headers={"Origin": HOME}).headers
    assert _preflight(client, HOME).status_code == 401
