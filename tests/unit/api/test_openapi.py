"""The OpenAPI document is true: what schemathesis makes of it is answered as it says, and never with a 5xx."""

import itertools
import json
from typing import Any, get_args

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks
from sqlalchemy import delete, update

from api.app import ROUTERS
from api.http.middleware import OPEN
from jobs.evals import runs as evals
from jobs.finetuning import model_imports
from jobs.ids import new_id
from jobs.inference import context_options
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.monitoring import monitors
from jobs.monitoring.tables import DriftMonitor, OnlineEvaluation
from jobs.pipelines import pipelines
from jobs.registry import models
from jobs.security import keys
from jobs.security.tables import (
    NO_PROJECT,
    Account,
    AccountGroup,
    GroupMember,
    Invite,
    ModelPermission,
    Role,
    RoleAssignment,
    ServiceAccount,
)
from jobs.usage.tables import SpendAlert, SpendLimit
from tests.support import worker_steps
from tests.support.web import make_key, rate_completion, store_completion, store_response
from tests.unit.api.batches.test_batches import create, upload
from tests.unit.api.calls import Route, routes, takes_admin_key
from tests.unit.api.conftest import METRICS_KEY, client_of

#: Of each operation, in the tests of every run and in those of `make soak`.
EXAMPLES = [4, pytest.param(40, marks=pytest.mark.soak)]
_TRUE = (
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
)


#: Nobody works here, and there is no Redis: these say so.
_NEED_A_WORKER = frozenset(
    {
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/responses",
        "/v1/responses/compact", "/v1/responses/input_tokens",
        "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate",
        "/v1/streams/{stream_id}", "/v1/vector_stores/{vector_store_id}/search",
        "/v1/vector_stores/{vector_store_id}/indexes/{index_id}/compare",
    }
)  # fmt: skip


_PROBE = "/v1/models/{model}/probe"


def _operations() -> list[tuple[str, str]]:
    """Every operation of the document, as the routers alone tell them: to compose it takes seconds."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    return [(method.lower(), one.path_format) for one in routes if one.include_in_schema for method in one.methods]


@pytest.fixture(scope="module")
def app(shared_app: FastAPI) -> FastAPI:
    return shared_app


@pytest.fixture(scope="module")
def key(app: FastAPI) -> str:
    return make_key(app, manages=True)


@pytest.fixture(scope="module")
def operator_key(app: FastAPI) -> str:
    with app.state.services.db.write() as session:
        return keys.create_admin_key(session)


@pytest.fixture(scope="module")
def document(app: FastAPI) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


class Real:
    """Objects that exist: half of the requests are about them. They are made anew once an operation has ended some."""

    def __init__(self, app: FastAPI, key: str) -> None:
        self.app, self.client = app, client_of(app, key)
        self._ids: dict[str, str] = {}

    @property
    def ids(self) -> dict[str, str]:
        self._ids = self._ids or self._make()
        return self._ids

    def ids_at(self, path: str) -> dict[str, str]:
        """Return the ids for a path: what the organization and a project both have is found below its own."""
        ids = dict(self.ids)
        if path.startswith("/v1/projects/"):
            ids["role_id"] = ids["project_role_id"]
        if path.startswith("/v1/organization/spend_alerts"):
            ids["alert_id"] = ids["organization_alert_id"]
        return ids

    def used_by(self, method: str, path: str) -> None:
        """Forget the objects that this operation may have deleted, cancelled or completed."""
        if self._ids and (method == "delete" or path.endswith(("/cancel", "/complete", "/switch"))):
            self.client.delete(f"/v1/webhook_endpoints/{self._ids['webhook_endpoint_id']}")  # a hundred at most
            self._ids = {}

    def _make(self) -> dict[str, str]:
        def post(path: str, **body: Any) -> Any:
            return self.client.post(f"/v1/{path}", json=body).json()

        file_id = upload(self.client)
        job_id = create(self.client, file_id, webhook={"url": "https://192.0.43.8/once"})["id"]
        worker_steps.run(self.app.state.services.db, self.app.state.services.storage, job_id, 3, failed=1)
        batch = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        talk = post("conversations", items=[{"role": "user", "content": "Hi"}])["id"]
        store = post("vector_stores", name="n")["id"]
        brought = post(f"vector_stores/{store}/file_batches", file_ids=[file_id])["id"]
        hook = post("webhook_endpoints", name="n", url="https://192.0.43.8/hook", event_types=["batch.completed"])
        data = self.client.post("/v1/files", files={"file": ("t", b"{}")}, data={"purpose": "fine-tune"}).json()["id"]
        tuning_id = post("fine_tuning/jobs", model="smollm2-135m-instruct", training_file=data)["id"]
        checkpoint, project_id = tuned_checkpoint(self.app, tuning_id)
        permissions = post(f"fine_tuning/checkpoints/{checkpoint}/permissions", project_ids=[project_id])
        part = {"bytes": 9, "filename": "a", "mime_type": "text/plain", "purpose": "batch"}
        return {
            "vector_store_id": store,
            "index_id": post(f"vector_stores/{store}/indexes", embedding_dimensions=64)["id"],
            "file_batch_id": brought,
            "source_id": post(f"vector_stores/{store}/sources", type="url", url="https://192.0.43.8/a")["id"],
            "response_id": store_response(self.app),
            "completion_id": store_completion(self.app),
            "conversation_id": talk,
            "item_id": self.client.get(f"/v1/conversations/{talk}/items").json()["first_id"],
            "prompt_id": post("prompts", instructions="Be brief.")["id"],
            "version": "1",
            "dataset": dataset_id(self.app, post, file_id),
            **monitor_ids(self.app, post),
            "online_evaluation_id": online_evaluation_id(self.app, post),
            "alias": post("aliases", id="my/model", model="all-minilm-l6-v2")["id"],
            "promotion_id": forced_promotion(post),
            "feedback_id": rate_completion(self.app, self.client),
            "model_version": checkpoint.partition(":ckpt")[0],
            "model_import_id": import_id(self.app, post, file_id),
            "schedule_id": post("schedules", cron="0 3 * * *", batch=batch)["id"],
            "pipeline_id": pipeline_id(self.app, post, batch),
            "file_id": file_id,
            "input_file_id": file_id,
            "upload_id": post("uploads", **part)["id"],
            "webhook_endpoint_id": hook["id"],
            "fine_tuning_job_id": tuning_id,
            **graded_run(self.app, self.client),
            "project_id": project_id,
            "rate_limit_id": "rl-smollm2-135m-instruct",
            "fine_tuned_model_checkpoint": checkpoint,
            "fine_tuned_model": checkpoint,
            "file_name": "manifest.json",
            "permission_id": permissions["data"][0]["id"],
            "batch_id": job_id,
            "job_id": job_id,
            "delivery_id": self.client.get(f"/v1/jobs/{job_id}/deliveries").json()["first_id"],
            "model": "all-minilm-l6-v2",
            **organization_ids(self.app, project_id),
            "kind": "queue",
            "target": "gpu.generate",
        }


def dataset_id(app: FastAPI, post: Any, file_id: str) -> str:
    """Return the id of a dataset that has a version. Its job has ended: a project makes ten versions at once."""
    made: str = post("datasets", name=new_id("d"))["id"]
    version = post(f"datasets/{made}/versions", sources=[{"type": "file_id", "id": file_id}])
    with app.state.services.db.write() as session:
        session.get_one(Job, version["id"]).state = JobState.SUCCEEDED
    return made


def import_id(app: FastAPI, post: Any, file_id: str) -> str:
    """Return the id of an import. Those of other tries have ended: a project has ten live ones at most."""
    with app.state.services.db.write() as session:
        session.execute(update(Job).where(Job.kind == model_imports.NAME).values(state=JobState.SUCCEEDED))
    files = [{"name": "manifest.json", "file_id": file_id}]
    made: str = post("model_imports", base="smollm2-135m-instruct", files=files)["id"]
    return made


def pipeline_id(app: FastAPI, post: Any, batch: dict[str, str]) -> str:
    """Return the id of a pipeline. Those of other tries have ended: a project has a hundred live ones at most."""
    with app.state.services.db.write() as session:
        session.execute(update(Job).where(Job.kind == pipelines.NAME).values(state=JobState.SUCCEEDED))
    made: str = post("pipelines", steps=[{"name": "a", "kind": "batch", "request": batch}])["id"]
    return made


def forced_promotion(post: Any) -> str:
    """Return the id of a promotion of an alias of its own, which is a new one for each."""
    alias = post("aliases", id=new_id("a"), model="all-minilm-l6-v2")["id"]
    target = {"type": "alias", "id": alias, "model": "smollm2-135m-instruct"}
    made: str = post("promotions", target=target, force=True, reason="r")["id"]
    return made


def monitor_ids(app: FastAPI, post: Any) -> dict[str, str]:
    """Return the ids of a drift monitor and its check. Those of other tries go: a project has a hundred at most."""
    with app.state.services.db.write() as session:
        session.execute(delete(DriftMonitor))
        session.execute(update(Job).where(Job.kind == monitors.NAME).values(state=JobState.SUCCEEDED))
    made = post("drift_monitors", name="n", source={"type": "responses"}, embedding_model="all-minilm-l6-v2")["id"]
    return {"monitor_id": made, "check_id": post(f"drift_monitors/{made}/checks")["id"]}


def online_evaluation_id(app: FastAPI, post: Any) -> str:
    """Return the id of an online evaluation. Those of other tries go: a project has a hundred at most."""
    with app.state.services.db.write() as session:
        session.execute(delete(OnlineEvaluation))
    grader = {"type": "string_check", "name": "g", "input": "a", "operation": "eq", "reference": "a"}
    eval_id = post("evals", data_source_config={"type": "logs"}, testing_criteria=[grader])["id"]
    made: str = post("online_evaluations", name="n", eval_id=eval_id, source={"type": "responses"})["id"]
    return made


@pytest.fixture(scope="module")
def real(app: FastAPI, key: str) -> Real:
    return Real(app, key)


def organization_ids(app: FastAPI, project_id: str) -> dict[str, str]:
    """Return the ids of keys, accounts, groups, roles and alerts, of the organization and of a project."""
    kinds = ("svc_acct_", "user_", "group_", "invite-", "role_", "role_", "alert_", "alert_")
    service, user, group, invite, role, project_role, alert, project_alert = map(new_id, kinds)
    roles = {NO_PROJECT: role, project_id: project_role}
    with app.state.services.db.write() as session:
        session.add_all(
            [
                ServiceAccount(id=service, project_id=project_id, name="n", role="member", created_at=1.0),
                Account(id=user, email=f"{user}@example.com", created_at=1.0),
                AccountGroup(id=group, name="n", created_at=1.0),
                GroupMember(group_id=group, account_id=user, created_at=1.0),
                Invite(id=invite, email=f"{invite}@example.com", role="reader", created_at=1.0, expires_at=1.0),
                *(
                    RoleAssignment(project_id=owner, principal_id=principal, role_id=assigned, created_at=1.0)
                    for owner, own_role in roles.items()
                    for principal in (user, group)
                    for assigned in ((own_role, "role-project-member") if owner else (own_role,))
                ),
            ]
        )
        for owner, own_role in roles.items():
            session.add(
                Role(id=own_role, project_id=owner, name=own_role, permissions=[], created_at=1.0, updated_at=1.0)
            )
            session.merge(SpendLimit(project_id=owner, cents=10**9, updated_at=1.0))
            session.merge(ModelPermission(project_id=owner, mode="deny_list", model_ids=[], updated_at=1.0))
        for owner, its_alert in ((NO_PROJECT, alert), (project_id, project_alert)):
            session.add(
                SpendAlert(id=its_alert, project_id=owner, cents=10**9, recipients=["a@example.com"], created_at=1.0)
            )
        key_id, api_key_id = keys.id_of(keys.create_admin_key(session)), keys.id_of(keys.add_key(session, project_id))
    return {
        "key_id": key_id,
        "api_key_id": api_key_id,
        "service_account_id": service,
        "user_id": user,
        "group_id": group,
        "invite_id": invite,
        "role_id": role,
        "project_role_id": project_role,
        "alert_id": project_alert,
        "organization_alert_id": alert,
    }


def graded_run(app: FastAPI, client: Any) -> dict[str, str]:
    """Return the ids of an eval, of its run, and of an item that was graded."""
    check = {"type": "string_check", "name": "n", "input": "a", "operation": "eq", "reference": "a"}
    config = {"type": "custom", "item_schema": {"type": "object"}}
    made = {"data_source_config": config, "testing_criteria": [check]}
    eval_id = client.post("/v1/evals", json=made).json()["id"]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"a": 1}}]}}
    run_id = client.post(f"/v1/evals/{eval_id}/runs", json={"data_source": source}).json()["id"]
    services = app.state.services
    ids = {"eval_id": eval_id, "run_id": run_id, "output_item_id": evals.item_id(run_id, 0)}
    item = {"id": ids["output_item_id"], "eval_id": eval_id, "run_id": run_id, "created_at": 1, "status": "pass"}
    item |= {"datasource_item_id": 0, "datasource_item": {"a": 1}, "results": [], "sample": {}}
    services.storage.put(f"jobs/{run_id}/000000-1-0.jsonl", b"0\t1\t%b\n" % json.dumps(item).encode())
    with services.db.write() as session:
        shard = Shard(job_id=run_id, n=0, first_line=0, lines=1, offset=0, length=1, state="done", done=1)
        segment = Segment(job_id=run_id, n=0, epoch=1, seq=0, path=f"jobs/{run_id}/000000-1-0.jsonl", length=1)
        segment.covered = segment.good = b"\1"
        segment.created_at = 1.0
        session.add_all([shard, segment])
    return ids


def tuned_checkpoint(app: FastAPI, job_id: str) -> tuple[str, str]:
    """Create a checkpoint of a fine-tuning job, and its result; return its name and the project that owns both."""
    with app.state.services.db.write() as session:
        project_id = session.get_one(Job, job_id).project_id
        facts = {"base": "b", "method": "lora", "location": "training/1", "sha256": "0" * 64, "manifest": {}}
        name = f"ft:b:default::{job_id}:ckpt-step-1"
        models.register(session, name=name, project_id=project_id, job_id=job_id, checkpoint_step=1, **facts)
        models.register(session, name=name.partition(":ckpt")[0], project_id=project_id, job_id=job_id, **facts)
    app.state.services.storage.put("training/1/manifest.json", b'{"files": {}, "run": {}}')
    return name, project_id


@pytest.mark.parametrize(("method", "path"), _operations(), ids=lambda part: str(part).replace("/", ":"))
@pytest.mark.parametrize("examples", EXAMPLES)
def test_every_operation_answers_as_its_document_says(
    app: FastAPI, document: Any, key: str, operator_key: str, real: Real, method: str, path: str, examples: int
) -> None:
    statuses = set()
    if path not in OPEN and takes_admin_key(app, Route(method.upper(), path)):
        key = operator_key
    key = METRICS_KEY if path == "/metrics" else key
    named = {"/v1/pauses": {"name": "gpu.generate"}, _PROBE: {"model": real.ids["fine_tuned_model_checkpoint"]}}
    named["/v1/families/{family}/versions"] = {"family": f"prompt:{real.ids['prompt_id']}"}
    named["/v1/organization/projects/{project_id}/groups"] = {"role": "role-project-member"}
    excluded = [checks.not_a_server_error] if path in _NEED_A_WORKER else []

    turns = itertools.count()  # drawn, whether an example is about real objects would depend on the modules loaded

    @given(case=document[path][method].as_strategy())
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def holds(case: schemathesis.Case) -> None:
        if next(turns) % 2 == 0:
            for given_ids in (case.path_parameters, case.body if isinstance(case.body, dict) else {}):
                known = real.ids_at(path) | named.get(path, {})
                given_ids.update({name: known[name] for name in given_ids if name in known})
            if "baseline" in (case.query or {}):
                case.query["baseline"] = real.ids["run_id"]
        answer = case.call_and_validate(
            headers={"Authorization": f"Bearer {key}"}, checks=_TRUE, excluded_checks=excluded
        )
        if answer.status_code >= 500:
            assert answer.json()["error"]["code"] in ("no_worker", "sandbox_unknown", "streams_unavailable")
        statuses.add(int(answer.status_code))

    try:
        holds()
    finally:
        real.used_by(method, path)
    assert statuses - {404}, "no request got past the id"


def test_the_document_has_every_operation_that_is_tried(app: FastAPI) -> None:
    operations = {(method, path) for path, methods in app.openapi()["paths"].items() for method in methods}

    assert set(_operations()) == operations


def test_the_document_describes_every_error_and_no_fastapi_default(app: FastAPI) -> None:
    document = app.openapi()

    assert "HTTPValidationError" not in document["components"]["schemas"]
    for route in routes(app):
        operation = document["paths"][route.path][route.method.lower()]
        assert {"400", "401", "404", "409", "413", "415", "422", "429", "500", "503"} <= set(operation["responses"])
        assert operation["security"] in ([{"ApiKey": []}], [{"AdminKey": []}])
        assert operation["description"]


@pytest.mark.parametrize("name", ["ChatCompletionRequest", "CreateResponse"])
def test_document_describes_context_options(app: FastAPI, name: str) -> None:
    field, _ = app.openapi()["components"]["schemas"][name]["properties"]["context"]["anyOf"]

    assert list(field["properties"]) == list(context_options.ContextOptions.__struct_fields__)
    assert set(field["properties"]["strategy"]["anyOf"][0]["enum"]) == set(get_args(context_options.Strategy))
    assert field["additionalProperties"] is False


def test_the_document_needs_no_key(app: FastAPI) -> None:
    assert client_of(app, "nope").get("/openapi.json").json() == app.openapi()
