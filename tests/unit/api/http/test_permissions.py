"""Each route below /v1 requires the permission of its area, and takes either admin keys or keys of projects."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from api.inference import response_connections
from jobs.security.keys import create_admin_key, create_key
from jobs.security.permissions import AREAS
from tests.unit.api.calls import Route, routes, takes_admin_key
from tests.unit.api.conftest import client_of

MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client(app: FastAPI) -> MakeClient:
    """Return a function that makes a client with a key of these scopes, of a project or an admin key."""

    def make(*scopes: str, admin: bool = False) -> TestClient:
        with app.state.services.db.write() as session:
            key = create_admin_key(session, scopes=scopes) if admin else create_key(session, "default", scopes=scopes)
        return client_of(app, key)

    return make


def areas(app: FastAPI) -> dict[Route, str]:
    """Return the area of each route below /v1 that the OpenAPI document has."""
    found = {}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema and route.path.startswith("/v1"):
            named = [getattr(each.dependency, "area", None) for each in route.dependencies]
            for method in route.methods:
                found[Route(method, route.path_format)] = next(name for name in named if name is not None)
    return found


def missing_permission(answer: Any) -> str | None:
    """Return the permission that an answer says is missing; None for another answer."""
    error = answer.json()["error"] if answer.status_code == 403 else {"message": ""}
    _, named, permission = str(error["message"]).partition("Missing scopes: ")
    if not named:
        return None
    assert (error["type"], error["code"]) == ("invalid_request_error", "missing_scope")
    return permission.rstrip(".")


def verb_of(route: Route, area: str) -> str:
    if route.method == "GET":
        return "read"
    return "request" if route.method == "POST" and area in ("model", "rerank") else "write"


def test_every_route_belongs_to_an_area(app: FastAPI) -> None:
    found = areas(app)

    assert set(found) == set(routes(app))
    assert set(found.values()) <= set(AREAS)
    assert response_connections.note_permission.__dict__["area"] == "responses"


def test_route_refuses_each_key_that_lacks_its_permission(app: FastAPI, make_client: MakeClient) -> None:
    found = areas(app)
    readers, writers = (
        {admin: make_client(*scopes, admin=admin) for admin in (False, True)}
        for scopes in (["api.all.read"], ["api.all.write", "api.all.request"])
    )
    others = {
        (area, admin): make_client("api.files.read" if area != "files" else "api.batch.read", admin=admin)
        for area, admin in {(area, takes_admin_key(app, route)) for route, area in found.items()}
    }

    for route, area in found.items():
        admin, permission = takes_admin_key(app, route), f"api.{area}.{verb_of(route, area)}"
        clients = (readers[admin], writers[admin], others[area, admin])
        is_refused = [missing_permission(route.call(client)) == permission for client in clients]
        is_read = route.method == "GET"
        assert is_refused == [not is_read, is_read, True], route


def test_admin_key_opens_no_project_and_the_key_of_a_project_administers_nothing(
    app: FastAPI, make_client: MakeClient
) -> None:
    keys = {admin: make_client(admin=admin) for admin in (False, True)}

    for route in routes(app):
        admin = takes_admin_key(app, route)
        refused = route.call(keys[not admin])
        assert refused.status_code == 403, route
        assert refused.json()["error"]["code"] == ("admin_key_required" if admin else "admin_key_not_allowed"), route


def test_key_without_scopes_has_the_permissions_of_a_member(app: FastAPI, make_client: MakeClient) -> None:
    member = make_client()

    for route in routes(app):
        if not takes_admin_key(app, route) and "api_keys" not in route.path:
            assert route.call(member).status_code != 403, route


def test_connection_for_responses_needs_their_permission(make_client: MakeClient) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as denial,
        make_client("api.responses.read").websocket_connect("/v1/responses"),
    ):
        pass

    assert missing_permission(denial.value) == "api.responses.write"
