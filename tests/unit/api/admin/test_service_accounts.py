"""Service accounts and their keys, by the official SDK."""

import pytest
from fastapi import FastAPI
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, PermissionDeniedError
from openai.resources.admin.organization import Organization
from sqlalchemy import select

from jobs.ledger.tables import Audit
from jobs.security.keys import create_admin_key


@pytest.fixture
def project(organization: Organization) -> str:
    return organization.projects.create(name="reports").id


def test_new_account_has_a_key_that_opens_its_project(organization: Organization, project: str, url: str) -> None:
    made = organization.projects.service_accounts.create(project, name="nightly", expires_in_seconds=60)

    assert made.api_key is not None
    assert (made.name, made.role, made.object) == ("nightly", "member", "organization.project.service_account")
    assert made.api_key.object == "organization.project.service_account.api_key"
    assert made.api_key.expires_at is not None
    with OpenAI(api_key=made.api_key.value, base_url=url, max_retries=0) as client:
        assert client.files.list().data == []
    shown = organization.projects.api_keys.retrieve(made.api_key.id, project_id=project)
    assert shown.owner.service_account is not None
    assert shown.owner.service_account.id == made.id


def test_account_alone_has_no_key_and_no_permission_until_it_has_a_role(
    organization: Organization, project: str, url: str
) -> None:
    accounts = organization.projects.service_accounts
    made = accounts.create(project, name="later", create_service_account_only=True)
    key = accounts.api_keys.create(made.id, project_id=project, name="k")

    assert (made.api_key, made.role, key.name) == (None, "none", "k")
    with OpenAI(api_key=key.value, base_url=url, max_retries=0) as client, pytest.raises(PermissionDeniedError):
        client.files.list()
    assert accounts.update(made.id, project_id=project, role="owner").role == "owner"
    other = accounts.api_keys.create(made.id, project_id=project, scopes=["api.all.read"])
    with OpenAI(api_key=other.value, base_url=url, max_retries=0) as client:
        assert client.files.list().data == []
        with pytest.raises(PermissionDeniedError):
            client.files.delete("file-x")
    with pytest.raises(BadRequestError):
        accounts.create(project, name="x", create_service_account_only=True, expires_in_seconds=60)


def test_accounts_are_listed_changed_and_deleted_with_their_keys(
    app: FastAPI, organization: Organization, project: str, url: str
) -> None:
    accounts = organization.projects.service_accounts
    made = [accounts.create(project, name=f"a{n}") for n in range(3)]

    listed = [account.id for account in accounts.list(project, limit=2)]
    changed = accounts.update(made[0].id, project_id=project, name="new")
    deleted = accounts.delete(made[0].id, project_id=project)

    assert listed == [account.id for account in made[::-1]]
    assert (changed.name, changed.role) == ("new", "member")
    assert (deleted.id, deleted.deleted, deleted.object) == (
        made[0].id, True, "organization.project.service_account.deleted",
    )  # fmt: skip
    with pytest.raises(NotFoundError):
        accounts.retrieve(made[0].id, project_id=project)
    assert made[0].api_key is not None
    with (
        OpenAI(api_key=made[0].api_key.value, base_url=url, max_retries=0) as client,
        pytest.raises(AuthenticationError, match="revoked"),
    ):
        client.files.list()
    inactive = organization.projects.api_keys.list(project, owner_project_access="inactive").data
    active = organization.projects.api_keys.list(project, owner_project_access="active").data
    assert [key.id for key in inactive] == [made[0].api_key.id]
    assert (len(active), inactive[0].owner_project_access) == (2, "inactive")
    with app.state.services.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == made[0].id).order_by(Audit.id)).all()
    assert actions == ["service_account.create", "service_account.update", "service_account.delete"]


def test_account_of_another_project_is_not_found(organization: Organization, project: str) -> None:
    accounts = organization.projects.service_accounts
    other = organization.projects.create(name="other").id
    made = accounts.create(other, name="theirs")

    for call in (
        lambda: accounts.retrieve(made.id, project_id=project),
        lambda: accounts.update(made.id, project_id=project, name="ours"),
        lambda: accounts.delete(made.id, project_id=project),
        lambda: accounts.api_keys.create(made.id, project_id=project),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert accounts.retrieve(made.id, project_id=other).name == "theirs"


def test_narrow_admin_key_creates_no_wider_key(
    app: FastAPI, organization: Organization, project: str, url: str
) -> None:
    own = ["api.organization.projects.service_accounts.write", "api.files.read"]
    with app.state.services.db.write() as session:
        narrow = create_admin_key(session, scopes=own)
    made = organization.projects.service_accounts.create(project, name="nightly")

    with OpenAI(admin_api_key=narrow, base_url=url, max_retries=0) as client:
        accounts = client.admin.organization.projects.service_accounts
        for call in (
            lambda: accounts.create(project, name="wide"),
            lambda: accounts.update(made.id, project_id=project, role="owner"),
            lambda: accounts.api_keys.create(made.id, project_id=project),
            lambda: accounts.api_keys.create(made.id, project_id=project, scopes=["api.all.read"]),
        ):
            with pytest.raises(PermissionDeniedError):
                call()
        key = accounts.api_keys.create(made.id, project_id=project, scopes=["api.files.read"])

    assert key.value.startswith("nm_")
    assert [account.name for account in organization.projects.service_accounts.list(project)] == ["nightly"]
