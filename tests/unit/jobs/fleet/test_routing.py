"""Which queue a name is placed on, and for whose prompts."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs.db.engine import Database
from jobs.fleet import access, routing, workers
from jobs.fleet.access import Work
from jobs.fleet.models_file import ANY_MODEL, Registry
from jobs.fleet.routing import Route
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue
from jobs.security import keys
from jobs.settings import Settings
from tests.support import tuned_adapters
from tests.unit.jobs.fleet.test_workers import register, worker

CHAT = "/v1/chat/completions"


def place(db: Database, name: str, *, allowed: bool = False) -> str:
    config: Any = Settings()
    with db.write() as session:
        project = keys.ensure_project(session, "p")
        project.allow_external = allowed
        return access.resolve(session, config, Registry.load(config), Work(project.id, None, name, CHAT)).queue


@pytest.mark.parametrize(("external", "allowed"), [(True, True), (False, False), (False, True)])
def test_a_server_that_takes_any_name_has_it_for_projects_that_may_use_that_server(
    sqlite: Database, external: bool, allowed: bool
) -> None:
    register(sqlite, worker("a", models=[ANY_MODEL]))
    with sqlite.write() as session:
        workers.store_models(session, {ANY_MODEL: external}, Queue.GENERATE)

    assert place(sqlite, "whatever", allowed=allowed) == Queue.GENERATE


def test_an_external_server_that_takes_any_name_is_refused_to_a_project_without_the_permission(
    sqlite: Database,
) -> None:
    register(sqlite, worker("a", models=[ANY_MODEL]))
    with sqlite.write() as session:
        workers.store_models(session, {ANY_MODEL: True}, Queue.GENERATE)

    with pytest.raises(routing.NotServed) as refused:
        place(sqlite, "whatever")

    assert refused.value.code == "external_model_not_allowed"


def test_a_tuned_model_runs_where_its_base_does(sqlite: Database, tmp_path: Path) -> None:
    config: Any = Settings()
    name = "ft:smollm2-135m-instruct:acme::abc"
    tuned_adapters.tuned_model(sqlite, DiskStorage(tmp_path), name, base="smollm2-135m-instruct", project="acme")
    with sqlite.write() as session:
        project_id, other = (keys.ensure_project(session, one).id for one in ("acme", "rival"))
        registry = Registry.load(config)

        found = routing.route(session, config, registry, name, endpoint=CHAT, project_id=project_id)
        with pytest.raises(routing.NotServed, match="does not serve /v1/embeddings"):
            routing.route(session, config, registry, name, endpoint="/v1/embeddings", project_id=project_id)
        with pytest.raises(routing.NotServed) as unknown:
            routing.route(session, config, registry, name, endpoint=CHAT, project_id=other)

    assert found == Route(Queue.GENERATE, name, "smollm2-135m-instruct")
    assert unknown.value.code == "model_not_found"


def test_adapter_of_unserved_base_is_refused_with_hint(sqlite: Database, tmp_path: Path) -> None:
    config: Any = Settings(vllm_enabled=False)
    name = "ft:smollm2-135m-instruct:acme::abc"
    tuned_adapters.tuned_model(sqlite, DiskStorage(tmp_path), name, base="smollm2-135m-instruct", project="acme")
    with sqlite.write() as session:
        project_id, registry = keys.ensure_project(session, "acme").id, Registry.load(config)
        with pytest.raises(routing.NotServed, match="--no-vllm") as refused:
            routing.route(session, config, registry, name, endpoint=CHAT, project_id=project_id)

    assert refused.value.code == "model_not_supported"


def test_a_tuned_model_that_no_engine_can_serve_is_refused(sqlite: Database, tmp_path: Path) -> None:
    config: Any = Settings()
    name, storage = "ft:smollm2-135m-instruct:acme::abc", DiskStorage(tmp_path)
    tuned_adapters.tuned_model(sqlite, storage, name, base="smollm2-135m-instruct", project="acme")
    packaged = Registry.load(config)
    base = packaged.models["smollm2-135m-instruct"]
    plain = base.model_copy(update={"engine_args": {**base.engine_args, "enable_lora": False}})

    with sqlite.write() as session:
        project_id = keys.ensure_project(session, "acme").id
        without = replace(packaged, models={**packaged.models, base.name: plain})
        with pytest.raises(routing.NotServed, match="enable_lora"):
            routing.route(session, config, without, name, endpoint=CHAT, project_id=project_id)


def test_a_whole_model_is_served_by_the_process_for_such_models(sqlite: Database, tmp_path: Path) -> None:
    config: Any = Settings()
    names = {base: f"ft:{base}:acme::abc" for base in ("smollm2-135m-instruct", "removed-since")}
    for base, name in names.items():
        tuned_adapters.tuned_model(sqlite, DiskStorage(tmp_path), name, base=base, project="acme", method="full")

    with sqlite.write() as session:
        project_id = keys.ensure_project(session, "acme").id
        for name in names.values():
            route = partial(routing.route, session, config, Registry.load(config), name, project_id=project_id)
            assert route(endpoint=CHAT) == Route(Queue.TUNED, name)
            with pytest.raises(routing.NotServed, match="does not serve /v1/embeddings"):
                route(endpoint="/v1/embeddings")

    name = names["removed-since"]
    assert routing.model_of(Queue.TUNED, name) == name
    assert routing.model_of(Queue.GENERATE, name) == "removed-since"
