"""A null stands for the default, for each optional field of each JSON body in the OpenAPI document."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.organization import admin_key
from tests.support.web import make_key
from tests.unit.api.calls import BODIES, CRITERION, routes, takes_admin_key
from tests.unit.api.conftest import client_of

_SIZES: Final = {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}
_HOOK: Final = {"url": "https://192.0.43.8/hook"}
_EXPIRY: Final = {"anchor": "created_at", "seconds": 3600}
_STRATEGIES: Final = [
    {"type": "auto"},
    {"type": "static", "static": _SIZES},
    {"type": "sentence", "sentence": _SIZES},
    {"type": "structure", "structure": _SIZES},
    {"type": "semantic", "semantic": {"max_chunk_size_tokens": 200}},
]
_PARTS: Final = [
    {"type": "input_text", "text": "a"},
    {"type": "input_image", "image_url": "https://192.0.43.8/a.png"},
    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
]
_PROMPT_PARTS: Final = [*_PARTS[:2], {"type": "input_file", "file_url": "https://192.0.43.8/a.pdf"}]
_MESSAGES: Final = [{"role": "user", "content": _PARTS}]
_GRADERS: Final[list[dict[str, Any]]] = [
    {"type": "text_similarity", "name": "n", "input": "a", "reference": "b", "evaluation_metric": "bleu"},
    {"type": "label_model", "name": "n", "model": "m", "input": _MESSAGES, "labels": ["a"], "passing_labels": ["a"]},
    {"type": "score_model", "name": "n", "model": "m", "input": _MESSAGES, "sampling_params": {}},
    {"type": "python", "name": "n", "source": "def grade(sample, item): return 1"},
    {"type": "multi", "name": "n", "graders": {"a": CRITERION}, "calculate_output": "a"},
    {"type": "exact_match", "name": "n", "input": "a", "reference": "b"},
    {"type": "regex", "name": "n", "input": "a", "pattern": "b"},
    {"type": "json_schema", "name": "n", "input": "a", "schema": {}},
    {"type": "faithfulness", "name": "n", "input": "a", "context": "b", "model": "m", "sampling_params": {}},
    {"type": "pairwise", "name": "n", "input": "a", "reference": "b", "model": "m", "sampling_params": {}},
    {"type": "answer_relevance", "name": "n", "question": "a", "input": "b", "model": "m"},
    {"type": "context_precision", "name": "n", "question": "a", "context": "b", "reference": "c", "model": "m"},
    {"type": "context_recall", "name": "n", "context": "b", "reference": "c", "model": "m"},
    {"type": "ranking", "name": "n", "input": "a", "reference": "b", "evaluation_metric": "map", "k": 3},
    {"type": "perplexity", "name": "n", "max_perplexity": 9},
]
_FILE: Final = {"type": "file_id", "id": "file-x"}
_TEMPLATE: Final = {"type": "template", "template": _MESSAGES}
_REFERENCE: Final = {"type": "item_reference", "item_reference": "item.a"}
_SOURCES: Final[list[dict[str, Any]]] = [
    {"type": "jsonl", "source": _FILE},
    {"type": "completions", "source": _FILE, "model": "m", "input_messages": _TEMPLATE, "sampling_params": {}},
    {"type": "retrieval", "source": _FILE, "vector_store_id": "vs_x", "ranking_options": {}},
    {"type": "perplexity", "source": _FILE, "model": "m"},
    {"type": "completions", "source": {"type": "stored_completions"}},
    {"type": "responses", "source": {"type": "responses"}},
    {"type": "responses", "source": _FILE, "model": "m", "input_messages": _REFERENCE, "sampling_params": {}},
    {"type": "responses", "source": _FILE, "input_messages": {"type": "prompt", "prompt": {"id": "pmpt_x"}}},
]
_PARTS_OF_ROWS: Final = {"parts": [{"name": "train", "fraction": 1.0}]}
_SPLITS: Final[list[dict[str, Any]]] = [
    {"type": "random", **_PARTS_OF_ROWS},
    {"type": "group", "by": "/user", **_PARTS_OF_ROWS},
    {"type": "temporal", "by": "/at", **_PARTS_OF_ROWS},
    {"type": "k_fold", "folds": 3},
]
_TEXT_SOURCES: Final[list[dict[str, Any]]] = [{"type": "responses"}, {"type": "file", "file_id": "file-x"}]
_ROW_SOURCES: Final[list[dict[str, Any]]] = [
    _FILE,
    {"type": "stored_completions"},
    {"type": "responses"},
    {"type": "eval_run", "run_id": "evalrun_x"},
    {"type": "batch", "batch_id": "batch_x"},
]
#: Beside the requests of `calls`: those that have the objects in which other optional fields are.
_TARGETS: Final = [
    {"type": "chat.completion", "completion_id": "chatcmpl-x"},
    {"type": "batch.line", "batch_id": "batch_x", "custom_id": "a"},
    {"type": "eval.run.output_item", "run_id": "evalrun_x", "output_item_id": "outputitem_x"},
]
_PROMOTED: Final[list[dict[str, Any]]] = [
    {"type": "alias", "id": "my-model", "model": "m"},
    {"type": "stage", "id": "ft:m:acme:tone:1", "stage": "production"},
    {"type": "prompt", "id": "pmpt_x", "version": "2"},
    {"type": "index", "id": "vs_x", "index_id": "vsi_x"},
]
_RULES: Final[list[dict[str, Any]]] = [{"type": "minimum", "score": 0.9}, {"type": "not_worse_than_incumbent"}]
_GATES: Final = [{"eval_id": "eval_x", "data_source": source, "rule": rule} for rule in _RULES for source in _SOURCES]
_STEPS: Final[Mapping[str, dict[str, Any]]] = {
    "batch": BODIES["POST", "/v1/batches"]["json"],
    "fine_tuning": BODIES["POST", "/v1/fine_tuning/jobs"]["json"],
    "eval_run": BODIES["POST", "/v1/evals/{eval_id}/runs"]["json"] | {"eval_id": "eval_x"},
    "dataset": {"dataset": "refunds", "sources": [{"type": "file_id", "id": "file-x"}]},
    "ingestion": {"vector_store_id": "vs_x", "file_ids": ["file-x"]},
    "promotion": {"target": _PROMOTED[0], "gates": _GATES[:1]},
    "drift_baseline": {"monitor_id": "driftmon_x", "source": {"type": "responses"}},
    "drift_check": {"monitor_id": "driftmon_x", "source": {"type": "file", "file_id": "file-x"}},
}
NESTED: Final[list[tuple[str, dict[str, Any]]]] = [
    ("/v1/organization/invites", {"projects": [{"id": "proj_x", "role": "member"}]}),
    ("/v1/uploads", {"expires_after": _EXPIRY}),
    ("/v1/batches", {"output_expires_after": _EXPIRY, "webhook": _HOOK}),
    (
        "/v1/schedules",
        {"cron": "0 3 * * *", "batch": BODIES["POST", "/v1/batches"]["json"] | {"webhook": _HOOK}},
    ),
    ("/v1/fine_tuning/jobs", {"training": {}, "early_stopping": {}, "validation": {"type": "holdout"}}),
    ("/v1/fine_tuning/jobs", {"method": {"type": "dpo", "dpo": {"hyperparameters": {}}}, "hyperparameters": {}}),
    ("/v1/fine_tuning/jobs", {"method": {"type": "supervised", "supervised": {"hyperparameters": {}}}}),
    ("/v1/fine_tuning/jobs", {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}),
    ("/v1/vector_stores/{vector_store_id}/files", {"webhook": _HOOK}),
    ("/v1/vector_stores/{vector_store_id}/file_batches", {"webhook": _HOOK}),
    ("/v1/vector_stores/{vector_store_id}/file_batches", {"file_ids": None, "files": [{"file_id": "file-x"}]}),
    ("/v1/vector_stores/{vector_store_id}", {"expires_after": {"anchor": "last_active_at", "days": 1}}),
    ("/v1/vector_stores/{vector_store_id}/indexes/{index_id}/compare", {"queries": [{"query": "What is it?"}]}),
    (
        "/v1/vector_stores/{vector_store_id}/search",
        {"ranking_options": {"hybrid_search": {"embedding_weight": 1.0, "text_weight": 1.0}}},
    ),
    ("/v1/responses", {"context": {"strategy": "rotate"}, "conversation": {"id": "conv_1"}}),
    ("/v1/responses", {"prompt": {"id": "pmpt_x"}}),
    (
        "/v1/prompts",
        {"messages": [{"role": "user", "content": _PROMPT_PARTS}], "text": {}, "variables": [{"name": "a"}]},
    ),
    *(("/v1/feedback", {"target": target}) for target in _TARGETS),
    *(("/v1/promotions", {"target": target, "gates": _GATES[:1]}) for target in _PROMOTED),
    *(("/v1/promotions", {"target": _PROMOTED[0], "gates": [gate]}) for gate in _GATES),
    ("/v1/aliases", {"model": None, "targets": [{"model": "all-minilm-l6-v2", "weight": 100}]}),
    ("/v1/aliases", {"shadow": {"model": "all-minilm-l6-v2"}}),
    ("/v1/online_evaluations", {"source": {"type": "shadow", "alias": "support"}}),
    ("/v1/online_evaluations", {"threshold": {"measure": "pass_rate", "minimum": 0.9}}),
    *(("/v1/fine_tuning/alpha/graders/validate", {"grader": grader}) for grader in _GRADERS),
    *(("/v1/vector_stores", {"chunking_strategy": strategy}) for strategy in _STRATEGIES),
    *(("/v1/evals", {"testing_criteria": [grader]}) for grader in _GRADERS),
    *(("/v1/datasets", {"name": f"of-{split['type']}", "split": split}) for split in _SPLITS),
    *(("/v1/datasets/{dataset}/versions", {"sources": [source]}) for source in _ROW_SOURCES),
    *(
        ("/v1/pipelines", {"steps": [{"name": "a", "kind": kind, "request": request}]})
        for kind, request in _STEPS.items()
    ),
    *(("/v1/drift_monitors", {"source": source, "baseline": source}) for source in _TEXT_SOURCES),
    *(("/v1/drift_monitors/{monitor_id}/checks", {"source": source}) for source in _TEXT_SOURCES),
    *(("/v1/schedules", {"cron": "0 3 * * *", "job": {"type": kind, **request}}) for kind, request in _STEPS.items()),
    ("/v1/schedules", {"cron": "0 3 * * *", "job": {"type": "batch", **_STEPS["batch"], "webhook": _HOOK}}),
    ("/v1/schedules", {"cron": "0 3 * * *", "job": {"type": "pipeline", "steps": []}}),
    ("/v1/evals", {"data_source_config": {"type": "logs"}}),
    *(("/v1/evals/{eval_id}/runs", {"data_source": source}) for source in _SOURCES),
]


@pytest.fixture(scope="module")
def app(shared_app: FastAPI) -> FastAPI:
    return shared_app


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    return client_of(app, make_key(app))


def fits(value: dict[str, Any], properties: dict[str, Any], required: Any) -> bool:
    """Return whether an object may be of the branch of a schema that has these properties."""
    constants = {name: field["const"] for name, field in properties.items() if "const" in field}
    names = set(required) <= value.keys() <= properties.keys()
    return names and all(value.get(name) == constant for name, constant in constants.items())


class Schemas:
    """The schemas of the document, and the names of those that a body has led to."""

    def __init__(self, app: FastAPI) -> None:
        self.document = app.openapi()
        self.seen: set[str] = set()

    def of(self, path: str) -> dict[str, Any] | None:
        """Return the schema of the JSON body of a POST."""
        content = self.document["paths"][path]["post"].get("requestBody", {}).get("content", {})
        schema: dict[str, Any] | None = content.get("application/json", {}).get("schema")
        return schema

    def resolved(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the schema, or those that it is any of."""
        branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        for branch in branches:
            yield from self.resolved(branch)
        if reference := schema.get("$ref"):
            name = reference.rpartition("/")[2]
            yield {"title": name, **self.document["components"]["schemas"][name]}
        elif not branches:
            yield schema

    def optional(self, schema: dict[str, Any], value: Any) -> Iterator[tuple[str | int, ...]]:
        """Yield the place of each optional field of the body `value`, and of those of the objects in it."""
        if isinstance(value, list):
            for one in self.resolved(schema):
                for n, item in enumerate(value):
                    yield from ((n, *place) for place in self.optional(one.get("items", {}), item))
        for one in self.resolved(schema) if isinstance(value, dict) else ():
            properties, required = one.get("properties", {}), one.get("required", ())
            if not properties or not fits(value, properties, required):
                continue
            self.seen.add(one["title"])
            for name, field in properties.items():
                if name not in required:
                    yield (name,)
                yield from ((name, *place) for place in self.optional(field, value.get(name)))

    def named_in(self, schema: dict[str, Any]) -> Iterator[str]:
        """Yield the names of all objects that a body may consist of."""
        for one in self.resolved(schema):
            if "properties" in one:
                yield one["title"]
            for inner in (*one.get("properties", {}).values(), *filter(None, [one.get("items")])):
                yield from self.named_in(inner)


def without(value: Any, place: tuple[str | int, ...]) -> Any:
    """Return a copy of the body without what is at this place."""
    head, rest = place[0], place[1:]
    if isinstance(head, int):
        return [without(one, rest) if n == head else one for n, one in enumerate(value)]
    if rest:
        return {**value, head: without(value[head], rest)}
    return {name: one for name, one in value.items() if name != head}


def with_null(value: Any, place: tuple[str | int, ...]) -> Any:
    """Return a copy of the body with null at this place."""
    head, rest = place[0], place[1:]
    if isinstance(head, int):
        return [with_null(one, rest) if n == head else one for n, one in enumerate(value)]
    return {**value, head: with_null(value[head], rest) if rest else None}


def said(answer: Any) -> tuple[int, Any]:
    return answer.status_code, answer.json().get("error")


@pytest.mark.verify
def test_a_null_is_the_default_of_every_optional_field(app: FastAPI, client: TestClient) -> None:
    schemas = Schemas(app)
    of_admin, posts = client_of(app, admin_key(app)), [route for route in routes(app) if route.method == "POST"]
    clients = {route.path: of_admin if takes_admin_key(app, route) else client for route in posts}
    paths = [path for path in clients if schemas.of(path)]
    wholes = {path: BODIES.get(("POST", path), {}).get("json", {}) for path in paths}
    tried, wrong = 0, []

    for path, more in [*((path, {}) for path in paths), *NESTED]:
        schema, url, body = schemas.of(path) or {}, re.sub(r"{\w+(:\w+)?}", "unknown", path), wholes[path] | more
        post = partial(clients[path].post, url)
        post(json=body)  # what exists once alone exists from now on
        for place in schemas.optional(schema, body):
            expected, null = (said(post(json=edit(body, place))) for edit in (without, with_null))
            tried += 1
            if null != expected:
                wrong.append((path, place, expected, null))

    assert wrong == []
    assert tried > 100
    named = {name for path in paths for name in schemas.named_in(schemas.of(path) or {})}
    assert named - schemas.seen == set(), "add a body with these to `NESTED`"


def test_a_client_that_sends_all_options_as_null_searches(client: TestClient) -> None:
    """LiteLLM sends every option of a search that its caller has left out as null."""
    nulls = dict.fromkeys(("filters", "max_num_results", "ranking_options", "rewrite_query"))
    ranking = {"ranking_options": dict.fromkeys(("ranker", "score_threshold", "hybrid_search"))}
    store = client.post("/v1/vector_stores", json={"name": "n"}).json()["id"]

    for options in (nulls, ranking):
        answer = client.post(f"/v1/vector_stores/{store}/search", json={"query": "What is it?", **options})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker"), "it is well formed"


def test_null_in_update_clears_only_fields_that_openai_clears(client: TestClient) -> None:
    expiry = {"anchor": "last_active_at", "days": 3}
    store = client.post("/v1/vector_stores", json={"expires_after": expiry, "metadata": {"a": "b"}}).json()
    hook = {"name": "n", "url": "https://192.0.43.8/hook", "event_types": ["batch.completed"]}
    endpoint = client.post("/v1/webhook_endpoints", json=hook).json()

    stored = client.post(f"/v1/vector_stores/{store['id']}", json={}).json()
    cleared = client.post(f"/v1/vector_stores/{store['id']}", json={"expires_after": None, "metadata": None}).json()
    same = client.post(f"/v1/webhook_endpoints/{endpoint['id']}", json=dict.fromkeys(hook)).json()

    assert (stored["expires_after"], stored["metadata"]) == (expiry, {"a": "b"})
    assert (cleared["expires_after"], cleared["expires_at"]) == (None, None)
    assert not cleared["metadata"]
    assert {name: same[name] for name in hook} == hook
