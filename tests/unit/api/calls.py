"""Every route of the OpenAPI document with a request that would be good, were the objects the caller's."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.http.middleware import OPEN

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"all-minilm-l6-v2","input":"x"}}\n'

CRITERION = {"type": "string_check", "name": "n", "input": "a", "operation": "eq", "reference": "a"}

SPENDING = {"threshold_amount": 5, "currency": "USD", "interval": "month"}

SPEND_ALERT = {**SPENDING, "notification_channel": {"type": "email", "recipients": ["a@example.com"]}}

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/files"): {"files": {"file": ("a.jsonl", LINE)}, "data": {"purpose": "batch"}},
    ("POST", "/v1/uploads"): {
        "json": {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "batch"},
    },
    ("POST", "/v1/uploads/{upload_id}/parts"): {"files": {"data": ("upload", b"x")}},
    ("POST", "/v1/uploads/{upload_id}/complete"): {"json": {"part_ids": ["part_1"]}},
    ("POST", "/v1/batches"): {
        "json": {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    },
    ("POST", "/v1/batches/validate"): {"json": {"input_file_id": "file-x", "endpoint": "/v1/embeddings"}},
    ("POST", "/v1/chat/completions"): {
        "json": {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hello"}]},
    },
    ("POST", "/v1/chat/completions/{completion_id}"): {"json": {"metadata": {}}},
    ("POST", "/v1/datasets"): {"json": {"name": "refunds"}},
    ("POST", "/v1/datasets/{dataset}"): {"json": {"description": "Questions about refunds."}},
    ("POST", "/v1/datasets/{dataset}/versions"): {"json": {"sources": [{"type": "file_id", "id": "file-x"}]}},
    ("POST", "/v1/drift_monitors"): {
        "json": {"name": "questions", "source": {"type": "responses"}, "embedding_model": "all-minilm-l6-v2"},
    },
    ("POST", "/v1/drift_monitors/{monitor_id}/baseline"): {"json": {}},
    ("POST", "/v1/drift_monitors/{monitor_id}/checks"): {"json": {}},
    ("POST", "/v1/online_evaluations"): {
        "json": {"name": "refunds", "eval_id": "eval_x", "source": {"type": "responses"}},
    },
    ("POST", "/v1/online_evaluations/{online_evaluation_id}"): {"json": {"share": 20}},
    ("POST", "/v1/aliases"): {"json": {"id": "my-model", "model": "all-minilm-l6-v2"}},
    ("POST", "/v1/ofrep/v1/evaluate/flags/{alias}"): {"json": {"context": {"targetingKey": "user-1"}}},
    ("POST", "/v1/aliases/{alias}"): {"json": {"model": "all-minilm-l6-v2"}},
    ("POST", "/v1/model_versions/{model_version}"): {"json": {"stage": "staging"}},
    ("POST", "/v1/model_imports"): {
        "json": {"base": "smollm2-135m-instruct", "files": [{"name": "manifest.json", "file_id": "file-x"}]},
    },
    ("POST", "/v1/promotions"): {
        "json": {
            "target": {"type": "alias", "id": "my-model", "model": "smollm2-135m-instruct"},
            "force": True,
            "reason": "the incumbent leaks names",
        }
    },
    ("POST", "/v1/feedback"): {"json": {"target": {"type": "response", "response_id": "resp_x"}, "score": 1}},
    ("POST", "/v1/chat/completions/imports"): {
        "json": {
            "imported_from": "chatcmpl-x",
            "request": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]},
            "response": {"model": "gpt-4o-mini", "choices": [{"message": {"role": "assistant", "content": "Hi"}}]},
        },
    },
    ("POST", "/v1/models/{model}/probe"): {"json": {}},
    ("POST", "/v1/completions"): {"json": {"model": "smollm2-135m-instruct", "prompt": "Hello"}},
    ("POST", "/v1/embeddings"): {"json": {"model": "all-minilm-l6-v2", "input": "Hello"}},
    ("POST", "/v1/rerank"): {"json": {"model": "ranker", "query": "What?", "documents": ["This."]}},
    ("POST", "/v1/responses"): {"json": {"model": "smollm2-135m-instruct", "input": "Hello"}},
    ("POST", "/v1/responses/compact"): {"json": {"model": "smollm2-135m-instruct", "input": "Hello"}},
    ("POST", "/v1/responses/input_tokens"): {"json": {"model": "smollm2-135m-instruct", "input": "Hello"}},
    ("POST", "/v1/conversations/{conversation_id}"): {"json": {"metadata": {}}},
    ("POST", "/v1/conversations/{conversation_id}/items"): {"json": {"items": [{"role": "user", "content": "Hi"}]}},
    ("POST", "/v1/fine_tuning/jobs"): {"json": {"model": "smollm2-135m-instruct", "training_file": "file-x"}},
    ("POST", "/v1/fine_tuning/jobs/validate"): {"json": {"model": "smollm2-135m-instruct", "training_file": "file-x"}},
    ("POST", "/v1/fine_tuning/alpha/graders/validate"): {"json": {"grader": CRITERION}},
    ("POST", "/v1/fine_tuning/alpha/graders/run"): {"json": {"grader": CRITERION, "model_sample": "Hello"}},
    ("POST", "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions"): {
        "json": {"project_ids": ["proj_x"]},
    },
    ("POST", "/v1/evals"): {
        "json": {"data_source_config": {"type": "custom", "item_schema": {}}, "testing_criteria": [CRITERION]},
    },
    ("POST", "/v1/evals/imports"): {
        "json": {
            "imported_from": "eval_x",
            "data_source_config": {"type": "custom", "item_schema": {}},
            "testing_criteria": [CRITERION],
        },
    },
    ("POST", "/v1/evals/{eval_id}"): {"json": {"name": "m"}},
    ("POST", "/v1/prompts"): {"json": {"instructions": "You are {{who}}."}},
    ("POST", "/v1/prompts/{prompt_id}"): {"json": {"name": "m"}},
    ("POST", "/v1/prompts/{prompt_id}/versions"): {"json": {"instructions": "You are {{who}}."}},
    ("POST", "/v1/evals/{eval_id}/imports"): {
        "json": {"imported_from": "evalrun_x", "file_id": "file-x", "data_source": {"type": "jsonl"}},
    },
    ("POST", "/v1/evals/{eval_id}/runs"): {
        "json": {"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {}}]}}},
    },
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}/comparison"): {"params": {"baseline": "evalrun_x"}},
    ("POST", "/v1/organization/admin_api_keys"): {"json": {"name": "n"}},
    ("POST", "/v1/organization/projects"): {"json": {"name": "n"}},
    ("POST", "/v1/organization/projects/{project_id}/service_accounts"): {"json": {"name": "n"}},
    ("POST", "/v1/organization/data_retention"): {"json": {"retention_type": "none"}},
    ("POST", "/v1/organization/projects/{project_id}/data_retention"): {"json": {"retention_type": "none"}},
    ("POST", "/v1/organization/projects/{project_id}/hosted_tool_permissions"): {
        "json": {"file_search": {"enabled": True}},
    },
    ("POST", "/v1/organization/projects/{project_id}/model_permissions"): {
        "json": {"mode": "deny_list", "model_ids": ["smollm2-135m-instruct"]},
    },
    ("POST", "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}"): {
        "json": {"max_requests_per_1_minute": 60},
    },
    ("POST", "/v1/organization/projects/{project_id}/service_tier_settings"): {"json": {"default": "standard"}},
    ("POST", "/v1/vector_stores"): {"json": {"name": "n"}},
    ("POST", "/v1/vector_stores/{vector_store_id}"): {"json": {"name": "m"}},
    ("POST", "/v1/vector_stores/{vector_store_id}/files"): {"json": {"file_id": "file-x"}},
    ("POST", "/v1/vector_stores/{vector_store_id}/files/{file_id}"): {"json": {"attributes": {"year": 2026}}},
    ("POST", "/v1/vector_stores/{vector_store_id}/file_batches"): {"json": {"file_ids": ["file-x"]}},
    ("POST", "/v1/vector_stores/{vector_store_id}/indexes"): {"json": {"embedding_dimensions": 64}},
    ("POST", "/v1/vector_stores/{vector_store_id}/indexes/{index_id}/compare"): {"json": {"queries": ["What is it?"]}},
    ("POST", "/v1/vector_stores/{vector_store_id}/search"): {"json": {"query": "What is it?"}},
    ("POST", "/v1/vector_stores/{vector_store_id}/sources"): {"json": {"type": "url", "url": "https://192.0.43.8/a"}},
    ("POST", "/v1/organization/users/{user_id}"): {"json": {"role": "reader"}},
    ("POST", "/v1/organization/users/{user_id}/roles"): {"json": {"role_id": "role-org-reader"}},
    ("POST", "/v1/organization/invites"): {"json": {"email": "ada@example.com", "role": "reader", "projects": []}},
    ("POST", "/v1/organization/groups"): {"json": {"name": "n"}},
    ("POST", "/v1/organization/groups/{group_id}"): {"json": {"name": "m"}},
    ("POST", "/v1/organization/groups/{group_id}/users"): {"json": {"user_id": "user_x"}},
    ("POST", "/v1/organization/groups/{group_id}/roles"): {"json": {"role_id": "role-org-reader"}},
    ("POST", "/v1/organization/roles"): {"json": {"role_name": "n", "permissions": []}},
    ("POST", "/v1/organization/roles/{role_id}"): {"json": {"description": "d"}},
    ("POST", "/v1/organization/projects/{project_id}/users"): {"json": {"role": "member", "user_id": "user_x"}},
    ("POST", "/v1/organization/projects/{project_id}/users/{user_id}"): {"json": {"role": "member"}},
    ("POST", "/v1/organization/projects/{project_id}/groups"): {
        "json": {"group_id": "group_x", "role": "role-project-member"},
    },
    ("POST", "/v1/projects/{project_id}/roles"): {"json": {"role_name": "n", "permissions": []}},
    ("POST", "/v1/projects/{project_id}/roles/{role_id}"): {"json": {"description": "d"}},
    ("POST", "/v1/projects/{project_id}/users/{user_id}/roles"): {"json": {"role_id": "role-project-member"}},
    ("POST", "/v1/projects/{project_id}/groups/{group_id}/roles"): {"json": {"role_id": "role-project-member"}},
    ("POST", "/v1/pauses"): {"json": {"kind": "queue", "name": "gpu.generate"}},
    **{
        ("POST", f"/v1/organization{owner}/{path}"): {"json": body}
        for owner in ("", "/projects/{project_id}")
        for path, body in (
            ("spend_limit", SPENDING),
            ("spend_alerts", SPEND_ALERT),
            ("spend_alerts/{alert_id}", SPEND_ALERT),
        )
    },
    ("POST", "/v1/webhook_endpoints"): {
        "json": {"name": "n", "url": "https://192.0.43.8/hook", "event_types": ["batch.completed"]},
    },
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}"): {"json": {"name": "m"}},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/test"): {"json": {"event_type": "batch.completed"}},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/replay"): {"json": {"failed_since": 0}},
}


@dataclass(frozen=True)
class Route:
    """Hold an operation of the document."""

    method: str
    path: str

    @property
    def parameter(self) -> str | None:
        """The name of the path's id, if it has one."""
        return self.path.partition("{")[2].partition("}")[0].partition(":")[0] or None

    @property
    def parameters(self) -> list[str]:
        """The names of all ids in its path."""
        return [part.partition("}")[0].partition(":")[0] for part in self.path.split("{")[1:]]

    def call(self, client: TestClient, **ids: str) -> Any:
        path = self.path.format_map(defaultdict(lambda: "unknown", ids))
        return client.request(self.method, path, **BODIES.get((self.method, self.path), {}))


def routes(app: FastAPI) -> list[Route]:
    """Yield the routes that require a key."""
    paths = app.openapi()["paths"]
    return [Route(method.upper(), path) for path in paths if path not in OPEN for method in paths[path]]


def project_routes(app: FastAPI) -> list[Route]:
    """Return the routes that take a key of a project."""
    return [route for route in routes(app) if not takes_admin_key(app, route)]


def takes_admin_key(app: FastAPI, route: Route) -> bool:
    security: Any = app.openapi()["paths"][route.path][route.method.lower()]["security"]
    return bool(security == [{"AdminKey": []}])
