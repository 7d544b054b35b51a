"""The official SDK with an admin key, and a project to administer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from openai import OpenAI
from openai.resources.admin.organization import Organization
from sqlalchemy import select

from jobs.ledger.tables import Audit
from jobs.security import keys
from jobs.security.tables import ApiKey
from tests.support.web import make_key, serve
from tests.unit.api.conftest import client_of


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve(app) as url:
        yield f"{url}/v1"


@pytest.fixture
def organization(app: FastAPI, url: str) -> Iterator[Organization]:
    with app.state.services.db.write() as session:
        key = keys.create_admin_key(session, name="first")
    with OpenAI(admin_api_key=key, base_url=url, max_retries=0) as client:
        yield client.admin.organization


@dataclass(frozen=True)
class AdministeredProject:
    """A project of an app with an admin key. `projects` is the SDK's, `http` sends what the SDK would not."""

    app: FastAPI
    sdk: OpenAI
    http: Any
    project_id: str
    client: Any  # of the project

    @property
    def projects(self) -> Any:
        return self.sdk.admin.organization.projects

    def audited(self, action: str) -> list[dict[str, Any] | None]:
        """Return the details of the audit rows of an action."""
        with self.app.state.services.db.read() as session:
            rows = select(Audit).where(Audit.action == action).order_by(Audit.id)
            assert all(row.actor.startswith("key:") for row in session.scalars(rows))
            return [row.details for row in session.scalars(rows)]


@pytest.fixture
def administered(app: FastAPI) -> Iterator[AdministeredProject]:
    key = make_key(app, "acme")
    with app.state.services.db.write() as session:
        admin_key = keys.create_admin_key(session, name="admin")
        project_id = session.get_one(ApiKey, keys.id_of(key)).project_id
    http = client_of(app, admin_key)
    with OpenAI(admin_api_key=admin_key, base_url="http://testserver/v1", http_client=http, max_retries=0) as sdk:
        yield AdministeredProject(app, sdk, http, project_id, client_of(app, key))
