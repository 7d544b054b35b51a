"""People of an organization, without an identity provider, and the SDK's client of the admin API."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastapi import FastAPI
from openai import OpenAI
from openai.resources.admin.organization import Organization

from jobs.security import accounts, keys
from jobs.security.accounts import Identity
from tests.support.web import serve

ISSUER = "https://login.example.com"


def identity_of(email: str, groups: Sequence[str] = ()) -> Identity:
    """Return a person whose subject is the address."""
    return Identity(ISSUER, f"subject of {email}", email, email.partition("@")[0].title(), groups)


def add_user(app: FastAPI, email: str, role: str = "reader", projects: Sequence[dict[str, str]] = ()) -> str:
    """Invite an address and log in with it; return the id of the user."""
    with app.state.services.db.write() as session:
        accounts.invite(session, email, role, projects, actor="operator", request_id=None)
        return accounts.log_in(session, identity_of(email), None).id


def admin_key(app: FastAPI, *, owner_id: str | None = None, scopes: Sequence[str] = ()) -> str:
    """Return a new admin key; of the operator, or of a person."""
    with app.state.services.db.write() as session:
        return keys.create_admin_key(session, owner_id=owner_id, scopes=scopes)


@contextmanager
def admin_client(app: FastAPI, key: str) -> Iterator[Organization]:
    """Yield the SDK's admin API with a key."""
    with serve(app) as url, OpenAI(admin_api_key=key, base_url=f"{url}/v1", max_retries=0) as client:
        yield client.admin.organization


def project_id(app: FastAPI, name: str) -> str:
    """Return the id of a project, which is made if it is new."""
    with app.state.services.db.write() as session:
        return keys.ensure_project(session, name).id
