"""Every way to have a model asked, with each rule of access."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger.states import JobState
from jobs.queues import Task
from jobs.registry.tables import Alias
from jobs.retrieval.tables import Source
from jobs.security import keys
from jobs.security.model_permissions import set_rule
from jobs.security.tables import ApiKey, Project
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL as FAKE
from tests.support.inline_deployment import chat_line, jsonl, running
from tests.support.web import make_key, running_app
from tests.unit.api.calls import BODIES
from workers.dispatcher.maintenance import Maintenance

CHAT_MODEL, CHAT_ALIAS = "smollm2-135m-instruct", "gpt-4o-mini"
EMBEDDER, EMBEDDER_ALIAS = "all-minilm-l6-v2", "text-embedding-3-small"
MESSAGES = [{"role": "user", "content": "Hi"}]


class Caller:
    """A client of a project of its own."""

    def __init__(self, app: FastAPI, project: str) -> None:
        self.app, self.key = app, make_key(app, project)
        self.client = TestClient(app, headers={"Authorization": f"Bearer {self.key}"})

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(f"/v1/{path}", json=body)

    def prepare(self, model: str) -> "Caller":
        """Make what doors need while the key is good: a file of a batch, and an eval."""
        line = {**chat_line("a", "Hi"), "body": {"model": model, "messages": MESSAGES}}
        files = {"file": ("a.jsonl", jsonl([line]))}
        self.file_id = self.client.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
        config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
        check = {"type": "string_check", "name": "n", "input": "a", "operation": "eq", "reference": "a"}
        self.eval_id = self.post("evals", data_source_config=config, testing_criteria=[check]).json()["id"]
        for target, alias in OWN_ALIASES.items():
            assert self.post("aliases", id=alias, model=target).status_code == 200
        return self


def validate(caller: Caller, _model: str) -> Any:
    return caller.post("batches/validate", input_file_id=caller.file_id, endpoint="/v1/chat/completions")


def sample(caller: Caller, model: str) -> Any:
    source = {"type": "file_content", "content": [{"item": {"a": 1}}]}
    messages = {"type": "template", "template": MESSAGES}
    source = {"type": "completions", "model": model, "source": source, "input_messages": messages}
    return caller.post(f"evals/{caller.eval_id}/runs", data_source=source)


#: How each door is asked for a model of a kind, by the routes whose body names a model.
DOORS: dict[str, tuple[str, Callable[[Caller, str], Any]]] = {
    "/v1/chat/completions": (CHAT_MODEL, lambda it, model: it.post("chat/completions", model=model, messages=MESSAGES)),
    "/v1/completions": (CHAT_MODEL, lambda it, model: it.post("completions", model=model, prompt="Hi")),
    "/v1/responses": (CHAT_MODEL, lambda it, model: it.post("responses", model=model, input="Hi", store=False)),
    "/v1/responses/compact": (CHAT_MODEL, lambda it, model: it.post("responses/compact", model=model, input="Hi")),
    "/v1/responses/input_tokens": (
        CHAT_MODEL, lambda it, model: it.post("responses/input_tokens", model=model, input="Hi")
    ),
    "/v1/embeddings": (EMBEDDER, lambda it, model: it.post("embeddings", model=model, input="Hi")),
    "/v1/rerank": (EMBEDDER, lambda it, model: it.post("rerank", model=model, query="Hi", documents=["a"])),
    "/v1/batches/validate": (CHAT_MODEL, validate),
    "/v1/evals/{eval_id}/runs": (CHAT_MODEL, sample),
    "/v1/fine_tuning/jobs": (
        CHAT_MODEL, lambda it, model: it.post("fine_tuning/jobs/validate", model=model, training_file="file-x")
    ),
    "/v1/fine_tuning/jobs/validate": (
        CHAT_MODEL, lambda it, model: it.post("fine_tuning/jobs/validate", model=model, training_file="file-x")
    ),
    "/v1/vector_stores": (EMBEDDER, lambda it, model: it.post("vector_stores", embedding_model=model)),
    "/v1/aliases": (CHAT_MODEL, lambda it, model: it.post("aliases", id="new", model=model)),
    "/v1/aliases/{alias}": (EMBEDDER, lambda it, model: it.post(f"aliases/{OWN_ALIASES[CHAT_MODEL]}", model=model)),
}  # fmt: skip
ALIASES = {CHAT_MODEL: CHAT_ALIAS, EMBEDDER: EMBEDDER_ALIAS}
#: The project's own.
OWN_ALIASES = {CHAT_MODEL: "ft:gpt-4o-mini:acme::abc", EMBEDDER: "my-org/embedder"}


def deny(caller: Caller, *names: str) -> None:
    with caller.app.state.services.db.write() as session:
        project_id = session.get_one(ApiKey, keys.id_of(caller.key)).project_id
        set_rule(session, project_id, "deny_list", names)


def change(caller: Caller, table: Any, **values: Any) -> None:
    with caller.app.state.services.db.write() as session:
        key = session.get_one(ApiKey, keys.id_of(caller.key))
        row = table.id == (key.id if table is ApiKey else key.project_id)
        session.execute(update(table).where(row).values(**values))


#: What each rule changes, and the names, where not their own, by which models are then asked for.
RULES: dict[str, tuple[Callable[[Caller, str], object], dict[str, str]]] = {
    "model denied": (deny, {}),
    "alias of a denied model": (deny, ALIASES),
    "project's alias of a denied model": (deny, OWN_ALIASES),
    "model with a denied alias": (lambda it, model: deny(it, ALIASES[model]), {}),
    "key revoked": (lambda it, _: change(it, ApiKey, revoked_at=now()), {}),
    "key expired": (lambda it, _: change(it, ApiKey, expires_at=now() - 1), {}),
    "project archived": (lambda it, _: change(it, Project, archived_at=now()), {}),
}
_REFUSALS = (
    "model_not_found",
    "model_not_available",
    "key_revoked",
    "key_expired",
    "project_archived",
    "invalid_api_key",
)


def is_refused(answer: Any) -> bool:
    """Return whether an answer is a refusal of access, or names one."""
    return any(f'"{code}"' in answer.text for code in _REFUSALS)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[FastAPI]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "nightmill.db").write_bytes(sqlite_template.read_bytes())
    with running_app(folder, "", openai_aliases=True) as app:
        yield app


#: An alias stands for no other alias, so no rule is tried on that.
PASSED = [(rule, door) for rule in RULES for door in DOORS if RULES[rule][1] is not OWN_ALIASES or "alias" not in door]


@pytest.mark.parametrize(("rule", "door"), PASSED)
def test_door_refuses_a_project_by_its_rule_and_no_other_project(app: FastAPI, door: str, rule: str) -> None:
    model, ask = DOORS[door]
    apply, names = RULES[rule]
    name = names.get(model, model)
    owner, stranger = (Caller(app, f"{who} {door} {rule}").prepare(name) for who in ("owner", "stranger"))
    apply(owner, model)

    assert is_refused(ask(owner, name))
    assert not is_refused(ask(stranger, name))


def test_every_route_with_a_model_in_its_body_is_a_door() -> None:
    named = {path for (_, path), request in BODIES.items() if "model" in request.get("json", {})}

    assert named <= set(DOORS)


def test_batch_of_a_denied_model_fails_in_planning(sqlite: Database, tmp_path: Path) -> None:
    with running(sqlite, tmp_path) as inline:
        with sqlite.write() as session:
            set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [FAKE])

        [job] = inline.drain(inline.submit(jsonl([chat_line("a", "Hi")])))

    assert job.state == JobState.FAILED
    assert [error["code"] for error in job.errors or ()] == ["model_not_found"]


@pytest.mark.parametrize("overrides", [{}, {"model": "second"}])
def test_batch_of_an_alias_is_answered_by_the_model_of_its_plan(
    sqlite: Database, tmp_path: Path, overrides: dict[str, str]
) -> None:
    def set_alias(name: str, model: str) -> None:
        with sqlite.write() as session:
            at = {"created_at": 1.0, "updated_at": 1.0, "created_by": "test"}
            session.merge(Alias(project_id=keys.ensure_project(session, "default").id, name=name, model=model, **at))

    lines = jsonl([chat_line(name, "Hi", model="first") for name in "ab"])
    with running(sqlite, tmp_path) as inline:
        set_alias("first", "gone" if overrides else FAKE)
        set_alias("second", FAKE)
        inline.lose_messages = lambda task: task == Task.RUN
        job_id = inline.submit(lines, payload={"overrides": overrides})
        inline.until(lambda: inline.job(job_id).state == JobState.RUNNING)
        for name in ("first", "second"):
            set_alias(name, "gone")
        inline.lose_messages = lambda _task: False

        [job] = inline.drain(job_id)
        good, bad = inline.results(job)

    assert (job.model, bad) == (FAKE, [])
    assert [line["response"]["body"]["model"] for line in good] == [FAKE, FAKE]


def test_retry_with_the_model_of_an_override_is_asked_for_that_model(sqlite: Database, tmp_path: Path) -> None:
    with running(sqlite, tmp_path) as inline:
        with sqlite.write() as session:
            set_rule(session, keys.ensure_project(session, "default").id, "deny_list", ["other"])

        payload = {"overrides": {"model": "other"}}
        [job] = inline.drain(inline.submit(jsonl([chat_line("a", "Hi")]), payload=payload))

    assert [error["code"] for error in job.errors or ()] == ["model_not_found"]


def test_answer_in_the_cache_is_not_given_after_a_denial(sqlite: Database, tmp_path: Path) -> None:
    lines = jsonl([chat_line("a", "Hi", temperature=0, cache=True)])
    prompts: list[str] = []
    with running(sqlite, tmp_path, FakeEngine((FAKE,), on_prompt=prompts.append)) as inline:
        inline.drain(inline.submit(lines))
        inline.response_cache.flush()
        [cached] = inline.drain(inline.submit(lines))
        inline.lose_messages = lambda task: task == Task.RUN
        job_id = inline.submit(lines)
        inline.until(lambda: inline.job(job_id).state == JobState.RUNNING)
        with sqlite.write() as session:
            set_rule(session, keys.ensure_project(session, "default").id, "deny_list", [FAKE])
        inline.lose_messages = lambda _task: False

        [denied] = inline.drain(job_id)
        answers = [inline.results(job)[0] for job in (cached, denied)]

    assert [len(good) for good in answers] == [1, 0]
    assert len(prompts) == 1


@pytest.mark.parametrize(
    ("table", "values", "code"),
    [
        (ApiKey, {"revoked_at": 1.0}, "key_revoked"),
        (ApiKey, {"expires_at": 1.0}, "key_expired"),
        (ApiKey, {"scopes": ["api.files.read"]}, "missing_scope"),
        (Project, {"archived_at": 1.0}, "project_archived"),
    ],
)
def test_due_source_is_refused_by_the_rule_of_its_project_and_of_no_other(
    app: FastAPI, table: Any, values: dict[str, Any], code: str
) -> None:
    owner, stranger = (Caller(app, f"{who} of a source {code}") for who in ("owner", "stranger"))
    sources = [add_source(caller) for caller in (owner, stranger)]
    change(owner, table, **values)
    services = app.state.services
    with services.db.write() as session:
        first_is_over = {"status": "completed", "job_id": None, "next_at": 1.0}
        session.execute(update(Source).where(Source.id.in_(sources)).values(first_is_over))

    Maintenance(services.config, services.db, services.storage, now, lambda: None).run()

    with services.db.read() as session:
        refused, synced = (session.get_one(Source, source) for source in sources)
    assert (refused.status, (refused.last_error or {}).get("code"), refused.job_id) == ("failed", code, None)
    assert (synced.status, synced.last_error) == ("in_progress", None)


def add_source(caller: Caller) -> str:
    """Make a source that is synced on a schedule; return its id."""
    store = caller.post("vector_stores", embedding_model=EMBEDDER).json()["id"]
    page = {"type": "url", "url": "https://192.0.43.8/a.html", "cron": "0 3 * * *"}
    return str(caller.post(f"vector_stores/{store}/sources", **page).json()["id"])


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("denied", "model_not_found"),
        ("revoked", "key_revoked"),
        ("expired", "key_expired"),
        ("narrowed", "missing_scope"),
        ("archived", "project_archived"),
    ],
)
def test_shard_that_is_claimed_after_a_denial_runs_no_line_and_names_the_reason(
    sqlite: Database, tmp_path: Path, rule: str, code: str
) -> None:
    with running(sqlite, tmp_path) as inline:
        with sqlite.write() as session:
            key_id = keys.id_of(keys.create_key(session, "default"))
        inline.lose_messages = lambda task: task == Task.RUN
        job_id = inline.submit(jsonl([chat_line("a", "Hi"), chat_line("b", "Ho")]), key_id=key_id)
        inline.until(lambda: inline.job(job_id).state == JobState.RUNNING)
        with sqlite.write() as session:
            key, project = session.get_one(ApiKey, key_id), keys.ensure_project(session, "default")
            if rule == "denied":
                set_rule(session, project.id, "allow_list", [])
            elif rule == "archived":
                project.archived_at = now()
            elif rule == "narrowed":
                key.scopes = ["api.files.read"]
            else:
                setattr(key, "revoked_at" if rule == "revoked" else "expires_at", now())
        inline.lose_messages = lambda _task: False

        [job] = inline.drain(job_id)
        good, bad = inline.results(job)

    assert good == []
    assert code in {error["code"] for error in [*(job.errors or ()), *(line["error"] for line in bad)]}
