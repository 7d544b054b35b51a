"""The audit log of the organization by the SDK: all rows, OpenAI's words, filters and pages."""

from typing import Any, get_args

import pytest
from fastapi import FastAPI
from openai import BadRequestError
from openai.resources.admin.organization import Organization
from openai.types.admin.organization import AuditLogListResponse

from api.admin.audit_logs import TYPES
from jobs.ledger import audit
from jobs.security import keys
from tests.support.organization import add_user, admin_client, admin_key, project_id
from tests.support.query_plans import explained


def record(app: FastAPI, *actions: str, **fields: Any) -> None:
    with app.state.services.db.write() as session:
        for action in actions:
            audit.record(session, **{"actor": "operator", "target": "thing", "action": action, **fields})


def types(entries: Any) -> list[str]:
    return [entry.type for entry in entries]


def test_log_has_the_rows_of_all_projects_and_of_none(app: FastAPI, organization: Organization) -> None:
    project = project_id(app, "Search")
    record(app, "file.create", project_id=project, target="file-1", details={"bytes": 7})
    record(app, "model.probe")

    probe, created, *_ = organization.audit_logs.list()

    assert isinstance(created, AuditLogListResponse)
    assert (probe.type, probe.project) == ("nightmill.model.probe", None)
    assert created.project
    assert (created.type, created.project.id, created.project.name) == ("nightmill.file.create", project, "Search")
    extra = created.model_extra or {}
    assert extra["nightmill.file.create"] == {"id": "file-1", "bytes": 7}
    assert extra["nightmill"]["action"] == "file.create"


def test_calls_of_the_admin_api_have_openais_types_and_payloads(app: FastAPI, organization: Organization) -> None:
    project = project_id(app, "Search")
    invite = organization.invites.create(email="ada@example.com", role="reader", projects=[])
    group = organization.groups.create(name="Search")
    organization.groups.update(group.id, name="Research")
    role = organization.projects.roles.create(project, role_name="Files", permissions=["api.files.read"])
    organization.projects.groups.roles.create(group.id, project_id=project, role_id=role.id)
    organization.groups.delete(group.id)

    deleted, assigned, made, renamed, created, sent, *_ = organization.audit_logs.list()

    entries: list[Any] = [
        sent.invite_sent, created.group_created, renamed.group_updated, made.role_created,
        assigned.role_assignment_created, deleted.group_deleted,
    ]  # fmt: skip
    assert [entry.id for entry in entries] == [invite.id, group.id, group.id, role.id, role.id, group.id]
    assert entries[0].data.email == "ada@example.com"
    assert entries[1].data.group_name == "Search"
    assert entries[2].changes_requested.group_name == "Research"
    assert (entries[3].role_name, entries[3].permissions) == ("Files", ["api.files.read"])
    assert (entries[4].principal_id, entries[4].resource_id) == (group.id, project)


def test_actor_is_the_key_with_its_owner_or_a_session(app: FastAPI, organization: Organization) -> None:
    user_id = add_user(app, "ada@example.com", "owner")
    key = admin_key(app, owner_id=user_id)
    with admin_client(app, key) as own:
        own.groups.create(name="Search")
    record(app, "model.probe")

    probe, created, *_ = (entry.model_dump() for entry in organization.audit_logs.list())
    [login] = [entry.model_dump() for entry in organization.audit_logs.list(event_types=["login.succeeded"])]

    person = {"id": user_id, "email": "ada@example.com"}
    assert (created["actor"]["type"], created["actor"]["api_key"]["type"]) == ("api_key", "user")
    assert created["actor"]["api_key"]["id"] == f"key_{keys.id_of(key)}"
    assert created["actor"]["api_key"]["user"] == person
    assert (probe["actor"]["type"], probe["actor"]["session"]["user"]["id"]) == ("session", "operator")
    assert login["actor"]["session"]["user"] == person


def test_log_is_filtered_by_type_actor_project_resource_and_time(app: FastAPI, organization: Organization) -> None:
    project = project_id(app, "Search")
    user_id = add_user(app, "ada@example.com", "owner")
    with admin_client(app, admin_key(app, owner_id=user_id)) as own:
        group = own.groups.create(name="Search")
    record(app, "file.delete", project_id=project, target="file-1")
    logs = organization.audit_logs

    assert types(logs.list(event_types=["resource.deleted"])) == ["resource.deleted"]
    assert types(logs.list(extra_query={"event_types": "nightmill.never,group.created"})) == ["group.created"]
    assert types(logs.list(event_types=["tenant.metadata.updated"])) == []
    assert "group.created" in types(logs.list(actor_ids=[user_id]))
    assert set(types(logs.list(actor_emails=["Ada@example.com"]))) >= {"group.created", "login.succeeded", "user.added"}
    assert types(logs.list(project_ids=[project])) == ["resource.deleted"]
    assert types(logs.list(resource_ids=[group.id])) == ["group.created"]
    assert types(logs.list(effective_at={"gt": 1 << 39})) == []
    assert types(logs.list(effective_at={"lt": 1})) == []
    assert "group.created" in types(logs.list(effective_at={"gte": 1, "lte": 1 << 39}))
    assert types(logs.list(tenant_only=True)) == []


def test_log_is_paged_forwards_and_backwards(app: FastAPI, organization: Organization) -> None:
    record(app, *(f"step.{number}" for number in range(5)))
    logs = organization.audit_logs

    everything = [entry.id for entry in logs.list(limit=2)]
    page = logs.list(limit=2, after=everything[0])
    before = logs.list(limit=2, before=everything[2])

    assert len(everything) == len(set(everything)) >= 5
    assert [entry.id for entry in page.data] == everything[1:3]
    assert [entry.id for entry in before.data] == everything[:2]
    with pytest.raises(BadRequestError) as refused:
        logs.list(after="audit_log-x")
    assert refused.value.code == "invalid_cursor"


def test_rows_of_a_time_are_read_from_a_single_range_of_an_index(app: FastAPI, organization: Organization) -> None:
    record(app, *(f"step.{number}" for number in range(5)))
    logs = organization.audit_logs
    past: Any = {"gte": 1, "lt": 1 << 39}

    with explained(app.state.services.db) as steps:
        first = logs.list(limit=2, effective_at=past)
    reads = [step for step in steps if " audit " in step]
    everything = [entry.id for entry in logs.list()]

    assert reads == ["SEARCH audit USING INDEX ix_audit_at_id (at>? AND at<?)"]
    assert not any("TEMP B-TREE" in step for step in steps)
    assert [entry.id for entry in first] == everything
    before = logs.list(limit=2, effective_at=past, before=everything[2])
    assert [entry.id for entry in before.data] == everything[:2]


def test_every_type_of_the_table_belongs_to_the_sdk() -> None:
    assert set(TYPES.values()) <= set(get_args(AuditLogListResponse.model_fields["type"].annotation))
