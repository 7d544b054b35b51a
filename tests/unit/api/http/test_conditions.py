"""Filters of a search are checked before anybody is asked, and the place of a fault is named."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.web import make_key
from tests.unit.api.conftest import client_of
from tests.unit.api.retrieval.test_vector_stores import error_of, made


@pytest.fixture(scope="module")
def client(shared_app: FastAPI) -> TestClient:
    return client_of(shared_app, make_key(shared_app))


@pytest.fixture(scope="module")
def store(client: TestClient) -> str:
    return made(client)


def condition(kind: str = "eq", key: Any = "k", value: Any = "v") -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


def nested(levels: int) -> dict[str, Any]:
    """So many filters, one in the other."""
    found = condition()
    for level in range(levels - 1):
        found = {"type": ("and", "or")[level % 2], "filters": [found]}
    return found


def ask(client: TestClient, store: str, filters: Any) -> Any:
    return client.post(f"/v1/vector_stores/{store}/search", json={"query": "x", "filters": filters})


@pytest.mark.parametrize(
    "filters",
    [
        *(condition(kind) for kind in ("eq", "ne", "gt", "gte", "lt", "lte")),
        condition(value=1),
        condition(value=0.5),
        condition(value=True),
        condition("gt", value=-1e30),
        condition("in", value=["a", 1, True, 0.5]),
        condition("nin", value=[]),
        condition("in", value=["x"] * 500),
        condition(key="k" * 64),
        {"type": "and", "filters": [condition()] * 499},
        nested(20),
    ],
)
def test_valid_filters_are_accepted(client: TestClient, store: str, filters: Any) -> None:
    answer = ask(client, store, filters)

    assert answer.status_code == 503  # no worker is there to answer it


@pytest.mark.parametrize(
    ("filters", "param", "code"),
    [
        ({}, "filters.type", "invalid_value"),
        (condition("like"), "filters.type", "invalid_value"),
        (condition() | {"type": 5}, "filters.type", "invalid_value"),
        (condition() | {"type": None}, "filters.type", "invalid_value"),
        ({"type": "eq", "value": 1}, "filters.key", "missing_required_parameter"),
        ({"type": "eq", "key": "k"}, "filters.value", "missing_required_parameter"),
        ({"type": "and"}, "filters.filters", "missing_required_parameter"),
        (condition() | {"more": 1}, "filters.more", "unknown_parameter"),
        ({"type": "or", "filters": [condition()], "key": "k"}, "filters.key", "unknown_parameter"),
        (condition(key=""), "filters.key", "invalid_type"),
        (condition(key="k" * 65), "filters.key", "invalid_type"),
        (condition(key=5), "filters.key", "invalid_type"),
        (condition(value=None), "filters.value", "invalid_type"),
        (condition(value=["x"]), "filters.value", "invalid_type"),
        (condition("ne", value={}), "filters.value", "invalid_type"),
        (condition("gt", value=True), "filters.value", "invalid_type"),
        (condition("lte", value=None), "filters.value", "invalid_type"),
        (condition("gte", value=[1]), "filters.value", "invalid_type"),
        (condition("in", value="x"), "filters.value", "invalid_type"),
        (condition("nin", value=[None]), "filters.value", "invalid_type"),
        (condition("in", value=[["x"]]), "filters.value", "invalid_type"),
        (condition("in", value=["x"] * 501), "filters.value", "invalid_type"),
        ({"type": "and", "filters": []}, "filters.filters", "invalid_type"),
        ({"type": "and", "filters": condition()}, "filters.filters", "invalid_type"),
        ({"type": "and", "filters": [condition(), 5]}, "filters.filters[1]", "invalid_type"),
        ({"type": "or", "filters": [{"type": "and", "filters": [condition("like")]}]},
         "filters.filters[0].filters[0].type", "invalid_value"),
        ({"type": "and", "filters": [condition()] * 500}, "filters.filters[499]", "invalid_value"),
        (nested(21), "filters" + ".filters[0]" * 20, "invalid_value"),
    ],
)  # fmt: skip
def test_invalid_filter_is_refused_with_its_path(
    client: TestClient, store: str, filters: Any, param: str, code: str
) -> None:
    assert error_of(ask(client, store, filters)) == (400, param, code)


@pytest.mark.parametrize("filters", ["x", [], 5])
def test_non_object_filters_are_refused(client: TestClient, store: str, filters: Any) -> None:
    status, param, _ = error_of(ask(client, store, filters))

    assert (status, param) == (400, "filters")


def test_a_very_deep_filter_breaks_nothing(client: TestClient, store: str) -> None:
    assert ask(client, store, nested(400)).status_code == 400
