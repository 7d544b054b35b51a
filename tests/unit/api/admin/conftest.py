"""The official SDK's client of the admin API, with an admin key of the command."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from openai import OpenAI
from openai.resources.admin.organization import Organization

from jobs.security.keys import create_admin_key
from tests.support.web import serve


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve(app) as url:
        yield f"{url}/v1"


@pytest.fixture
def organization(app: FastAPI, url: str) -> Iterator[Organization]:
    with app.state.services.db.write() as session:
        key = create_admin_key(session, name="first")
    with OpenAI(admin_api_key=key, base_url=url, max_retries=0) as client:
        yield client.admin.organization
