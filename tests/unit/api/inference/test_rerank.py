"""POST /v1/rerank before any engine has seen it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.web import make_key
from tests.unit.api.conftest import client_of

GOOD = {"model": "ranker", "query": "What is it?", "documents": ["This.", {"text": "That."}]}
MODELS = """
models:
  ranker: {source: {path: x}, engine: rerank}
  mini: {source: {packaged: all-minilm-l6-v2}, engine: embed}
"""


@pytest.fixture
def client(make_app: Callable[..., FastAPI], tmp_path: Path) -> TestClient:
    (tmp_path / "models.yaml").write_text(MODELS)
    app = make_app(models_file=str(tmp_path / "models.yaml"))
    return client_of(app, make_key(app))


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"query": None}, 400, "query"),
        ({"documents": "This."}, 400, "documents"),
        ({"documents": [1]}, 400, "documents[0]"),
        ({"model": ""}, 400, "model"),
        ({"model": "nobody"}, 404, "model"),
        ({"model": "mini"}, 400, "model"),
    ],
)
def test_invalid_request_names_param(client: TestClient, change: dict[str, Any], status: int, param: str) -> None:
    answer = client.post("/v1/rerank", json={**GOOD, **change})

    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_unserved_model_returns_503_no_worker(client: TestClient) -> None:
    answer = client.post("/v1/rerank", json=GOOD)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
