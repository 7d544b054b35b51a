"""Other clients of the admin API, by the requests that they literally send.

Terraform   the provider openai/openai: it creates, reads what it created (some by lists), and deletes
Elastic     the integration OpenAI: usage, the audit log and the rate limits of all projects
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi import FastAPI

from jobs.clock import now
from tests.support.organization import add_user, admin_key

_OWNED = "project_id,user_id,api_key_id,model"
#: What Elastic groups each kind of usage by.
ELASTIC_USAGE = {
    "completions": f"{_OWNED},batch",
    "embeddings": _OWNED,
    "moderations": _OWNED,
    "images": f"{_OWNED},size,source",
    "audio_speeches": _OWNED,
    "audio_transcriptions": _OWNED,
    "vector_stores": "project_id",
    "code_interpreter_sessions": "project_id",
}
#: A request that gives the answer to a method, a path and a body.
Send = Callable[..., Any]


@pytest.fixture
def send(web: FastAPI, url: str) -> Send:
    key = admin_key(web)

    def request(method: str, path: str, content: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        answer = httpx2.request(method, f"{url}/v1{path}", content=content, headers=headers, timeout=60)
        assert answer.status_code == 200, f"{method} {path}: {answer.text}"
        return answer.json()

    return request


def pages(send: Send, path: str) -> list[Any]:
    """Return the objects of a list as the provider reads it: by `next`, and by the last id where there is none."""
    found, after = [], ""
    while True:
        page = send("GET", path + (f"&after={quote(after)}" if after else ""))
        found += page["data"]
        if not page["has_more"]:
            return found
        after = page["next"] or page["data"][-1]["id"]


def test_terraform_creates_reads_and_deletes_its_resources(web: FastAPI, send: Send) -> None:
    user = add_user(web, "ada@example.com")
    project = send("POST", "/organization/projects", '{"name":"terraform"}')["id"]
    base = f"/organization/projects/{project}"
    send("POST", base, '{"external_key_id":null,"geography":null,"name":"renamed"}')
    account = send("POST", f"{base}/service_accounts", '{"create_service_account_only":true,"name":"bot"}')
    group = send("POST", "/organization/groups", '{"name":"team"}')["id"]
    role = send(
        "POST", f"/projects/{project}/roles", '{"description":"d","permissions":["api.files.read"],"role_name":"r"}'
    )["id"]
    send("POST", f"/organization/groups/{group}/users", f'{{"user_id":"{user}"}}')
    send("POST", f"{base}/groups", f'{{"group_id":"{group}","role":"{role}"}}')
    send("POST", f"{base}/users", f'{{"role":"member","user_id":"{user}"}}')
    send("POST", f"/projects/{project}/users/{user}/roles", f'{{"role_id":"{role}"}}')
    send("POST", "/organization/invites", '{"email":"bob@example.com","projects":[],"role":"reader"}')
    send("POST", f"{base}/spend_limit", '{"currency":"USD","interval":"month","threshold_amount":500}')
    send("POST", f"{base}/model_permissions", '{"mode":"deny_list","model_ids":["all-minilm-l6-v2"]}')
    tools = '"code_interpreter":{"enabled":false},"image_generation":{"enabled":false},"mcp":{"enabled":false}'
    send(
        "POST",
        f"{base}/hosted_tool_permissions",
        f'{{{tools},"file_search":{{"enabled":true}},"web_search":{{"enabled":false}}}}',
    )
    send("POST", f"{base}/data_retention", '{"retention_type":"none"}')
    limits = pages(send, f"{base}/rate_limits?limit=1000")
    limit = f"{base}/rate_limits/{quote(limits[0]['id'], safe='')}"
    changed = send("POST", limit, '{"batch_1_day_max_input_tokens":7,"max_requests_per_1_minute":60}')

    [shown] = [
        one for one in pages(send, "/organization/projects?include_archived=true&limit=1") if one["id"] == project
    ]
    assert (shown["name"], shown["status"]) == ("renamed", "active")
    assert account["api_key"] is None
    assert send("GET", f"{base}/service_accounts/{account['id']}")["role"] == "none"
    assert [one["group_id"] for one in pages(send, f"{base}/groups?limit=100")] == [group]
    assert [one["id"] for one in pages(send, f"/organization/groups/{group}/users?limit=100")] == [user]
    assert [one["id"] for one in pages(send, f"/projects/{project}/groups/{group}/roles?limit=1000")] == [role]
    assert pages(send, f"{base}/rate_limits?limit=1000")[0] == changed
    for path in (
        f"{base}/spend_limit",
        f"{base}/model_permissions",
        f"/projects/{project}/users/{user}/roles/{role}",
        f"{base}/users/{user}",
        f"{base}/groups/{group}",
        f"{base}/service_accounts/{account['id']}",
        f"/projects/{project}/roles/{role}",
        f"/organization/groups/{group}/users/{user}",
        f"/organization/groups/{group}",
    ):
        assert send("DELETE", path)["deleted"] is True
    assert send("POST", f"{base}/archive", "null")["status"] == "archived"


def test_elastic_collects_usage_the_audit_log_and_rate_limits(send: Send) -> None:
    since = int(now()) - 86_400
    projects = [send("POST", "/organization/projects", f'{{"name":"{name}"}}')["id"] for name in ("a", "b", "c")]

    for name, dimensions in ELASTIC_USAGE.items():
        query = f"bucket_width=1m&group_by={quote(dimensions)}"
        page = send("GET", f"/organization/usage/{name}?{query}&start_time={since}")
        minutes = len(page["data"])
        while page["has_more"]:
            page = send("GET", f"/organization/usage/{name}?{query}&page={quote(page['next_page'])}&start_time={since}")
            minutes += len(page["data"])
        assert 1440 <= minutes <= 1442
    times = f"effective_at%5Bgte%5D={since}&effective_at%5Blte%5D={int(now()) + 1}"
    log = send("GET", f"/organization/audit_logs?limit=100&{times}")
    listed = send("GET", "/organization/projects?include_archived=false&limit=2")
    worklist = listed["data"]
    while listed["has_more"]:
        listed = send("GET", f"/organization/projects?after={listed['last_id']}&include_archived=false&limit=2")
        worklist += listed["data"]
    rates = {one["id"]: send("GET", f"/organization/projects/{one['id']}/rate_limits?limit=100") for one in worklist}

    assert [entry["project.created"]["id"] for entry in log["data"][:3]] == projects[::-1]
    assert rates.keys() >= set(projects)
    assert all(rate["data"] for rate in rates.values())
