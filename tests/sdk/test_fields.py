"""Each field that the SDK documents is sent to the server, and what becomes of it is in the table of the docs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
from openai.types import batch_create_params, embedding_create_params, eval_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.evals import run_create_params
from openai.types.fine_tuning import job_create_params
from openai.types.responses import response_create_params
from typing_extensions import get_type_hints, is_typeddict

from docs.sdk_fields import IGNORED, PASSED, REFUSED, RESOURCES, TAKEN, Resource
from jobs.requests.embedding_prompts import Prompts
from jobs.requests.fields import HANDLED
from tests.conftest import copied
from tests.support.interactive_api import MODEL, Shop, running_broker, shops
from tests.support.tuning_requests import BASE, ROW
from tests.support.vllm_protocol import CLASSES, fields_of
from workers.engines import caps
from workers.engines.documented import (
    body_for_server,
    body_for_vllm,
    malformed_field,
    refuse_unknown,
    untranslated,
)
from workers.engines.encoders import embed
from workers.engines.port import Answer, Request
from workers.middleware.file_search.excerpts import ContextBudget
from workers.middleware.file_search.middleware import FileSearchMiddleware

PARAMS: dict[str, Any] = {
    "chat.completions.create": chat_create_params.CompletionCreateParams,
    "responses.create": response_create_params.ResponseCreateParams,
    "embeddings.create": embedding_create_params.EmbeddingCreateParams,
    "batches.create": batch_create_params.BatchCreateParams,
    "evals.create": eval_create_params.EvalCreateParams,
    "evals.runs.create": run_create_params.RunCreateParams,
    "fine_tuning.jobs.create": job_create_params.JobCreateParams,
}
#: Fields of many types that a model reads, and no server.
OF_THE_MODEL = {"input", "tool_choice", "prediction"}
#: The server reads the tier and passes it on as well.
OF_THE_SERVER = {"service_tier"}
_MODELS_FILE = f"""
models:
  {MODEL}: {{source: {{urls: ["http://127.0.0.1:9/v1"]}}, engine: http}}
  {BASE}: {{source: {{path: /nowhere}}, engine: vllm}}
"""
_FACTS = SimpleNamespace(dimensions=384, vocabulary=30_000, longest=512, prompts=Prompts())
ROWS = [(resource, name) for resource in RESOURCES for name in resource.fields]


class ReadBody(dict[str, Any]):
    """A body that knows which of its fields were read."""

    def __init__(self, body: Any) -> None:
        super().__init__(body)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


@pytest.fixture(scope="module")
def bodies() -> list[dict[str, Any]]:
    """Return the bodies that have reached the engine."""
    return []


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, bodies: list[dict[str, Any]]
) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("fields")
    models = folder / "fields.yaml"
    models.write_text(_MODELS_FILE)

    def judge(request: Request) -> Answer | None:
        bodies.append(dict(request.body))
        return caps.objection(request.url, request.body)

    async def search(*_: Any) -> tuple[()]:
        return ()

    with copied(sqlite_template) as url, running_broker(folder) as broker, shops(folder, url, broker) as make:
        made = make(
            {"fault": judge},
            lambda fake: FileSearchMiddleware(fake, search, lambda _: ContextBudget(1000)),
            models_file=str(models),
            wandb_mode="offline",
        )
        with made.open():
            yield made


@pytest.fixture(scope="module")
def ids(shop: Shop) -> dict[str, str]:
    """Return the ids of objects by their placeholders in the table."""
    client = shop.client
    lines = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n'
    made = client.evals.create(**next(one.base for one in RESOURCES if one.method == "evals.create"))
    return {
        "$batch_file": client.files.create(file=("a.jsonl", lines), purpose="batch").id,
        "$training_file": client.files.create(file=("a.jsonl", ROW * 12), purpose="fine-tune").id,
        "$conversation": client.conversations.create().id,
        "$response": client.responses.create(model=MODEL, input="Hello").id,
        "$store": client.vector_stores.create(name="empty").id,
        "$eval": made.id,
        "$prompt": shop.post("prompts", {"messages": [{"role": "user", "content": "Hello"}]}).json()["id"],
    }


@pytest.mark.parametrize(("resource", "name"), ROWS, ids=[f"{one.method}-{name}" for one, name in ROWS])
def test_field_has_outcome_of_table(
    shop: Shop, ids: dict[str, str], bodies: list[dict[str, Any]], resource: Resource, name: str
) -> None:
    field = name.partition(":")[0]
    value, *outcomes = resource.fields[name]
    text = json.dumps(resource.base | {field: value})
    path = resource.path.replace("$eval", ids["$eval"])
    for placeholder, made in ids.items():
        text = text.replace(placeholder, made)
    bodies.clear()
    sent = json.loads(text)

    answer = shop.post(path, sent)

    found = _refusal(answer, field) or [_outcome(engine, resource, field, sent, bodies) for engine in resource.engines]
    assert found == (outcomes * len(found) if len(outcomes) == 1 else outcomes), answer.text


def _refusal(answer: Any, field: str) -> list[str]:
    if answer.is_success:
        return []
    error = answer.json()["error"]
    assert (answer.status_code, str(error["param"]).partition("[")[0].split(".")[0]) == (400, field), error
    return [REFUSED]


def _outcome(engine: str, resource: Resource, field: str, sent: dict[str, Any], bodies: list[dict[str, Any]]) -> str:
    """Return what becomes of a field that the server has accepted."""
    if field in OF_THE_SERVER or not bodies or bodies[-1].get(field) != sent[field]:
        return TAKEN
    return OUTCOMES[engine](f"/v1/{resource.path}", bodies[-1], field)


def _by_server(_url: str, body: dict[str, Any], field: str) -> str:
    return PASSED if field in body_for_server(body, "m") else TAKEN


def _by_vllm(url: str, body: dict[str, Any], field: str) -> str:
    if refuse_unknown("vllm", Request(url, body, "req_1")) or untranslated(url, body) or malformed_field(url, body):
        return REFUSED
    if field in HANDLED[url]:
        return TAKEN
    return PASSED if field in fields_of(CLASSES[url]) and field in body_for_vllm(url, body) else IGNORED


def _by_encoder(url: str, body: dict[str, Any], field: str) -> str:
    if refuse_unknown("embed", Request(url, body, "req_1")):
        return REFUSED
    read = ReadBody(body)
    embed.read(read, _FACTS)
    return PASSED if field in read.names | {"model"} else IGNORED


OUTCOMES: dict[str, Callable[[str, dict[str, Any], str], str]] = {
    "http": _by_server,
    "vllm": _by_vllm,
    "embed": _by_encoder,
}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.method)
def test_table_has_row_for_each_sdk_field(resource: Resource) -> None:
    assert set(resource.fields) == _rows_of(PARAMS[resource.method])


def test_table_has_every_method() -> None:
    assert [resource.method for resource in RESOURCES] == list(PARAMS)


def _rows_of(params: Any) -> set[str]:
    """Return the names of the rows: of each field, or of each type of its value."""
    found = set()
    for member in [params] if is_typeddict(params) else get_args(params):
        for name, hint in get_type_hints(member).items():
            kinds = set() if name in OF_THE_MODEL else _kinds(hint)
            found |= {f"{name}: {kind}" for kind in kinds} or {name}
    return found


def _kinds(hint: Any) -> set[str]:
    """Return the values of `type` that the objects of a field may have."""
    if is_typeddict(hint):
        return _literals(get_type_hints(hint).get("type"))
    return set() if get_origin(hint) is Literal else set().union(*map(_kinds, get_args(hint)))


def _literals(hint: Any) -> set[str]:
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return set().union(*map(_literals, get_args(hint)))
