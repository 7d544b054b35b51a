"""`param` of an error is a place in the body or a field of the schema, also where types may differ."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.http.middleware import OPEN
from tests.support.web import make_key
from tests.unit.api.calls import BODIES
from tests.unit.api.conftest import client_of

WRONG: tuple[Any, ...] = (5, "x", [], [5], {"x": [5]}, {"str": 5}, [{"x": 5}], True)
MODEL = {"model": "smollm2-135m-instruct"}
OF_FILTERS = {"type", "key", "value", "filters"}  # of which the document says no more than that they are objects
OF_FOUR = "expected one of a string, boolean, integer or number, but got an object instead."
STORE = "/v1/vector_stores/vs_x"


@pytest.fixture(scope="module")
def app(shared_app: FastAPI) -> FastAPI:
    return shared_app


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with client_of(app, make_key(app)) as client:  # one event loop for all requests, and not one for each
        yield client


class Schemas:
    """Look into the schemas of the OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.named = document["components"]["schemas"]

    def branches(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the types that a value may have."""
        if "$ref" in schema:
            schema = self.named[schema["$ref"].rpartition("/")[2]]
        inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        yield from [one for each in inner for one in self.branches(each)] if inner else [schema]

    def bodies(self, schema: dict[str, Any], good: dict[str, Any]) -> Iterator[Any]:
        """Objects like a good one in which one value, at any depth, is another."""
        for name, inner in schema.get("properties", {}).items():
            yield from ({**good, name: wrong} for wrong in WRONG)
            for branch in self.branches(inner):
                yield from ({**good, name: value} for value in self.values(branch))

    def values(self, schema: dict[str, Any]) -> Iterator[Any]:
        if "properties" in schema:
            known = {name: one["const"] for name, one in schema["properties"].items() if "const" in one}
            yield from (known, {"type": "other"})
            yield from self.bodies(schema, known)
        for branch in self.branches(schema["items"]) if schema.get("items") else ():
            yield from ([value] for value in self.values(branch))

    def has(self, schemas: list[dict[str, Any]], value: Any, parts: list[str]) -> bool:
        """Whether each part is in the body, or at least a field."""
        if not parts:
            return True
        part, rest = parts[0], parts[1:]
        key: Any = int(part) if isinstance(value, list) else part
        in_body = key in (value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0))
        branches = [branch for schema in schemas for branch in self.branches(schema)]
        inner = [branch["properties"][part] for branch in branches if part in branch.get("properties", {})]
        if part in OF_FILTERS:
            inner += [one for one in branches if one.get("additionalProperties") is True and "properties" not in one]
        if not in_body and not inner:
            return False
        inner += [of for branch in branches if isinstance(of := branch.get("items"), dict)]
        return self.has(inner, value[key] if in_body else None, rest)


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.soak)])
def test_error_param_exists_in_body_or_schema_for_every_route(app: FastAPI, client: TestClient, step: int) -> None:
    """With every change a fifth of the bodies of each route is tried, in `make soak` all of them."""
    document, asked = app.openapi(), 0
    schemas = Schemas(document)
    for path in document["paths"].keys() - OPEN:
        taken = document["paths"][path].get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" not in taken:
            continue
        good = BODIES.get(("POST", path), {}).get("json", {})
        for schema in schemas.branches(taken["application/json"]["schema"]):
            different = {json.dumps(body, sort_keys=True): body for body in schemas.bodies(schema, good)}
            for body in list(different.values())[::step]:
                answer = client.post(path.replace("{", "").replace("}", ""), json=body)
                param, asked = answer.json()["error"]["param"] if answer.status_code == 400 else None, asked + 1

                assert not param or schemas.has([schema], body, re.findall(r"[^.\[\]]+", param)), (path, body, param)
    assert asked * step > 1000


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (
            f"{STORE}/search",
            {"query": 5},
            "query",
            "Invalid type for 'query': expected one of a string or array, but got an integer instead.",
        ),
        (
            f"{STORE}/search",
            {"query": ["x", 5]},
            "query[1]",
            "Invalid type for 'query[1]': expected a string, but got an integer instead.",
        ),
        (
            "/v1/embeddings",
            {**MODEL, "input": 5},
            "input",
            "Invalid type for 'input': expected one of a string or array, but got an integer instead.",
        ),
        (
            "/v1/completions",
            {**MODEL, "prompt": {}},
            "prompt",
            "Invalid type for 'prompt': expected one of a string or array, but got an object instead.",
        ),
        (
            "/v1/responses",
            {**MODEL, "input": ["x"]},
            "input[0]",
            "Invalid type for 'input[0]': expected an object, but got a string instead.",
        ),
        (
            "/v1/responses",
            {**MODEL, "input": [{"type": 3}]},
            "input[0]",
            "Invalid 'input[0]': An item's type is a string.",
        ),
        (
            "/v1/responses",
            {**MODEL, "input": "x", "conversation": 5},
            "conversation",
            "Invalid type for 'conversation': expected one of a string or object, but got an integer instead.",
        ),
        (
            "/v1/responses",
            {**MODEL, "input": "x", "conversation": {"id": 5}},
            "conversation.id",
            "Invalid type for 'conversation.id': expected a string, but got an integer instead.",
        ),
        (
            "/v1/responses",
            {**MODEL, "input": "x", "conversation": {}},
            "conversation.id",
            "Missing required parameter: 'conversation.id'.",
        ),
        (
            "/v1/responses",
            {**MODEL, "input": "x", "conversation": {"id": "x", "str": 5}},
            "conversation.str",
            "Unknown parameter: 'conversation.str'.",
        ),
        (
            "/v1/rerank",
            {**MODEL, "query": "x", "documents": ["x", 5]},
            "documents[1]",
            "Invalid type for 'documents[1]': expected one of a string or object, but got an integer instead.",
        ),
        (
            f"{STORE}/files",
            {"file_id": "x", "attributes": {"float": {"float": 5}}},
            "attributes.float",
            "Invalid type for 'attributes.float': " + OF_FOUR,
        ),
        (
            f"{STORE}/files",
            {"file_id": "x", "attributes": {"a": "x" * 513}},
            "attributes.a",
            "Invalid 'attributes.a': string too long. Expected at most 512 characters.",
        ),
        (
            "/v1/vector_stores",
            {"metadata": {"[key]": 5}},
            "metadata.[key]",
            "Invalid type for 'metadata.[key]': expected a string, but got an integer instead.",
        ),
        (
            f"{STORE}/indexes/x/compare",
            {"queries": ["x", 5]},
            "queries[1]",
            "Invalid type for 'queries[1]': expected one of a string or object, but got an integer instead.",
        ),
    ],
)
def test_union_field_error_depends_on_sent_type(
    client: TestClient, path: str, body: dict[str, Any], param: str, message: str
) -> None:
    answer = client.post(path, json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"]) == (400, param, message)


@pytest.mark.parametrize(
    ("score", "code", "message"),
    [
        (1.5, "decimal_above_max_value", "decimal above maximum value. Expected a value <= 1, but got 1.5 instead."),
        (-1, "decimal_below_min_value", "decimal below minimum value. Expected a value >= 0, but got -1 instead."),
    ],
)
def test_a_number_that_may_have_a_fraction_is_a_decimal(
    client: TestClient, score: float, code: str, message: str
) -> None:
    body = {"query": "x", "ranking_options": {"score_threshold": score}}

    error = client.post(f"{STORE}/search", json=body).json()["error"]

    assert (error["code"], error["message"]) == (code, f"Invalid 'ranking_options.score_threshold': {message}")
