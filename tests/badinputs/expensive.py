"""The most expensive request that the bounds allow, for each operation and each kind of job: the rows of a table.

    OpenAPI document ──▶ operations ─┬─ with a body: `BODIES` has a row, or the table is incomplete
                                     └─ without: the largest object, the most rows
    table of kinds ──▶ `KINDS` has a row for each: requests that begin the dearest jobs

`Stock` makes the objects that the requests are about, as large as they may be, with the attacker's key alone.
"""

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from jobs.ids import new_id
from tests.badinputs.attacks import EMBEDDINGS
from tests.support.system import MODEL, eventually
from tests.unit.api.calls import Route

#: The model that can be trained, of `MODELS_FILE`.
BASE: Final = "stub-base"
_BODY: Final = (4 << 20) - 4096  # bytes of a JSON body, a little under the limit
_ITEMS: Final = 1_900  # of a run: with 51 scores each a little under what a comparison takes
_CRITERIA: Final = 50
_LINES: Final = 50_000
_SECONDS: Final = 300.0
_METADATA: Final = {"metadata": {f"{n:064}": "m" * 512 for n in range(16)}}
_SCHEMA: Final = {"type": "object", "properties": {"text": {"type": "string"}}}
_EQUAL: Final = {"type": "string_check", "input": "{{ item.text }}", "operation": "eq", "reference": "{{ item.text }}"}
_PROMPT: Final = {
    "instructions": "{{a}} " * 30_000,
    "messages": [{"role": "user", "content": f"{{{{v{n}}}}}"} for n in range(99)],
}
_OUTPUT: Final = "{{ sample.output_text }}"
#: Path parameters that name what only a training or an event makes: the operation looks for one that is not there.
ABSENT: Final = frozenset({
    "fine_tuned_model", "fine_tuned_model_checkpoint", "file_name", "permission_id", "stream_id", "delivery_id",
    "model_version",
})  # fmt: skip
#: Path parameters of the objects of `Stock`.
OBJECTS: Final = frozenset({
    "alias", "api_key_id", "batch_id", "check_id", "completion_id", "conversation_id", "dataset", "eval_id",
    "family", "feedback_id", "file_batch_id", "file_id", "fine_tuning_job_id", "index_id", "item_id", "job_id", "model",
    "model_import_id", "monitor_id", "online_evaluation_id", "output_item_id", "pipeline_id", "promotion_id",
    "prompt_id", "response_id", "run_id", "schedule_id", "source_id", "upload_id", "vector_store_id", "version",
    "webhook_endpoint_id",
})  # fmt: skip


def _symbols(count: int, seed: int) -> str:
    """Return random Chinese characters, which metrics of texts compare slowest."""
    return "".join(random.Random(seed).choices([chr(number) for number in range(0x4E00, 0x9FA5)], k=count))


def slow_pattern(n: int) -> dict[str, Any]:
    """Return a grader whose pattern is searched for until its time is up."""
    return {"type": "regex", "name": f"r{n}", "input": _OUTPUT, "pattern": "(?:a|aa)+$"}


def fuzzy(n: int) -> dict[str, Any]:
    """Return a grader that compares two long texts."""
    return {"type": "text_similarity", "name": f"f{n}", "input": _OUTPUT, "reference": "{{ item.text }}",
            "evaluation_metric": "fuzzy_match"}  # fmt: skip


def sleeper(n: int) -> dict[str, Any]:
    """Return a grader that waits until its time is up."""
    source = "import time\ndef grade(sample, item):\n    time.sleep(100)\n    return 1"
    return {"type": "python", "name": f"p{n}", "source": source}


def multi(graders: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a grader that adds the scores of others."""
    named = {f"g{n}": grader for n, grader in enumerate(graders)}
    return {"type": "multi", "name": "all", "graders": named, "calculate_output": "+".join(named)}


@dataclass
class Stock:
    """The attacker's objects. `ids` has those of path parameters."""

    client: httpx2.Client
    ids: dict[str, str] = field(default_factory=dict)

    def fill(self) -> None:
        """Make everything that requests are about."""
        self.ids |= {"model": MODEL, "upload_id": self.made("/v1/uploads", _upload(1 << 30))}
        self.ids["file_id"] = self.file(b"word " * 20_000, "a.txt", "assistants")
        self.ids["training_file"] = self.file(training_rows(50_000), "t.jsonl", "fine-tune")
        self.ids["input_file"] = self.file(batch_lines(_LINES), "b.jsonl", "batch")
        self.ids["batch_id"] = self.ids["job_id"] = self.made("/v1/batches", _batch(self.file(batch_lines(5_000))))
        stored = {"model": MODEL, "messages": [_message("a" * 200_000)], "store": True}
        self.ids["completion_id"] = self.made("/v1/chat/completions", stored)
        self.ids["response_id"] = self.made("/v1/responses", {"model": MODEL, "input": "a" * 200_000})
        self.ids["conversation_id"] = self.made("/v1/conversations", {"items": _items(20)})
        items = self.client.get(f"/v1/conversations/{self.ids['conversation_id']}/items").json()
        self.ids["item_id"] = items["first_id"]
        self._store()
        self._evaluations()
        hook = {"name": "h", "url": "https://192.0.43.8/hook", "event_types": ["batch.completed"]}
        self.ids["webhook_endpoint_id"] = self.made("/v1/webhook_endpoints", hook)
        self.ids["feedback_id"] = self.made("/v1/feedback", _feedback(self))
        self.ids["alias"] = self.made("/v1/aliases", {"id": "mine", "model": MODEL})
        schedule = {"cron": "0 0 1 1 *", "batch": _batch(self.ids["input_file"])}
        self.ids["schedule_id"] = self.made("/v1/schedules", schedule)
        self.ids |= {"prompt_id": self.made("/v1/prompts", {"instructions": "Be brief."}), "version": "1"}
        self.ids["family"] = f"prompt:{self.ids['prompt_id']}"
        self.made("/v1/aliases", {"id": "promoted", "model": MODEL})
        forced = {"target": {"type": "alias", "id": "mine", "model": BASE}, "force": True, "reason": "r"}
        self.ids["promotion_id"] = self.made("/v1/promotions", forced)
        step = {"name": "a", "kind": "batch", "request": _batch(self.ids["input_file"])}
        self.ids["pipeline_id"] = self.made("/v1/pipelines", {"steps": [step]})
        self.ids["dataset"] = self.made("/v1/datasets", {"name": "rows"})
        self.made("/v1/datasets/rows/versions", _rows_of(self.ids["training_file"]))
        self.ids["texts"] = self.file(_jsonl({"input": f"{n} " + _WORDS * 150} for n in range(2_000)), "t", "user_data")
        self.ids["monitor_id"] = self.made("/v1/drift_monitors", _monitor(self))
        self.ids["check_id"] = self.made(f"/v1/drift_monitors/{self.ids['monitor_id']}/checks", {})
        tuning = {"model": BASE, "training_file": self.ids["training_file"]}
        self.ids["fine_tuning_job_id"] = self.made("/v1/fine_tuning/jobs", tuning)
        self.ids["manifest"] = self.file(_manifest(training_rows(50_000)), "manifest.json", "user_data")
        self.ids["model_import_id"] = self.made("/v1/model_imports", _import(self))

    def _store(self) -> None:
        path = f"/v1/vector_stores/{self.made('/v1/vector_stores', {'name': 'n'})}"
        self.ids["vector_store_id"] = path.rpartition("/")[2]
        self.ids["file_batch_id"] = self.made(f"{path}/file_batches", {"file_ids": [self.ids["file_id"]]})
        self.ids["index_id"] = self.made(f"{path}/indexes", {"embedding_dimensions": 64})
        self.ids["source_id"] = self.made(f"{path}/sources", {"type": "url", "url": "https://192.0.43.8/a"})

    def _evaluations(self) -> None:
        criteria = [{**_EQUAL, "name": f"c{n}"} for n in range(_CRITERIA)]
        self.ids["eval_id"] = self.made("/v1/evals", _eval(criteria))
        rows = ({"item": {"text": f"{n}"}, "sample": {"output_text": "a"}} for n in range(_ITEMS))
        self.ids["items"] = items = self.file(_jsonl(rows), "items.jsonl", "evals")
        source = {"type": "jsonl", "source": {"type": "file_id", "id": items}}
        path = f"/v1/evals/{self.ids['eval_id']}/runs"
        self.ids["run_id"], self.ids["baseline"] = (self.made(path, {"data_source": source}) for _ in range(2))
        for run in ("run_id", "baseline"):
            eventually(lambda run=run: self._status(f"{path}/{self.ids[run]}") == "completed", _SECONDS, run, every=0.5)
        shown = self.client.get(f"{path}/{self.ids['run_id']}/output_items").json()
        self.ids["output_item_id"] = shown["data"][0]["id"]
        self.ids["online_evaluation_id"] = self.made("/v1/online_evaluations", _online(self))

    def file(self, content: bytes, name: str = "a.jsonl", purpose: str = "batch") -> str:
        form = {"files": {"file": (name, io.BytesIO(content))}, "data": {"purpose": purpose}}
        return str(self.client.post("/v1/files", **form).raise_for_status().json()["id"])

    def made(self, path: str, body: Mapping[str, Any]) -> str:
        """Create an object, and return its id."""
        answer = self.client.post(path, json=body)
        assert answer.status_code in (200, 201), (path, answer.text[:500])
        return str(answer.json()["id"])

    def _status(self, path: str) -> str:
        return str(self.client.get(path).json()["status"])


@dataclass(frozen=True, slots=True)
class Expensive:
    """A request, ready to be sent many times."""

    method: str
    path: str
    content: bytes = b""
    content_type: str = "application/json"


def operations_of(document: Mapping[str, Any]) -> Iterator[tuple[Route, Mapping[str, Any]]]:
    """Yield the operations that take a project's key."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation.get("security") == [{"ApiKey": []}]:
                yield Route(method.upper(), path), operation


def requests_of(document: Mapping[str, Any], stock: Stock) -> Iterator[tuple[str, Expensive]]:
    """Yield the most expensive request of each operation that takes a project's key; what deletes comes last."""
    order = ("GET", "POST", "DELETE")
    for route, operation in sorted(operations_of(document), key=lambda one: order.index(one[0].method)):
        yield f"{route.method} {route.path}", _request(route, operation, stock)


def _request(route: Route, operation: Mapping[str, Any], stock: Stock) -> Expensive:
    ids = stock.ids | dict.fromkeys(ABSENT, "none")
    path = route.path.replace(":path}", "}").format_map(ids)
    if "requestBody" not in operation:
        return Expensive(route.method, f"{path}{_largest_query(operation, ids)}")
    made = BODIES[f"{route.method} {route.path}"](stock)
    if "application/json" in operation["requestBody"]["content"]:
        return Expensive(route.method, path, json.dumps(made).encode())
    form = httpx2.Request("POST", "http://form", **made)
    return Expensive(route.method, path, form.read(), form.headers["Content-Type"])


def _largest_query(operation: Mapping[str, Any], ids: Mapping[str, str]) -> str:
    """Return the query with the most rows; filters stay away, since they only leave rows out."""
    asked = {}
    for parameter in operation.get("parameters", ()):
        name, schema = parameter["name"], parameter["schema"]
        if parameter["in"] == "query" and name in ("limit", "parts", "points"):
            asked[name] = str(schema["maximum"])
        elif name == "baseline":
            asked[name] = ids["baseline"]
    return f"?{httpx2.QueryParams(asked)}" if asked else ""


def _message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _items(count: int) -> list[dict[str, Any]]:
    return [{"type": "message", **_message("a" * 190_000)} for _ in range(count)]


def _upload(size: int) -> dict[str, Any]:
    return {"bytes": size, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "batch"}


def _batch(file_id: str) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def _eval(criteria: list[dict[str, Any]]) -> dict[str, Any]:
    config = {"type": "custom", "item_schema": _SCHEMA, "include_sample_schema": True}
    return {"name": "e", "data_source_config": config, "testing_criteria": criteria}


def _jsonl(rows: Iterator[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def batch_lines(count: int) -> bytes:
    """Return the lines of a batch, each with a prompt of its own."""
    return _jsonl(
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": MODEL, "messages": [_message(f"Word {n}.")]}}
        for n in range(count)
    )  # fmt: skip


def embedding_lines(count: int) -> bytes:
    """Return lines that embed a text of a few hundred words each."""
    return _jsonl(
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/embeddings",
         "body": {"model": EMBEDDINGS, "input": f"{n} " + "night mill " * 120}}
        for n in range(count)
    )  # fmt: skip


def training_rows(count: int) -> bytes:
    """Return rows of a training file, each with a text of its own."""
    return _jsonl(
        {"messages": [_message(f"What is {n}?"), {"role": "assistant", "content": f"It is {n}. " * 20}]}
        for n in range(count)
    )


def _many_graders(make: Callable[[int], dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [make(n) for n in range(count)]


def _graded(stock: Stock) -> dict[str, Any]:
    """Return the dearest dry run of graders: texts that are compared slowest, and searches that never end."""
    graders = _many_graders(fuzzy, 10) + _many_graders(slow_pattern, 10)
    return {
        "grader": multi(graders),
        "model_sample": _symbols(1_600, 1) + "a" * 60 + "b",
        "item": {"text": _symbols(10_000, 2)},
    }


def _nested(stock: Stock) -> dict[str, Any]:
    """Return the grader whose pattern grows most when it is compiled."""
    nested = "a"
    for _ in range(7):
        nested = f"({nested}{{9}})"
    return {"grader": {"type": "regex", "name": "n", "input": _OUTPUT, "pattern": nested}}


def _criteria(stock: Stock) -> dict[str, Any]:
    """Return an eval of as many criteria as it may have, each of as many graders as it may have."""
    longest = "(?:" + "[a-y]x?" * 130 + "){12}"
    patterns = [{"type": "regex", "name": "n", "input": _OUTPUT, "pattern": f"{n}{longest}"} for n in range(20)]
    return _eval([{**multi(patterns), "name": f"c{n}"} for n in range(_CRITERIA)])


def _run(stock: Stock) -> dict[str, Any]:
    content = [{"item": {"text": f"{n}" * 10}, "sample": {"output_text": "a"}} for n in range(10_000)]
    return {"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": content}}, **_METADATA}


def _tuning(stock: Stock) -> dict[str, Any]:
    return {"model": BASE, "training_file": stock.ids["training_file"]}


def _feedback(stock: Stock) -> dict[str, Any]:
    target = {"type": "eval.run.output_item", **{name: stock.ids[name] for name in ("run_id", "output_item_id")}}
    return {"target": target, "score": 1, "comment": "a" * 4096}


def _texts(stock: Stock) -> dict[str, Any]:
    return {"type": "file", "file_id": stock.ids["texts"]}


def _monitor(stock: Stock) -> dict[str, Any]:
    return {"name": "n", "source": _texts(stock), "sample": 2_000, "embedding_model": EMBEDDINGS}


def _online(stock: Stock) -> dict[str, Any]:
    return {"name": "n", "eval_id": stock.ids["eval_id"], "source": {"type": "responses"}}


_WORDS: Final = "night mill river stone water grain wheel miller flour bread morning okapi "

#: The body of each operation that has one, as dear as its bounds allow.
BODIES: Final[Mapping[str, Callable[[Stock], dict[str, Any]]]] = {
    "POST /v1/files": lambda _: {"files": {"file": ("a.jsonl", batch_lines(20_000))}, "data": {"purpose": "batch"}},
    "POST /v1/uploads": lambda _: _upload(1 << 30),
    "POST /v1/uploads/{upload_id}/parts": lambda _: {"files": {"data": ("upload", b"a" * (8 << 20))}},
    "POST /v1/uploads/{upload_id}/complete": lambda _: {"part_ids": [f"part_{n}" for n in range(1000)]},
    "POST /v1/batches/validate": lambda stock: {
        "input_file_id": stock.ids["input_file"], "endpoint": "/v1/chat/completions",
    },
    "POST /v1/batches": lambda stock: _batch(stock.ids["input_file"]) | _METADATA,
    "POST /v1/chat/completions": lambda _: {"model": MODEL, "messages": [_message("a" * (_BODY - 200))]},
    "POST /v1/completions": lambda _: {"model": MODEL, "prompt": ["a" * 1900] * 2048},
    "POST /v1/embeddings": lambda _: {"model": EMBEDDINGS, "input": [_WORDS * 10] * 1000},
    "POST /v1/rerank": lambda _: {"model": EMBEDDINGS, "query": _WORDS * 10, "documents": [_WORDS * 10] * 1000},
    "POST /v1/chat/completions/{completion_id}": lambda _: _METADATA,
    "POST /v1/chat/completions/imports": lambda _: {
        "imported_from": "chatcmpl-x",
        "request": {"model": MODEL, "messages": [_message("a" * (_BODY // 2))]},
        "response": {"model": MODEL, "choices": [{"message": _message("b" * (_BODY // 3))}]},
    },
    "POST /v1/responses": lambda _: {"model": MODEL, "input": [_message("a" * 100)] * 15_000},
    "POST /v1/responses/input_tokens": lambda _: {"model": MODEL, "input": "a b " * (_BODY // 4 - 50)},
    "POST /v1/responses/compact": lambda _: {"model": MODEL, "input": "a b " * (_BODY // 4 - 50)},
    "POST /v1/conversations": lambda _: {"items": _items(20), **_METADATA},
    "POST /v1/conversations/{conversation_id}": lambda _: _METADATA,
    "POST /v1/conversations/{conversation_id}/items": lambda _: {"items": _items(20)},
    "POST /v1/vector_stores": lambda stock: {"name": "n", "file_ids": [stock.ids["file_id"]], **_METADATA},
    "POST /v1/vector_stores/{vector_store_id}": lambda _: _METADATA,
    "POST /v1/vector_stores/{vector_store_id}/files": lambda stock: {"file_id": stock.ids["file_id"]},
    "POST /v1/vector_stores/{vector_store_id}/files/{file_id}": lambda _: {
        "attributes": {f"{n:064}": "m" * 512 for n in range(16)},
    },
    "POST /v1/vector_stores/{vector_store_id}/file_batches": lambda stock: {"file_ids": [stock.ids["file_id"]] * 500},
    "POST /v1/vector_stores/{vector_store_id}/search": lambda _: {
        "query": [_WORDS * 20] * 4, "max_num_results": 50, "rewrite_query": False,
    },
    "POST /v1/vector_stores/{vector_store_id}/indexes": lambda _: {"embedding_dimensions": 128},
    "POST /v1/vector_stores/{vector_store_id}/indexes/{index_id}/switch": lambda _: {},
    "POST /v1/vector_stores/{vector_store_id}/indexes/{index_id}/compare": lambda _: {
        "queries": [f"{_WORDS} {n}" for n in range(100)], "max_num_results": 50,
    },
    "POST /v1/vector_stores/{vector_store_id}/sources": lambda _: {
        "type": "url", "urls": [f"https://192.0.43.8/{n}" for n in range(1000)],
    },
    "POST /v1/fine_tuning/jobs": lambda stock: _tuning(stock) | _METADATA,
    "POST /v1/fine_tuning/jobs/validate": _tuning,
    "POST /v1/fine_tuning/alpha/graders/validate": _nested,
    "POST /v1/fine_tuning/alpha/graders/run": _graded,
    "POST /v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions": lambda _: {
        "project_ids": [f"proj_{n}" for n in range(100)],
    },
    "POST /v1/evals": _criteria,
    "POST /v1/evals/imports": lambda stock: _criteria(stock) | {"imported_from": "eval_x"},
    "POST /v1/evals/{eval_id}": lambda _: _METADATA,
    "POST /v1/evals/{eval_id}/runs": _run,
    "POST /v1/evals/{eval_id}/imports": lambda stock: {
        "imported_from": "evalrun_x", "file_id": stock.ids["items"], "data_source": {"type": "jsonl"},
    },
    "POST /v1/api_keys": lambda _: {"name": "k" * 255, "scopes": ["api.files.read"] * 100},
    "POST /v1/webhook_endpoints": lambda _: {
        "name": "h" * 64, "url": "https://192.0.43.8/" + "a" * 1000, "event_types": ["batch.completed"],
    },
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": lambda _: {"name": "m" * 64},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": lambda _: {},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/test": lambda _: {"event_type": "batch.completed"},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/replay": lambda _: {"failed_since": 0},
    "POST /v1/jobs/{job_id}/retry": lambda _: {},
    "POST /v1/prompts": lambda _: _PROMPT | _METADATA,
    "POST /v1/prompts/{prompt_id}": lambda _: _METADATA | {"labels": {f"l{n}": "1" for n in range(32)}},
    "POST /v1/prompts/{prompt_id}/versions": lambda _: _PROMPT,
    "POST /v1/feedback": lambda stock: _feedback(stock) | _METADATA,
    "POST /v1/datasets": lambda _: {"name": new_id("d"), "split": {"type": "k_fold", "folds": 10}, **_METADATA},
    "POST /v1/datasets/{dataset}": lambda _: _METADATA,
    "POST /v1/datasets/{dataset}/versions": lambda stock: _rows_of(stock.ids["training_file"]),
    "POST /v1/drift_monitors": lambda stock: _monitor(stock) | _METADATA,
    "POST /v1/drift_monitors/{monitor_id}/baseline": lambda stock: {"source": _texts(stock)},
    "POST /v1/drift_monitors/{monitor_id}/checks": lambda stock: {"source": _texts(stock)},
    "POST /v1/online_evaluations": lambda stock: _online(stock) | _METADATA,
    "POST /v1/online_evaluations/{online_evaluation_id}": lambda _: {"name": "n" * 255, **_METADATA},
    "POST /v1/aliases": lambda _: {"id": "a" * 255, "model": MODEL, **_METADATA},
    "POST /v1/ofrep/v1/evaluate/flags/{alias}": lambda _: {"context": {"targetingKey": "u" * _BODY}},
    "POST /v1/aliases/{alias}": lambda _: {"model": MODEL, **_METADATA},
    "POST /v1/model_versions/{model_version}": lambda _: {"stage": "production", "reason": "r" * 512},
    "POST /v1/model_imports": lambda stock: _import(stock),  # noqa: PLW0108 (it is defined below)
    "POST /v1/promotions": lambda stock: _promotion(stock) | _METADATA,
    "POST /v1/pipelines": lambda stock: {"steps": _steps(stock.ids["input_file"])},
    "POST /v1/schedules": lambda stock: {"cron": "0 0 1 1 *", "batch": _batch(stock.ids["input_file"])},
}  # fmt: skip


# Jobs.


def _batches(stock: Stock) -> None:
    for _ in range(3):
        stock.client.post("/v1/batches", json=_batch(stock.ids["input_file"])).raise_for_status()


def _embeddings(stock: Stock) -> None:
    body = _batch(stock.file(embedding_lines(5_000))) | {"endpoint": "/v1/embeddings"}
    for _ in range(3):
        stock.client.post("/v1/batches", json=body).raise_for_status()


def _rerankings(stock: Stock) -> None:
    body = _batch(stock.ids["input_file"]) | {"endpoint": "/v1/rerank"}
    for _ in range(3):
        stock.client.post("/v1/batches", json=body).raise_for_status()


def _responses(stock: Stock) -> None:
    body = {"model": MODEL, "input": "a" * (_BODY - 200), "background": True}
    for _ in range(20):
        stock.client.post("/v1/responses", json=body)


def _ingestions(stock: Stock) -> None:
    files = [stock.file((_WORDS * 20_000 + f"{n}").encode(), f"{n}.txt", "assistants") for n in range(6)]
    for file_id in files:
        store = stock.client.post("/v1/vector_stores", json={"file_ids": [file_id]})
        store.raise_for_status()


def _trainings(stock: Stock) -> None:
    for _ in range(5):
        stock.client.post("/v1/fine_tuning/jobs", json=_tuning(stock)).raise_for_status()


def _evaluations(stock: Stock) -> None:
    """Begin runs whose items take as long as they may: graders that wait, compare slowly and search without end."""
    dearest = _many_graders(sleeper, 10) + _many_graders(fuzzy, 5) + _many_graders(slow_pattern, 5)
    criteria = [{**grader, "name": f"{n}"} for n, grader in enumerate(dearest)]
    path = f"/v1/evals/{stock.made('/v1/evals', _eval(criteria))}/runs"
    text = _symbols(1_600, 1) + "a" * 60 + "b"
    content = [{"item": {"text": _symbols(10_000, n)}, "sample": {"output_text": text}} for n in range(8)]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    for _ in range(4):
        stock.made(path, {"data_source": source})


def _samplings(stock: Stock) -> None:
    content = [{"item": {"text": f"{n}"}} for n in range(10_000)]
    template = [{"role": "user", "content": "{{ item.text }}"}]
    source = {
        "type": "completions", "model": MODEL, "source": {"type": "file_content", "content": content},
        "input_messages": {"type": "template", "template": template},
    }  # fmt: skip
    path = f"/v1/evals/{stock.made('/v1/evals', _eval([{**_EQUAL, 'name': 'n'}]))}/runs"
    for _ in range(2):
        stock.made(path, {"data_source": source})


def _steps(file_id: str) -> list[dict[str, Any]]:
    """Return as many steps as a pipeline may have, in a row, each with large metadata."""
    request = _batch(file_id) | _METADATA
    return [
        {"name": f"s{n}", "kind": "batch", "request": request, "after": [f"s{n - 1}"] if n else []} for n in range(50)
    ]


def _pipelines(stock: Stock) -> None:
    for _ in range(3):
        stock.made("/v1/pipelines", {"steps": _steps(stock.ids["input_file"])})


def _rows_of(file_id: str) -> dict[str, Any]:
    return {"sources": [{"type": "file_id", "id": file_id}] * 20, "deduplicate": True}


def _datasets(stock: Stock) -> None:
    split = {"type": "k_fold", "folds": 10}
    path = f"/v1/datasets/{stock.made('/v1/datasets', {'name': new_id('d'), 'split': split})}/versions"
    for _ in range(2):
        stock.made(path, _rows_of(stock.ids["training_file"]) | {"deduplicate": False})


def _manifest(content: bytes) -> bytes:
    """Return the manifest of a model that has the same large file as often as it may."""
    file = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return json.dumps({"files": dict.fromkeys(_names_of_model(), file), "run": {}}).encode()


def _names_of_model() -> list[str]:
    return ["adapter_config.json", *(f"notes-{n}.txt" for n in range(62))]


def _import(stock: Stock) -> dict[str, Any]:
    """Return an import of which many bytes are hashed before it fails."""
    files = [{"name": name, "file_id": stock.ids["training_file"]} for name in _names_of_model()]
    return {"base": BASE, "files": [{"name": "manifest.json", "file_id": stock.ids["manifest"]}, *files]}


def _imports(stock: Stock) -> None:
    for _ in range(2):
        stock.made("/v1/model_imports", _import(stock))


def _promotion(stock: Stock) -> dict[str, Any]:
    """Return a promotion with as many gates as it may have, each over many items."""
    template = [{"role": "user", "content": "{{ item.text }}"}]
    source = {
        "type": "completions", "model": "promoted", "source": {"type": "file_id", "id": stock.ids["items"]},
        "input_messages": {"type": "template", "template": template},
    }  # fmt: skip
    gate = {"eval_id": stock.ids["eval_id"], "data_source": source, "rule": {"type": "not_worse_than_incumbent"}}
    return {"target": {"type": "alias", "id": "promoted", "model": BASE}, "gates": [gate] * 10}


def _promotions(stock: Stock) -> None:
    for _ in range(2):
        stock.made("/v1/promotions", _promotion(stock))


def _drift_checks(stock: Stock) -> None:
    path = f"/v1/drift_monitors/{stock.made('/v1/drift_monitors', _monitor(stock))}/checks"
    for _ in range(2):
        stock.made(path, {})


#: What begins the dearest jobs of each kind.
KINDS: Final[Mapping[str, Callable[[Stock], None]]] = {
    "generation": _batches,
    "embedding": _embeddings,
    "reranking": _rerankings,
    "response": _responses,
    "ingestion": _ingestions,
    "finetuning": _trainings,
    "evaluation": _evaluations,
    "sampling": _samplings,
    "promotion": _promotions,
    "pipeline": _pipelines,
    "pipeline_step": _pipelines,
    "dataset": _datasets,
    "drift_check": _drift_checks,
    "model_import": _imports,
}
